"""What a request would give, told without generating: size, time, accuracy, and whether its task is a stranger.

Every number has a sentence that says where it comes from; what is not known is null, and the sentence says why.
"""

import statistics
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from service.jobs.job_store import JobStore
from service.schemas import BandBody, BasisBody, EstimateBody

if TYPE_CHECKING:
    from weightgen.evaluation.task_distance import TaskDistance
    from weightgen.pipeline import Job

LATEST_JOBS = 200
"""Finished jobs that are looked through for like ones."""
FEWEST_JOBS = 3
"""Like ones whose accuracies make a band; fewer say little of other draws of examples."""
MAX_REMEMBERED = 1024

LookUp = Callable[[Mapping[str, Any]], "tuple[Job, threading.Lock]"]
"""Canonical request -> what it names, and the lock of its generator."""


class Estimator:
    """Estimates from what is measured: jobs that finished here, the scoreboards, the generator's own zoo."""

    def __init__(self, jobs: JobStore, look_up: LookUp, facts: Callable[[str], Mapping[str, Any]]) -> None:
        """`facts` of a generator hold its scoreboards, as `Catalogue.facts`."""
        self._jobs, self._look_up, self._facts = jobs, look_up, facts
        self._measured: OrderedDict[str, _Measured] = OrderedDict()
        self._lock = threading.Lock()

    def estimate(self, request: Mapping[str, Any], *, digest: str) -> EstimateBody:
        """The estimate of a canonical request; raises what a generation would, short of generating."""
        measured = self._measure(request, digest)
        like = [
            (asked, result["report"])
            for asked, result in self._jobs.latest_results(limit=LATEST_JOBS)
            if all(asked[key] == request[key] for key in ("generator", "architecture"))
        ]
        seconds, why_seconds = _estimate_seconds(request, like)
        flag, why_flag = measured.is_outside, measured.sentence
        band, why_band = _estimate_accuracy(
            request, like, self._facts(request["generator"]), is_outside=flag, chance=1 / measured.num_classes
        )
        return EstimateBody(
            parameters=measured.parameters,
            bytes=measured.num_bytes * request["num_samples"],
            seconds=seconds,
            accuracy=band,
            out_of_distribution=flag,
            basis=BasisBody(seconds=why_seconds, accuracy=why_band, out_of_distribution=why_flag),
        )

    def _measure(self, request: Mapping[str, Any], digest: str) -> "_Measured":
        with self._lock:
            if digest in self._measured:
                self._measured.move_to_end(digest)
                return self._measured[digest]
        job, lock = self._look_up(request)
        measured = _Measured(job, request, lock)
        with self._lock:
            self._measured[digest] = measured
            while len(self._measured) > MAX_REMEMBERED:
                self._measured.popitem(last=False)
        return measured


class _Measured:
    """What is measured of a request itself, and is the same whenever it is asked."""

    def __init__(self, job: "Job", request: Mapping[str, Any], lock: threading.Lock) -> None:
        asked = job.request(
            per_class=request["support_per_class"], num_samples=request["num_samples"], seed=request["seed"]
        )
        job.generator.check(asked)
        support, spec = asked.condition.support, job.target.spec
        assert support is not None
        self.parameters, self.num_classes = spec.num_parameters, support.num_classes
        stored = [t for t in spec.tensors if t.tied_to is None]
        self.num_bytes = sum(t.numel * t.torch_dtype.itemsize for t in stored)
        with lock:
            self.is_outside, self.sentence = _judge_task(job, support)


def _judge_task(job: "Job", support: Any) -> tuple[bool | None, str]:
    """Whether the task is unlike those that the generator learnt from, and in words why that is known or not."""
    from weightgen.errors import UnsupportedTask
    from weightgen.evaluation.task_distance import measure_task
    from weightgen.request import EmbedsTasks

    zoo, generator, arch = job.references, job.generator, job.target.spec.arch
    if zoo is None:
        return None, f"unknown: there are no training tasks of {arch!r} and these inputs to compare with"
    if not isinstance(generator, EmbedsTasks) or generator.digest_of(arch) != zoo.embedder:
        return None, "unknown: this generator does not say where its training tasks lie"
    try:
        found = measure_task(zoo, generator.embed(support, arch=arch))
    except UnsupportedTask as error:
        return None, f"unknown: {error}"
    return found.is_outside, _describe_distance(found)


def _describe_distance(found: "TaskDistance") -> str:
    if found.is_outside is None:
        return "unknown: this generator's embedding hardly tells its own training tasks apart for this architecture"
    return (
        f"by the generator's embedding, the nearest training task ({found.nearest}) is at {found.distance:.4f}; 95% of "
        f"them have another within {found.threshold:.4f}"
    )


def _estimate_seconds(
    request: Mapping[str, Any], like: list[tuple[dict[str, Any], dict[str, Any]]]
) -> tuple[float | None, str]:
    seconds = [report["seconds"] for asked, report in like if asked["num_samples"] == request["num_samples"]]
    if not seconds:
        return None, "unknown: no job of this generator and architecture has finished here yet"
    return round(statistics.median(seconds), 4), f"median of {_count(seconds)} of this generator and architecture here"


def _estimate_accuracy(
    request: Mapping[str, Any],
    like: list[tuple[dict[str, Any], dict[str, Any]]],
    facts: Mapping[str, Any],
    *,
    is_outside: bool | None,
    chance: float,
) -> tuple[BandBody | None, str]:
    """The band, and in words where it comes from: jobs on the same data set, else the scores on others."""
    keys = ("dataset", "support_per_class")
    same = [report["accuracy"] for asked, report in like if all(asked[key] == request[key] for key in keys)]
    if len(same) >= FEWEST_JOBS:
        return BandBody(low=min(same), high=max(same)), f"test accuracy of {_count(same)} like this one here"
    board = next((b for b in facts["scoreboards"] if b["architecture"] == request["architecture"]), None)
    if board is None:
        return None, "unknown: this generator has no scores for this architecture"
    scores = {name: arms["generated"] for name, arms in board["accuracy"].items()}
    low, high = min(scores.values()), max(scores.values())
    sentence = f"lowest and highest score on {len(scores)} data sets at {board['support_per_class']} examples a class"
    if request["dataset"] in scores:
        sentence += f"; {scores[request['dataset']]:.3f} on this one"
    is_short = request["support_per_class"] < board["support_per_class"]
    if is_outside or is_short:
        why = "the task is unlike the training tasks" if is_outside else "fewer examples are given"
        low, sentence = min(low, chance), f"{sentence}; down to chance, for {why}"
    return BandBody(low=round(low, 4), high=round(high, 4)), sentence


def _count(found: list[float]) -> str:
    return "one job" if len(found) == 1 else f"the latest {len(found)} jobs"
