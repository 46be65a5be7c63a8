"""How weights of one kind are verified: each kind has a profile, and all share one gate (`weightgen.delivery.gate`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from weightgen.request import GenerationRequest, WeightGenerator
from weightgen.spec import State


@dataclass(frozen=True, eq=False)
class Checks:
    """The results of the checks of one state."""

    found: dict[str, Any]
    """JSON: each property, and whether the state has it."""
    faults: tuple[str, ...] = ()
    """One sentence for every property that the state lacks."""
    outputs: Tensor | None = None
    """The network's outputs for the inputs; None if an earlier check failed."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A request with some of its examples held back, and those examples."""

    partial: GenerationRequest
    """The request without the examples that are held back."""
    inputs: Tensor
    """(m, *input_shape)"""
    answers: Tensor
    """(m,) the right answer for each input."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Which held-back examples each candidate gets right, bool (m,) each."""

    generated: list[Tensor] = field(default_factory=list)
    """One tensor for each sample."""
    references: dict[str, Tensor] = field(default_factory=dict)


class Profile(Protocol):
    """How weights of one kind are verified."""

    name: str

    def check(self, request: GenerationRequest, state: State) -> Checks:
        """Checks of one state by itself."""
        ...

    def hold_back(self, request: GenerationRequest) -> Trial | None:
        """A trial of the request; None if no example can be held back."""
        ...

    def compare(self, trial: Trial, states: Sequence[State], references: Sequence[WeightGenerator]) -> Comparison:
        """Which held-back examples the generated states, and the references' own, get right."""
        ...

    def why_no_trial(self) -> str:
        """Why `hold_back` returned None, as a part of a sentence."""
        ...
