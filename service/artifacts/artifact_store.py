"""Artifacts by content: flat folders of files, named by the sha256 of their canonical list [{name, sha256, size}].

An artifact is there whole or not at all, and the same content is there once however many processes add it. Where it
lies is a Place's matter: a local folder (service/artifacts/local_place.py) or a bucket (service/artifacts/s3_place.py).
"""

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from weightgen.canonical_json import encode_json, parse_json

from service.artifacts.content_cache import Content, ContentCache
from service.artifacts.local_place import LocalPlace
from service.artifacts.place import Place, Stored
from weightgen.errors import BadData, BadOption, NotFound, UnsupportedTask, WeightgenError
from weightgen.files.storage import sha256_file

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
NOTE_SECONDS = 600.0
"""How long one process lets pass before it notes again that an artifact is used."""
_MAX_NOTED = 10_000
_SHA256 = re.compile("[0-9a-f]{64}")


class StoreFull(WeightgenError):
    """As many bytes are stored as may be."""


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of an artifact."""

    name: str
    sha256: str
    size: int
    """Bytes."""


class ArtifactStore:
    """The artifacts of one place."""

    def __init__(self, place: Place, *, max_bytes: int, max_stored_bytes: int = 0, max_cached_bytes: int = 0) -> None:
        """`max_bytes` is the largest artifact, `max_stored_bytes` all together (0: no limit).

        Of the files read lately `max_cached_bytes` are kept in memory.
        """
        self._cache = ContentCache(max_bytes=max_cached_bytes)
        self._place, self.max_bytes, self.max_stored_bytes = place, max_bytes, max_stored_bytes
        self.make_room: Callable[[], object] = lambda: None
        """Called when the store is full, before anything is refused."""
        self._counted, self._size = float("-inf"), 0
        self._noted: dict[str, float] = {}

    def add(self, folder: str | Path) -> str:
        """Take the files of a local folder, which is gone afterwards, and return the artifact's sha256, hex.

        BadData for what is no flat folder of plainly named files, UnsupportedTask for one over `max_bytes`, StoreFull
        as `refuse_when_full`; then the folder stays.
        """
        folder = Path(folder)
        files = self._examine(folder)
        listing = encode_json([asdict(file) for file in files], name=str(folder))
        sha = hashlib.sha256(listing).hexdigest()
        size = 0 if self._place.has(sha) else sum(file.size for file in files)
        self.refuse_when_full(size)
        self._place.put(sha, listing, folder, admit=partial(self._refuse_over, size))
        self._size += size
        self._noted.pop(sha, None)
        return sha

    def sha_of(self, folder: str | Path) -> str:
        """The sha256 that `add` would return, with the errors that it would raise."""
        listing = encode_json([asdict(file) for file in self._examine(Path(folder))], name=str(folder))
        return hashlib.sha256(listing).hexdigest()

    def refuse_when_full(self, size: int = 0) -> None:
        """Raise StoreFull if `size` more bytes would pass the limit of all artifacts, or if that is reached already.

        Processes that add to a bucket at the same time do not see each other's last minute.
        """
        if self._has_room(size):
            return
        self.make_room()
        self._counted = float("-inf")
        self._refuse_over(size)

    def exists(self, sha: str) -> bool:
        """Whether there is an artifact of this sha256; False for what is no sha256."""
        return _SHA256.fullmatch(sha) is not None and self._place.has(sha)

    def files(self, sha: str) -> list[ArtifactFile]:
        """The files of an artifact by name; NotFound if there is none of this sha256."""
        try:
            listing = self._place.read_listing(sha) if _SHA256.fullmatch(sha) else None
        except FileNotFoundError:
            listing = None
        if listing is None:
            self._cache.drop(sha)
            raise NotFound(f"there is no artifact {sha[:80]!r}")
        return [ArtifactFile(**file) for file in parse_json(listing, name=f"the list of artifact {sha}")]

    def find(self, sha: str, name: str) -> ArtifactFile:
        """One file of an artifact; NotFound if there is none of this name."""
        files = {file.name: file for file in self.files(sha)}
        if name not in files:
            raise NotFound(f"artifact {sha[:12]}… has no file {name[:80]!r}; it has {', '.join(files)}")
        return files[name]

    def open(self, sha: str, name: str) -> BinaryIO:
        """A file of an artifact, open for reading and seeking; NotFound as `find`."""
        try:
            return self._place.open(sha, self.find(sha, name).name)
        except FileNotFoundError as error:
            raise NotFound(f"artifact {sha[:12]}… has just been removed") from error

    def read(self, sha: str, file: ArtifactFile, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes of a file of `files` or `find` from `start` up to `end`, in blocks; NotFound if it is gone.

        The first block is read at once, so that what is gone is told here and not in the middle of an answer.
        """
        end = file.size if end is None else end
        try:
            if self._cache.takes(file.size):
                data = self._read_cached(sha, file)
                blocks = iter([data if (start, end) == (0, file.size) else data[start:end]])
            else:
                blocks = self._place.read(sha, file.name, start, end)
                blocks = itertools.chain((next(blocks, b""),), blocks)
        except FileNotFoundError as error:
            self._cache.drop(sha)
            raise NotFound(f"artifact {sha[:12]}… has just been removed") from error
        if not self._is_noted(sha):
            self.note_use(sha)
        return blocks

    def peek(self, sha: str, name: str) -> Content | None:
        """A file that was read lately, if it is still in memory; its artifact may be gone since it was `checked`."""
        return self._cache.peek(sha, name)

    def delete(self, sha: str) -> None:
        """Remove an artifact; NotFound if there is none. Who reads it at this moment may be cut off."""
        if not _SHA256.fullmatch(sha) or not self.delete_unused(sha, since=float("inf")):
            raise NotFound(f"there is no artifact {sha[:80]!r}")

    def delete_unused(self, sha: str, *, since: float) -> bool:
        """Remove an artifact if nobody has used it since a time; whether it was removed."""
        self._noted.pop(sha, None)
        self._cache.drop(sha)
        self._counted = float("-inf")
        return self._place.delete(sha, unused_since=since)

    def note_use(self, sha: str) -> bool:
        """Keep an artifact from being removed as unused; False if there is none."""
        if self._is_noted(sha):
            return self._place.has(sha)
        if not _SHA256.fullmatch(sha) or not self._place.touch(sha):
            return False
        if len(self._noted) >= _MAX_NOTED:
            self._noted.clear()
        self._noted[sha] = time.monotonic()
        return True

    def sweep(self, *, before: float) -> int:
        """Remove what was begun before a time and never ended; how many pieces."""
        return self._place.sweep(before=before)

    def list_all(self) -> list[Stored]:
        """Every artifact, with its size and when it was last used, sorted by sha256."""
        return sorted(self._place.stored(), key=lambda stored: stored.sha)

    def size(self) -> int:
        """Bytes of all artifacts together; of a bucket they are counted once a minute."""
        if time.monotonic() - self._counted >= self._place.count_seconds:
            self._size = sum(stored.size for stored in self._place.stored())
            self._counted = time.monotonic()
        return self._size

    def check(self) -> None:
        """Raise StorageFailed if nothing can be kept here."""
        self._place.check()

    def _read_cached(self, sha: str, file: ArtifactFile) -> bytes:
        content = self._cache.peek(sha, file.name)
        if content is None:
            data = b"".join(self._place.read(sha, file.name, 0, file.size))
            self._cache.put(sha, Content(file.sha256, file.name, data))
            return data
        if not self._place.has(sha):
            raise FileNotFoundError(sha)
        self._cache.check(sha, file.name)
        return content.data

    def _is_noted(self, sha: str) -> bool:
        return time.monotonic() - self._noted.get(sha, float("-inf")) < NOTE_SECONDS

    def _has_room(self, size: int) -> bool:
        if not self.max_stored_bytes:
            return True
        stored = self.size()
        return stored < self.max_stored_bytes and stored + size <= self.max_stored_bytes

    def _refuse_over(self, size: int) -> None:
        if not self._has_room(size):
            more = f", which leaves no room for {size} more" if size else ""
            raise StoreFull(f"{self.size()} of {self.max_stored_bytes} bytes are stored{more}; ask again later")

    def _examine(self, folder: Path) -> list[ArtifactFile]:
        files = []
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not path.is_file() or not FILE_NAME.fullmatch(path.name):
                raise BadData(f"{path.name!r} cannot be in an artifact; expected files with plain names, no folders")
            files.append(path)
        if not files:
            raise BadData("the folder is empty, expected the files of an artifact")
        size = sum(path.stat().st_size for path in files)
        if size > self.max_bytes:
            raise UnsupportedTask(f"the artifact has {size} bytes, at most {self.max_bytes} may be stored")
        return [ArtifactFile(path.name, sha256_file(path), path.stat().st_size) for path in files]


def open_store(
    location: str | Path,
    *,
    max_bytes: int = 2**30,
    max_stored_bytes: int = 0,
    max_cached_bytes: int = 0,
    s3_endpoint_url: str = "",
) -> ArtifactStore:
    """The store at a local folder, made when something is added, or at s3://<bucket>/<prefix>.

    BadOption for a URL that cannot be used. Nothing is connected yet.
    """
    store = partial(
        ArtifactStore, max_bytes=max_bytes, max_stored_bytes=max_stored_bytes, max_cached_bytes=max_cached_bytes
    )
    if "://" not in str(location):
        return store(LocalPlace(location))
    if not str(location).startswith("s3://"):
        raise BadOption(f"artifacts cannot be kept at {str(location)!r}; expected a folder or s3://<bucket>/<prefix>")
    from service.artifacts.s3_place import S3Place

    return store(S3Place(str(location), endpoint_url=s3_endpoint_url))
