"""Jobs are run once in effect: through faults, cancelling, stopping, lost leases and SIGKILL."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from service.jobs.job_store import Job, JobStore
from service.jobs.runner import Batching, JobLost, Outcome, Progress, Run, Runner, Task
from tests.helpers.paths import ROOT
from weightgen.errors import UnsupportedTask

PATIENCE_SECONDS = 60.0
"""Far more than anything here takes on a machine that is not asked for ten other things at once."""


@pytest.fixture
def url(database_url) -> str:
    return database_url


@pytest.fixture
def store(url):
    store = JobStore(url)
    store.migrate()
    yield store
    store.close()


@contextmanager
def running(store: JobStore, run: Run, *, threads: int = 1, lease_seconds: float = 30) -> Iterator[Runner]:
    runner = Runner(store, run, threads=threads, lease_seconds=lease_seconds)
    runner.start()
    try:
        yield runner
    finally:
        runner.stop(PATIENCE_SECONDS)


def submit(store: JobStore, digest: str = "a") -> Job:
    return store.submit({"seed": digest}, digest=digest, max_queued=100)[0]


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end, "it has not come to pass"
        time.sleep(0.01)


def wait_for(store: JobStore, job: Job, state: str) -> Job:
    wait_until(lambda: store.get(job.id).state == state)
    return store.get(job.id)


def test_accepted_jobs_are_run_in_their_order(store):
    jobs, seen = [submit(store, digest) for digest in "bca"], []
    with running(store, lambda request, progress: seen.append(request["seed"]) or {"made": request["seed"]}):
        wait_for(store, jobs[2], "succeeded")
    assert seen == ["b", "c", "a"]
    assert [store.get(job.id).result for job in jobs] == [{"made": "b"}, {"made": "c"}, {"made": "a"}]


def test_an_error_of_the_library_is_the_jobs_problem(store):
    def run(request, progress):
        raise UnsupportedTask("the generator was not trained for this")

    job = submit(store)
    with running(store, run):
        failed = wait_for(store, job, "failed")
    assert failed.problem is not None
    assert failed.problem["type"] == "urn:weightgen:problem:unsupported"
    assert failed.problem["detail"] == "the generator was not trained for this"


def test_a_bug_fails_its_job_without_a_word_of_the_inside_and_the_next_job_runs(store, caplog):
    def run(request, progress):
        return {"x": 1 // (request["seed"] != "a")}

    bad, good = submit(store, "a"), submit(store, "b")
    with running(store, run):
        failed = wait_for(store, bad, "failed")
        wait_for(store, good, "succeeded")
    assert failed.problem is not None
    assert failed.problem["type"] == "urn:weightgen:problem:internal"
    assert failed.problem["detail"] == "the server failed while it ran this job; its log says why"
    assert "ZeroDivisionError" in caplog.text


def test_progress_is_seen_while_the_job_runs(store):
    go_on = threading.Event()

    def run(request, progress):
        progress("generate", 1, 3)
        go_on.wait(PATIENCE_SECONDS)
        return {}

    job = submit(store)
    with running(store, run):
        wait_until(lambda: store.get(job.id).progress == {"stage": "generate", "done": 1, "total": 3})
        go_on.set()


def test_a_cancelled_job_is_given_up_at_its_next_progress_and_the_next_one_runs(store):
    given_up = threading.Event()

    def run(request, progress: Progress):
        while request["seed"] == "a":
            try:
                progress("generate", 0, 1)
            except JobLost:
                given_up.set()
                raise
            time.sleep(0.01)
        return {}

    job, after = submit(store, "a"), submit(store, "b")
    with running(store, run):
        wait_for(store, job, "running")
        cancelled = store.cancel(job.id)
        assert given_up.wait(PATIENCE_SECONDS)
        wait_for(store, after, "succeeded")
    assert store.get(job.id) == cancelled


def test_a_heartbeat_keeps_the_lease_of_a_long_job(store, url, monkeypatch):
    now, begun, renewed = [1000.0], [], []
    one, other = (JobStore(url, clock=lambda: now[0]) for _ in range(2))
    renew = one.renew

    def renew_and_wait(*args, **options):
        renewed.append(renew(*args, **options))
        now[0] += 20
        return renewed[-1]

    def run(request, progress):
        begun.append(request)
        wait_until(lambda: len(renewed) >= 3)  # a minute later, two leases
        return {}

    monkeypatch.setattr(one, "renew", renew_and_wait)
    job = submit(one)
    with running(one, run, lease_seconds=30):
        wait_for(one, job, "running")
        with running(other, run, lease_seconds=30):
            wait_for(one, job, "succeeded")
    assert renewed[:3] == [True] * 3
    assert len(begun) == one.get(job.id).attempt == 1
    for opened in (one, other):
        opened.close()


def test_two_runners_on_one_file_run_each_job_once(store, url):
    seen, other = [], JobStore(url)

    def run(request, progress):
        seen.append(request["seed"])
        return {"made": request["seed"]}

    jobs = [submit(store, str(i)) for i in range(12)]
    with running(store, run, threads=2), running(other, run, threads=2):
        for job in jobs:
            wait_for(store, job, "succeeded")
    other.close()
    assert sorted(seen) == sorted(str(i) for i in range(12))


def test_stopping_lets_the_job_in_hand_finish_and_begins_no_other(store):
    begun, go_on = threading.Event(), threading.Event()

    def run(request, progress):
        begun.set()
        go_on.wait(PATIENCE_SECONDS)
        return {}

    first, second = submit(store, "a"), submit(store, "b")
    runner = Runner(store, run, threads=1, lease_seconds=30)
    runner.start()
    assert begun.wait(PATIENCE_SECONDS)
    stop = threading.Thread(target=runner.stop, args=(PATIENCE_SECONDS,))
    stop.start()
    go_on.set()
    stop.join(PATIENCE_SECONDS)
    assert store.get(first.id).state == "succeeded"
    assert store.get(second.id).state == "queued"


def test_stopping_hands_back_a_job_that_takes_too_long(store):
    begun, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def run(request, progress):
        begun.set()
        go_on.wait(PATIENCE_SECONDS)
        ended.set()
        return {"late": True}

    job = submit(store)
    runner = Runner(store, run, threads=1, lease_seconds=30)
    runner.start()
    assert begun.wait(PATIENCE_SECONDS)
    runner.stop(0)
    assert (store.get(job.id).state, store.get(job.id).attempt) == ("queued", 0)
    go_on.set()
    assert ended.wait(PATIENCE_SECONDS)
    runner.stop(PATIENCE_SECONDS)  # its thread has tried to write the result down
    assert store.get(job.id).result is None


def test_a_job_that_takes_its_process_with_it_is_not_begun_for_ever(store):
    job = submit(store)
    for attempt in (1, 2, 3):
        claimed = store.claim(f"dead {attempt}", lease_seconds=-1)
        assert claimed is not None
        assert claimed.attempt == attempt
    begun = []
    with running(store, lambda request, progress: begun.append(request) or {}):
        failed = wait_for(store, job, "failed")
    assert begun == []
    assert failed.problem is not None
    assert "the server died 3 times while it ran this job" in failed.problem["detail"]


KILLED = """
import sys, time
from service.jobs.job_store import JobStore
from service.jobs.runner import Runner

def run(request, progress):
    print("begun", flush=True)
    time.sleep(600)

runner = Runner(JobStore(sys.argv[1]), run, threads=1, lease_seconds=30)
runner.start()
time.sleep(600)
"""


def test_a_job_whose_process_is_killed_is_run_again_and_ends_once(store, url):
    job = submit(store)
    child = subprocess.Popen([sys.executable, "-c", KILLED, url], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "begun\n"
        assert store.get(job.id).state == "running"
        assert store.claim("too early", lease_seconds=30) is None
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.communicate()
    half_a_minute_later = JobStore(url, clock=lambda: time.time() + 31)
    with running(half_a_minute_later, lambda request, progress: {"made": request["seed"]}):
        ended = wait_for(store, job, "succeeded")
    half_a_minute_later.close()
    assert (ended.attempt, ended.result) == (2, {"made": "a"})
    assert store.count() == {"queued": 0, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0}


def test_importing_the_runner_and_generation_loads_no_torch():
    code = "import sys, service.jobs.runner, service.work.generation; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def together(run_many: Callable[[Sequence[Task]], Iterator[Outcome]], *, max_jobs: int = 8, sharers: int = 1):
    return Batching(lambda request: request["group"], run_many, max_jobs=max_jobs, sharers=sharers)


def submit_group(store: JobStore, group: str | None, number: int) -> Job:
    return store.submit({"group": group, "number": number}, digest=f"{group}{number}", max_queued=100)[0]


@contextmanager
def running_together(store: JobStore, run: Run, batching: Batching) -> Iterator[None]:
    runner = Runner(store, run, threads=1, lease_seconds=30, batching=batching)
    runner.start()
    try:
        yield
    finally:
        runner.stop(PATIENCE_SECONDS)


def number_made(request) -> dict:
    return {"made": request["number"]}


def test_jobs_of_a_group_that_wait_together_are_run_together_and_others_alone(store):
    jobs = [submit_group(store, group, i) for i, group in enumerate(["a", "b", "a", None, "a", "a", None])]
    passes = []

    def run_many(tasks: Sequence[Task]) -> Iterator[Outcome]:
        passes.append([task.request["number"] for task in tasks])
        return iter([number_made(task.request) for task in tasks])

    def run(request, progress):
        passes.append([request["number"]])
        return number_made(request)

    with running_together(store, run, together(run_many, max_jobs=3)):
        for i, job in enumerate(jobs):
            ended = wait_for(store, job, "succeeded")
            assert (ended.result, ended.attempt) == ({"made": i}, 1)
    assert passes == [[0, 2, 4], [1], [3], [5], [6]]


def test_what_is_wrong_with_one_job_of_a_batch_touches_no_other(store, caplog):
    jobs = [submit_group(store, "a", i) for i in range(4)]

    def run_many(tasks):
        yield number_made(tasks[0].request)
        yield UnsupportedTask("not this one")
        raise ZeroDivisionError

    def run(request, progress):
        if request["number"] == 2:
            raise ZeroDivisionError
        return number_made(request)

    with running_together(store, run, together(run_many)):
        states = [wait_for(store, job, state).state for job, state in
                  zip(jobs, ["succeeded", "failed", "failed", "succeeded"], strict=True)]  # fmt: skip
    assert states == ["succeeded", "failed", "failed", "succeeded"]
    told = [store.get(job.id).problem for job in jobs[1:3]]
    assert [problem and problem["type"] for problem in told] == [f"urn:weightgen:problem:{k}" for k in
                                                                ("unsupported", "internal")]  # fmt: skip


def test_a_job_cancelled_within_a_batch_ends_cancelled_and_the_others_succeed(store):
    jobs = [submit_group(store, "a", i) for i in range(3)]
    begun = threading.Event()

    def run_many(tasks):
        begun.set()
        for task in tasks:
            try:
                while task.request["number"] == 1:
                    task.progress("generate", 0, 1)
                    time.sleep(0.01)
                yield number_made(task.request)
            except JobLost as lost:
                yield lost

    with running_together(store, lambda request, progress: {}, together(run_many)):
        assert begun.wait(PATIENCE_SECONDS)
        store.cancel(jobs[1].id)
        wait_for(store, jobs[2], "succeeded")
    assert [store.get(job.id).state for job in jobs] == ["succeeded", "cancelled", "succeeded"]


def test_a_stopping_runner_hands_back_all_jobs_of_a_batch(store):
    jobs = [submit_group(store, "a", i) for i in range(3)]
    begun, go_on = threading.Event(), threading.Event()

    def run_many(tasks):
        begun.set()
        go_on.wait(PATIENCE_SECONDS)
        yield from (number_made(task.request) for task in tasks)

    runner = Runner(store, lambda *_: {}, threads=1, lease_seconds=30, batching=together(run_many))
    runner.start()
    assert begun.wait(PATIENCE_SECONDS)
    runner.stop(0)
    found = [store.get(job.id) for job in jobs]
    go_on.set()
    runner.stop(PATIENCE_SECONDS)
    assert [(job.state, job.attempt) for job in found] == [("queued", 0)] * 3


def test_who_waits_is_told_of_every_job_that_ends_here(store):
    ended = []
    runner = Runner(store, lambda request, progress: {}, threads=1, lease_seconds=30, on_end=ended.append)
    runner.start()
    try:
        jobs = [submit(store, digest) for digest in "ab"]
        wait_until(lambda: ended == [job.id for job in jobs])
    finally:
        runner.stop(PATIENCE_SECONDS)
