"""Which jobs end in this process, told at once to those who wait for them; other processes' are found by looking."""

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

REMEMBERED = 1024
"""Jobs that ended last: one may end before anybody has begun to wait for it."""


class Endings:
    """Told by the threads that run jobs, heard in event loops."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: deque[str] = deque(maxlen=REMEMBERED)
        self._waiting: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}

    def tell(self, job_id: str) -> None:
        """This job has ended; from any thread."""
        with self._lock:
            self._ended.append(job_id)
            for loop, event in self._waiting.get(job_id, ()):
                loop.call_soon_threadsafe(event.set)

    @contextmanager
    def expected(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event of the running loop that is set once the job has ended in this process."""
        here = asyncio.get_running_loop(), asyncio.Event()
        with self._lock:
            if job_id in self._ended:
                here[1].set()
            self._waiting.setdefault(job_id, []).append(here)
        try:
            yield here[1]
        finally:
            with self._lock:  # or a loop that has closed would be told
                self._waiting[job_id].remove(here)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]
