"""Settings of a training run: its budget, the course of its learning rates, how often it is logged and saved."""

import math
from dataclasses import dataclass
from typing import Literal

from weightgen.errors import BadOption


@dataclass(frozen=True, slots=True)
class Span:
    """A length of training: either a number of steps, or minutes of training time.

    Training time is the time spent in steps. Evaluations and saves do not count.
    """

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        given = [x for x in (self.steps, self.minutes) if x is not None]
        if len(given) != 1 or not 0 < given[0] < math.inf:
            got = f"{self.steps} steps and {self.minutes} minutes"
            raise BadOption(f"a length of training is {got}; expected one of the two, above 0")

    def share(self, steps: int, seconds: float) -> float:
        """How much of this length has passed after so many steps and seconds: 0 at its start, 1 at its end."""
        if self.steps is not None:
            return steps / self.steps
        assert self.minutes is not None
        return seconds / (60 * self.minutes)


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """Everything about the loop in which recipes differ."""

    budget: Span
    seed: int = 0
    """Seed of all random draws in the losses."""
    warmup: int = 100
    """Steps over which learning rates rise in a line, at the start."""
    fall: Literal["half cosine", "quarter cosine"] = "half cosine"
    """How learning rates fall over the budget. Half a cosine is flat at both ends, a quarter only at the start."""
    floor: float = 0.0
    """Learning rate at the end, as a share of the highest one."""
    weight_decay: float = 1e-4
    clip: float = 1.0
    """Largest norm of a gradient; longer ones are scaled down to it."""
    is_clipped_by_group: bool = True
    """Whether the norm is taken over each group alone; otherwise over all groups together."""
    average: float | None = None
    """Decay of the moving average of the weights, with which a run ends; None for no average."""
    average_warmup: int = 10
    """The decay after n steps is at most n / (n + this), so that the average soon forgets its start."""
    accumulate: int = 1
    """Calls of `losses` in a step; the step follows the mean of their gradients."""
    updates_unused: bool = False
    """Whether parameters without a gradient in a step still follow their momentum and weight decay."""
    is_fused: bool = False
    """Whether AdamW runs as one kernel; that is faster, and rounds differently."""
    evaluations: int = 0
    """Number of evaluations, evenly spread over the budget; the last one is at its end."""
    log_every: Span = Span(minutes=1)
    save_every: Span = Span(minutes=2)

    def __post_init__(self) -> None:
        if min(self.clip, self.accumulate) <= 0 or min(self.warmup, self.evaluations) < 0:
            raise BadOption("expected clip and accumulate above 0, warmup and evaluations of 0 or more")

    def rate(self, highest: float, *, steps: int, progress: float) -> float:
        """The learning rate after so many steps, for a group with this highest rate; progress is in [0, 1]."""
        turn = math.pi * min(1.0, progress)
        fall = 0.5 + 0.5 * math.cos(turn) if self.fall == "half cosine" else math.cos(0.5 * turn)
        rise = min(1.0, (steps + 1) / max(1, self.warmup))
        return highest * rise * (self.floor + (1 - self.floor) * fall)


def budget_of(*, minutes: float | None, steps: int | None, default: Span) -> Span:
    """The budget that a command is given by --minutes or by --steps, or the default one."""
    if minutes is not None and steps is not None:
        raise BadOption("--minutes and --steps are both given; give one of them")
    return default if minutes is None and steps is None else Span(steps=steps, minutes=minutes)
