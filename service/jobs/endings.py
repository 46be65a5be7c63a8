"""Wakes those who wait for a job that ends in this process; the ends of others are found by looking at the table."""

import asyncio
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

REMEMBERED = 1024
"""How many of the last ended jobs are remembered: a job may end before anyone waits for it."""


class Endings:
    """Threads that run jobs report their ends here, and event loops wait for them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: deque[str] = deque(maxlen=REMEMBERED)
        self._waiting: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}

    def tell(self, job_id: str) -> None:
        """Report that this job has ended; from any thread."""
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
            with self._lock:  # else a loop that is closed would be woken
                self._waiting[job_id].remove(here)
                if not self._waiting[job_id]:
                    del self._waiting[job_id]
