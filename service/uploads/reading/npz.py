"""Reads NumPy archives: examples and labels under one of their usual names. Pickled objects are never read."""

import io
import math
import tokenize
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from service.uploads.reading import Limits, Raw, Texts, Unusable, check_bytes, check_name, check_num_examples, show
from service.uploads.reading.archives import open_archive, read_entry

PARTED = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
WHOLE = (("x", "y"), ("X", "y"), ("images", "labels"), ("images", "target"), ("data", "target"), ("data", "labels"))
CLASS_NAMES = ("class_names", "target_names")
MAX_HEADER_BYTES = 10_000
_NO_HEADER = (ValueError, SyntaxError, TypeError, KeyError, RecursionError, tokenize.TokenError)


def read_npz(file: BinaryIO, limits: Limits) -> Raw:
    """The arrays of an .npz: those of a row of PARTED or WHOLE, and the names of the classes if it has them."""
    archive, entries = open_archive(file, limits)
    odd = [entry.filename for entry in entries if not entry.filename.endswith(".npy")]
    if odd:
        raise Unusable(f"{show(odd[0])} is no array; an .npz holds arrays only")
    by_name = {entry.filename.removesuffix(".npy"): entry for entry in entries}
    names = by_name.keys() - set(CLASS_NAMES)
    form = next((form for form in (*PARTED, *WHOLE) if set(form) == names), None)
    if form is None:
        held = ", ".join(show(name) for name in sorted(by_name)[:12]) or "nothing"
        raise Unusable(f"it holds the arrays {held}; expected x and y, or x_train, y_train, x_test and y_test, and "
                       "class_names if you like, and nothing else")  # fmt: skip
    arrays = {name: _read_array(read_entry(archive, by_name[name]), name) for name in by_name}
    given = [name for name in CLASS_NAMES if name in arrays]
    if len(given) > 1:
        raise Unusable("it holds class_names and target_names; expected one of them")
    class_names = _read_names(arrays.pop(given[0]), given[0], limits) if given else None
    ours = PARTED[0] if len(form) == 4 else WHOLE[0]
    found = {our: arrays[name] for our, name in zip(ours, form, strict=True)}
    for our, name in zip(ours, form, strict=True):
        if our.startswith("x"):
            _check_examples(name, found[our], limits)
    labels = {our: array for our, array in found.items() if our.startswith("y")}
    texts = _number_labels(labels, limits)
    if texts is not None and class_names is not None:
        raise Unusable(f"its labels are texts, so {given[0]} says nothing; leave it out")
    return Raw("numbers", {**found, **labels}, texts=texts, class_names=class_names)


def _read_array(data: bytes, name: str) -> NDArray:
    if data.startswith(b"\x80"):
        raise Unusable(f"{show(name)} is a pickle, which is never read, because it can run code; save plain numbers")
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise Unusable(f"{show(name)} is a structured array; expected plain numbers")
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER_BYTES)
    except _NO_HEADER as error:
        raise Unusable(f"{show(name)} is no NumPy array, or one that is cut short") from error
    if dtype.hasobject:
        raise Unusable(f"{show(name)} holds pickled Python objects, which are never read, because a pickle can run "
                       "code; save plain numbers")  # fmt: skip
    if dtype.kind not in "fuibU" or (dtype.itemsize > 8 and dtype.kind != "U"):
        raise Unusable(f"{show(name)} is {dtype}; expected numbers of at most 64 bits")
    num_bytes, there = math.prod(shape) * dtype.itemsize, len(data) - file.tell()
    if any(side < 0 for side in shape) or num_bytes != there:
        raise Unusable(f"{show(name)} says it is {dtype} {list(shape)}, {num_bytes} bytes, but it holds {there}")
    if dtype.itemsize == 0:
        raise Unusable(f"{show(name)} holds empty texts")
    flat = np.frombuffer(data, dtype, offset=file.tell())
    array = flat.reshape(shape, order="F" if is_fortran else "C")
    return np.ascontiguousarray(array.astype(dtype.newbyteorder("="), copy=False))


def _check_examples(name: str, x: NDArray, limits: Limits) -> None:
    if x.dtype.kind == "U" or x.ndim not in (2, 3, 4) or x.size == 0:
        raise Unusable(f"{show(name)} is {x.dtype} {list(x.shape)}; expected images (n, h, w) or (n, h, w, c), or "
                       "features (n, d)")  # fmt: skip
    check_num_examples(len(x), limits)
    if x.ndim == 2 and x.shape[1] > limits.max_features:
        raise Unusable(f"{show(name)} has {x.shape[1]} features, at most {limits.max_features} are taken")
    if x.ndim > 2 and x.shape[1] * x.shape[2] > limits.max_image_pixels:
        raise Unusable(f"{show(name)} has images of {x.shape[1]}x{x.shape[2]}, at most {limits.max_image_pixels} "
                       "pixels are taken")  # fmt: skip


def _number_labels(labels: dict[str, NDArray], limits: Limits) -> list[str] | None:
    """Replace labels that are texts by numbers, in place; returns the texts. None for labels that are numbers."""
    kinds = {array.dtype.kind for array in labels.values()}
    if any(array.ndim != 1 for array in labels.values()) or (kinds != {"U"} and not kinds <= set("iu")):
        name, array = next(iter(labels.items()))
        raise Unusable(f"{name} is {array.dtype} {list(array.shape)}; expected one label an example, (n,): integers "
                       "from 0, or texts")  # fmt: skip
    if kinds == {"U"}:
        texts = Texts(limits)
        for name, array in labels.items():
            labels[name] = np.array([texts.label(str(text)) for text in array], dtype=np.int64)
        return texts.all()
    for name, array in labels.items():
        wrong = array[(array < 0) | (array >= limits.max_classes)]
        if len(wrong):
            raise Unusable(f"{name} holds the label {int(wrong[0])}; expected 0 to k-1 for k classes, at most "
                           f"{limits.max_classes}")  # fmt: skip
        labels[name] = array.astype(np.int64)
    return None


def _read_names(array: NDArray, name: str, limits: Limits) -> list[str]:
    if array.ndim != 1 or array.dtype.kind != "U" or len(array) > limits.max_classes:
        raise Unusable(f"{name} is {array.dtype} {list(array.shape)}; expected texts, one a class")
    check_bytes(array.nbytes, limits)
    names = [str(text) for text in array]
    for text in names:
        check_name(text)
    return names
