"""NumPy archives: x_train, y_train, x_test, y_test, and optionally class_names; sizes are checked before loading.

An .npz is a zip of .npy files, whose headers give dtype and shape. So a file that unpacks to more than the limit, holds
pickled objects, or is cut short is refused before its arrays take any memory.
"""

import lzma
import math
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_zoo.data.convert import check_shape, convert_arrays
from weightgen.errors import BadData, BadOption, CorruptFile
from weightgen.files.storage import open_to_read
from weightgen.labelled_data import LabelledData

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
DEFAULT_MAX_BYTES = 4 << 30
"""Most memory of the arrays, either as in the file or as float32 images of the requested size."""


# Errors of zipfile and its decompressors for damaged archives; an offset outside the file is an OSError or ValueError.
_DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, RuntimeError, OSError, ValueError)


@dataclass(frozen=True)
class _Member:
    """One array of the archive, from its header."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def load_npz(
    path: Path, *, image_size: int | None = 28, max_bytes: int = DEFAULT_MAX_BYTES, name: str | None = None
) -> LabelledData:
    """The labelled data of an .npz.

    Raises CorruptFile for a broken archive, BadData for arrays that are missing or not usable.
    """
    label = name or str(path)
    arrays = read_arrays(path, ARRAYS, image_size=image_size, max_bytes=max_bytes, label=label)
    names = arrays.pop("class_names", None)
    return convert_arrays(label, arrays, image_size=image_size, class_names=_check_names(label, names))


def read_arrays(
    path: Path, wanted: tuple[str, ...], *, image_size: int | None, max_bytes: int = DEFAULT_MAX_BYTES, label: str
) -> dict[str, NDArray]:
    """The wanted arrays of an .npz, and class_names if it has them."""
    if max_bytes < 1:
        raise BadOption(f"max_bytes is {max_bytes}, expected at least 1")
    with open_to_read(path) as file:
        try:
            with zipfile.ZipFile(file) as archive:
                return _read_archive(archive, wanted, image_size=image_size, max_bytes=max_bytes, label=label)
        except _DAMAGED as error:
            raise CorruptFile(f"{label!r} cannot be read as an .npz archive: {_first_line(error)}") from error


def _read_archive(
    archive: zipfile.ZipFile, wanted: tuple[str, ...], *, image_size: int | None, max_bytes: int, label: str
) -> dict[str, NDArray]:
    there = set(archive.namelist())
    missing = [a for a in wanted if f"{a}.npy" not in there]
    if missing:
        found = ", ".join(sorted(n.removesuffix(".npy") for n in there)[:12]) or "nothing"
        raise BadData(f"{label!r} has no array {', '.join(missing)}; it holds {found}")
    names = [*wanted, *(["class_names"] if "class_names.npy" in there else [])]
    _check_sizes(label, {n: _read_header(archive, n, label) for n in names}, image_size, max_bytes)
    return {n: _read_array(archive, n, label) for n in names}


def _read_header(archive: zipfile.ZipFile, name: str, label: str) -> _Member:
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        try:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):  # later versions allow headers of gigabytes
                raise BadData(f"{label!r}: {name} is a structured array; expected plain numbers")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        except (ValueError, SyntaxError, TypeError, tokenize.TokenError) as error:
            raise CorruptFile(f"{label!r}: {name} is not a NumPy array: {_first_line(error)}") from error
        if dtype.hasobject:
            raise BadData(f"{label!r}: {name} holds pickled Python objects, which are never loaded; "
                          "save plain numbers (a pickle can run code)")  # fmt: skip
        member = _Member(shape, dtype)
        if any(n < 0 for n in shape) or member.num_bytes != info.file_size - file.tell():
            raise CorruptFile(f"{label!r}: {name} says it is {dtype} {list(shape)}, {member.num_bytes} bytes, "
                              f"the archive holds {info.file_size - file.tell()}")  # fmt: skip
    return member


def _check_sizes(label: str, members: dict[str, _Member], image_size: int | None, max_bytes: int) -> None:
    total = sum(m.num_bytes for m in members.values())
    for name, m in members.items():
        if name.startswith("x_"):
            check_shape(label, name, m.shape, m.dtype)
            if len(m.shape) > 2:
                pixels = image_size**2 if image_size is not None else m.shape[1] * m.shape[2]
                total = max(total, 4 * m.shape[0] * pixels * math.prod(m.shape[3:]))
    if total > max_bytes:
        raise BadData(f"{label!r}: its arrays take {total:,} bytes in memory, the limit is {max_bytes:,}; "
                      "save fewer or smaller examples, or raise max_bytes")  # fmt: skip


def _read_array(archive: zipfile.ZipFile, name: str, label: str) -> NDArray:
    with archive.open(f"{name}.npy") as file:
        try:
            return np.lib.format.read_array(file, allow_pickle=False)
        except ValueError as error:
            raise CorruptFile(f"{label!r}: {name} is cut short or damaged: {_first_line(error)}") from error


def _check_names(label: str, names: NDArray | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    if names.ndim != 1 or names.dtype.kind != "U":
        raise BadData(f"{label!r}: class_names is {names.dtype} {list(names.shape)}; expected strings, one a class")
    return tuple(str(n) for n in names)


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
