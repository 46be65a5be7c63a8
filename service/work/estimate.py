"""Estimates what a request would give, without generating: size, time, accuracy, and how unlike its task is.

Every number comes with a sentence that says where it comes from. What is not known is None, and the sentence says why.
"""

import statistics
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from service.jobs.job_store import JobStore
from weightgen.order import Order

if TYPE_CHECKING:
    from weightgen.evaluation.task_distance import TaskDistance
    from weightgen.pipeline import Job

LATEST_JOBS = 200
"""How many finished jobs are searched for similar ones."""
FEWEST_JOBS = 3
"""How many similar jobs make a band of accuracies; fewer say little about other draws of examples."""
MAX_REMEMBERED = 1024

LookUp = Callable[[Mapping[str, Any]], "tuple[Job, threading.Lock]"]
"""Canonical request -> its loaded job, and the lock of its generator."""


@dataclass(frozen=True)
class Band:
    """The lowest and the highest value to expect."""

    low: float
    high: float


@dataclass(frozen=True)
class Basis:
    """Where each number of an estimate comes from, or why it is None, in one sentence each."""

    seconds: str
    accuracy: str
    out_of_distribution: str


@dataclass(frozen=True)
class Estimate:
    """What a generation would give; None for what is not known."""

    parameters: int
    """Parameters of one network."""
    bytes: int
    """Size of all tensors of all samples."""
    seconds: float | None
    """Time to make and verify the weights, without the time in the queue."""
    accuracy: Band | None
    out_of_distribution: bool | None
    """Whether the task is unlike all training tasks of the generator."""
    basis: Basis


class Estimator:
    """Estimates from measurements: jobs that finished here, the scoreboards, the generator's own zoo."""

    def __init__(self, jobs: JobStore, look_up: LookUp, facts: Callable[[str], Mapping[str, Any]]) -> None:
        """`facts` returns the facts about a generator, scoreboards among them, as `Catalogue.facts` does."""
        self._jobs, self._look_up, self._facts = jobs, look_up, facts
        self._measured: OrderedDict[str, _Measured] = OrderedDict()
        self._lock = threading.Lock()

    def estimate(self, request: Mapping[str, Any], *, digest: str) -> Estimate:
        """The estimate of a canonical request; raises the errors that a generation raises before it generates."""
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
        return Estimate(
            parameters=measured.parameters,
            bytes=measured.num_bytes * request["num_samples"],
            seconds=seconds,
            accuracy=band,
            out_of_distribution=flag,
            basis=Basis(seconds=why_seconds, accuracy=why_band, out_of_distribution=why_flag),
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
    """What only the request decides, so that it is measured once for each digest."""

    def __init__(self, job: "Job", request: Mapping[str, Any], lock: threading.Lock) -> None:
        asked = job.request(Order.from_json(request))
        job.generator.check(asked)
        support, spec = asked.condition.support, job.target.spec
        assert support is not None
        self.parameters, self.num_classes = spec.num_parameters, support.num_classes
        self.num_bytes = sum(t.numel * t.torch_dtype.itemsize for t in spec.stored)
        with lock:
            self.is_outside, self.sentence = _judge_task(job, support)


def _judge_task(job: "Job", support: Any) -> tuple[bool | None, str]:
    """Whether the task is unlike the generator's training tasks (None: unknown), and a sentence that says why."""
    from weightgen.errors import UnsupportedTask
    from weightgen.evaluation.task_distance import measure_task
    from weightgen.references import task_embedding

    arch = job.target.spec.arch
    embed, reason = task_embedding(job.generator, arch, job.references)
    if job.references is None or embed is None:
        return None, f"unknown: {reason}"
    try:
        found = measure_task(job.references, embed(support, arch=arch))
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
) -> tuple[Band | None, str]:
    """The band and where it comes from: jobs on the same data set, else the scores on other data sets."""
    keys = ("dataset", "support_per_class")
    same = [report["accuracy"] for asked, report in like if all(asked[key] == request[key] for key in keys)]
    if len(same) >= FEWEST_JOBS:
        return Band(low=min(same), high=max(same)), f"test accuracy of {_count(same)} like this one here"
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
    return Band(low=round(low, 4), high=round(high, 4)), sentence


def _count(found: list[float]) -> str:
    return "one job" if len(found) == 1 else f"the latest {len(found)} jobs"
