"""An upload is read as the library reads the same file, and comes back from its two files as it went in."""

import io
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest
import torch

from model_zoo.data import load_data
from model_zoo.data.image_folder import load_image_folder
from model_zoo.data.npz import load_npz
from model_zoo.data.table import load_table
from service.uploads.names import ABOUT, TENSORS
from service.uploads.reading import Unusable
from service.uploads.reading.formats import read_file
from service.uploads.upload_data import describe_data, label_upload, read_data, write_data
from tests.helpers.upload_samples import (
    LIMITS,
    class_folders,
    csv_bytes,
    npz_bytes,
    parquet_bytes,
    picture_bytes,
    some_images,
    zip_bytes,
)
from weightgen.files.storage import read_json
from weightgen.labelled_data import LabelledData

IMAGES, LABELS = some_images()
COLOUR = np.stack([IMAGES, IMAGES[::-1], 255 - IMAGES], axis=-1)
FEATURES = np.random.default_rng(0).normal(size=(len(LABELS), 5))


def read(data: bytes, *, shape: tuple[int, ...] | None = None, label: str | None = None, **limits: int) -> LabelledData:
    changed = replace(LIMITS, **limits)
    raw = read_file(io.BytesIO(data), declared=None, label=label, is_pixels=shape is not None, limits=changed)
    return label_upload(raw, shape=shape, limits=changed)


@pytest.mark.parametrize("x", [IMAGES, COLOUR, IMAGES[:, ::2], IMAGES / 255, IMAGES > 99, FEATURES.astype(np.float32)],
                         ids=["grey", "colour", "oblong", "floats", "bits", "features"])  # fmt: skip
def test_an_npz_is_what_the_library_reads(x, tmp_path):
    train, test = np.arange(len(x)) % 3 > 0, np.arange(len(x)) % 3 == 0
    data = npz_bytes(x_train=x[train], y_train=LABELS[train], x_test=x[test], y_test=LABELS[test])
    (tmp_path / "set.npz").write_bytes(data)
    ours, theirs = read(data), load_npz(tmp_path / "set.npz")
    assert (ours.digest(), ours.notes) == (theirs.digest(), theirs.notes)


@pytest.mark.parametrize("has_parts", [False, True])
@pytest.mark.parametrize("images", [IMAGES, COLOUR, IMAGES[:, 3:, :9]], ids=["grey", "colour", "oblong"])
def test_a_zip_is_what_the_library_reads_of_the_folder(images, has_parts, tmp_path):
    files = class_folders(images, LABELS, above="train/" if has_parts else "")
    files |= class_folders(images[::5], LABELS[::5], above="test/") if has_parts else {}
    files["train/0/big.png" if has_parts else "0/big.png"] = picture_bytes(
        np.kron(IMAGES[0], np.ones((3, 2), np.uint8))
    )
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    ours, theirs = read(zip_bytes(files)), load_image_folder(tmp_path)
    assert (ours.digest(), ours.notes) == (theirs.digest(), theirs.notes)


def test_pictures_of_one_size_are_what_the_library_reads_but_for_its_rounding(tmp_path):
    files = class_folders(IMAGES[:, 3:, :9], LABELS)
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    ours, theirs = read(zip_bytes(files)), load_image_folder(tmp_path)
    assert (ours.x_train - theirs.x_train).abs().max() < 0.51 / 255
    assert torch.equal(ours.y_train, theirs.y_train) and torch.equal(ours.y_test, theirs.y_test)


def test_a_table_is_what_the_library_reads(tmp_path):
    labels = np.array(["10", "9", "x"])[LABELS]
    table = csv_bytes(FEATURES, labels)
    (tmp_path / "set.csv").write_bytes(table)
    columns = {"label": labels} | {f"f{i}": FEATURES[:, i] for i in range(5)}
    theirs = load_table(tmp_path / "set.csv").digest()
    assert read(table).digest() == read(parquet_bytes(columns)).digest() == theirs


def test_the_same_images_are_the_same_data_in_every_format():
    pixels = COLOUR.reshape(len(COLOUR), -1)
    columns = {f"p{i}": pixels[:, i] for i in range(pixels.shape[1])}
    shape = (28, 28, 3)
    sets = [
        read(npz_bytes(x=COLOUR, y=LABELS)),
        read(npz_bytes(images=COLOUR, labels=LABELS.astype(str))),
        read(zip_bytes(class_folders(COLOUR, LABELS))),
        read(csv_bytes(pixels, LABELS), shape=shape, max_features=1),
        read(parquet_bytes({**columns, "label": LABELS}), shape=shape, max_features=1),
    ]
    assert {(data.digest(), data.notes) for data in sets} == {(sets[0].digest(), sets[0].notes)}


def test_shuffled_images_of_another_size_are_the_same_data_as_the_folders_of_their_classes():
    images, labels = some_images(num_classes=12, size=8)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order], labels[order]
    npz, folders = read(npz_bytes(x=images, y=labels)), read(zip_bytes(class_folders(images, labels)))
    assert (npz.digest(), npz.notes) == (folders.digest(), folders.notes)


def test_a_fifth_of_each_class_is_kept_for_testing_always_the_same():
    data = read(npz_bytes(x=IMAGES, y=LABELS))
    assert torch.bincount(data.y_test).tolist() == [1, 1, 1] and torch.bincount(data.y_train).tolist() == [5, 5, 5]
    assert data.digest() == read(npz_bytes(x=IMAGES, y=LABELS)).digest()


def test_small_pictures_are_brought_to_the_size_that_architectures_take():
    small = {f"{y}/{i}.png": picture_bytes(np.asarray(PIL.Image.fromarray(x).resize((8, 6)))) for i, (x, y) in
             enumerate(zip(IMAGES, LABELS, strict=True))}  # fmt: skip
    data = read(zip_bytes(small))
    assert data.x_train.shape[1:] == (1, 28, 28) and data.notes[1].startswith("resized from 6x8 to 28x28")


@pytest.mark.parametrize("name", ["digits", "iris"])
def test_data_come_back_from_their_files_as_they_went_in(name, tmp_path):
    check_round_trip(load_data(name), tmp_path / "a")


@pytest.mark.parametrize("x", [IMAGES, COLOUR, FEATURES], ids=["grey", "colour", "features"])
def test_uploaded_data_come_back_as_they_went_in(x, tmp_path):
    check_round_trip(read(npz_bytes(x=x, y=np.array(["a", "b", "é"])[LABELS])), tmp_path / "a")


def check_round_trip(data: LabelledData, folder):
    write_data(folder, data)
    about = read_json(folder / ABOUT)
    assert about == describe_data(data)
    again = read_data("again", about, (folder / TENSORS).read_bytes())
    assert (again.digest(), again.notes, again.name) == (data.digest(), data.notes, "again")


def test_images_of_bytes_are_kept_as_bytes(tmp_path):
    write_data(tmp_path / "a", read(npz_bytes(x=IMAGES, y=LABELS)))
    write_data(tmp_path / "b", read(npz_bytes(x=(IMAGES + 0.5) / 256, y=LABELS)))
    sizes = [(tmp_path / name / TENSORS).stat().st_size for name in "ab"]
    assert sizes[1] > 3 * sizes[0] and sizes[0] < IMAGES.size + 1000


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": IMAGES, "y": LABELS[:-1]}, "x has 18 examples, y 17 labels"),
        ({"x": IMAGES, "y": LABELS * 0}, "all its examples are of one class"),
        ({"x": IMAGES[:7], "y": LABELS[:7]}, "class 1 has a single example; expected at least two"),
        ({"x": IMAGES, "y": LABELS * 2}, "labels must be 0 to k-1 without gaps"),
        ({"x": IMAGES, "y": LABELS, "class_names": np.array(["a", "b"])}, "2 class names for 3 classes"),
        ({"x": IMAGES, "y": LABELS, "class_names": np.array(["a", "b", "b"])}, "class names repeat: 'b'"),
        ({"x": np.where(IMAGES > 250, np.nan, IMAGES / 255), "y": LABELS}, "NaN or infinite"),
        ({"x": np.where(FEATURES > 1, np.inf, FEATURES), "y": LABELS}, "NaN or infinite"),
        ({"x": FEATURES * 1e300, "y": LABELS}, "too large for float32"),
        ({"x": IMAGES.astype(float) - 9, "y": LABELS}, "images .float64. reach from -9"),
        ({"x": IMAGES / 10, "y": LABELS}, "divide them by their largest possible value first"),
        ({"x": IMAGES[:, None], "y": LABELS}, "move the channels to the end"),
        ({"x": np.zeros((18, 28, 28, 4), np.uint8), "y": LABELS}, "drop the alpha channel"),
        ({"x": IMAGES[:, :1], "y": LABELS}, "2 to 4096 pixels a side"),
        ({"x_train": IMAGES[:6], "y_train": LABELS[:6], "x_test": IMAGES[6:], "y_test": LABELS[6:]},
         "class 1 is in the test part but not in the train part"),
        ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, 1:], "y_test": LABELS}, "different shapes"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_data_set_are_refused(arrays, sentence):
    with pytest.raises(Unusable, match=sentence) as refused:
        read(npz_bytes(**arrays))
    assert "upload" not in str(refused.value)


def test_a_table_of_other_pixels_than_its_shape_is_refused():
    with pytest.raises(Unusable, match="it has 5 columns of pixels, shape=2x2 asks for 4"):
        read(csv_bytes(FEATURES, LABELS), shape=(2, 2))


@pytest.mark.parametrize("rows", [1, 7])
def test_a_table_with_a_single_example_of_a_class_is_refused(rows):
    with pytest.raises(Unusable, match=r"has a single example|all its examples are of one class"):
        read(csv_bytes(FEATURES[:rows], LABELS[:rows]))


def test_a_zip_with_a_single_picture_of_a_class_is_refused():
    with pytest.raises(Unusable, match="class '1' has a single example"):
        read(zip_bytes(class_folders(IMAGES[:7], LABELS[:7])))
