"""Download an artifact into a folder: resumed where it stopped, checked byte for byte, written whole or not at all.

The files arrive in a hidden folder beside the final one, named after the artifact. It stays if a download breaks off,
and the next download resumes it. Names and sizes that the server sends are checked before anything is written.
"""

import contextlib
import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import httpx2
from tqdm import tqdm

from weightgen.canonical_json import encode_json
from weightgen.client.http import Connection, Patience, object_in
from weightgen.errors import CorruptFile, ServiceFailed, StorageFailed
from weightgen.files.storage import sha256_file

MAX_FILES = 10_000
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file of an artifact on a server."""

    name: str
    sha256: str
    size: int
    """Size in bytes."""


def parse_files(artifact: str, listed: Any) -> tuple[RemoteFile, ...]:
    """The files that a server lists for an artifact; raises ServiceFailed for bad names or another artifact's files."""
    if not _SHA256.fullmatch(artifact):
        raise ServiceFailed(f"the server names an artifact {artifact[:80]!r}, expected a sha256")
    if not isinstance(listed, list) or not 0 < len(listed) <= MAX_FILES:
        raise ServiceFailed("the server lists no files of the artifact")
    files = [RemoteFile(object_in(f, "name", str), object_in(f, "sha256", str), object_in(f, "size", int))
             for f in listed]  # fmt: skip
    for file in files:
        if not _NAME.fullmatch(file.name) or not _SHA256.fullmatch(file.sha256) or file.size < 0:
            raise ServiceFailed(f"the server lists a file {file.name[:80]!r} that no artifact could hold")
    if len({file.name.lower() for file in files}) < len(files):
        raise ServiceFailed("the server lists two files of one name")
    files.sort(key=lambda file: file.name)
    listing = encode_json([asdict(file) for file in files], name="the list of files")
    if hashlib.sha256(listing).hexdigest() != artifact:
        raise ServiceFailed(f"the files that the server lists are not those of artifact {artifact[:12]}…")
    return tuple(files)


def download_artifact(
    connection: Connection, artifact: str, files: tuple[RemoteFile, ...], folder: str | Path, *, progress: bool
) -> None:
    """Download the files into `folder`, which must not exist or be empty.

    Raises StorageFailed, CorruptFile or ServiceFailed.
    """
    folder = Path(os.path.abspath(folder))
    with _naming(folder):
        _refuse_full(folder)
        with _partial_folder(folder, artifact) as partial:
            size = sum(file.size for file in files)
            with tqdm(total=size, unit="B", unit_scale=True, desc="download", disable=not progress) as bar:
                for file in files:
                    _bring(connection, f"/v1/artifacts/{artifact}/files/{file.name}", file, partial / file.name, bar)
            _refuse_full(folder)
            os.rename(partial, folder)
            _flush_folder(folder.parent)


def _bring(connection: Connection, url_path: str, file: RemoteFile, path: Path, bar: "tqdm[Any]") -> None:
    """Download the missing bytes of one file; reconnect when the connection breaks."""
    patience = Patience(connection.patience_seconds)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644), "r+b") as out:
        have = out.seek(0, os.SEEK_END)
        bar.update(have)
        while have < file.size:
            broken: httpx2.TransportError | None = None
            try:
                _copy_rest(connection, url_path, file, out, bar)
            except httpx2.TransportError as error:
                broken = error
            if out.tell() > have:
                patience.renew()
            have = out.tell()
            if have < file.size and not patience.wait():
                raise connection.lost(broken or httpx2.RemoteProtocolError("the file ended before its size"))
        out.flush()
        os.fsync(out.fileno())
    found = sha256_file(path)
    if found != file.sha256:
        path.unlink()  # or the next attempt would resume from wrong bytes
        raise CorruptFile(f"{file.name} came with sha256 {found[:12]}…, expected {file.sha256[:12]}…; download again")


def _copy_rest(connection: Connection, url_path: str, file: RemoteFile, out: BinaryIO, bar: "tqdm[Any]") -> None:
    """Ask for the missing bytes and write them; bytes that arrive before the connection breaks are kept."""
    have = out.tell()
    headers = {"Range": f"bytes={have}-", "If-Range": f'"{file.sha256}"'} if have else None
    with closing(connection.open(url_path, headers=headers)) as answer:
        if have and not answer.headers.get("content-range", "").startswith(f"bytes {have}-"):
            out.seek(0)  # the server sends the whole file
            out.truncate()
            bar.update(-have)
        for block in answer.iter_raw():  # small blocks: a large unfinished one would be lost with the connection
            if out.tell() + len(block) > file.size:
                raise ServiceFailed(f"the server sends more of {file.name} than the {file.size} bytes it has")
            out.write(block)
            bar.update(len(block))


def _refuse_full(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise StorageFailed(f"{folder}: it exists and is not an empty folder; give another one")


@contextlib.contextmanager
def _partial_folder(folder: Path, artifact: str) -> Iterator[Path]:
    """The hidden folder beside `folder` for the files of this artifact, locked for one process at a time."""
    partial = folder.with_name(f".{folder.name}.{artifact[:16]}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageFailed(f"{folder}: another process downloads into it") from error
        yield partial
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _naming(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{folder}: cannot be written: {error.strerror or error}") from error


def _flush_folder(folder: Path) -> None:
    """Make a rename inside the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
