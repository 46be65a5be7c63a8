"""One order from end to end: labelled data in, verified weights with their report out.

An order (`weightgen.order`) names things, and a job holds them loaded. Job and order make the request, the generator
answers it, and the gate verifies the answer. Looking names up is done elsewhere (`find_look_up`).
"""

import importlib.metadata
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from weightgen.condition import Condition
from weightgen.delivery.artifact import describe_artifact, write_artifact
from weightgen.delivery.gate import VerifiedWeights, generate_verified_many
from weightgen.errors import BadOption, NotFound, UnsupportedTask, WeightgenError
from weightgen.evaluation.novelty import describe_nearest, find_nearest
from weightgen.evaluation.scoreboard import compare
from weightgen.labelled_data import LabelledData, draw_support, select_classes
from weightgen.method import Method, Options
from weightgen.order import Order
from weightgen.references import references_for
from weightgen.references.zoo import ReferenceZoo
from weightgen.request import GenerationRequest, WeightGenerator
from weightgen.runtime.threads import one_thread
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import accuracy

LOOK_UP_GROUP = "weightgen.look_up"


@runtime_checkable
class HasMethod(Protocol):
    """A generator of a declared method."""

    method: Method


@dataclass(frozen=True, eq=False)
class Job:
    """The loaded parts that an order names: generator, data set, target network for its examples, reference zoo."""

    generator: WeightGenerator
    generator_sha256: str
    """sha256 of the generator's file."""
    data: LabelledData
    target_for: Callable[[LabelledData], Target]
    """The target network that takes these examples and has these classes."""
    references: ReferenceZoo | None = None
    """Trained networks of the same architecture; without them, references that need a zoo are left out."""

    @cached_property
    def target(self) -> Target:
        return self.target_for(self.data)

    def order(self, **terms: Any) -> Order:
        """An order for this job, with these terms and the defaults for the others."""
        names = {"generator": self.generator.name, "architecture": self.target.spec.arch, "dataset": self.data.name}
        return Order(**names, **terms)

    def request(self, order: Order) -> GenerationRequest:
        """The request of an order: its support set is drawn from the data's train part by the order's seed."""
        rng = torch.Generator().manual_seed(order.seed)
        support = draw_support(self.data, order.support_per_class, rng=rng)
        return GenerationRequest(
            self.target,
            Condition(support=support, target_accuracy=order.target_accuracy),
            num_samples=order.num_samples,
            seed=order.seed,
            options=self.read_options(order),
        )

    def read_options(self, order: Order) -> Options | None:
        """The order's options as the method's options class; None if it has none."""
        if not order.options:
            return None
        if not isinstance(self.generator, HasMethod):
            raise UnsupportedTask(f"{self.generator.name!r} takes no options, got {', '.join(order.options)}")
        return self.generator.method.read_options(order.options)


@dataclass(frozen=True, eq=False)
class Made:
    """Weights that passed the gate, with their job and the time they took."""

    job: Job
    weights: VerifiedWeights
    seconds: float
    """Wall clock of generation and gate, over all samples of the request and all requests made with it."""

    @property
    def request(self) -> GenerationRequest:
        return self.weights.request

    @cached_property
    def accuracy(self) -> float:
        """Accuracy on the data's test part, a fraction."""
        return accuracy(self.job.target, self.state, self.job.data.x_test, self.job.data.y_test)

    def module(self) -> nn.Module:
        """A fresh module with these weights, in eval mode."""
        return self.job.target.load(self.state)

    @property
    def state(self) -> State:
        return self.weights.state

    @property
    def source(self) -> str:
        """Name of the generator, or of the reference that did better."""
        return self.weights.source

    def save(self, folder: str | Path) -> dict[str, Any]:
        """Write the artifact folder and return the report on it, JSON values."""
        job, data = self.job, self.job.data
        support = self.request.condition.support
        assert support is not None
        zoo = job.references
        nearest = None if zoo is None else describe_nearest(zoo, find_nearest(zoo, job.target, self.state))
        manifest = describe_artifact(
            self.request,
            self.weights,
            generator=job.generator.name,
            generator_sha256=job.generator_sha256,
            nearest=nearest,
            data={"name": Path(data.name).name, "sha256": data.digest(), "notes": list(data.notes)},
        )
        write_artifact(folder, job.target, self.state, manifest=manifest)
        return {
            "artifact": str(folder),
            "source": self.source,
            "fell_back": self.weights.is_fallback,
            "accuracy": self.accuracy,
            "arch": job.target.spec.arch,
            "parameters": job.target.spec.num_parameters,
            "data": data.name,
            "classes": data.num_classes,
            "shots": support.shots,
            "seed": self.request.seed,
            "request": self.request.digest(),
            "generator": {"name": job.generator.name, "sha256": job.generator_sha256},
            "verification": self.weights.report,
            "nearest_checkpoint": nearest,
            "seconds": self.seconds,
            "notes": list(data.notes),
        }


def make_weights(job: Job, order: Order) -> list[Made]:
    """The verified weights of an order, `order.num_samples` sets.

    If a reference does better, its weights are returned; without `order.fallback`, VerificationFailed is raised.
    """
    (made,) = make_weights_many([(job, order)])
    if isinstance(made, WeightgenError):
        raise made
    return made


def make_weights_many(
    asked: Sequence[tuple[Job, Order]], *, on_generated: Callable[[Sequence[int]], None] = lambda places: None
) -> list[list[Made] | WeightgenError]:
    """For each of several orders of one generator, what `make_weights` would return or raise for it alone.

    Only the seconds differ: they are those of all orders together. `on_generated` is called between generation and the
    gate, with the indices of the orders that were not refused.
    """
    outcomes: dict[int, list[Made] | WeightgenError] = {}
    requests: dict[int, GenerationRequest] = {}
    generator = asked[0][0].generator
    for i, (job, order) in enumerate(asked):
        assert job.generator is generator
        try:
            request = job.request(order)
            generator.check(request)
            requests[i] = request
        except WeightgenError as error:
            outcomes[i] = error
    start = time.perf_counter()
    with one_thread():
        found = generate_verified_many(
            generator,
            list(requests.values()),
            [references_for(generator, asked[i][0].target.spec.arch, asked[i][0].references) for i in requests],
            [asked[i][1].fallback for i in requests],
            on_generated=lambda: on_generated(list(requests)),
        )
    seconds = time.perf_counter() - start
    for i, verified in zip(requests, found, strict=True):
        if isinstance(verified, WeightgenError):
            outcomes[i] = verified
        else:
            outcomes[i] = [Made(asked[i][0], weights, seconds) for weights in verified]
    return [outcomes[i] for i in range(len(asked))]


def generate(
    data: str | LabelledData,
    *,
    arch: str,
    generator: str = "mip",
    support_per_class: int = 20,
    seed: int = 0,
    fallback: bool = True,
    target_accuracy: float | None = None,
    options: Mapping[str, Any] | None = None,
) -> Made:
    """Verified weights of an architecture for the classes of labelled data.

    `data` is the name of a data set, a file, a folder of images, or LabelledData; `arch` and `generator` are names
    (`generator` may be a file). `options` are those of the generator's method. Another seed draws other examples. If a
    reference does better, its weights are returned; without `fallback`, VerificationFailed is raised.
    """
    order = Order(
        generator=generator,
        architecture=arch,
        dataset=data if isinstance(data, str) else data.name,
        support_per_class=support_per_class,
        seed=seed,
        fallback=fallback,
        target_accuracy=target_accuracy,
        options=options or {},
    )
    job = find_look_up()(order, None if isinstance(data, str) else data)
    return make_weights(job, order)[0]


def find_look_up() -> Callable[[Order, LabelledData | None], Job]:
    """The function that turns names into a job: an entry point of the group LOOK_UP_GROUP (docs/decisions/0008)."""
    for entry in importlib.metadata.entry_points(group=LOOK_UP_GROUP):
        return entry.load()
    raise NotFound(
        "no installed package says where generators and architectures are; install weightgen again "
        "(pip install -e . in a checkout)"
    )


def compare_job(
    job: Job,
    order: Order,
    *,
    tasks: int = 1,
    ways: int | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The scoreboard of a job (`evaluation.scoreboard.compare`), over all classes or over tasks of `ways` of them."""
    if ways is not None and not 2 <= ways <= job.data.num_classes:
        raise BadOption(f"{ways} ways, expected 2 to the {job.data.num_classes} classes of {job.data.name!r}")
    task = job if ways is None else replace(job, data=select_classes(job.data, range(ways)))
    request = task.request(order)
    job.generator.check(request)  # refused before minutes of training references
    with one_thread():
        return compare(
            job.generator,
            task.target,
            job.data,
            per_class=order.support_per_class,
            seed=order.seed,
            references=job.references,
            options=request.options,
            tasks=tasks,
            ways=ways,
            say=say,
        )
