"""Every data source: what it gives, and what it refuses with one clear sentence."""

import contextlib
import io
import pickle
import sys
import zipfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from model_zoo.data import (
    DATA_SOURCES,
    EVALUATION_SETS,
    TRAIN_SETS,
    describe_image_set,
    find_evaluation_files,
    list_data,
    load_data,
)
from model_zoo.data.hf import convert_splits
from model_zoo.data.image_folder import load_image_folder
from model_zoo.data.npz import load_npz
from model_zoo.data.sklearn import SKLEARN_SETS
from model_zoo.data.split import number_classes, split_stratified
from model_zoo.data.table import load_table
from tests.helpers.paths import shared_path
from weightgen.errors import BadData, BadOption, CorruptFile, NotFound, UnknownName, WeightgenError


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


def test_the_three_lists_of_sets_do_not_overlap():
    assert not set(TRAIN_SETS) & EVALUATION_SETS
    assert (len(TRAIN_SETS), len(EVALUATION_SETS)) == (14, 8)


@pytest.mark.parametrize("name", SKLEARN_SETS)
def test_sklearn_sets_load_the_same_every_time(name):
    data = load_data(name)
    assert data.digest() == load_data(name).digest()
    assert torch.unique(data.y_test).tolist() == list(range(data.num_classes))


def test_digits_are_resized_and_reach_from_black_to_white():
    data = load_data("digits")
    assert data.x_train.shape[1:] == (1, 28, 28)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert any("resized from 8x8 to 28x28" in note for note in data.notes)
    assert load_data("digits", image_size=None).x_train.shape[1:] == (1, 8, 8)


def test_shared_sets_hold_what_their_description_says():
    shared_path("images")
    for name in ("gtsrb", "coil20"):
        data, about = load_data(name), describe_image_set(name)
        assert list(data.class_names) == about["classes"]
        assert torch.bincount(data.y_train).tolist() == about["train_counts"]
        assert data.x_train.shape[2:] == (28, 28)


def test_omniglot_is_divided_by_alphabet():
    shared_path("images/omniglot_small.npz")
    train, held_out = load_data("omniglot"), load_data("omniglot_held_out")
    assert {c.split("/")[0] for c in held_out.class_names} == {"Sanskrit", "Tagalog"}
    assert not set(train.class_names) & set(held_out.class_names)
    assert train.num_classes + held_out.num_classes == 242
    assert len(train.y_train) + len(held_out.y_train) == 3630


def test_every_listed_set_has_a_part_to_play():
    shared_path("images/mnist.npz")
    known = {*TRAIN_SETS, *EVALUATION_SETS, "omniglot_held_out", *SKLEARN_SETS}
    assert set(list_data()) == known
    assert set(find_evaluation_files().values()) >= (EVALUATION_SETS - {"digits"}) | {"omniglot_held_out"}


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


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'digits'"):
        load_data("digitz")


def test_missing_files_are_not_found(tmp_path):
    for name in ("nothing.npz", str(tmp_path / "nothing"), "nothing.csv"):
        with pytest.raises(NotFound, match="nothing"):
            load_data(name)


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadData, match="is no data file"):
        load_data(str(tmp_path / "notes.txt"))


def test_image_sizes_out_of_range_are_refused():
    with pytest.raises(BadOption, match="expected 1 to 1024"):
        load_data("digits", image_size=0)


def test_without_a_shared_folder_its_sets_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTGEN_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(NotFound, match="set WEIGHTGEN_SHARED"):
        load_data("mnist")
    assert set(list_data()) == set(SKLEARN_SETS)


def test_registered_names_win_over_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").mkdir()
    assert load_data("iris").num_classes == 3
    with pytest.raises(BadData, match="no images"):
        load_data("./iris")


def test_every_source_is_chosen_by_what_it_takes():
    assert list(DATA_SOURCES) == ["sklearn", "shared", "hf", "npz", "table", "image_folder"]


# Tables


def write_table(path, rows=40):
    pandas = pytest.importorskip("pandas", reason="needs the extra 'table'")
    frame = pandas.DataFrame(
        {
            "size": [float(i) if i % 10 else None for i in range(rows)],
            "colour": [("red", "green", None)[i % 3] for i in range(rows)],
            "kind": [("cat", "dog")[i % 2] for i in range(rows)],
        }
    )
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_tables_become_standardised_and_one_hot_features(tmp_path, name):
    data = load_data(str(write_table(tmp_path / name)))
    assert data.class_names == ("cat", "dog")
    assert data.x_train.shape == (32, 4)  # one number, three categories: green, red, missing
    assert torch.isclose(data.x_train[:, 0].mean(), torch.tensor(0.0), atol=1e-6)
    assert set(data.x_train[:, 1:].unique().tolist()) == {0, 1}
    assert torch.equal(data.x_train[:, 1:].sum(1), torch.ones(32))
    told = " / ".join(data.notes)
    for note in ("class column: 'kind'", "4 missing numbers", "13 missing categories", "seeded"):
        assert note in told


def test_the_class_column_can_be_named(tmp_path):
    path = write_table(tmp_path / "t.csv")
    assert load_table(path, target="colour").num_classes == 2
    with pytest.raises(BadOption, match="no column 'taste'; it has size, colour, kind"):
        load_table(path, target="taste")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", CorruptFile, "cannot be read as a table"),
        ("a,b\n1,2\n3,4,5,6\n", CorruptFile, "cannot be read as a table"),
        ("a\n1\n2\n", BadData, "expected at least 2 of each"),
        ("a,b\n" + "".join(f"{i},{i}.5\n" for i in range(50)), BadData, "so it is no class"),
        ("a,b\n1,x\n2,x\n3,x\n", BadData, "at least two classes"),
        ("a,b\n1,\n2,\n", BadData, "is empty"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, content, error, message):
    pytest.importorskip("pandas", reason="needs the extra 'table'")
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(error, match=message):
        load_data(str(path))


@pytest.mark.parametrize("name", ["t.csv.gz", "t.parquet"])
def test_damaged_tables_are_corrupt(tmp_path, name):
    path = write_table(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFile, match="cannot be read as a table"):
        load_data(str(path))


def test_tables_past_the_limit_are_refused(tmp_path):
    path = write_table(tmp_path / "t.csv.gz", rows=2000)
    with pytest.raises(BadData, match="the limit of 20,000"):
        load_data(str(path), max_bytes=20_000)


def test_without_pandas_the_way_out_is_told(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(WeightgenError, match=r"weightgen\[table\]"):
        load_data(str(path))


# Folders of images


def write_pictures(folder, classes=("cat", "dog"), count=5, mode="L", size=(12, 10)):
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
    rng = np.random.default_rng(0)
    for c in classes:
        (folder / c).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
            image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode=None).save(folder / c / f"{i}.png")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folders_of_classes_are_split_and_resized(tmp_path, mode, channels):
    write_pictures(tmp_path, mode=mode)
    data = load_data(str(tmp_path))
    assert data.x_train.shape == (8, channels, 28, 28)
    assert len(data.y_test) == 2
    assert data.class_names == ("cat", "dog")
    assert any("resized" in n for n in data.notes)


def test_folders_with_train_and_test_keep_their_split(tmp_path):
    write_pictures(tmp_path / "train", count=4)
    write_pictures(tmp_path / "test", count=1, size=(28, 28))
    data = load_data(str(tmp_path))
    assert (len(data.y_train), len(data.y_test)) == (8, 2)


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(BadData, match="holds no images"):
        load_data(str(tmp_path))
    write_pictures(tmp_path / "train")
    with pytest.raises(BadData, match="only train/"):
        load_data(str(tmp_path))
    write_pictures(tmp_path / "test", classes=("cow",))
    with pytest.raises(BadData, match="'cow' is in test/ but not in train/"):
        load_data(str(tmp_path))
    with pytest.raises(BadData, match="the limit is 1,000"):
        load_image_folder(tmp_path, max_bytes=1000)


def test_pictures_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
    write_pictures(tmp_path)
    victim = tmp_path / "dog" / "3.png"
    good = victim.read_bytes()
    victim.write_bytes(good[:60])
    with pytest.raises(CorruptFile, match=r"3\.png' cannot be read"):
        load_data(str(tmp_path))
    image.new("RGBA", (9, 9)).save(victim)
    with pytest.raises(BadData, match=r"3\.png': it has a transparency channel"):
        load_data(str(tmp_path))
    image.new("L", (1, 1)).save(victim)
    with pytest.raises(BadData, match="1x1 pixels"):
        load_data(str(tmp_path))
    victim.write_bytes(good)
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BadData, match="more pixels than are safe"):
        load_data(str(tmp_path))


# The Hugging Face Hub


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


# Splits


def test_every_class_is_split_alike():
    labels = np.repeat([0, 1, 2], [10, 20, 1])
    train, test = split_stratified("x", labels, test_fraction=0.2)
    assert np.bincount(labels[test], minlength=3).tolist() == [2, 4, 0]
    assert sorted([*train, *test]) == list(range(31))
    with pytest.raises(BadData, match="every class has a single example"):
        split_stratified("x", np.arange(4), test_fraction=0.2)


def test_classes_that_are_numbers_are_in_order_of_number():
    assert number_classes(["10", "9", "10", "-1"])[1] == ("-1", "9", "10")
    assert number_classes(["10", "9", "b"])[1] == ("10", "9", "b")
