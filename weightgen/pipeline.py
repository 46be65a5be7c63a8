"""One job from end to end: labelled data in, verified weights with their report out.

The command line, the demo and every other front end call these functions; where the parts of a job come from (names,
files) is not their business.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from weightgen.condition import Condition
from weightgen.delivery.artifact import describe_artifact, write_artifact
from weightgen.delivery.gate import Asked, VerifiedWeights, generate_verified_many
from weightgen.errors import BadOption, WeightgenError
from weightgen.evaluation.novelty import describe_nearest, find_nearest
from weightgen.evaluation.scoreboard import compare
from weightgen.generators.d2nwg.method import D2nwgOptions
from weightgen.labelled_data import LabelledData, draw_support, select_classes
from weightgen.references.default_init import RandomTrunkRidge
from weightgen.references.retrieval import Retrieval
from weightgen.references.soup import Soup
from weightgen.references.zoo import ReferenceZoo
from weightgen.request import EmbedsTasks, GenerationRequest, WeightGenerator
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import accuracy


@dataclass(frozen=True, eq=False)
class Job:
    """Weights of one architecture for the classes of one data set, from one generator."""

    generator: WeightGenerator
    generator_sha256: str
    """Of the file the generator was loaded from."""
    data: LabelledData
    target_for: Callable[[LabelledData], Target]
    """The target network that takes these examples and has these classes."""
    references: ReferenceZoo | None = None
    """Trained networks of the same architecture; without them, references that need a zoo are left out."""
    sampling: D2nwgOptions | None = None
    """How to sample, for generators that do; None: as the generator does it."""
    target_accuracy: float | None = None
    """The accuracy asked for, a fraction, for generators that were told accuracies."""

    @cached_property
    def target(self) -> Target:
        return self.target_for(self.data)

    def request(self, *, per_class: int, num_samples: int = 1, seed: int = 0) -> GenerationRequest:
        """The request for a support set of `per_class` train examples of each class, drawn by `seed`."""
        support = draw_support(self.data, per_class, rng=torch.Generator().manual_seed(seed))
        condition = Condition(support=support, target_accuracy=self.target_accuracy)
        return GenerationRequest(self.target, condition, num_samples=num_samples, seed=seed, sampling=self.sampling)

    def gate_references(self) -> list[WeightGenerator]:
        """What the generated weights have to hold their own against at generation time."""
        zoo, generator = self.references, self.generator
        if zoo is None or not isinstance(generator, EmbedsTasks):
            return [RandomTrunkRidge()]
        if zoo.embedder != generator.digest_of(self.target.spec.arch):
            return [RandomTrunkRidge()]
        return [Retrieval(zoo, embed=generator.embed), Soup(zoo, embed=generator.embed), RandomTrunkRidge()]


@dataclass(frozen=True, eq=False)
class Made:
    """Weights that passed the gate, and how they came about."""

    job: Job
    request: GenerationRequest
    weights: VerifiedWeights
    seconds: float
    """Wall clock of generation and gate, over all samples of the request and all requests made with it."""

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
            "accuracy": accuracy(job.target, self.state, data.x_test, data.y_test),
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


@dataclass(frozen=True, eq=False)
class Order:
    """A job, and what is asked of it."""

    job: Job
    per_class: int
    num_samples: int = 1
    seed: int = 0
    fallback: bool = True
    """Whether a reference that does better is returned; without, VerificationFailed stands in the way."""


def make_weights(job: Job, *, per_class: int, num_samples: int = 1, seed: int = 0, fallback: bool = True) -> list[Made]:
    """`num_samples` sets of verified weights for a support set drawn from the data's train split.

    Without `fallback`, VerificationFailed is raised where a reference does better; with it, the reference is returned.
    """
    (made,) = make_weights_many([Order(job, per_class, num_samples, seed, fallback)])
    if isinstance(made, WeightgenError):
        raise made
    return made


def make_weights_many(
    orders: Sequence[Order], *, on_generated: Callable[[Sequence[int]], None] = lambda places: None
) -> list[list[Made] | WeightgenError]:
    """For each of several orders of one generator what `make_weights` gives, or raises, for it alone, but for the
    seconds, which are those of all together.

    `on_generated` is told between generation and the gate which orders were not refused.
    """
    outcomes: dict[int, list[Made] | WeightgenError] = {}
    asked: dict[int, Asked] = {}
    generator = orders[0].job.generator
    for i, order in enumerate(orders):
        assert order.job.generator is generator
        try:
            request = order.job.request(per_class=order.per_class, num_samples=order.num_samples, seed=order.seed)
            generator.check(request)
            asked[i] = Asked(request, order.job.gate_references(), order.fallback)
        except WeightgenError as error:
            outcomes[i] = error
    start = time.perf_counter()
    found = generate_verified_many(generator, list(asked.values()), on_generated=lambda: on_generated(list(asked)))
    seconds = time.perf_counter() - start
    for (i, each), verified in zip(asked.items(), found, strict=True):
        if isinstance(verified, WeightgenError):
            outcomes[i] = verified
        else:
            outcomes[i] = [Made(orders[i].job, each.request, weights, seconds) for weights in verified]
    return [outcomes[i] for i in range(len(orders))]


def compare_job(
    job: Job,
    *,
    per_class: int,
    tasks: int = 1,
    ways: int | None = None,
    seed: int = 0,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The scoreboard of the job (`weightgen.evaluation.scoreboard.compare`), over all classes or over tasks of `ways` of them."""
    if ways is not None and not 2 <= ways <= job.data.num_classes:
        raise BadOption(f"{ways} ways, expected 2 to the {job.data.num_classes} classes of {job.data.name!r}")
    task = job if ways is None else replace(job, data=select_classes(job.data, range(ways)))
    job.generator.check(task.request(per_class=per_class, seed=seed))  # told before minutes of training references
    return compare(
        job.generator,
        task.target,
        job.data,
        per_class=per_class,
        seed=seed,
        references=job.references,
        sampling=job.sampling,
        tasks=tasks,
        ways=ways,
        say=say,
    )
