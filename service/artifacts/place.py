"""A place that stores artifacts: what a folder and a bucket have in common."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact in a place."""

    sha: str
    size: int
    """Bytes of its files."""
    used: float
    """When it was added or last used, by any process; seconds since the epoch."""


class Place(Protocol):
    """Stores artifacts by their sha256. Callers check names before; any number of processes may share a place.

    Raises FileNotFoundError for an artifact that does not exist, StorageFailed for a place that does not answer or is
    not writable.
    """

    count_seconds: float
    """How long a count of all bytes may be used again; more than 0 for places that are slow to list."""

    def check(self) -> None:
        """Raise StorageFailed if nothing can be kept here."""
        ...

    def put(self, sha: str, listing: bytes, folder: Path, *, admit: Callable[[], None] = lambda: None) -> None:
        """Move the files of a local folder and their list into the place: all or nothing.

        `admit` is called before. If it raises, nothing is stored. A place with a lock lets nobody add anything between.
        """
        ...

    def has(self, sha: str) -> bool: ...

    def read_listing(self, sha: str) -> bytes: ...

    def open(self, sha: str, name: str) -> BinaryIO: ...

    def read(self, sha: str, name: str, start: int, end: int) -> Iterator[bytes]:
        """The bytes of a file from `start` up to `end`, in blocks."""
        ...

    def touch(self, sha: str) -> bool:
        """Note that an artifact is used now; False if there is none."""
        ...

    def delete(self, sha: str, *, unused_since: float = float("inf")) -> bool:
        """Remove an artifact if it was last used before a time; returns whether one was removed."""
        ...

    def stored(self) -> Iterator[Stored]:
        """Every artifact."""
        ...

    def sweep(self, *, before: float) -> int:
        """Remove additions that began before a time and never finished; returns how many pieces."""
        ...
