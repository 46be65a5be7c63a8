"""Keys are told once, kept hashed, scoped, revoked for good; their requests are drawn from a bucket all share."""

import sqlite3
import threading
from contextlib import closing

import pytest

from service.keys.key_store import DAY_SECONDS, LAST_USED_SECONDS, Key, KeyStore, parse_key
from weightgen.errors import BadOption, NotFound


@pytest.fixture
def store(tmp_path, clock):
    store = KeyStore(f"sqlite:///{tmp_path}/jobs.sqlite", clock=clock)
    store.migrate()
    yield store
    store.close()


def find(store: KeyStore, text: str) -> Key:
    parts = parse_key(text)
    assert parts is not None
    key = store.find(parts[0])
    assert key is not None
    return key


def test_a_key_is_known_by_its_secret_alone_and_the_secret_is_not_kept(store, tmp_path):
    text, key = store.make("ci", ["read", "generate"])
    other, _ = store.make("ci", ["read"])
    parts, other_parts = parse_key(text), parse_key(other)
    assert parts is not None and other_parts is not None and parts[0] == key.id
    assert find(store, text).has_secret(parts[1]) and not find(store, text).has_secret(other_parts[1])
    assert key.scopes == {"read", "generate"} and key.name == "ci" and key.is_active(store.clock())
    store.close()
    written = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert key.id.encode() in written and parts[1].encode() not in written


@pytest.mark.parametrize("text", ["", "wg_", "wg_0123456789ab_short", "hf_abc", "wg_0123456789AB_" + "a" * 43])
def test_what_is_not_of_the_form_of_a_key_is_none(text):
    assert parse_key(text) is None
    assert parse_key("wg_0123456789ab_" + "a" * 43 + "\n") is None


@pytest.mark.parametrize(
    ("name", "scopes", "days", "sentence"),
    [
        ("", ["read"], None, "name is '', expected at most 64"),
        ("two words", ["read"], None, "name is 'two words'"),
        ("ci", [], None, "scopes read, generate, upload; got none"),
        ("ci", ["read", "admin"], None, "got 'admin'"),
        ("ci", ["read"], 0.0, "expires_days is 0, expected more than 0"),
        ("ci", ["read"], float("nan"), "expires_days is nan"),
        ("ci", ["read"], 1e9, "expires_days is 1e"),
    ],
)
def test_a_key_that_cannot_be_is_refused_and_not_made(store, name, scopes, days, sentence):
    with pytest.raises(BadOption, match=sentence):
        store.make(name, scopes, expires_days=days)
    assert store.list() == [] and not store.exist()


def test_a_revoked_key_stays_and_keeps_the_door_closed(store, clock):
    _, key = store.make("ci", ["read"])
    assert store.has_active()
    first = store.revoke(key.id)
    clock.now += 5
    assert store.revoke(key.id) == first and first.revoked == clock.now - 5
    assert store.exist() and not store.has_active() and [k.id for k in store.list()] == [key.id]
    with pytest.raises(NotFound, match="there is no key '000000000000'"):
        store.revoke("000000000000")


def test_a_key_ends_when_it_expires(store, clock):
    text, _ = store.make("ci", ["read"], expires_days=1)
    assert find(store, text).is_active(clock.now + DAY_SECONDS - 1)
    assert not find(store, text).is_active(clock.now + DAY_SECONDS)


def test_the_last_use_is_written_down_coarsely(store, clock):
    text, _ = store.make("ci", ["read"])
    first = clock.now
    assert find(store, text).last_used is None and find(store, text).last_used == first
    clock.now += LAST_USED_SECONDS
    assert find(store, text) and find(store, text).last_used == first
    clock.now += 1
    assert find(store, text) and find(store, text).last_used == clock.now


def test_the_use_of_a_revoked_key_is_not_written_down(store):
    text, key = store.make("ci", ["read"])
    store.revoke(key.id)
    assert find(store, text).last_used is None and find(store, text).last_used is None


def test_a_bucket_holds_a_minute_of_requests_and_fills_at_that_rate(store, clock):
    _, key = store.make("ci", ["read"])
    assert store.draw_requests(key.id, per_minute=60, at_most=50) == (50, 0.0)
    assert store.draw_requests(key.id, per_minute=60, at_most=50) == (10, 0.0)
    assert store.draw_requests(key.id, per_minute=60, at_most=50) == (0, 1.0)
    clock.now += 0.75
    assert store.draw_requests(key.id, per_minute=60, at_most=50) == (0, 0.25)
    clock.now += 2
    assert store.draw_requests(key.id, per_minute=60, at_most=50) == (2, 0.0)
    clock.now += 3600
    assert store.draw_requests(key.id, per_minute=60, at_most=500) == (60, 0.0)


def test_a_clock_that_goes_back_takes_nothing_away(store, clock):
    _, key = store.make("ci", ["read"])
    store.draw_requests(key.id, per_minute=60, at_most=59)
    clock.now -= 1000
    assert store.draw_requests(key.id, per_minute=60, at_most=50) == (1, 0.0)


def test_stores_that_draw_at_once_never_draw_more_than_there_is(tmp_path, clock):
    stores = [KeyStore(f"sqlite:///{tmp_path}/jobs.sqlite", clock=clock) for _ in range(4)]
    stores[0].migrate()
    _, key = stores[0].make("ci", ["read"])
    drawn: list[int] = []

    def draw(store: KeyStore) -> None:
        for _ in range(10):
            drawn.append(store.draw_requests(key.id, per_minute=100, at_most=7)[0])

    threads = [threading.Thread(target=draw, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for store in stores:
        store.close()
    assert sum(drawn) == 100


def test_a_key_of_a_scope_this_version_does_not_know_is_read(store, tmp_path):
    _, key = store.make("ci", ["read"])
    with closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as database, database:
        database.execute('UPDATE api_keys SET scopes = \'["read", "other"]\'')
    assert store.list()[0].scopes == {"read", "other"} and store.list()[0].id == key.id
