"""Distance of a task from those that a generator learnt from, by the generator's own embedding.

The distance is 1 - cosine to the nearest task of its reference zoo. The threshold comes from the zoo itself: a task is
outside if it is farther from all tasks of the zoo than 95% of them are from their nearest neighbour. Outside means that
the generator has seen nothing like it, not that it fails: accuracy falls off gently, and a data set that is new to the
generator may still be served well.

Some embeddings put all tasks of their zoo into one point (if the trunk hardly depends on the task). Then uniform noise
would lie among the tasks too, so `is_outside` is None.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.errors import UnsupportedTask
from weightgen.references.zoo import ReferenceZoo

QUANTILE = 0.95
RESOLUTION = 2e-4
"""Thresholds below this mean that an embedding cannot separate tasks: at 1e-4, noise lay among the tasks of a zoo."""


@dataclass(frozen=True, slots=True)
class TaskDistance:
    """Where a task lies relative to the tasks of a zoo."""

    distance: float
    """1 - cosine to the nearest task, 0 to 2."""
    threshold: float
    """`QUANTILE` of the distances of the zoo's tasks to their nearest neighbours."""
    nearest: str
    """The data set of the nearest task."""

    @property
    def is_outside(self) -> bool | None:
        """Whether the task is unlike all tasks of the zoo; None if the embedding cannot separate tasks."""
        return None if self.threshold < RESOLUTION else self.distance > self.threshold


def measure_task(zoo: ReferenceZoo, embedding: Float[Tensor, "e"]) -> TaskDistance:
    """Distance of a task with this unit-norm embedding from the zoo's tasks; UnsupportedTask for a zoo of one task."""
    index = zoo.rank(embedding)[0]
    return TaskDistance(
        distance=max(0.0, 1.0 - float(zoo.embeddings[index] @ embedding)),
        threshold=calibrate(zoo),
        nearest=str(zoo.runs[index]["dataset"]),
    )


def calibrate(zoo: ReferenceZoo) -> float:
    """`QUANTILE` of the distances of the zoo's tasks to their nearest neighbours; runs of one task do not count."""
    tasks = [(run["dataset"], tuple(run["classes"])) for run in zoo.runs]
    if len(set(tasks)) < 2:
        raise UnsupportedTask("the reference zoo holds one task, which has no neighbour; expected at least two")
    is_same = torch.tensor([[a == b for b in tasks] for a in tasks])
    likeness = (zoo.embeddings @ zoo.embeddings.T).masked_fill(is_same, -1.0)
    return max(0.0, float(torch.quantile(1.0 - likeness.max(1).values, QUANTILE)))
