"""An .npz is read under the names people give its arrays; pickles and headers that lie are refused."""

import io
import pickle
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from service.uploads.reading import Unusable
from service.uploads.reading.npz import PARTED, WHOLE, read_npz
from tests.helpers.upload_samples import LIMITS, is_sentence, npz_bytes, refusal, some_images, zip_bytes

IMAGES, LABELS = some_images()


def read(data: bytes, **limits: int):
    return read_npz(io.BytesIO(data), replace(LIMITS, **limits))


def array_bytes(header: str, data: bytes = b"", *, version: bytes = b"\x01\x00", length: int | None = None) -> bytes:
    """A .npy file with this header."""
    size = 2 if version == b"\x01\x00" else 4
    return b"\x93NUMPY" + version + (length or len(header)).to_bytes(size, "little") + header.encode() + data


def raw_npz(**files: bytes) -> bytes:
    return zip_bytes({f"{name}.npy": data for name, data in files.items()})


def saved(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("form", [*WHOLE, *PARTED], ids="-".join)
def test_every_way_to_name_the_arrays_is_read(form):
    given: list[Any] = [IMAGES, LABELS] * (len(form) // 2)
    raw = read(npz_bytes(**dict(zip(form, given, strict=True))))
    ours = PARTED[0] if len(form) == 4 else WHOLE[0]
    assert set(raw.arrays) == set(ours)
    for name, array in zip(ours, given, strict=True):
        assert np.array_equal(raw.arrays[name], array)


def test_labels_may_be_texts():
    raw = read(npz_bytes(x=IMAGES, y=np.array(["dog", "cat", "été"])[LABELS]))
    assert raw.texts is not None
    assert [raw.texts[i] for i in raw.arrays["y"][::6]] == ["dog", "cat", "été"]


def test_names_of_classes_come_along():
    assert read(npz_bytes(x=IMAGES, y=LABELS, class_names=np.array(["a", "b", "c"]))).class_names == ["a", "b", "c"]


@pytest.mark.parametrize("dtype", [">f4", "<f8", ">i2", "u1", "?", "f2"])
def test_any_plain_dtype_and_order_is_read(dtype):
    x = np.asfortranarray((IMAGES % 2).astype(dtype))
    read_back = read(npz_bytes(x=x, y=LABELS.astype(">i4"))).arrays
    assert np.array_equal(read_back["x"], x) and np.array_equal(read_back["y"], LABELS)


class Trap:
    """Ends the tests if it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


@pytest.mark.parametrize(
    "data",
    [
        npz_bytes(x=np.array([Trap()] * 4, dtype=object), y=np.arange(4)),
        npz_bytes(x=IMAGES, y=np.array([Trap()] * len(IMAGES), dtype=object)),
        npz_bytes(x=np.zeros(4, dtype=[("a", "O")]), y=np.arange(4)),
        raw_npz(x=pickle.dumps(Trap()), y=saved(LABELS)),
        raw_npz(x=saved(IMAGES), y=array_bytes("{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"cos\n")),
    ],
    ids=["examples", "labels", "records", "not even an array", "by its header"],
)
def test_a_pickle_is_refused_and_never_read(data):
    with pytest.raises(Unusable, match="pickle.* never read"):
        read(data)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000, 28, 28), }", "but it holds 0"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 28), }", "says it is float64"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2.5), }", "is no NumPy array"),
        ("{'descr': 'f16', 'fortran_order': False, 'shape': (0, 2), }", "at most 64 bits"),
        ("{'descr': '<c8', 'fortran_order': False, 'shape': (0, 2), }", "is complex64"),
        ("{'descr': [('a', '<f8')], 'fortran_order': False, 'shape': (0, 2), }", "expected numbers"),
        ("{'descr': '<M8[s]', 'fortran_order': False, 'shape': (0, 2), }", "expected numbers"),
        ("{'descr': __import__('os').system('false'), 'fortran_order': False, 'shape': (1,), }", "is no NumPy array"),
        ("(" * 9000, "is no NumPy array"),
        ("[" * 150 + "]" * 150, "is no NumPy array"),
        ("{" * 60_000, "is no NumPy array"),
        ("", "is no NumPy array"),
    ],
)
def test_a_header_that_lies_or_is_a_bomb_is_refused(header, sentence):
    with pytest.raises(Unusable, match=sentence):
        read(raw_npz(x=array_bytes(header), y=saved(LABELS)))


def test_a_header_that_says_it_has_gigabytes_is_refused():
    for version in (b"\x02\x00", b"\x03\x00"):
        with pytest.raises(Unusable, match="structured array"):
            read(raw_npz(x=array_bytes("{}", version=version, length=2**32 - 1), y=saved(LABELS)))
    with pytest.raises(Unusable, match="is no NumPy array, or one that is cut short"):
        read(raw_npz(x=array_bytes("{}", length=60_000), y=saved(LABELS)))


@pytest.mark.parametrize("cut", [1, 9, 60, 127, 128, 500])
def test_an_array_cut_short_is_refused(cut):
    with pytest.raises(Unusable, match=r"cut short|but it holds"):
        read(raw_npz(x=saved(IMAGES)[:cut], y=saved(LABELS)))


def test_an_array_with_more_than_it_says_is_refused():
    with pytest.raises(Unusable, match="but it holds"):
        read(raw_npz(x=saved(IMAGES) + b"more", y=saved(LABELS)))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"x": IMAGES}, "holds the arrays 'x'; expected x and y"),
        ({"x": IMAGES, "y": LABELS, "z": LABELS}, "and nothing else"),
        ({"data": IMAGES, "images": IMAGES, "target": LABELS}, "expected x and y"),
        ({"x": IMAGES, "y": LABELS.astype(float)}, "y is float64"),
        ({"x": IMAGES, "y": LABELS[:, None]}, "expected one label an example"),
        ({"x": IMAGES, "y": LABELS - 1}, "holds the label -1"),
        ({"x": IMAGES, "y": LABELS + 2**30}, "holds the label 1073741824; expected 0 to k-1"),
        ({"x": IMAGES, "y": LABELS.astype(np.uint64) + 2**63}, "holds the label 9223372036854775808"),
        ({"x": IMAGES[0, 0], "y": LABELS}, "expected images"),
        ({"x": IMAGES[:, None, None], "y": LABELS}, "expected images"),
        ({"x": np.zeros((0, 5)), "y": LABELS}, "expected images"),
        ({"x": np.array(["a"] * 18), "y": LABELS}, "expected images"),
        ({"x": IMAGES, "y": np.array(["a\nb", "c"] * 9)}, "cannot be the name of a class"),
        ({"x": IMAGES, "y": np.array(["a" * 101, "c"] * 9)}, "1 to 100 printable characters"),
        ({"x": IMAGES, "y": np.array([str(i) for i in range(18)])}, "more than 4 classes"),
        ({"x": IMAGES, "y": LABELS, "class_names": LABELS}, "expected texts, one a class"),
        ({"x": IMAGES, "y": LABELS, "class_names": np.array(["a"]), "target_names": np.array(["a"])}, "one of them"),
        ({"x": IMAGES, "y": np.array(["a", "b"] * 9), "class_names": np.array(["a", "b"])}, "leave it out"),
        ({"x": np.zeros((2, 1001)), "y": [0, 1]}, "1001 features, at most 1000"),
        ({"x": np.zeros((2, 200, 51)), "y": [0, 1]}, "images of 200x51, at most 10000 pixels"),
        ({"x": np.zeros((2001, 2)), "y": [0] * 2001}, "2001 examples, at most 2000"),
    ],
)
def test_arrays_that_are_no_data_set_are_refused(arrays, sentence):
    with pytest.raises(Unusable, match=sentence):
        read(npz_bytes(**arrays), max_classes=4)


def test_a_file_that_is_no_array_is_refused():
    with pytest.raises(Unusable, match="'run.sh' is no array"):
        read(zip_bytes({"x.npy": saved(IMAGES), "y.npy": saved(LABELS), "run.sh": b"true"}))


def test_an_archive_with_any_byte_changed_is_read_or_refused_in_a_sentence():
    data = npz_bytes(x=IMAGES[::6, ::14, ::14], y=LABELS[::6])
    for at in range(len(data)):
        assert is_sentence(refusal(read, data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]))


def test_nothing_is_unpacked_of_an_archive_over_the_limit():
    bomb = npz_bytes(x=np.zeros((1000, 28, 28)), y=np.zeros(1000, int))
    assert len(bomb) < 40_000
    with pytest.raises(Unusable, match="unpacks to"):
        read(bomb, max_uncompressed_bytes=1_000_000)
    assert zipfile.is_zipfile(io.BytesIO(bomb))
