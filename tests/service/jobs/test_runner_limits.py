"""Runners outlive a database that goes away, and jobs that take too long."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from service.jobs.job_store import Job, JobStore
from service.jobs.runner import JobLost, Progress, Runner

PATIENCE_SECONDS = 60.0


@pytest.fixture
def store(database_url):
    store = JobStore(database_url)
    store.migrate()
    yield store
    store.close()


@contextmanager
def running(store: JobStore, run: Callable[[dict[str, Any], Progress], dict[str, Any]], **given: Any) -> Iterator[None]:
    runner = Runner(store, run, **{"threads": 1, "lease_seconds": 30, **given})
    runner.start()
    try:
        yield
    finally:
        runner.stop(PATIENCE_SECONDS)


def submit(store: JobStore, digest: str) -> Job:
    return store.submit({"seed": digest}, digest=digest, max_queued=100)[0]


def wait_for(store: JobStore, job: Job, state: str) -> Job:
    end = time.monotonic() + PATIENCE_SECONDS
    while (found := store.get(job.id)).state != state:
        assert time.monotonic() < end, f"the job is {found.state}, not {state}"
        time.sleep(0.01)
    return found


def test_a_job_that_takes_too_long_fails_and_its_thread_goes_on_with_the_next(store):
    given_up = threading.Event()

    def run(request, progress):
        while request["seed"] == "endless":
            try:
                progress("generate", 0, 1)
            except JobLost:
                given_up.set()
                raise
            time.sleep(0.01)
        return {}

    endless, after = submit(store, "endless"), submit(store, "b")
    with running(store, run, max_job_seconds=0.2):
        failed = wait_for(store, endless, "failed")
        assert given_up.wait(PATIENCE_SECONDS)
        wait_for(store, after, "succeeded")
    assert failed.problem is not None and failed.problem["type"] == "urn:weightgen:problem:took-too-long"
    assert failed.problem["detail"].startswith("the job ran for over 0.2 seconds, which is all that one may")


def test_what_a_job_made_is_written_down_once_the_database_answers_again(store, monkeypatch):
    finish, asked = store.finish, []

    def finish_late(*given):
        asked.append(given)
        if len(asked) < 3:
            raise OperationalError("UPDATE jobs", {}, Exception("gone"))
        return finish(*given)

    monkeypatch.setattr(store, "finish", finish_late)
    monkeypatch.setattr("service.jobs.runner.RETRY_SECONDS", 0.01)
    runs = []
    job = submit(store, "a")
    with running(store, lambda request, progress: runs.append(request) or {"x": 1}):
        assert wait_for(store, job, "succeeded").result == {"x": 1}
    assert len(runs) == 1 and len(asked) == 3


def test_stopping_does_not_fail_when_the_database_is_away(store, monkeypatch, caplog):
    begun, go_on = threading.Event(), threading.Event()

    def run(request, progress):
        begun.set()
        go_on.wait(PATIENCE_SECONDS)
        return {}

    def release(*given):
        raise OperationalError("UPDATE jobs", {}, Exception("gone"))

    monkeypatch.setattr(store, "release", release)
    submit(store, "a")
    runner = Runner(store, run, threads=1, lease_seconds=30)
    runner.start()
    assert begun.wait(PATIENCE_SECONDS)
    runner.stop(0)
    go_on.set()
    runner.stop(PATIENCE_SECONDS)
    assert "the job database does not answer" in caplog.text


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_a_job_runs_on_and_ends_once_while_postgresql_restarts(postgres, how):
    store = JobStore(postgres.make_database())
    store.migrate()
    begun, go_on, runs = threading.Event(), threading.Event(), []

    def run(request, progress):
        runs.append(request["seed"])
        begun.set()
        go_on.wait(PATIENCE_SECONDS)
        return {"made": request["seed"]}

    held, waiting = submit(store, "a"), submit(store, "b")
    with running(store, run):
        assert begun.wait(PATIENCE_SECONDS)
        postgres.stop(how)
        go_on.set()
        with pytest.raises(OperationalError):
            store.count()
        postgres.start()
        ended = [wait_for(store, job, "succeeded") for job in (held, waiting)]
    store.close()
    assert [(job.result, job.attempt) for job in ended] == [({"made": "a"}, 1), ({"made": "b"}, 1)]
    assert runs == ["a", "b"]
