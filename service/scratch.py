"""A folder for unfinished work that leaves nothing behind, however its process ends.

<root>/lock         held while a folder is made or swept
<root>/<token>/     of one process, locked as long as that lives
"""

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
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
                self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        except OSError as error:
            raise StorageFailed(f"{root}: unfinished work cannot be kept there: {error.strerror}") from error

    @contextlib.contextmanager
    def new_place(self) -> Iterator[Path]:
        """A path for one piece of work, where nothing is yet; what is left there at the end is removed."""
        parent = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield parent / "work"
        finally:
            shutil.rmtree(parent, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _sweep(root: Path) -> None:
    for folder in root.iterdir():
        if not folder.is_dir():
            continue
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            pass  # its process lives
        finally:
            os.close(descriptor)
