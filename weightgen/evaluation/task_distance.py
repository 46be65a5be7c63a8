"""How far a task lies from those that a generator learnt from, by the generator's own embedding.

The distance is 1 - cosine to the nearest task of its reference zoo. What is far is calibrated on the zoo itself: a task
is outside if it is farther from all of them than 95% of them are from their nearest fellow. The flag says that the
generator has seen nothing like it, not that it fails: accuracy falls off gently, and a data set that is new to the
generator may still be served well.

An embedding that puts all tasks of its zoo into one point (some do, where the trunk hardly depends on the task) cannot
tell, and says so: then uniform noise would lie among them too.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.errors import UnsupportedTask
from weightgen.references.zoo import ReferenceZoo

QUANTILE = 0.95
RESOLUTION = 2e-4
"""Threshold below which an embedding tells no task from another: at 1e-4, noise was found among the tasks of a zoo."""


@dataclass(frozen=True, slots=True)
class TaskDistance:
    """Where a task lies relative to those of a zoo."""

    distance: float
    """1 - cosine to the nearest of them, 0 to 2."""
    threshold: float
    """`QUANTILE` of the distance of each of them to its nearest fellow."""
    nearest: str
    """The data set of the nearest."""

    @property
    def is_outside(self) -> bool | None:
        """Whether the task is unlike all of the zoo; None if the embedding cannot tell."""
        return None if self.threshold < RESOLUTION else self.distance > self.threshold


def measure_task(zoo: ReferenceZoo, embedding: Float[Tensor, "e"]) -> TaskDistance:
    """The distance of the task of this unit-norm embedding from those of the zoo; UnsupportedTask for a zoo of one."""
    index = zoo.rank(embedding)[0]
    return TaskDistance(
        distance=max(0.0, 1.0 - float(zoo.embeddings[index] @ embedding)),
        threshold=calibrate(zoo),
        nearest=str(zoo.runs[index]["dataset"]),
    )


def calibrate(zoo: ReferenceZoo) -> float:
    """The distance that `QUANTILE` of the zoo's tasks keep to their nearest fellow; runs of one task are no fellows."""
    tasks = [(run["dataset"], tuple(run["classes"])) for run in zoo.runs]
    if len(set(tasks)) < 2:
        raise UnsupportedTask("the reference zoo holds one task, which is near to nothing; expected at least two")
    is_same = torch.tensor([[a == b for b in tasks] for a in tasks])
    likeness = (zoo.embeddings @ zoo.embeddings.T).masked_fill(is_same, -1.0)
    return max(0.0, float(torch.quantile(1.0 - likeness.max(1).values, QUANTILE)))
