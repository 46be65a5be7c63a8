"""Splits data without parts into train and test: seeded, stratified, the same every time."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weightgen.errors import BadData

SPLIT_SEED = 0


def split_stratified(name: str, labels: NDArray, *, test_fraction: float) -> tuple[NDArray, NDArray]:
    """Indices of the train and of the test examples, each sorted: `test_fraction` of each class, rounded, is test.

    Each class keeps at least one example in train and, if it has two or more, gives at least one to test.
    """
    rng = np.random.default_rng(SPLIT_SEED)
    train, test = [], []
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        num_test = min(max(round(len(members) * test_fraction), 1), len(members) - 1)
        test.append(members[:num_test])
        train.append(members[num_test:])
    chosen_train, chosen_test = np.sort(np.concatenate(train)), np.sort(np.concatenate(test))
    if len(chosen_test) == 0:
        raise BadData(f"{name!r}: every class has a single example; expected some with two or more, to split into "
                      "train and test")  # fmt: skip
    return chosen_train, chosen_test


def number_classes(values: Sequence[str]) -> tuple[NDArray, tuple[str, ...]]:
    """Labels 0 .. k-1 and the class names, in sorted order; names that are all numbers sort as numbers."""
    names = sorted(set(values), key=_sort_key(values))
    index = {name: i for i, name in enumerate(names)}
    return np.array([index[v] for v in values], dtype=np.int64), tuple(names)


def _sort_key(values: Sequence[str]) -> Callable[[str], Any]:
    try:
        numbers = {v: float(v) for v in set(values)}
    except ValueError:
        return str
    return lambda v: (numbers[v], v)
