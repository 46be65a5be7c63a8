"""Artifacts in a local folder.

    <root>/<first two digits>/<sha>.json   the list, the very bytes whose sha256 is the name
    <root>/<first two digits>/<sha>/       the files
    <root>/lock                            held while one of them is put into place, touched or removed

A finished folder is renamed into place, and away again, so that it is there whole or not at all. The list's time of
change tells when the artifact was last used.
"""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from service.artifacts.place import Stored
from weightgen.errors import StorageFailed
from weightgen.files.storage import write_file

BLOCK_BYTES = 2**20
_PARTIAL, _REMOVED = ".partial", ".removed"
_OURS = re.compile(r"\.?[0-9a-f]{64}")


class LocalPlace:
    """A `service.artifacts.place.Place` below one folder."""

    count_seconds = 0.0

    def __init__(self, root: str | Path) -> None:
        self._root = Path(root).absolute()
        self._sizes: dict[str, int] = {}
        """Of artifacts seen before; what has this name has this size."""

    def check(self) -> None:
        with self._locked():
            pass

    def put(self, sha: str, listing: bytes, folder: Path, *, admit: Callable[[], None] = lambda: None) -> None:
        """The folder is renamed if it lies on the same file system, else copied."""
        place = self._folder(sha)
        with self._locked():
            admit()
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

    def touch(self, sha: str) -> bool:
        with self._locked():  # or it could be removed for its old time at this moment
            try:
                os.utime(self._folder(sha).with_suffix(".json"))
            except FileNotFoundError:
                return False
            return self.has(sha)

    def delete(self, sha: str, *, unused_since: float = float("inf")) -> bool:
        place = self._folder(sha)
        away = place.with_name(f".{sha}.{secrets.token_hex(4)}{_REMOVED}")
        with self._locked():
            try:
                if place.with_suffix(".json").stat().st_mtime >= unused_since:
                    return False
                os.rename(place, away)
            except FileNotFoundError:
                return False
            place.with_suffix(".json").unlink()
        shutil.rmtree(away, ignore_errors=True)
        return True

    def stored(self) -> Iterator[Stored]:
        for folder in self._groups():
            names = {entry.name for entry in os.scandir(folder)}
            for sha in sorted(names & {name.removesuffix(".json") for name in names if name.endswith(".json")}):
                with contextlib.suppress(FileNotFoundError):  # removed while this looks
                    used = (folder / f"{sha}.json").stat().st_mtime
                    yield Stored(sha, self._measure(folder / sha), used)

    def sweep(self, *, before: float) -> int:
        """Whatever `before` is: while nobody else holds the lock, nothing that is unfinished has an owner."""
        removed = 0
        for folder in self._groups():
            with self._locked():
                for path in list(folder.iterdir()):
                    if _OURS.match(path.name) and (path.suffix in (_PARTIAL, _REMOVED) or not _is_paired(path)):
                        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
                        removed += 1
        return removed

    def _measure(self, folder: Path) -> int:
        if folder.name not in self._sizes:
            self._sizes[folder.name] = sum(entry.stat().st_size for entry in os.scandir(folder))
        return self._sizes[folder.name]

    def _groups(self) -> list[Path]:
        return sorted(path for path in self._root.glob("[0-9a-f][0-9a-f]") if path.is_dir())

    def _folder(self, sha: str) -> Path:
        return self._root / sha[:2] / sha

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the processes and threads that add and remove."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            guard = open(self._root / "lock", "wb")  # noqa: SIM115, closed below
        except OSError as error:
            raise StorageFailed(f"{self._root}: artifacts cannot be kept there: {error.strerror}") from error
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
        partial = place.with_name(f".{place.name}.{secrets.token_hex(4)}{_PARTIAL}")
        try:
            shutil.copytree(folder, partial)
            os.rename(partial, place)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder)


def _is_paired(path: Path) -> bool:
    """Whether a list has its folder and a folder its list."""
    return (path.with_suffix("") if path.suffix == ".json" else path.with_suffix(".json")).exists()


def _flush_folder(folder: Path) -> None:
    """See to it that a rename inside the folder survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
