"""Where artifacts lie: what a folder and a bucket have in common."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact that is there."""

    sha: str
    size: int
    """Bytes of its files."""
    used: float
    """When it was added or last used, by whoever used it last; seconds since the epoch."""


class Place(Protocol):
    """Artifacts by their sha256. Names are checked before they come here; any number of processes share a place.

    What is gone, or was never there, raises FileNotFoundError; what cannot be reached or written, StorageFailed.
    """

    count_seconds: float
    """How long a count of all bytes is used again, for places that are slow to list."""

    def check(self) -> None:
        """Raise StorageFailed if nothing can be kept here."""
        ...

    def put(self, sha: str, listing: bytes, folder: Path, *, admit: Callable[[], None] = lambda: None) -> None:
        """Keep the files of a local folder, which is gone afterwards, and their list; all of it or nothing.

        `admit` may raise, when nothing is kept; nobody else puts anything meanwhile where the place can see to that.
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
        """Remove an artifact if it was last used before a time; whether there was one."""
        ...

    def stored(self) -> Iterator[Stored]:
        """Every artifact."""
        ...

    def sweep(self, *, before: float) -> int:
        """Remove what was begun before a time and never ended; how many pieces."""
        ...
