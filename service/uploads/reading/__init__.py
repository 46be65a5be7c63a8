"""Reads an uploaded file into plain arrays, in a separate process, because the file may be hostile.

`python -m service.uploads.reading` (started by service/uploads/reader_process.py) has little memory and time. It opens
no file by name and gets no settings of the server. It imports no torch, so that it starts in a tenth of a second.

    numbers    from an .npz: x and y, or x_train, y_train, x_test and y_test
    table      from CSV or Parquet: x (n, d) float64 and y
    pictures   from a zip: pixels of all pictures in a row (uint8), sizes (n, 3) of height, width and channels, and y
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MAX_NAME = 100
"""Most characters in the name of a class."""


class Unusable(Exception):
    """The file cannot be used; the message is one sentence for the one who uploaded it."""


@dataclass(frozen=True)
class Limits:
    """How large an upload may be."""

    max_uncompressed_bytes: int
    max_examples: int
    max_features: int
    max_classes: int
    max_image_pixels: int
    max_archive_entries: int
    max_reading_seconds: int
    """Processor time."""


@dataclass(frozen=True)
class Raw:
    """What a file holds."""

    form: Literal["numbers", "table", "pictures"]
    arrays: dict[str, NDArray]
    texts: list[str] | None = None
    """The text of each label, if labels are texts that were numbered in order of appearance; None: they are numbers."""
    class_names: list[str] | None = None
    num_train: int | None = None
    """How many pictures, counted from the first, are the train part; None: the file has no parts."""


class Texts:
    """Numbers texts as labels, in order of appearance."""

    def __init__(self, limits: Limits) -> None:
        self._index: dict[str, int] = {}
        self._limits = limits

    def label(self, text: str) -> int:
        """The label for the name of a class."""
        if text not in self._index:
            check_name(text)
            if len(self._index) == self._limits.max_classes:
                raise Unusable(f"it has more than {self._limits.max_classes} classes; use fewer")
            self._index[text] = len(self._index)
        return self._index[text]

    def all(self) -> list[str]:
        return list(self._index)


def check_name(text: str) -> None:
    """Raise Unusable for a text that cannot be the name of a class."""
    if not 1 <= len(text) <= MAX_NAME or not text.isprintable():
        raise Unusable(f"{show(text)} cannot be the name of a class; expected 1 to {MAX_NAME} printable characters")


def check_num_examples(num: int, limits: Limits) -> None:
    if num > limits.max_examples:
        raise Unusable(f"it has {num} examples, at most {limits.max_examples} are taken; use fewer")


def check_bytes(num: int, limits: Limits) -> None:
    if num > limits.max_uncompressed_bytes:
        raise Unusable(f"it unpacks to {num} bytes, at most {limits.max_uncompressed_bytes} are taken; use fewer "
                       "or smaller examples")  # fmt: skip


def show(text: str) -> str:
    """A text of the file as messages show it: in quotes, short and printable."""
    return repr(text if len(text) <= 60 else text[:60] + "…").encode("ascii", "backslashreplace").decode()


def number(labels: list[int]) -> NDArray:
    return np.array(labels, dtype=np.int64)
