"""How weights of one kind are verified: each kind has a profile, and all share one gate (`weightgen.delivery.gate`)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from weightgen.request import GenerationRequest, WeightGenerator
from weightgen.spec import State


@dataclass(frozen=True, eq=False)
class Checks:
    """What holds of one state.

    `found` is JSON, each property and whether the state has it; `faults` has a sentence for each that it lacks.
    `outputs` is what the network says of the inputs, if it came to that.
    """

    found: dict[str, Any]
    faults: tuple[str, ...] = ()
    outputs: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """`partial` is a request without the examples that are held back: `inputs` (m, *input_shape), `answers` (m,)."""

    partial: GenerationRequest
    inputs: Tensor
    answers: Tensor


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
