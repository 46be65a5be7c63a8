"""Arrays in .npz files: what they give, and what is refused with one clear sentence."""

import contextlib
import io
import pickle
import zipfile
from typing import Any

import numpy as np
import pytest

from model_zoo.data import (
    load_data,
)
from model_zoo.data.npz import load_npz
from weightgen.errors import BadData, CorruptFile, WeightgenError


def make_arrays(shape: tuple[int, ...] = (9, 9), dtype: Any = np.uint8, high=255, **changes):
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": (rng.random((12, *shape)) * high).astype(dtype),
        "y_train": np.arange(12) % 3,
        "x_test": (rng.random((6, *shape)) * high).astype(dtype),
        "y_test": np.arange(6) % 3,
    }
    return {k: v for k, v in {**arrays, **changes}.items() if v is not None}


@pytest.fixture
def save(tmp_path):
    def save(**arrays):
        path = tmp_path / "data.npz"
        np.savez_compressed(path, **arrays)
        return path

    return save


@pytest.mark.parametrize(
    ("shape", "channels"), [((28, 28), 1), ((9, 9), 1), ((40, 31), 1), ((9, 9, 1), 1), ((28, 28, 3), 3), ((3, 3), 1)]
)
def test_npz_images_of_any_size_become_28x28(save, shape, channels):
    data = load_data(str(save(**make_arrays(shape))))
    assert data.x_train.shape == (12, channels, 28, 28)
    assert any("resized" in n for n in data.notes) == (shape[:2] != (28, 28))
    assert any("proportions" in n for n in data.notes) == (shape[0] != shape[1])


@pytest.mark.parametrize(
    ("dtype", "high", "note"),
    [
        (np.uint8, 255, None),
        (np.float32, 1, None),
        (np.float16, 1, None),
        (np.float64, 255, "divided by 255"),
        (np.int64, 255, "divided by 255"),
        (bool, 1, "False and True"),
    ],
)
def test_npz_images_of_every_number_type_come_to_the_unit_range(save, dtype, high, note):
    arrays = make_arrays((28, 28), dtype, high)
    data = load_data(str(save(**arrays)))
    expected = arrays["x_train"].astype(np.float64) / (255 if high == 255 else 1)
    assert np.allclose(data.x_train[:, 0].numpy(), expected, atol=1e-6)
    assert bool(data.notes) == bool(note)
    assert note is None or note in data.notes[0]


def test_npz_features_are_taken_as_they_are(save):
    arrays = make_arrays((5,), np.float64, 900)
    data = load_data(str(save(**arrays)))
    assert data.in_features == 5
    assert np.allclose(data.x_test.numpy(), arrays["x_test"])


def test_npz_may_name_its_classes(save):
    assert load_data(str(save(**make_arrays(), class_names=np.array(["x", "y", "z"])))).class_names == ("x", "y", "z")
    with pytest.raises(BadData, match="2 class names for 3 classes"):
        load_data(str(save(**make_arrays(), class_names=np.array(["x", "y"]))))
    with pytest.raises(BadData, match="expected strings"):
        load_data(str(save(**make_arrays(), class_names=np.arange(3))))


HOSTILE_ARRAYS = {
    "gap": ({"y_train": np.array([0, 2, 5] * 4), "y_test": np.array([0] * 6)}, BadData, "without gaps, got 0, 2, 5"),
    "from one": ({"y_train": np.arange(12) % 3 + 1, "y_test": np.ones(6, int)}, BadData, "without gaps"),
    "negative": ({"y_train": np.arange(12) % 3 - 1}, BadData, "label -1"),
    "huge label": ({"y_train": np.arange(12) * 10**12}, BadData, "labels must be 0 to k-1"),
    "uint64 label": ({"y_train": np.full(12, 2**64 - 1, np.uint64)}, BadData, "labels must be 0 to k-1"),
    "float labels": ({"y_train": np.arange(12) % 3 + 0.5}, BadData, "expected one integer label"),
    "one-hot labels": ({"y_train": np.eye(3, dtype=int)[np.arange(12) % 3]}, BadData, "expected one integer label"),
    "one class": ({"y_train": np.zeros(12, int), "y_test": np.zeros(6, int)}, BadData, "at least two classes"),
    "new in test": ({"y_test": np.array([0, 1, 2, 3, 0, 1])}, BadData, "test label 3 is not among"),
    "lengths": ({"y_train": np.arange(11) % 3}, BadData, r"expected int64 \[12\]"),
    "missing": ({"x_test": None, "y_test": None}, BadData, "has no array x_test, y_test; it holds x_train, y_train"),
    "nan": ({"x_train": np.full((12, 9, 9), np.nan), "x_test": np.zeros((6, 9, 9))}, BadData, "NaN or infinite"),
    "range": ({"x_train": np.full((12, 9, 9), 1e4), "x_test": np.ones((6, 9, 9))}, BadData, "reach from 1 to 10000"),
    "below zero": ({"x_train": np.full((12, 9, 9), -1.0), "x_test": np.ones((6, 9, 9))}, BadData, "reach from -1 to 1"),
    "unclear": (
        {"x_train": np.full((12, 9, 9), 16.0), "x_test": np.full((6, 9, 9), 16.0)},
        BadData,
        "up to 16, neither",
    ),
    "uneven": ({"x_train": np.full((12, 9, 9), 255.0), "x_test": np.ones((6, 9, 9))}, BadData, "expected both in"),
    "mixed": ({"x_train": np.ones((12, 9, 9))}, BadData, "expected the same"),
    "1x1": (
        {"x_train": np.zeros((12, 1, 1), np.uint8)},
        BadData,
        "expected images of 2 to 4096 pixels a side, got 1x1",
    ),
    "wide": ({"x_train": np.zeros((12, 2, 5000), np.uint8)}, BadData, "got 2x5000"),
    "two channels": ({"x_train": np.zeros((12, 9, 9, 2), np.uint8)}, BadData, "which has 2 channels"),
    "five channels": ({"x_train": np.zeros((12, 9, 9, 5), np.uint8)}, BadData, "which has 5 channels"),
    "rgba": (
        {"x_train": np.zeros((12, 9, 9, 4), np.uint8)},
        BadData,
        r"drop the alpha channel with x_train\[..., :3\]",
    ),
    "channels first": ({"x_train": np.zeros((12, 3, 9, 9), np.uint8)}, BadData, r"numpy.moveaxis\(x_train, 1, -1\)"),
    "five axes": ({"x_train": np.zeros((12, 9, 9, 1, 1), np.uint8)}, BadData, "expected images"),
    "no examples": ({"x_test": np.zeros((0, 9, 9), np.uint8), "y_test": np.zeros(0, int)}, BadData, "at least one"),
    "text": ({"x_train": np.full((12, 9, 9), "a")}, BadData, "expected uint8 or float numbers"),
    "complex": ({"x_train": np.zeros((12, 9, 9), complex)}, BadData, "expected uint8 or float numbers"),
    "sizes differ": ({"x_test": np.zeros((6, 9, 8), np.uint8)}, BadData, "different shapes"),
    "object": ({"x_train": np.array([None] * 12)}, BadData, "pickled Python objects"),
}


@pytest.mark.parametrize(("changes", "error", "message"), HOSTILE_ARRAYS.values(), ids=HOSTILE_ARRAYS)
def test_unusable_arrays_are_refused(save, changes, error, message):
    with pytest.raises(error, match=message) as caught:
        load_data(str(save(**make_arrays(**changes))))
    assert "data.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_features_with_nan_or_beyond_float32_are_refused(save):
    for value in (np.nan, np.inf, 1e300):
        features = np.zeros((12, 4))
        features[3, 1] = value
        with pytest.raises(BadData, match=r"x_train holds NaN or infinite values.* in 1 of 12"):
            load_data(str(save(**make_arrays((4,), np.float64, x_train=features))))


@pytest.mark.parametrize("keep", [0, 10, 100, 0.5, 0.9, -30])
def test_truncated_archives_are_corrupt(save, keep):
    path = save(**make_arrays())
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CorruptFile, match="data.npz"):
        load_data(str(path))


def test_flipped_bytes_never_give_anything_but_a_sentence(save):
    path = save(**make_arrays())
    good = path.read_bytes()
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(good)
        for place in rng.integers(0, len(good), 3):
            damaged[place] = rng.integers(0, 256)
        path.write_bytes(damaged)
        with contextlib.suppress(WeightgenError):
            load_data(str(path))


def write_npy_header(shape, descr="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": descr, "fortran_order": False, "shape": shape})
    return file.getvalue()


def test_an_array_that_claims_more_than_it_holds_is_corrupt(save):
    path = save(**make_arrays(x_train=None))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train.npy", write_npy_header((2**40, 28, 28)))
    with pytest.raises(CorruptFile, match="x_train says it is uint8"):
        load_data(str(path))


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(save):
    path = save(**make_arrays(x_train=np.zeros((12, 1000, 1000), np.uint8), x_test=np.zeros((6, 1000, 1000), np.uint8)))
    assert path.stat().st_size < 50_000
    with pytest.raises(BadData, match=r"take 18,000,144 bytes in memory, the limit is 1,000,000"):
        load_npz(path, max_bytes=10**6)
    assert load_npz(path, max_bytes=10**8).num_classes == 3


def test_small_images_that_grow_past_the_limit_are_refused(save):
    path = save(**make_arrays((2, 2)))
    with pytest.raises(BadData, match="the limit is 10,000"):
        load_npz(path, max_bytes=10_000)


def test_a_pickle_named_npz_is_not_loaded(tmp_path):
    path = tmp_path / "evil.npz"
    path.write_bytes(pickle.dumps({"x_train": 1}))
    with pytest.raises(CorruptFile, match="evil.npz"):
        load_data(str(path))
