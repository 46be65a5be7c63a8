"""Reads an uploaded file to plain arrays: in a process of its own, since nothing is known of the file yet.

`python -m service.uploads.reading` (started by service/uploads/reader_process.py) has little memory and time, no file
by name and no settings of the server. It imports no torch, so that it is there in a tenth of a second.

    numbers    x and y, or x_train, y_train, x_test and y_test: an .npz
    table      x (n, d) float64 and y: CSV or Parquet
    pictures   pixels, all pictures' one after another (uint8), sizes (n, 3) of height, width and channels, and y
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MAX_NAME = 100
"""Characters of the name of a class."""


class Unusable(Exception):
    """The file cannot be used; the message is one sentence for who uploaded it."""


@dataclass(frozen=True)
class Limits:
    """What an upload may be."""

    max_uncompressed_bytes: int
    max_examples: int
    max_features: int
    max_classes: int
    max_image_pixels: int
    max_archive_entries: int
    max_reading_seconds: int
    """Of one processor."""


@dataclass(frozen=True)
class Raw:
    """What a file holds."""

    form: Literal["numbers", "table", "pictures"]
    arrays: dict[str, NDArray]
    texts: list[str] | None = None
    """What the labels stand for, if they count texts in the order they were met; None: labels are labels."""
    class_names: list[str] | None = None
    num_train: int | None = None
    """Of pictures: how many of the first ones are the train part; None: the file has no parts."""


class Texts:
    """Texts that become labels, in the order in which they are met."""

    def __init__(self, limits: Limits) -> None:
        self._index: dict[str, int] = {}
        self._limits = limits

    def label(self, text: str) -> int:
        """The label of a class's name."""
        if text not in self._index:
            check_name(text)
            if len(self._index) == self._limits.max_classes:
                raise Unusable(f"it has more than {self._limits.max_classes} classes; use fewer")
            self._index[text] = len(self._index)
        return self._index[text]

    def all(self) -> list[str]:
        return list(self._index)


def check_name(text: str) -> None:
    """Raise Unusable for what no class can be called."""
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
    """A text of the file as a message has it: in quotes, short, and with nothing that does not print."""
    return repr(text if len(text) <= 60 else text[:60] + "…").encode("ascii", "backslashreplace").decode()


def number(labels: list[int]) -> NDArray:
    return np.array(labels, dtype=np.int64)
