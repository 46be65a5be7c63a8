"""Classification tasks: a data set and some of its classes in label order; and folds of held-out data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from weightgen.condition import SupportSet
from weightgen.errors import BadData, BadOption
from weightgen.labelled_data import LabelledData, draw_support, select_classes


@dataclass(frozen=True)
class Task:
    """Some classes of a data set; class classes[i] has label i."""

    dataset: str
    """Name or path for `model_zoo.data.load_data`."""
    classes: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes) or min(self.classes) < 0:
            raise BadOption(f"classes of a task on {self.dataset!r}: expected at least 2 different ones, got "
                            f"{list(self.classes[:20])}")  # fmt: skip

    @property
    def ways(self) -> int:
        return len(self.classes)

    def select(self, data: LabelledData) -> LabelledData:
        """The task's part of its data set, with new labels."""
        return select_classes(data, self.classes)

    def draw_support(self, data: LabelledData, per_class: int, *, rng: torch.Generator) -> SupportSet:
        """`per_class` train examples of each of the task's classes."""
        return draw_support(data, per_class, rng=rng, classes=self.classes)


def sample_task(dataset: str, num_classes: int, *, ways: int | tuple[int, int] | None, rng: torch.Generator) -> Task:
    """A random task on one data set: `ways` classes (or a range) in random order; None: all classes in their order."""
    if ways is None:
        return Task(dataset, tuple(range(num_classes)))
    low, high = _check_ways(ways)
    if low > num_classes:
        raise BadData(f"data set {dataset!r} has {num_classes} classes, a task of {low} is asked for")
    drawn = int(torch.randint(low, min(high, num_classes) + 1, (), generator=rng))
    return Task(dataset, tuple(torch.randperm(num_classes, generator=rng)[:drawn].tolist()))


def sample_tasks(
    data_sets: Mapping[str, LabelledData],
    *,
    num_tasks: int,
    ways: int | tuple[int, int] | None = None,
    rng: torch.Generator,
) -> list[Task]:
    """Random tasks in random order, equally many (within one) on each data set with enough classes.

    `ways` is a number of classes or a range; a smaller data set uses the part of the range that it can. Raises
    BadOption if no data set has enough classes.
    """
    if num_tasks < 1:
        raise BadOption(f"num_tasks is {num_tasks}, expected at least 1")
    low = 2 if ways is None else _check_ways(ways)[0]
    fitting = sorted(name for name, data in data_sets.items() if data.num_classes >= low)
    if not fitting:
        raise BadOption(f"no data set has {low} classes; they have "
                        + ", ".join(f"{d.num_classes} ({n})" for n, d in list(data_sets.items())[:8]))  # fmt: skip
    names: list[str] = []
    while len(names) < num_tasks:
        names += [fitting[i] for i in torch.randperm(len(fitting), generator=rng)]
    return [sample_task(n, data_sets[n].num_classes, ways=ways, rng=rng) for n in names[:num_tasks]]


def held_out(names: Sequence[str], *, fold: int, num_folds: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(kept, held out) names: one fold of a cross-validation over whole data sets."""
    if not 2 <= num_folds <= len(names) or not 0 <= fold < num_folds:
        raise BadOption(f"fold {fold} of {num_folds} over {len(names)} data sets: expected 2 to {len(names)} folds, "
                        f"counted from 0")  # fmt: skip
    ordered = sorted(names)
    return tuple(n for i, n in enumerate(ordered) if i % num_folds != fold), tuple(ordered[fold::num_folds])


def _check_ways(ways: int | tuple[int, int]) -> tuple[int, int]:
    low, high = (ways, ways) if isinstance(ways, int) else ways
    if not 2 <= low <= high:
        raise BadOption(f"ways is {ways}, expected 2 or more classes, the smaller number first")
    return low, high
