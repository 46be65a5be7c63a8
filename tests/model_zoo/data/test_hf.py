"""Data sets of the Hugging Face Hub, without the Hub."""

import sys
from types import SimpleNamespace

import pytest

from model_zoo.data import (
    load_data,
)
from model_zoo.data.hf import convert_splits
from weightgen.errors import BadData, WeightgenError


class ClassLabel:
    names = ["no", "yes"]
    dtype = "int64"


class Image:
    dtype = "PIL.Image.Image"


class Split:
    def __init__(self, features, columns):
        self.features, self.columns = features, columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column):
        return self.columns[column]


def make_image_split(modes):
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
    pictures = [image.new(m, (9, 9), 10 * i if m == "L" else (10 * i, 0, 9)) for i, m in enumerate(modes)]
    columns = {"image": pictures, "label": [i % 2 for i in range(len(modes))]}
    return Split({"image": Image(), "label": ClassLabel()}, columns)


def test_hub_images_load_with_their_class_names():
    splits = {"train": make_image_split(["L"] * 8), "test": make_image_split(["L"] * 4)}
    data = convert_splits("hf:x", splits, image_size=28, max_bytes=10**9)
    assert data.x_train.shape == (8, 1, 28, 28)
    assert data.class_names == ("no", "yes")
    mixed = convert_splits("hf:x", splits | {"test": make_image_split(["RGB"] * 4)}, image_size=28, max_bytes=10**9)
    assert mixed.in_channels == 3


def test_hub_numbers_are_features():
    float_type = SimpleNamespace(dtype="float32")
    split = Split(
        {"a": float_type, "b": float_type, "label": ClassLabel()},
        {"a": list(range(20)), "b": [0.5] * 20, "label": [0, 1] * 10},
    )
    data = convert_splits("hf:x", {"train": split}, image_size=28, max_bytes=10**9)
    assert data.x_train.shape == (16, 2)


@pytest.mark.parametrize(
    ("features", "message"),
    [({"text": SimpleNamespace(dtype="string")}, "no class column"), ({"label": ClassLabel()}, "neither")],
)
def test_unusable_hub_sets_are_refused(features, message):
    split = Split(features, {c: [0, 1] for c in features})
    with pytest.raises(BadData, match=message):
        convert_splits("hf:x", {"train": split}, image_size=28, max_bytes=10**9)
    with pytest.raises(BadData, match="no split 'train'; it has test"):
        convert_splits("hf:x", {"test": split}, image_size=28, max_bytes=10**9)


def test_without_datasets_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(WeightgenError, match=r"weightgen\[hf\]"):
        load_data("hf:ylecun/mnist")
