"""What a method gives to the loop: a model, its parameters and the losses of a step."""

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
    """The result of one step."""

    terms: Mapping[str, Tensor]
    """Scalars; their sum is followed."""
    seen: Mapping[str, float] = field(default_factory=dict)
    """Figures that are logged and not followed."""


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """A model and the functions that train it.

    A resumed run takes the same steps as one that was never interrupted as long as `losses` depends on nothing but
    its arguments, the weights and the settings: every random draw has to come from the `rng` that it is given.
    """

    name: str
    """The first word of log lines."""
    module: nn.Module
    """Holds everything that is trained; its whole state is saved."""
    groups: Sequence[Group]
    losses: Callable[[int, float, torch.Generator], Losses]
    """Called with the number of steps taken, the share of the budget that is spent and the source of random numbers."""
    settings: Mapping[str, Any]
    """The settings of the recipe, as JSON; a saved run only goes on with the same ones."""
    evaluate: Callable[[], dict[str, Any]] | None = None
    """Returns figures on held-out tasks."""
    best_by: str = "loss"
    """Name of the figure by which the best model is kept; the lowest wins."""
    record: dict[str, Any] = field(default_factory=dict)
    """JSON that is saved with the run and restored with it."""
