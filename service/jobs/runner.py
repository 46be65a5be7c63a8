"""Runs jobs in threads of the server processes: every process of the service is a runner.

A thread claims a job and runs it. One more thread, the heartbeat, renews the leases of all jobs in hand and stores
their progress. In effect a job runs exactly once: artifacts are named by their content, so making one twice leaves one,
and only the holder of the lease can finish the job. A job that kills its process is started `max_attempts` times, then
it fails. While the database does not answer, results wait in memory.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as NoConnection

from service.jobs.job_store import Job, JobStore
from service.problems import Problem, describe_problem
from service.telemetry.log_context import logged_with
from service.telemetry.measurements import Measurements
from weightgen.errors import WeightgenError

Progress = Callable[[str, int, int], None]
"""(stage, done, total): reports how far a job is; raises JobLost if this runner no longer has the job."""

Run = Callable[[dict[str, Any], Progress], dict[str, Any]]
"""Request -> result; a WeightgenError that it raises becomes the job's problem."""


@dataclass(frozen=True)
class Task:
    """One of several jobs that are run together."""

    request: dict[str, Any]
    progress: Progress


Outcome = dict[str, Any] | Exception
"""A result, or the error in its place."""


@dataclass(frozen=True)
class Batching:
    """How waiting jobs are run together."""

    group_of: Callable[[dict[str, Any]], Hashable]
    """Requests of equal groups may run together; a request of group None runs alone."""
    run_many: Callable[[Sequence[Task]], Iterator[Outcome]]
    """Yields the outcome of every task, in order and as soon as it is known. If it raises, the tasks without an outcome
    are run one by one, so that a fault of one job does not touch another."""
    max_jobs: int
    """Most jobs that run together."""
    sharers: int = 1
    """How many runners share the waiting jobs."""


IDLE_SECONDS = 0.25
"""Pause of an idle thread before it looks for a job that another process accepted."""
BEAT_SECONDS = 0.5
"""Pause between two renewals of a lease, which also store the progress and notice that a job was cancelled."""
PRUNE_SECONDS = 3600.0
"""Pause between two searches for jobs that ended long ago."""
RETRY_SECONDS = 1.0
"""Pause before a database that did not answer is asked again."""

_log = logging.getLogger(__name__)


class JobLost(Exception):
    """The job in hand was cancelled, or another runner has it now."""


@dataclass(eq=False)
class _Held:
    """A job in hand: one that a thread of this runner runs now."""

    job: Job
    runner: str
    progress: dict[str, Any] | None = None
    """Reported by the job, not stored yet."""
    is_lost: bool = False
    """Whether this runner no longer has the job; then the job gives up when it next reports progress."""
    is_told: bool = False
    """Whether the store knows already how it ended here: it was handed back, or took too long."""
    begun: float = field(default_factory=time.monotonic)
    measurements: Measurements | None = None
    stage: str = ""
    stage_began: float = 0.0

    def tell(self, stage: str, done: int, total: int) -> None:
        if self.is_lost:
            raise JobLost
        if stage != self.stage:
            self.end_stage(begins=stage)
        self.progress = {"stage": stage, "done": done, "total": total}

    def end_stage(self, *, begins: str = "") -> None:
        now = time.monotonic()
        if self.stage and self.measurements:
            self.measurements.observe_stage(self.stage, now - self.stage_began)
        self.stage, self.stage_began = begins, now


class Runner:
    """Threads that run the jobs of a store with `run`."""

    def __init__(
        self,
        store: JobStore,
        run: Run,
        *,
        threads: int,
        lease_seconds: float,
        max_attempts: int = 3,
        max_job_seconds: float = float("inf"),
        keep_seconds: float = float("inf"),
        batching: Batching | None = None,
        on_end: Callable[[str], None] = lambda job_id: None,
        measurements: Measurements | None = None,
    ) -> None:
        """A job whose process died `max_attempts` times fails, as does one that runs for over `max_job_seconds`.

        `keep_seconds` is how long a job that ended is remembered; `on_end` gets the id of each job that ends here.
        """
        self._measurements = measurements
        self._store, self._run, self._lease_seconds, self._keep_seconds = store, run, lease_seconds, keep_seconds
        self._max_attempts, self._max_job_seconds = max_attempts, max_job_seconds
        self._batching, self._on_end = batching, on_end
        self._name = f"{socket.gethostname()[:60]}-{os.getpid()}-{secrets.token_hex(4)}"
        self._held: set[_Held] = set()
        self._lock = threading.Lock()
        self._work, self._stopping, self._done = threading.Event(), threading.Event(), threading.Event()
        # Daemon threads: else a job that outlasts `stop` would keep the process alive.
        self._threads = [
            threading.Thread(target=self._claim_and_run, args=(f"{self._name}-{i}",), name=f"job-{i}", daemon=True)
            for i in range(threads)
        ]
        self._heartbeat = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to claim and run jobs."""
        for thread in (*self._threads, self._heartbeat):
            thread.start()

    def wake(self) -> None:
        """Look for a job now: one was just accepted."""
        self._work.set()

    def stop(self, timeout: float) -> None:
        """Claim nothing more, let the jobs in hand finish for `timeout` seconds, and hand back those that have not."""
        with self._lock:
            self._stopping.set()
        self._work.set()
        end = time.monotonic() + timeout
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        with self._lock:
            left = list(self._held)
        for held in left:
            self._hand_back(held)
        self._done.set()
        self._heartbeat.join()

    def _hand_back(self, held: _Held) -> None:
        held.is_lost = True
        try:
            held.is_told = self._store.release(held.job.id, held.runner)
        except SQLAlchemyError:  # then it is started again when its lease runs out
            _log.exception("the job database does not answer")
        if held.is_told:
            self._count("released")
            _log.info("job handed back", extra={"job": held.job.id})

    def _claim_and_run(self, runner: str) -> None:
        while not self._stopping.is_set():
            self._work.clear()
            try:
                jobs = self._claim(runner)
                if jobs:
                    self._finish(jobs, runner)
                    continue
            except SQLAlchemyError:  # locked or away for a while: jobs in hand are claimed again when their leases end
                _log.exception("the job database does not answer")
                self._stopping.wait(RETRY_SECONDS)
            self._work.wait(IDLE_SECONDS)

    def _claim(self, runner: str) -> list[Job]:
        """The oldest job to run, with others of its group that wait; [] if there is none."""
        job = self._store.claim(runner, lease_seconds=self._lease_seconds)
        if job is None:
            return []
        batching = self._batching
        if batching is None or batching.max_jobs < 2 or job.attempt > 1:
            return [job]
        group = batching.group_of(job.request)
        if group is None:
            return [job]
        others = self._store.claim_more(
            runner,
            lease_seconds=self._lease_seconds,
            limit=batching.max_jobs - 1,
            sharers=batching.sharers,
            is_wanted=lambda request: batching.group_of(request) == group,
        )
        return [job, *others]

    def _finish(self, jobs: list[Job], runner: str) -> None:
        """Run jobs and store how they ended."""
        if jobs[0].attempt > self._max_attempts:  # such a job was claimed alone
            reason = f"the server died {self._max_attempts} times while it ran this job, which is not begun again"
            if self._store.fail(jobs[0].id, runner, Problem("internal", reason).body()):
                self._count("failed")
            self._on_end(jobs[0].id)
            return
        in_hand = [_Held(job, runner, measurements=self._measurements) for job in jobs]
        with self._lock:  # `stop` hands back the jobs in hand, so none may be added after it has looked
            if not self._stopping.is_set():
                self._held.update(in_hand)
        if not self._held.issuperset(in_hand):
            for job in jobs:
                self._store.release(job.id, runner)
            return
        for job in jobs:
            if self._measurements and job.attempt == 1:
                self._measurements.observe_wait(time.time() - job.created)
            _log.info("job begun", extra={"job": job.id, "attempt": job.attempt, "together": len(jobs)})
        try:
            for held, outcome in zip(in_hand, self._outcomes(in_hand), strict=True):
                with logged_with(job=held.job.id):
                    self._end(held, outcome)
        finally:
            with self._lock:
                self._held.difference_update(in_hand)

    def _end(self, held: _Held, outcome: Outcome) -> None:
        held.end_stage()
        ended = self._write_down(held, outcome)
        with self._lock:
            self._held.remove(held)
        if ended:
            self._on_end(held.job.id)
        elif not held.is_told:
            self._count("lost")
        _log.info("job ended" if ended else "job lost")

    def _count(self, outcome: str) -> None:
        if self._measurements:
            self._measurements.count_end(outcome)

    def _outcomes(self, in_hand: list[_Held]) -> Iterator[Outcome]:
        left = list(in_hand)
        if len(in_hand) > 1:
            assert self._batching is not None
            try:
                for outcome in self._batching.run_many([Task(held.job.request, held.tell) for held in in_hand]):
                    left.pop(0)
                    yield outcome
            except Exception:  # one of them has a fault; running each alone shows which
                _log.exception("jobs that were run together failed", extra={"jobs": [held.job.id for held in left]})
        for held in left:
            yield self._run_alone(held)

    def _run_alone(self, held: _Held) -> Outcome:
        try:
            with logged_with(job=held.job.id):
                return self._run(held.job.request, held.tell)
        except Exception as error:  # a bug in one job must not end the thread that runs all others
            return error

    def _write_down(self, held: _Held, outcome: Outcome) -> bool:
        """Store an outcome; returns whether that ended the job."""
        job, runner = held.job, held.runner
        if isinstance(outcome, JobLost):
            return False
        if isinstance(outcome, WeightgenError):
            return self._fail(held, describe_problem(outcome))
        if isinstance(outcome, Exception):
            _log.error("job failed by a fault of the server", exc_info=outcome)
            problem = Problem("internal", "the server failed while it ran this job; its log says why")
            return self._fail(held, problem.body())
        is_ended = self._insist(lambda: self._store.finish(job.id, runner, outcome))
        if is_ended:
            self._count("succeeded")
        return is_ended

    def _fail(self, held: _Held, problem: dict[str, Any]) -> bool:
        is_ended = self._insist(lambda: self._store.fail(held.job.id, held.runner, problem))
        if is_ended:
            self._count("failed")
        return is_ended

    def _insist(self, write: Callable[[], bool]) -> bool:
        """What `write` returns; it is called again while the database does not answer, until this runner stops."""
        while True:
            try:
                return write()
            except (OperationalError, InterfaceError, NoConnection):
                if self._stopping.wait(RETRY_SECONDS):
                    raise
                _log.warning("the job database does not answer; what a job made is kept until it does")

    def _beat(self) -> None:
        pruned = float("-inf")
        while not self._done.wait(min(BEAT_SECONDS, self._lease_seconds / 4)):
            with self._lock:
                in_hand = list(self._held)
            try:
                for held in in_hand:
                    self._renew(held)
                if time.monotonic() - pruned >= PRUNE_SECONDS:
                    pruned = time.monotonic()
                    self._store.prune(older_than=self._keep_seconds)
            except SQLAlchemyError:
                _log.exception("the job database does not answer")

    def _renew(self, held: _Held) -> None:
        if held.is_lost:
            return
        if time.monotonic() - held.begun > self._max_job_seconds:
            self._end_overdue(held)
            return
        progress, held.progress = held.progress, None
        if not self._store.renew(held.job.id, held.runner, lease_seconds=self._lease_seconds, progress=progress):
            held.is_lost = True

    def _end_overdue(self, held: _Held) -> None:
        """Fail a job that runs for too long; its thread becomes free when the job next reports progress."""
        reason = f"the job ran for over {self._max_job_seconds:g} seconds, which is all that one may; ask for less"
        held.is_told = self._store.fail(held.job.id, held.runner, Problem("took-too-long", reason).body())
        held.is_lost = True
        if held.is_told:
            self._count("failed")
            self._on_end(held.job.id)
            _log.warning("job took too long", extra={"job": held.job.id})
