"""What was read of an upload becomes labelled data, by the library's own rules, and is kept as two files.

    about.json         what GET /v1/datasets/{name} tells of it
    data.safetensors   x_train, y_train, x_test and y_test

Without parts, a fifth of each class is kept for testing, always the same (`model_zoo.data.split`).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from model_zoo.architectures import IMAGE_SIZE
from model_zoo.data.convert import convert_arrays
from model_zoo.data.image_folder import TEST_FRACTION, label_pictures, resize_picture
from model_zoo.data.split import number_classes, split_stratified
from model_zoo.data.table import standardize_numbers
from service.uploads.reading import Limits, Raw, Unusable, show
from service.uploads.upload_store import ABOUT, TENSORS
from weightgen.errors import BadData
from weightgen.files.state_file import save_state
from weightgen.files.storage import write_json
from weightgen.labelled_data import LabelledData

_NAME = "upload"
_PARTS = ("train", "test")


def label_upload(raw: Raw, *, shape: tuple[int, ...] | None, limits: Limits) -> LabelledData:
    """The labelled data of an upload, images at the size that architectures take; Unusable says what is wrong.

    `shape` is the height, width and channels of images whose pixels are the columns of a table.
    """
    try:
        data = {"numbers": _label_numbers, "table": _label_table, "pictures": _label_pictures}[raw.form](raw, shape)
    except BadData as error:
        raise Unusable(str(error).removeprefix(f"{_NAME!r}: ")) from error
    if data.num_classes > limits.max_classes:
        raise Unusable(f"it has {data.num_classes} classes, at most {limits.max_classes} are taken; use fewer")
    return data


def write_data(folder: Path, data: LabelledData) -> None:
    """Fill a new folder with the two files; the same data and notes give the same bytes."""
    folder.mkdir()
    inputs = {f"x_{part}": x for part, x in (("train", data.x_train), ("test", data.x_test))}
    bytes_too = {name: _as_bytes(x) for name, x in inputs.items()} if data.in_channels else {}
    if bytes_too and all(x is not None for x in bytes_too.values()):
        inputs = {name: x for name, x in bytes_too.items() if x is not None}  # without loss, and a quarter of the size
    save_state(folder / TENSORS, {**inputs, "y_train": data.y_train, "y_test": data.y_test})
    write_json(folder / ABOUT, describe_data(data))


def read_data(name: str, about: dict[str, Any], content: bytes) -> LabelledData:
    """The data that `write_data` wrote, from what it said of them and the bytes of the tensors."""
    tensors = safetensors.torch.load(content)
    for part in _PARTS:
        x = tensors[f"x_{part}"]
        tensors[f"x_{part}"] = x.float() / 255 if x.dtype == torch.uint8 else x
    names = tuple(entry["name"] for entry in about["classes"])
    return LabelledData(name=name, class_names=names, notes=tuple(about["notes"]), **tensors)


def describe_data(data: LabelledData) -> dict[str, Any]:
    """Kind, classes with their counts, shape and so on, JSON values."""
    counts = [torch.bincount(y, minlength=data.num_classes).tolist() for y in (data.y_train, data.y_test)]
    return {
        "kind": "features" if data.in_channels is None else "images",
        "num_classes": data.num_classes,
        "classes": [
            {"name": name, "train": train, "test": test}
            for name, train, test in zip(data.class_names, *counts, strict=True)
        ],
        "examples": len(data.x_train) + len(data.x_test),
        "train": len(data.x_train),
        "test": len(data.x_test),
        "shape": list(data.x_train.shape[1:]),
        "dtype": str(data.x_train.dtype).removeprefix("torch."),
        "notes": list(data.notes),
    }


def _label_numbers(raw: Raw, shape: None) -> LabelledData:
    arrays = dict(raw.arrays)
    parts = [suffix for suffix in ("", "_train", "_test") if f"x{suffix}" in arrays]
    for suffix in parts:
        x, y = arrays[f"x{suffix}"], arrays[f"y{suffix}"]
        if len(x) != len(y):
            raise Unusable(f"x{suffix} has {len(x)} examples, y{suffix} {len(y)} labels; expected as many")
    names = tuple(raw.class_names) if raw.class_names is not None else None
    if raw.texts is not None:
        texts = [raw.texts[i] for suffix in parts for i in arrays[f"y{suffix}"]]
        labels, names = number_classes(texts)
        start = 0
        for suffix in parts:
            end = start + len(arrays[f"y{suffix}"])
            arrays[f"y{suffix}"], start = labels[start:end], end
    everything = np.concatenate([arrays[f"y{suffix}"] for suffix in parts])
    _check_counts(everything, names)
    if "x" not in arrays:
        absent = np.setdiff1d(arrays["y_test"], arrays["y_train"])
        if len(absent):
            raise Unusable(f"class {_name_of(int(absent[0]), names)} is in the test part but not in the train part")
        return convert_arrays(_NAME, arrays, image_size=IMAGE_SIZE, class_names=names)
    return _split(arrays["x"], arrays["y"], names)


def _label_table(raw: Raw, shape: tuple[int, ...] | None) -> LabelledData:
    assert raw.texts is not None
    x, (y, names) = raw.arrays["x"], number_classes([raw.texts[i] for i in raw.arrays["y"]])
    _check_counts(y, names)
    if shape is not None:
        if x.shape[1] != np.prod(shape):
            expected = "x".join(map(str, shape))
            raise Unusable(f"it has {x.shape[1]} columns of pixels, shape={expected} asks for {int(np.prod(shape))}")
        return _split(x.reshape(len(x), *shape), y, names)
    train, test = split_stratified(_NAME, y, test_fraction=TEST_FRACTION)
    parts = standardize_numbers([(x[:, i : i + 1], True) for i in range(x.shape[1])], train, test)
    arrays = {f"x_{part}": part_x for part, part_x in parts.items()} | {"y_train": y[train], "y_test": y[test]}
    notes = (_describe_split(train, test), "numbers standardised by the train part's mean and deviation")
    return convert_arrays(_NAME, arrays, image_size=None, class_names=names).with_notes(notes)


def _label_pictures(raw: Raw, shape: None) -> LabelledData:
    assert raw.texts is not None
    labels, sizes = raw.arrays["y"], raw.arrays["sizes"]
    classes = [raw.texts[i] for i in labels]
    _check_counts(labels, tuple(raw.texts))
    met = {(height, width) for height, width, _ in sizes.tolist()}
    if len(met) == 1 and raw.num_train is None:  # then they are what an .npz of them is
        y, names = number_classes(classes)
        pictures = np.stack(list(_cut_pictures(raw)))
        return _split(pictures[..., 0] if (pictures[..., :1] == pictures).all() else pictures, y, names)
    resized = np.stack([resize_picture(picture, IMAGE_SIZE) for picture in _cut_pictures(raw)])
    return label_pictures(_NAME, resized, classes, num_train=raw.num_train, sizes=met)


def _cut_pictures(raw: Raw) -> Iterator[np.ndarray]:
    """Each picture, (h, w, 3)."""
    start = 0
    for height, width, channels in raw.arrays["sizes"].tolist():
        end = start + height * width * channels
        picture = raw.arrays["pixels"][start:end].reshape(height, width, channels)
        yield np.broadcast_to(picture, (height, width, 3))
        start = end


def _split(x: np.ndarray, y: np.ndarray, names: tuple[str, ...] | None) -> LabelledData:
    order = np.argsort(y, kind="stable")  # class after class, as folders hold them
    x, y = x[order], y[order]
    train, test = split_stratified(_NAME, y, test_fraction=TEST_FRACTION)
    arrays = {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    data = convert_arrays(_NAME, arrays, image_size=IMAGE_SIZE, class_names=names)
    return data.with_notes((_describe_split(train, test),))


def _describe_split(train: np.ndarray, test: np.ndarray) -> str:
    return f"split into {len(train)} train and {len(test)} test examples (seeded, stratified)"


def _check_counts(labels: np.ndarray, names: tuple[str, ...] | None) -> None:
    counts = np.bincount(labels)
    if np.count_nonzero(counts) < 2:
        raise Unusable("all its examples are of one class; expected at least two classes")
    single = np.flatnonzero(counts == 1)
    if len(single):
        raise Unusable(f"class {_name_of(int(single[0]), names)} has a single example; expected at least two of each "
                       "class, one to train and one to test")  # fmt: skip


def _name_of(label: int, names: tuple[str, ...] | None) -> str:
    return show(names[label]) if names is not None and label < len(names) else str(label)


def _as_bytes(x: Tensor) -> Tensor | None:
    """Images as bytes, if that loses nothing."""
    rounded = (x * 255).round().to(torch.uint8)
    return rounded if torch.equal(rounded.float() / 255, x) else None
