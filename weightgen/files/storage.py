"""Files and folders that are written whole or not at all, and canonical JSON files.

A file is written without a name or under a hidden one in the same folder, flushed to the disk, then renamed. On Linux
the unfinished file has no name, so that even a killed process leaves nothing behind. A folder is filled under the
hidden name `.<name>.partial` and renamed when it is complete; the next attempt removes what a killed process left.
"""

import contextlib
import fcntl
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any, BinaryIO

from weightgen.canonical_json import encode_json, parse_json
from weightgen.errors import CorruptFile, NotFound, StorageFailed

MAX_JSON_BYTES = 256 * 2**20


def write_file(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` by `data` in one step: readers see the old bytes or the new ones."""
    with new_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[BufferedWriter]:
    """A file open for writing; it is moved to `path` when the block ends without error, and removed otherwise.

    Missing parent folders are made. Raises StorageFailed, naming the path, for every error of the operating system.
    """
    path = Path(path)
    with _naming(path):
        if path.is_dir():
            raise IsADirectoryError(None, "a folder of this name exists")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        named, descriptor = _create(temporary)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
                if not named:
                    _link(file.fileno(), temporary)
                    named = True
                os.replace(temporary, path)
                named = False
        finally:
            if named:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to fill; it is moved to `path` when the block ends without error, and removed otherwise.

    An existing folder that is not empty is refused before anything is done; with `replace` it is replaced as a whole.
    If two processes write the same folder, the second is refused.
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, replaced = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "replaced"))
        with _claim(partial):
            if replaced.exists() and not path.exists():
                os.rename(replaced, path)  # an earlier replacement was killed between its two renames
            if path.exists() and not path.is_dir():
                raise NotADirectoryError(None, "a file of this name exists")
            if path.exists() and not replace and any(path.iterdir()):
                raise FileExistsError(None, "the folder exists and is not empty")
            yield partial
            if path.exists() and replace:
                shutil.rmtree(replaced, ignore_errors=True)
                os.rename(path, replaced)
            os.rename(partial, path)
            shutil.rmtree(replaced, ignore_errors=True)


def write_json(path: str | Path, value: Any) -> None:
    """Replace the file at `path` by the canonical JSON of `value`: sorted keys, indented by 2, newline at the end."""
    write_file(path, encode_json(value, name=str(path), indent=2) + b"\n")


def read_json(path: str | Path) -> Any:
    """The JSON value in a file; NaN, repeated keys and files over 256 MB are refused with CorruptFile."""
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            raise CorruptFile(f"{path}: {size} bytes, expected JSON of at most {MAX_JSON_BYTES}")
        return parse_json(file.read(MAX_JSON_BYTES), name=str(path))


def sha256_file(path: str | Path) -> str:
    """sha256 of a file's bytes, hex."""
    with open_to_read(path) as file:
        sha = hashlib.sha256()
        while block := file.read(2**20):
            sha.update(block)
        return sha.hexdigest()


@contextlib.contextmanager
def open_to_read(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file open for reading; NotFound if there is none, CorruptFile for folders, pipes and devices."""
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise CorruptFile(f"{path}: is {kind}, expected a file")
        file = open(path, "rb")  # noqa: SIM115, closed below
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotFound(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise StorageFailed(f"{path}: cannot be read: {_reason(error)}") from error
    with file:
        try:
            yield file
        except OSError as error:
            raise StorageFailed(f"{path}: cannot be read: {_reason(error)}") from error


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into StorageFailed with one sentence about `path`."""
    if "\0" in str(path):
        raise StorageFailed(f"{str(path)!r}: cannot be written: a name cannot hold a NUL character")
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{path}: cannot be written: {_reason(error, path)}") from error


def _reason(error: OSError | ValueError, path: Path | None = None) -> str:
    if not isinstance(error, OSError):
        return str(error)
    elsewhere = isinstance(error.filename, str) and path is not None and Path(error.filename).parent != path.parent
    return (error.strerror or str(error)) + (f" ({error.filename})" if elsewhere else "")


def _create(temporary: Path) -> tuple[bool, int]:
    """Whether the new file has a name yet, and its descriptor."""
    if hasattr(os, "O_TMPFILE") and os.path.isdir("/proc/self/fd"):
        # Some file systems (overlayfs of old kernels, NFS) have no unnamed files.
        with contextlib.suppress(OSError):
            return False, os.open(temporary.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    return True, os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)


def _link(descriptor: int, name: Path) -> None:
    """Give an unnamed file a name. Python follows the link under /proc only when a folder descriptor is given."""
    folder = os.open(name.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.link(f"/proc/self/fd/{descriptor}", name.name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        os.close(folder)


@contextlib.contextmanager
def _claim(partial: Path) -> Iterator[None]:
    """An empty folder `partial` that no other process holds; removed at the end if it is still there.

    The claim is a lock on the folder. The system drops it when the process dies, so that leftovers are not taken for
    work in progress.
    """
    partial.mkdir(exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.path.samestat(os.fstat(descriptor), os.stat(partial))
        except (BlockingIOError, FileNotFoundError):
            held = False
        if not held:
            raise BlockingIOError(None, "another process is writing it")
        try:
            for entry in list(partial.iterdir()):
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
            yield
        finally:
            if partial.exists():
                shutil.rmtree(partial)
    finally:
        os.close(descriptor)
