"""The one protocol every source of weights speaks, learnt generators and references alike."""

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from weightgen.condition import Condition, SupportSet
from weightgen.errors import BadOption, UnsupportedTask
from weightgen.generators.d2nwg.method import D2nwgOptions
from weightgen.spec import State
from weightgen.target.network import Target

MAX_SAMPLES = 1024


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """Weights for this target under this condition. The same request to the same generator gives the same bytes."""

    target: Target
    condition: Condition
    num_samples: int = 1
    seed: int = 0
    sampling: D2nwgOptions | None = None
    """How to sample, for generators that do; None: as the generator does it."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= MAX_SAMPLES:
            raise BadOption(f"num_samples is {self.num_samples}, expected 1 to {MAX_SAMPLES}")
        if not 0 <= self.seed < 2**63:
            raise BadOption(f"seed is {self.seed}, expected 0 to 2^63 - 1")

    def digest(self) -> str:
        """sha256 of everything that decides the answer, hex: cache key, job identity and provenance."""
        parts = [self.target.spec.digest(), self.condition.digest(), self.num_samples, self.seed]
        if self.sampling is not None:
            parts.append(repr(self.sampling))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def require_support(request: GenerationRequest, *, name: str, max_classes: int, max_shots: int) -> SupportSet:
    """The support set of a request that a generator of this `name` can serve; UnsupportedTask, saying why, if not."""
    support, spec = request.condition.support, request.target.spec
    if support is None:
        raise UnsupportedTask(f"{name!r} needs a support set: labelled examples of every class")
    if support.num_classes > max_classes or max(support.shots) > max_shots:
        raise UnsupportedTask(
            f"{name!r} takes 2 to {max_classes} classes of 1 to {max_shots} examples, "
            f"got {support.num_classes} classes of up to {max(support.shots)}"
        )
    if support.inputs.shape[1:] != request.target.input_shape:
        raise UnsupportedTask(
            f"{spec.arch!r} takes inputs of shape {list(request.target.input_shape)}, "
            f"the support set has {list(support.inputs.shape[1:])}"
        )
    num_classes = spec.by_name[spec.head[0]].shape[0] if spec.head else 0
    if len(spec.head) != 2 or support.num_classes != num_classes:
        raise UnsupportedTask(f"the target has {num_classes} classes, the support set {support.num_classes}")
    return support


@runtime_checkable
class WeightGenerator(Protocol):
    """Makes states for requests."""

    name: str

    def check(self, request: GenerationRequest) -> None:
        """Raise UnsupportedTask, saying why, if the request cannot be honoured; touches no tensor."""
        ...

    def generate(self, request: GenerationRequest) -> list[State]:
        """`num_samples` full states in the spec's order, each passing `request.target.spec.check`."""
        ...


@runtime_checkable
class MakesMany(Protocol):
    """A generator that serves several requests in one pass."""

    def group_of(self, request: GenerationRequest) -> Hashable:
        """Requests of equal groups can be made in one pass; those of None cannot."""
        ...

    def generate_many(self, requests: Sequence[GenerationRequest]) -> list[list[State]]:
        """For each of several requests of one group what `generate` gives for it alone, to the bit."""
        ...
