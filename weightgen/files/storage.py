"""Files and folders that are written whole or not at all, and JSON that has one spelling.

A file is written under no name or a hidden one beside its place, flushed to the disk, then renamed. On Linux the
unfinished file has no name, so that even a killed process leaves nothing behind. A folder is filled under the hidden
name `.<name>.partial` and renamed when it is complete; what a killed process left there goes with the next attempt.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any, BinaryIO

from weightgen.errors import CorruptFile, NotFound, StorageFailed

MAX_JSON_BYTES = 256 * 2**20


def write_file(path: str | Path, data: bytes) -> None:
    """Replace the file at `path` by `data`, at once: readers see the old bytes or the new ones."""
    with new_file(path) as file:
        file.write(data)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[BufferedWriter]:
    """A file open for writing that takes its place at `path` when the block ends well, and vanishes when it does not.

    Missing parent folders are made. Raises StorageFailed, naming the path, whatever the operating system refuses.
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
    """A folder to fill, that takes its place at `path` when the block ends well, and is removed when it does not.

    An existing folder with something in it is refused before anything is done, or exchanged as a whole with `replace`.
    Two writers of one folder exclude each other: the second is refused.
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial, replaced = (path.with_name(f".{path.name}.{suffix}") for suffix in ("partial", "replaced"))
        with _claim(partial):
            if replaced.exists() and not path.exists():
                os.rename(replaced, path)  # an earlier exchange was killed between its two renames
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


def encode_json(value: Any, *, name: str, indent: int | None = None) -> bytes:
    """The one spelling of a JSON value; NaN and what JSON has no words for are refused, in the name of `name`."""
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        return json.dumps(
            value, sort_keys=True, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StorageFailed(f"{name}: the value cannot be written as JSON: {error}") from error


def read_json(path: str | Path) -> Any:
    """The JSON value in a file; NaN, repeated keys and files over 256 MB are refused with CorruptFile."""
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_JSON_BYTES:
            raise CorruptFile(f"{path}: {size} bytes, expected JSON of at most {MAX_JSON_BYTES}")
        return parse_json(file.read(MAX_JSON_BYTES), name=str(path))


def parse_json(data: bytes, *, name: str) -> Any:
    """The value of strict JSON text; raises CorruptFile, which begins with `name`, for anything else."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_refuse_repeats, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise CorruptFile(f"{name}: the JSON is nested too deeply") from error
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CorruptFile(f"{name}: not valid JSON: {error}") from error


def sha256_file(path: str | Path) -> str:
    """sha256 of a file's bytes, hex."""
    with open_to_read(path) as file:
        sha = hashlib.sha256()
        while block := file.read(2**20):
            sha.update(block)
        return sha.hexdigest()


@contextlib.contextmanager
def open_to_read(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file open for reading; NotFound where there is none, CorruptFile for folders, pipes and devices."""
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
    """Turn what the operating system refuses inside the block into one sentence about `path`."""
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

    The claim is a lock on the folder, which the system drops when its process dies, so that leftovers can be told
    from work in progress.
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


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {repeated[:80]!r} stands twice")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
