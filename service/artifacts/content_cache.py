"""Contents of small files that were read lately, in the memory of one process."""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

SHARE = 4
"""One file may take 1 / SHARE of the memory, so that a few large files do not push out all others."""


@dataclass(slots=True)
class Content:
    """A file in memory."""

    sha256: str
    name: str
    data: bytes = field(repr=False)
    checked: float = field(default_factory=time.monotonic)
    """When the artifact was last known to exist, on the monotonic clock."""


class ContentCache:
    """Files by artifact and name; the least recently used go first. Threads may share it."""

    def __init__(self, *, max_bytes: int) -> None:
        """`max_bytes` is for all together; with 0 nothing is kept."""
        self._max_bytes, self._bytes = max_bytes, 0
        self._contents: OrderedDict[tuple[str, str], Content] = OrderedDict()
        self._lock = threading.Lock()

    def takes(self, size: int) -> bool:
        """Whether a file of so many bytes is kept."""
        return size * SHARE <= self._max_bytes

    def peek(self, sha: str, name: str) -> Content | None:
        """A file, if it is in memory. This does not count as a use, which would cost a lock."""
        return self._contents.get((sha, name))

    def check(self, sha: str, name: str) -> None:
        """Note that the artifact exists now, and that the file is used."""
        with self._lock:
            content = self._contents.get((sha, name))
            if content is not None:
                content.checked = time.monotonic()
                self._contents.move_to_end((sha, name))

    def put(self, sha: str, content: Content) -> None:
        """Keep a file that `takes` allows."""
        with self._lock:
            known = self._contents.pop((sha, content.name), None)
            self._bytes += len(content.data) - (len(known.data) if known is not None else 0)
            self._contents[sha, content.name] = content
            while self._bytes > self._max_bytes:
                _, oldest = self._contents.popitem(last=False)
                self._bytes -= len(oldest.data)

    def drop(self, sha: str) -> None:
        """Forget the files of an artifact."""
        with self._lock:
            for key in [key for key in self._contents if key[0] == sha]:
                self._bytes -= len(self._contents.pop(key).data)
