"""Finds the format of a file by its first bytes; its name plays no part."""

import os
from collections.abc import Callable
from typing import BinaryIO

from service.uploads.reading import Limits, Raw, Unusable
from service.uploads.reading.archives import ends_with_arrays, open_archive
from service.uploads.reading.npz import read_npz
from service.uploads.reading.pictures import read_pictures
from service.uploads.reading.tables import read_csv, read_parquet

FORMATS = ("npz", "zip", "csv", "parquet")
EXPECTED = "an .npz, a zip of folders of pictures, CSV or Parquet"
ELSE = {
    b"\x93NUMPY": "a single array; save examples and labels together, with numpy.savez(file, x=x, y=y)",
    b"\x1f\x8b": "gzip; unpack it first",
    b"BZh": "bzip2; unpack it first",
    b"\xfd7zXZ": "xz; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; pack it as a zip",
    b"Rar!": "a RAR archive; pack it as a zip",
    b"\x89HDF": "HDF5; save its arrays with numpy.savez(file, x=x, y=y)",
    b"\x89PNG": "one picture; pack folders of pictures, one a class, as a zip",
    b"\xff\xd8\xff": "one picture; pack folders of pictures, one a class, as a zip",
}
"""First bytes -> the format that has them, and the way out."""


def read_file(
    file: BinaryIO, *, declared: str | None, label: str | None, is_pixels: bool, limits: Limits
) -> Raw:  # fmt: skip
    """What an upload holds; `declared` is the format that its sender gave, if any.

    `label` names the column with the classes, `is_pixels` says that the other columns are the pixels of an image: both
    are for tables. Raises Unusable for everything that is wrong with the file.
    """
    found = _find_format(file, limits)
    if declared is not None and found != declared and not (declared == "zip" and found == "npz"):
        raise Unusable(f"it was sent as {declared}, but it is {found}")
    if found in ("npz", "zip") and (label is not None or is_pixels):
        raise Unusable(f"label and shape are for CSV and Parquet; it is {found}")
    if found in ("npz", "zip"):
        return (read_npz if found == "npz" else read_pictures)(file, limits)
    read: Callable[..., Raw] = read_csv if found == "csv" else read_parquet
    return read(file, label=label, is_pixels=is_pixels, limits=limits)


def _find_format(file: BinaryIO, limits: Limits) -> str:
    start = file.read(512)
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if size == 0:
        raise Unusable(f"the file is empty; expected {EXPECTED}")
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        _, entries = open_archive(file, limits)
        file.seek(0)
        return "npz" if ends_with_arrays(entries) else "zip"
    if start.startswith(b"PAR1"):
        return "parquet"
    for magic, what in ELSE.items():
        if start.startswith(magic):
            raise Unusable(f"it is {what}")
    if start[257:262] == b"ustar":
        raise Unusable("it is a tar archive; pack it as a zip")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        raise Unusable(f"it is a pickle, which is never read, because it can run code; send {EXPECTED}")
    if b"\0" in start:
        raise Unusable(f"it is of no format that is read here; expected {EXPECTED}")
    return "csv"
