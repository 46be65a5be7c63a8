"""Artifacts in a local folder.

    <root>/<first two digits>/<sha>.json   the list, the very bytes whose sha256 is the name
    <root>/<first two digits>/<sha>/       the files
    <root>/lock                            held while one of them is put into place or removed

A finished folder is renamed into place, and away again, so that it is there whole or not at all.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from weightgen.errors import StorageFailed
from weightgen.storage import write_file

BLOCK_BYTES = 2**20


class LocalPlace:
    """A `service.artifacts.Place` below one folder."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()

    def put(self, sha: str, listing: bytes, folder: Path) -> None:
        """The folder is renamed if it lies on the same file system, else copied."""
        place = self._folder(sha)
        with self._locked():
            write_file(place.with_suffix(".json"), listing)
            try:
                _move(folder, place)
            except OSError as error:
                raise StorageFailed(f"{folder}: cannot be moved to {place}: {error.strerror}") from error
            _flush_folder(place.parent)

    def has(self, sha: str) -> bool:
        return self._folder(sha).is_dir()

    def read_listing(self, sha: str) -> bytes:
        if not self.has(sha):
            raise FileNotFoundError(sha)
        return self._folder(sha).with_suffix(".json").read_bytes()

    def open(self, sha: str, name: str) -> BinaryIO:
        return (self._folder(sha) / name).open("rb")

    def read(self, sha: str, name: str, start: int, end: int) -> Iterator[bytes]:
        with self.open(sha, name) as file:
            file.seek(start)
            while start < end and (block := file.read(min(BLOCK_BYTES, end - start))):
                start += len(block)
                yield block

    def delete(self, sha: str) -> None:
        place = self._folder(sha)
        away = place.with_name(f".{sha}.{secrets.token_hex(4)}.removed")
        with self._locked(), contextlib.suppress(FileNotFoundError):
            os.rename(place, away)
            place.with_suffix(".json").unlink()
        shutil.rmtree(away, ignore_errors=True)

    def list_all(self) -> list[str]:
        return [path.name for path in self.root.glob("[0-9a-f]" * 2 + "/" + "[0-9a-f]" * 64) if path.is_dir()]

    def _folder(self, sha: str) -> Path:
        return self.root / sha[:2] / sha

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the processes and threads that add and remove."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            guard = open(self.root / "lock", "wb")  # noqa: SIM115, closed below
        except OSError as error:
            raise StorageFailed(f"{self.root}: artifacts cannot be kept there: {error.strerror}") from error
        with guard:
            fcntl.flock(guard, fcntl.LOCK_EX)
            yield


def _move(folder: Path, place: Path) -> None:
    """Rename a folder, from another file system too; if there is one at its place already it is removed."""
    try:
        os.rename(folder, place)
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.EXDEV):
            raise
    if not place.is_dir():
        partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}.partial")
        try:
            shutil.copytree(folder, partial)
            os.rename(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder)


def _flush_folder(folder: Path) -> None:
    """See to it that a rename inside the folder survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
