"""The request for weights, and the protocol that generators and references share."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from weightgen.canonical_json import digest_json
from weightgen.condition import Condition, SupportSet
from weightgen.errors import BadOption, UnsupportedTask
from weightgen.method import Method, Options
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.trunk import num_classes_of

MAX_SAMPLES = 1024


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """A request for weights: target and condition. The same request to the same generator gives the same bytes."""

    target: Target
    condition: Condition
    num_samples: int = 1
    seed: int = 0
    options: Options | None = None
    """The method's own options; None means its defaults."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_samples <= MAX_SAMPLES:
            raise BadOption(f"num_samples is {self.num_samples}, expected 1 to {MAX_SAMPLES}")
        if not 0 <= self.seed < 2**63:
            raise BadOption(f"seed is {self.seed}, expected 0 to 2^63 - 1")

    def digest(self) -> str:
        """sha256, hex, of all that determines the answer: used as cache key, job identity and provenance."""
        return digest_json(
            {
                "spec": self.target.spec.digest(),
                "condition": self.condition.digest(),
                "num_samples": self.num_samples,
                "seed": self.seed,
                "options": self.options.to_json() if self.options else None,
            }
        )


def check_request(
    request: GenerationRequest, method: Method, *, max_classes: int | None = None, max_shots: int | None = None
) -> None:
    """Raise UnsupportedTask, with the reason, unless a generator of this method can serve the request.

    Checks the method's declaration, and the support set if the method needs one. `max_classes` and `max_shots` are the
    generator's limits. Reads no values of tensors.
    """
    method.check_options(request.options)
    method.check_samples(request.num_samples)
    method.check_parts(request.condition.parts)
    if "support" not in method.needs:
        return
    support = require_support(request)
    most = max(support.shots)
    if support.num_classes > (max_classes or support.num_classes) or most > (max_shots or most):
        raise UnsupportedTask(
            f"{method.name!r} takes 2 to {max_classes} classes of 1 to {max_shots} examples, "
            f"got {support.num_classes} classes of up to {most}"
        )


def require_support(request: GenerationRequest) -> SupportSet:
    """The request's support set; UnsupportedTask, with the reason, if it is missing or does not fit the target."""
    support, target = request.condition.support, request.target
    if support is None:
        raise UnsupportedTask("the request has no support set; expected labelled examples of every class")
    if tuple(support.inputs.shape[1:]) != target.input_shape:
        raise UnsupportedTask(
            f"{target.spec.arch!r} takes inputs of shape {list(target.input_shape)}, "
            f"the support set has {list(support.inputs.shape[1:])}"
        )
    num_classes = num_classes_of(target.spec)
    if not num_classes:
        raise UnsupportedTask(f"{target.spec.arch!r} has no tensor with a CLASSES axis: there is no class head to make")
    if num_classes != support.num_classes:
        raise UnsupportedTask(f"the target has {num_classes} classes, the support set {support.num_classes}")
    return support


@runtime_checkable
class WeightGenerator(Protocol):
    """Makes states for requests."""

    name: str

    def check(self, request: GenerationRequest) -> None:
        """Raise UnsupportedTask, with the reason, if the request cannot be served; reads no values of tensors."""
        ...

    def generate(self, request: GenerationRequest) -> list[State]:
        """`num_samples` full states in the spec's order, each passing `request.target.spec.check`."""
        ...


@runtime_checkable
class MakesMany(Protocol):
    """A generator that serves several requests in one pass."""

    def group_of(self, request: GenerationRequest) -> Hashable:
        """A key: requests with equal keys can be made in one pass; None means that it must be made alone."""
        ...

    def generate_many(self, requests: Sequence[GenerationRequest]) -> list[list[State]]:
        """For each of several requests of one group, exactly what `generate` gives for it alone, bit for bit."""
        ...


@runtime_checkable
class TaskEmbedding(Protocol):
    """The `embed` of a generator: a unit-norm vector (e,) for a task; it may depend on the architecture."""

    def __call__(self, support: SupportSet, *, arch: str) -> Tensor: ...


@runtime_checkable
class EmbedsTasks(Protocol):
    """A generator with a task embedding. Equal digests mean equal embeddings."""

    def digest_of(self, arch: str) -> str: ...
    def embed(self, support: SupportSet, *, arch: str) -> Tensor: ...


@runtime_checkable
class HasTrunkCondition(Protocol):
    """A generator whose trunk's condition can be switched off."""

    def without_condition(self) -> WeightGenerator: ...


@runtime_checkable
class RefitsTrunks(Protocol):
    """A reference that takes trunks and refits them on the support set."""

    def trunks(self, request: GenerationRequest) -> list[State]:
        """The trunks of `num_samples` states, before they are refitted."""
        ...
