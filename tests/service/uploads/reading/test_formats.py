"""What a file is, is seen by its first bytes; what it was said to be has to fit."""

import io
import pickle
import tarfile

import numpy as np
import pytest

from service.uploads.reading import Unusable
from service.uploads.reading.formats import read_file
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

IMAGES, LABELS = some_images()
FILES = {
    "npz": npz_bytes(x=IMAGES, y=LABELS),
    "zip": zip_bytes(class_folders(IMAGES, LABELS)),
    "csv": csv_bytes(IMAGES[:, 0], LABELS),
    "parquet": parquet_bytes({"f": IMAGES[:, 0, 0], "label": LABELS}),
}
FORMS = {"npz": "numbers", "zip": "pictures", "csv": "table", "parquet": "table"}


def read(data: bytes, declared: str | None = None, label: str | None = None, *, is_pixels: bool = False):
    return read_file(io.BytesIO(data), declared=declared, label=label, is_pixels=is_pixels, limits=LIMITS)


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def packed_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a/1"))
    return file.getvalue()


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_read_as_what_it_is(kind):
    assert read(FILES[kind]).form == read(FILES[kind], kind).form == FORMS[kind]


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("declared", FILES)
def test_a_file_of_another_format_than_was_said_is_refused(kind, declared):
    if kind == declared or (kind, declared) == ("npz", "zip"):
        assert read(FILES[kind], declared).form == FORMS[kind]
        return
    with pytest.raises(Unusable, match=f"sent as {declared}, but it is {kind}"):
        read(FILES[kind], declared)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "the file is empty; expected an .npz"),
        (pickle.dumps({"x": IMAGES}), "it is a pickle, which is never read, because it can run code"),
        (pickle.dumps([1.5], protocol=2), "it is a pickle"),
        (pickle.dumps([1.5], protocol=0), r"columns|rows|CSV"),
        (saved(IMAGES), "a single array; save examples and labels together, with numpy.savez"),
        (saved(np.array([{}], dtype=object)), "a single array"),
        (picture_bytes(IMAGES[0]), "one picture; pack folders of pictures, one a class, as a zip"),
        (picture_bytes(IMAGES[0], "JPEG"), "one picture"),
        (b"\x1f\x8b\x08\0", "gzip; unpack it first"),
        (packed_tar(), "a tar archive; pack it as a zip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x7fELF" + bytes(99), "of no format that is read here"),
        ("a,label\n1,x\n".encode("utf-16"), "of no format that is read here"),
        (b"PK\x05\x06" + bytes(18), "holds no pictures"),
        (b"PK\x03\x04", "cut short"),
        (b"PAR1", "damaged Parquet"),
        (b"PAR1" + bytes(4) + b"PAR1", "damaged Parquet"),
        (b"\xff" * 1000, "neither CSV in UTF-8 nor any other format"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_nothing_of_all_that_is_refused_with_a_way_out(data, sentence):
    with pytest.raises(Unusable, match=sentence):
        read(data)


@pytest.mark.parametrize("kind", ["npz", "zip"])
def test_options_of_tables_are_refused_for_what_is_none(kind):
    for label, is_pixels in (("y", False), (None, True)):
        with pytest.raises(Unusable, match=f"label and shape are for CSV and Parquet; it is {kind}"):
            read(FILES[kind], label=label, is_pixels=is_pixels)
