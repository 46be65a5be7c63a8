"""What a method brings to the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Parameters with one learning rate."""

    parameters: Sequence[nn.Parameter]
    rate: float
    """The highest learning rate; `LoopSettings.rate` says how it rises and falls."""


@dataclass(frozen=True, slots=True, eq=False)
class Losses:
    """What a step is to lower."""

    terms: Mapping[str, Tensor]
    """Scalars; their sum is followed."""
    seen: Mapping[str, float] = field(default_factory=dict)
    """Figures that are only logged."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A model and the functions that train it.

    A resumed run takes the same steps as one that was never interrupted as long as `losses` depends on nothing but
    its arguments, the weights and the settings: every random draw has to come from the `rng` that it is given.
    """

    name: str
    """What log lines begin with."""
    module: nn.Module
    """Holds all that is trained; its state is saved."""
    groups: Sequence[Group]
    losses: Callable[[int, float, torch.Generator], Losses]
    """Called with the number of steps taken, the share of the budget that is spent and the source of random numbers."""
    settings: Mapping[str, Any]
    """What the recipe was made with, as JSON; a saved run is only continued with the same."""
    evaluate: Callable[[], dict[str, Any]] | None = None
    """Figures on held-out tasks."""
    best_by: str = "loss"
    """The figure of an evaluation by which the best model is kept: the lower the better."""
    record: dict[str, Any] = field(default_factory=dict)
    """JSON that is saved with the run and restored with it."""
