"""Interleaved timing: both sides of a ratio are run in turn, so that a busy machine slows both."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Ratio:
    """One line of the benchmark."""

    name: str
    value: float
    aim: str
    """The aim for the value, as a phrase; empty if the value is only reported."""
    is_met: bool | None
    seconds: Mapping[str, float]
    """Median seconds of each side."""

    def to_json(self) -> dict[str, Any]:
        return {
            "value": round(self.value, 4),
            "aim": self.aim,
            "is_met": self.is_met,
            "seconds": {side: float(f"{s:.4g}") for side, s in self.seconds.items()},
        }


def time_in_turn(sides: Mapping[str, Callable[[], object]], *, num_rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in every round, after one round that is not counted; the order alternates.

    The result of a side is freed before the next one starts, outside the measured time.
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(num_rounds + 1):
        order = list(sides) if number % 2 else list(sides)[::-1]
        for side in order:
            started = time.perf_counter()
            result = sides[side]()
            elapsed = time.perf_counter() - started
            del result
            if number:
                seconds[side].append(elapsed)
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], ours: str, theirs: str) -> float:
    """Median over the rounds of the seconds of `ours` divided by those of `theirs`."""
    return statistics.median(a / b for a, b in zip(seconds[ours], seconds[theirs], strict=True))


def medians(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    return {side: statistics.median(found) for side, found in seconds.items()}
