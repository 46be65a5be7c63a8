"""A small run of the hostile benchmark, against the app whose weights are stood in for."""

import asyncio
import random
import threading
import time
from collections import Counter

import httpx
import pytest
import uvicorn

from benchmarks.service.hostile import Seen, is_expected, send_all
from benchmarks.service.hostile_files import FILE_KINDS
from benchmarks.service.hostile_requests import KINDS, Attack, Known, attacks, request
from service.edge.http_protocol import guarded_http
from service.keys.key_store import SCOPES, KeyStore
from tests.helpers.service_standins import ASKED, stand_in_app

EVERY_KIND = {**KINDS, **FILE_KINDS}
KNOWN = Known("wg_0123456789ab_" + "s" * 43, "a" * 64)


@pytest.fixture
def served(tmp_path):
    """The port of a server, what an attacker knows, and the folder that nobody should be told of."""
    app, run = stand_in_app(tmp_path, max_request_seconds=2, max_requests_per_key_per_minute=10**6)
    keys = KeyStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    token, _ = keys.make("attacker", SCOPES)
    keys.close()
    config = uvicorn.Config(app, port=0, log_config=None, http=guarded_http(max_request_seconds=2, max_connections=99))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    made = httpx.post(
        f"http://127.0.0.1:{port}/v1/generations", json=ASKED, headers={"Authorization": f"Bearer {token}"}
    )
    yield port, Known(token, made.json()["result"]["artifact"]), tmp_path
    server.should_exit = True
    thread.join()
    assert len(run.runs) == 1  # the attacks had nothing made


def test_every_hostile_request_is_refused_and_none_learns_anything(served):
    port, known, folder = served
    seen, rng = Seen(), random.Random(0)
    found = [make(rng, known) for _, make in KINDS.values() for _ in range(15)]
    found += [make(rng, known) for _, make in FILE_KINDS.values() for _ in range(2)]
    asyncio.run(send_all(port, found, seen, secrets=[known.token.split("_", 2)[2], str(folder)]))
    assert (seen.num_faults, seen.faults) == (0, [])
    assert sum(sum(counts.values()) for counts in seen.statuses.values()) == len(found)
    assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200


def test_attacks_are_the_same_for_the_same_seed():
    first, second, other = (list(attacks(60, KNOWN, seed=seed, kinds=EVERY_KIND)) for seed in (0, 0, 1))
    assert first == second != other and len(first) == 60


def test_attacks_are_of_every_kind_as_often_as_it_says():
    found = Counter(attack.kind for attack in attacks(500, KNOWN, kinds=KINDS))
    assert set(found) == set(KINDS) and found["malformed json"] > found["ranges"]


@pytest.mark.parametrize(
    ("status", "silent", "succeed", "is_fine"),
    [
        ("404", False, False, True),
        ("200", False, False, False),
        ("200", False, True, True),
        ("500", True, True, False),
        ("503", True, True, False),
        ("none", False, True, False),
        ("none", True, False, True),
        ("hung", True, True, False),
    ],
)
def test_what_may_come_back_is_a_refusal(status, silent, succeed, is_fine):
    assert is_expected(Attack("x", b"", may_be_silent=silent, may_succeed=succeed), status) == is_fine


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 404 Not Found\r\n\r\nno file /srv/data/x",
        b"HTTP/1.1 400 Bad\r\nX-Injected: 1\r\n\r\n",
        b'HTTP/1.1 400 Bad\r\n\r\nTraceback (most recent call last):\n  File "x.py"',
        b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
        b"SSH-2.0",
        b"",
    ],
    ids=["path", "header", "traceback", "bug", "no http", "nothing"],
)
def test_an_answer_that_tells_too_much_is_found(answer):
    seen = Seen()
    seen.add(Attack("x", b"sent"), answer, secrets=["/srv/data"])
    assert seen.num_faults >= 1 and seen.faults[0].startswith("x: ")


def test_a_request_says_how_long_its_body_is():
    assert request(None, "POST", "/v1/x", b"{}").endswith(
        b"Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
