"""A folder for unfinished work. It is removed when its process ends, or else when the next process starts.

    <root>/lock         held while folders are made or removed
    <root>/<token>/     the folder of one process, locked as long as the process lives

The lock ends with its process. So the folder of a dead process can be told from work in progress.
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from weightgen.errors import StorageFailed


class Scratch:
    """A folder below `root` that belongs to this object; making it removes what dead processes left there."""

    def __init__(self, root: str | Path) -> None:
        self.folder = Path(root).absolute() / secrets.token_hex(8)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            with open(self.folder.parent / "lock", "wb") as guard:
                fcntl.flock(guard, fcntl.LOCK_EX)
                _sweep(self.folder.parent)
                self.folder.mkdir()
                lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageFailed(f"{root}: unfinished work cannot be kept there: {error.strerror}") from error
        # Also runs when the process ends, but not when a signal kills it.
        self._finalizer = weakref.finalize(self, _remove, self.folder, lock)

    def remove(self) -> None:
        """Remove the folder with everything in it; `new_place` fails afterwards."""
        self._finalizer()

    @contextlib.contextmanager
    def new_place(self) -> Iterator[Path]:
        """A path for one piece of work, where nothing exists yet; what is there at the end is removed."""
        parent = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield parent / "work"
        finally:
            shutil.rmtree(parent, ignore_errors=True)


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        if not folder.is_dir():
            continue
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:  # its process removed it at this moment
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # A child that outlives its process may still write here; the next start removes that.
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its process still runs
        finally:
            os.close(descriptor)


def _remove(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
