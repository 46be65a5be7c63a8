"""Metrics for Prometheus: counts and times of requests and jobs, added up over all processes of the service.

The code fixes the values of every label: routes are the templates of the app, stages and outcomes are listed. Names and
ids that clients send are never labels.
"""

import os
import platform
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from weightgen import __version__

OUTCOMES = ("succeeded", "failed", "lost", "released")
"""How a job leaves its runner. lost: cancelled, or claimed by another runner; released: handed back at a stop."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WAIT_BUCKETS = (0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
STAGE_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class Measurements:
    """Counts and times of one process, and the text with those of all processes."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "weightgen_http_requests", "Answers.", ["method", "route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "weightgen_http_seconds", "Time to the first byte of an answer.", ["route"], registry=registry
        )
        self._waits = Histogram(
            "weightgen_job_wait_seconds", "From a job's acceptance to its first begin.", buckets=WAIT_BUCKETS,
            registry=registry,
        )  # fmt: skip
        self._stages = Histogram(
            "weightgen_job_stage_seconds", "How long a job was in one of its stages.", ["stage"],
            buckets=STAGE_BUCKETS, registry=registry,
        )  # fmt: skip
        self._ended = Counter("weightgen_jobs_ended", "Jobs that left a runner.", ["outcome"], registry=registry)
        for outcome in OUTCOMES:
            self._ended.labels(outcome)  # 0 before the first job ends, so that a rate has a beginning

    def observe_request(self, *, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer; `route` is the template that the path matched."""
        self._requests.labels(method if method in METHODS else "other", route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def observe_requests(self, *, method: str, route: str, status: int, seconds: Sequence[float]) -> None:
        """Count many answers of one kind."""
        self._requests.labels(method, route, str(status)).inc(len(seconds))
        histogram = self._seconds.labels(route)
        for value in seconds:
            histogram.observe(value)

    def observe_wait(self, seconds: float) -> None:
        """Count how long a job waited before it was started."""
        self._waits.observe(max(seconds, 0.0))

    def observe_stage(self, stage: str, seconds: float) -> None:
        """Count how long a job was in a stage."""
        self._stages.labels(stage).observe(seconds)

    def count_end(self, outcome: str) -> None:
        """Count a job that left its runner with one of OUTCOMES."""
        assert outcome in OUTCOMES
        self._ended.labels(outcome).inc()

    def render(self, jobs: Mapping[str, int]) -> bytes:
        """The text that Prometheus scrapes, for all processes if PROMETHEUS_MULTIPROC_DIR is set.

        `jobs` is how many jobs are in each state.
        """
        registry = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        # These are not added up over processes: every process sees the same jobs and has the same version.
        lines = ["# HELP weightgen_jobs Jobs by state.", "# TYPE weightgen_jobs gauge"]
        lines += [f'weightgen_jobs{{state="{state}"}} {number}' for state, number in jobs.items()]
        lines += ["# HELP weightgen_build_info Which version answers.", "# TYPE weightgen_build_info gauge"]
        lines += [f'weightgen_build_info{{version="{__version__}",python="{platform.python_version()}"}} 1']
        return generate_latest(registry) + "\n".join([*lines, ""]).encode()
