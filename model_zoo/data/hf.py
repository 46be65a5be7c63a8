"""Data sets of the Hugging Face Hub: `hf:NAME`. Needs `datasets`: the extra `hf`.

A split "train" is required. The test part is "test", else "validation", else a fifth of each class. The class column is
the one of type ClassLabel, else "label". The examples are an image column, else all numeric columns.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_zoo.data.convert import convert_arrays
from model_zoo.data.image_folder import convert_picture
from model_zoo.data.npz import DEFAULT_MAX_BYTES
from model_zoo.data.split import number_classes, split_stratified
from model_zoo.data.standardize import standardize
from weightgen.errors import BadData, NotFound, WeightgenError
from weightgen.labelled_data import LabelledData

TEST_FRACTION = 0.2


def load_hf(name: str, *, image_size: int | None = 28, max_bytes: int = DEFAULT_MAX_BYTES) -> LabelledData:
    """The labelled data of a data set on the Hub, or of a local folder in the Hub's format."""
    try:
        import datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise WeightgenError("data from the Hugging Face Hub need the package datasets; install it with: "
                             "pip install 'weightgen[hf]'") from error  # fmt: skip
    if not name:
        raise BadData("'hf:' names no data set; expected hf:NAME, for example hf:ylecun/mnist")
    try:
        loaded = datasets.load_dataset(name)
    except (OSError, ValueError) as error:
        # `datasets` raises subclasses of these for data sets that are unknown, gated, offline or broken.
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise NotFound(f"data set 'hf:{name}' cannot be loaded: {first}") from error
    return convert_splits(f"hf:{name}", loaded, image_size=image_size, max_bytes=max_bytes)


def convert_splits(name: str, splits: Any, *, image_size: int | None, max_bytes: int) -> LabelledData:
    """The labelled data of a mapping of split name -> datasets.Dataset."""
    if "train" not in splits:
        raise BadData(f"{name!r} has no split 'train'; it has {', '.join(map(str, splits))}")
    test_name = next((s for s in ("test", "validation", "valid") if s in splits), None)
    train = splits["train"]
    label = _find_label(name, train.features)
    image = next((c for c, f in train.features.items() if type(f).__name__ == "Image"), None)
    size = image_size or 28
    rows = len(train) + (len(splits[test_name]) if test_name else 0)
    if image is not None and 12 * rows * size**2 > max_bytes:
        raise BadData(f"{name!r}: {rows} images of {size}x{size} take more than the limit of {max_bytes:,} bytes")
    notes, parts = [], {}
    for part, split in (("train", train), *((("test", splits[test_name]),) if test_name else ())):
        inputs = _read_images(name, split, image, size) if image is not None else _read_features(name, split, label)
        parts[part] = (inputs, [str(v) for v in split[label]])
    texts = [t for _, labels in parts.values() for t in labels]
    labels, names = number_classes(texts)
    named = getattr(train.features[label], "names", None)
    if named:
        if "-1" in names:
            raise BadData(f"{name!r} has examples without a class (label -1 in column {label!r}); leave them out")
        names = tuple(str(named[int(n)]) for n in names)
    inputs = np.concatenate([x for x, _ in parts.values()])
    if image is not None and (inputs[..., :1] == inputs).all():
        inputs = inputs[..., 0]
    if test_name:
        train_rows, test_rows = np.arange(len(train)), np.arange(len(train), len(inputs))
        notes.append(f"test part: split {test_name!r}")
    else:
        train_rows, test_rows = split_stratified(name, labels, test_fraction=TEST_FRACTION)
        notes.append(f"split into {len(train_rows)} train and {len(test_rows)} test examples (seeded, stratified)")
    chosen = {"train": inputs[train_rows], "test": inputs[test_rows]}
    if image is None:
        chosen = standardize(chosen)
        notes.append("features standardised by the train part's mean and deviation")
    arrays = {f"x_{p}": x for p, x in chosen.items()} | {"y_train": labels[train_rows], "y_test": labels[test_rows]}
    return convert_arrays(name, arrays, image_size=image_size and size, class_names=names).with_notes(notes)


def _find_label(name: str, features: Any) -> str:
    typed = [c for c, f in features.items() if type(f).__name__ == "ClassLabel"]
    if typed:
        return typed[0]
    for column in ("label", "labels", "target", "class"):
        if column in features:
            return column
    raise BadData(f"{name!r} has no class column; expected a ClassLabel or 'label', it has {', '.join(features)}")


def _read_images(name: str, split: Any, column: str, size: int) -> NDArray:
    try:
        converted = [convert_picture(picture, size) for picture in split[column]]
    except BadData as error:
        raise BadData(f"{name!r}: an image of column {column!r} cannot be used: {error}") from error
    return np.stack(converted)


def _read_features(name: str, split: Any, label: str) -> NDArray:
    numeric = [
        c
        for c, f in split.features.items()
        if c != label and str(getattr(f, "dtype", "")).startswith(("float", "int", "uint"))
    ]
    if not numeric:
        raise BadData(f"{name!r} has neither an image column nor numeric columns; it has {', '.join(split.features)}")
    return np.stack([np.asarray(split[c], dtype=np.float64) for c in numeric], axis=1)
