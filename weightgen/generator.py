"""The one protocol every source of weights speaks, learnt generators and references alike."""

import hashlib
import json
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from weightgen.condition import Condition
from weightgen.diffusion import Sampling
from weightgen.errors import BadOption
from weightgen.spec import State
from weightgen.target import Target

MAX_SAMPLES = 1024


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """Weights for this target under this condition. The same request to the same generator gives the same bytes."""

    target: Target
    condition: Condition
    num_samples: int = 1
    seed: int = 0
    sampling: Sampling | None = None
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
