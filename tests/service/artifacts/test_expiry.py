import contextlib
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.artifacts.artifact_store import ArtifactStore, open_store
from service.artifacts.expiry import EVERY_SECONDS, Expiry
from service.errors import StoreFull
from service.jobs.job_store import JobStore
from tests.helpers.service_standins import ASKED, stand_in_app
from tests.helpers.upload_samples import npz_bytes, some_images, some_uploads, upload

HOUR = 3600.0


class Clock:
    """Says another time than it is."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.time() + self.ahead


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return open_store(tmp_path / "artifacts")


@pytest.fixture
def jobs(tmp_path, clock):
    jobs = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}", clock=clock)
    jobs.migrate()
    yield jobs
    jobs.close()


@pytest.fixture
def expiry(store, jobs, clock, tmp_path) -> Expiry:
    return Expiry(store, jobs, lock=tmp_path / "expiry.lock", keep_seconds=HOUR, clock=clock)


def add(store: ArtifactStore, folder: Path, content: bytes = b"{}") -> str:
    folder.mkdir()
    (folder / "config.json").write_bytes(content)
    return store.add(folder)


def succeed(jobs: JobStore, artifact: str, digest: str = "0" * 64) -> str:
    job, _ = jobs.submit({}, digest=digest, max_queued=10)
    jobs.claim("runner", lease_seconds=60)
    assert jobs.finish(job.id, "runner", {"artifact": artifact})
    return job.id


def test_what_is_unused_for_long_goes_with_its_jobs_and_what_is_used_stays(expiry, store, jobs, clock, tmp_path):
    old, used = add(store, tmp_path / "old", b"1"), add(store, tmp_path / "used", b"2")
    succeed(jobs, old)
    assert expiry.expire() == 0 and store.exists(old)
    clock.ahead = 2 * HOUR
    listing = next((tmp_path / "artifacts").rglob(f"{used}.json"))
    os.utime(listing, (clock(), clock()))
    assert expiry.expire() == 1
    assert not store.exists(old) and store.exists(used) and jobs.count()["succeeded"] == 0


def test_an_artifact_that_a_newer_job_names_stays_and_so_does_the_job(expiry, store, jobs, clock, tmp_path):
    sha = add(store, tmp_path / "made")
    clock.ahead = 2 * HOUR
    succeed(jobs, sha)
    assert expiry.expire() == 0 and store.exists(sha) and jobs.count()["succeeded"] == 1
    clock.ahead = 4 * HOUR
    assert expiry.expire() == 1 and not store.exists(sha) and jobs.count()["succeeded"] == 0


def test_the_job_is_forgotten_before_the_artifact_goes(expiry, store, jobs, clock, tmp_path, monkeypatch):
    sha = add(store, tmp_path / "made")
    succeed(jobs, sha)
    clock.ahead = 2 * HOUR
    seen, delete = [], store.delete_unused

    def watch(sha: str, *, since: float) -> bool:
        seen.append(jobs.count()["succeeded"])
        return delete(sha, since=since)

    monkeypatch.setattr(store, "delete_unused", watch)
    assert expiry.expire() == 1 and seen == [0]


def test_an_artifact_that_is_added_again_at_the_last_moment_stays(expiry, store, jobs, clock, tmp_path, monkeypatch):
    sha = add(store, tmp_path / "made")
    since, let_go_of = clock() + 1, jobs.let_go_of
    clock.ahead = 1 + HOUR

    def add_late(*args, **kwargs):
        add(store, tmp_path / "again")
        listing = next((tmp_path / "artifacts").rglob(f"{sha}.json"))
        os.utime(listing, (since + 60, since + 60))
        return let_go_of(*args, **kwargs)

    monkeypatch.setattr(jobs, "let_go_of", add_late)
    assert expiry.expire() == 0 and store.exists(sha)


def test_nothing_expires_where_all_is_kept(store, jobs, clock, tmp_path):
    sha = add(store, tmp_path / "made")
    expiry = Expiry(store, jobs, lock=tmp_path / "expiry.lock", keep_seconds=0, clock=clock)
    clock.ahead = 10_000 * HOUR
    assert expiry.expire() == 0 and store.exists(sha)


def test_of_several_that_expire_at_once_one_does(expiry, store, jobs, clock, tmp_path, monkeypatch):
    add(store, tmp_path / "made")
    clock.ahead = 2 * HOUR
    other = Expiry(store, jobs, lock=tmp_path / "expiry.lock", keep_seconds=HOUR, clock=clock)
    inside, go_on, list_all = threading.Event(), threading.Event(), store.list_all

    def list_slowly():
        inside.set()
        go_on.wait()
        return list_all()

    monkeypatch.setattr(store, "list_all", list_slowly)
    removed: list[int] = []
    thread = threading.Thread(target=lambda: removed.append(expiry.expire()))
    thread.start()
    inside.wait()
    assert other.expire() == other.sweep() == 0
    go_on.set()
    thread.join()
    assert removed == [1]


def test_orphans_of_every_store_are_swept(store, jobs, tmp_path):
    others = open_store(tmp_path / "datasets")
    kept = [add(place, tmp_path / "made") for place in (store, others)]
    orphans = []
    for root, sha in zip(("artifacts", "datasets"), kept, strict=True):
        folder = tmp_path / root / sha[:2]
        lone = sha[:2] + "0" * 62
        (folder / f"{lone}.json").write_bytes(b"[]")
        (folder / (sha[:2] + "1" * 62)).mkdir()
        (folder / f".{sha}.00000000.partial").mkdir()
        (folder / f".{sha}.00000000.removed").mkdir()
        (folder / "notes.txt").write_bytes(b"")
        orphans += [p for p in folder.iterdir() if p.name not in (sha, f"{sha}.json", "notes.txt")]
    expiry = Expiry(store, jobs, lock=tmp_path / "expiry.lock", keep_seconds=0, datasets=others)
    assert expiry.sweep() == len(orphans) == 8
    assert not any(path.exists() for path in orphans) and store.exists(kept[0]) and others.exists(kept[1])


def test_a_started_one_expires_at_once_and_survives_a_store_that_is_away(store, jobs, clock, tmp_path, monkeypatch):
    sha = add(store, tmp_path / "made")
    clock.ahead = 2 * HOUR
    monkeypatch.setattr("service.artifacts.expiry.EVERY_SECONDS", 0.01)
    expiry = Expiry(store, jobs, lock=tmp_path / "expiry.lock", keep_seconds=HOUR, clock=clock)
    calls, list_all = [], store.list_all

    def fail_once():
        calls.append(1)
        if len(calls) == 1:
            raise OSError("away")
        return list_all()

    monkeypatch.setattr(store, "list_all", fail_once)
    expiry.start()
    while store.exists(sha):
        time.sleep(0.01)
    expiry.stop()
    assert len(calls) > 1 and EVERY_SECONDS == HOUR


def test_a_full_service_answers_507_until_old_artifacts_expire(tmp_path):
    settings = {"max_stored_bytes": 1300, "keep_artifacts_seconds": HOUR}
    app, _ = stand_in_app(tmp_path, **settings)
    with TestClient(app) as client:
        first = client.post("/v1/generations", json=ASKED).json()["result"]["artifact"]
        full = client.post("/v1/generations", json={**ASKED, "seed": 1})
        assert (full.status_code, full.json()["type"]) == (507, "urn:weightgen:problem:storage-full")
        assert "of 1300 bytes are stored" in full.json()["detail"] and str(tmp_path) not in full.text
        hub = client.get("/hf/gen/cnn-tiny.digits.mip.s1/resolve/main/config.json")
        assert hub.status_code == 507 and "bytes are stored" in hub.headers["x-error-message"]
    os.utime(next((tmp_path / "artifacts").rglob(f"{first}.json")), (1, 1))
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.sqlite")) as database, database:
        database.execute("UPDATE jobs SET updated = 1 WHERE state = 'succeeded'")
    app, _ = stand_in_app(tmp_path, **settings)
    with TestClient(app) as client:
        while client.get(f"/v1/artifacts/{first}").status_code == 200:
            time.sleep(0.01)
        assert client.post("/v1/generations", json={**ASKED, "seed": 1}).status_code == 201
        assert client.post("/v1/generations", json=ASKED).status_code == 507


def test_a_data_set_that_nobody_asks_for_goes_and_one_that_is_asked_for_stays(store, jobs, clock, tmp_path):
    uploads = some_uploads(tmp_path)
    images, labels = some_images()
    old, used = (upload(uploads, npz_bytes(x=x, y=labels)) for x in (images, 255 - images))
    expiry = Expiry(
        store,
        jobs,
        lock=tmp_path / "expiry.lock",
        keep_seconds=0,
        datasets=uploads.store,
        keep_datasets_seconds=HOUR,
        clock=clock,
    )
    assert expiry.expire() == 0
    long_ago = time.time() - 3 * HOUR
    for listing in (tmp_path / "datasets").rglob("*.json"):
        if listing.parent.parent == tmp_path / "datasets":
            os.utime(listing, (long_ago, long_ago))
    uploads.check(used)
    assert expiry.expire() == 1
    assert not uploads.exists(old) and uploads.exists(used)


def test_uploads_that_fill_the_store_are_refused_until_unused_ones_go(store, jobs, clock, tmp_path):
    uploads = some_uploads(tmp_path)
    images, labels = some_images()
    first = upload(uploads, npz_bytes(x=images, y=labels))
    uploads.store.max_stored_bytes = uploads.store.size() + 100
    lock = tmp_path / "expiry.lock"
    Expiry(
        store, jobs, lock=lock, keep_seconds=0, datasets=uploads.store, keep_datasets_seconds=HOUR, clock=clock
    )  # fmt: skip
    with pytest.raises(StoreFull, match="which leaves no room"):
        upload(uploads, npz_bytes(x=255 - images, y=labels))
    clock.ahead = 2 * HOUR
    second = upload(uploads, npz_bytes(x=255 - images, y=labels))
    assert not uploads.exists(first) and uploads.exists(second)
