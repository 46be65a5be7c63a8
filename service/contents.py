"""What names stand for at this moment: sha256 of the files behind them, remembered as long as a file stays as it is.

Two requests are the same only if these are: a data set or a reference zoo may be exchanged while the server runs.
"""

import os
import threading
from functools import cache
from importlib.metadata import version
from pathlib import Path

from weightgen.files.storage import sha256_file

CHANNELS = (1, 3)
"""Of images: which reference zoo is used depends on it."""


class Contents:
    """Remembers the sha256 of files by place, size and time of change."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[int, int], str]] = {}
        self._lock = threading.Lock()

    def of_file(self, path: Path) -> str:
        """sha256 of a file, hex; NotFound if there is none."""
        try:
            status = os.stat(path)
        except OSError:
            return sha256_file(path)  # says what is wrong
        stamp = (status.st_mtime_ns, status.st_size)
        with self._lock:
            known = self._known.get(path)
        if known is not None and known[0] == stamp:
            return known[1]
        sha = sha256_file(path)
        with self._lock:
            self._known[path] = stamp, sha
        return sha

    def of_dataset(self, name: str) -> str:
        """What a registered data set is read from."""
        from model_zoo.data import data_files

        files = data_files(name)
        return "+".join(self.of_file(file) for file in files) if files else f"scikit-learn {_scikit_learn()}"

    def of_references(self, generator: str, architecture: str) -> str:
        """The reference zoos that weights of an architecture may be compared with; empty where there are none."""
        from model_zoo.released import released_references

        files = (released_references(generator, architecture, channels) for channels in CHANNELS)
        return "+".join(self.of_file(file) if file else "-" for file in files)


@cache
def _scikit_learn() -> str:
    return version("scikit-learn")
