"""scikit-learn's small data sets, which come with the package and need no download.

Half of each class is the train part and half the test part: a seeded, stratified split (`model_zoo.data.split`). digits
are images of 8x8 with 17 grey levels. The others are features, standardised by mean and deviation of their train half.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from model_zoo.data.convert import convert_arrays
from model_zoo.data.split import split_stratified
from model_zoo.data.standardize import standardize
from weightgen.labelled_data import LabelledData

SKLEARN_SETS = ("breast_cancer", "digits", "iris", "wine")
DIGITS_LEVELS = 16
"""Largest pixel value of digits."""


def load_sklearn(name: str, *, image_size: int | None = 28) -> LabelledData:
    """The scikit-learn data set of this name, one of SKLEARN_SETS."""
    from sklearn import datasets

    loaders: dict[str, Callable[[], Any]] = {n: getattr(datasets, f"load_{n}") for n in SKLEARN_SETS}
    bunch = loaders[name]()
    inputs = (bunch.images / DIGITS_LEVELS if name == "digits" else bunch.data).astype(np.float32)
    train, test = split_stratified(name, bunch.target, test_fraction=0.5)
    notes = [f"split into {len(train)} train and {len(test)} test examples (seeded, stratified)"]
    parts = {"train": inputs[train], "test": inputs[test]}
    if name != "digits":
        parts = standardize(parts)
        notes.append("features standardised by the train part's mean and deviation")
    arrays = {f"x_{part}": x for part, x in parts.items()} | {
        "y_train": bunch.target[train],
        "y_test": bunch.target[test],
    }
    names = tuple(str(n) for n in bunch.target_names)
    return convert_arrays(name, arrays, image_size=image_size, class_names=names).with_notes(notes)
