"""How a server process stops: it says that it is not ready, ends what it has begun, then exits, in bounded time.

    SIGTERM ─► draining: /readyz 503, new jobs refused with 503, everything else answered
            ─► jobs in hand finish or are handed back, within `drain_seconds`, and `linger_seconds` have passed
            ─► over: event streams end, the server closes its connections and exits
            ─► EXIT_SECONDS after the signal the process ends, whatever is still going on

Each process of the service does this on its own. SIGINT (Ctrl-C) skips to the end.
"""

import asyncio
import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

from starlette.concurrency import run_in_threadpool

EXIT_SECONDS = 28.0
"""From SIGTERM to the forced end; orchestrators kill after 30."""

_log = logging.getLogger(__name__)


class Drain:
    """Whether this process is stopping, and what it does then."""

    def __init__(self, stop_jobs: Callable[[], None], *, linger_seconds: float) -> None:
        """`stop_jobs` returns once no job is in hand; it is called once."""
        self._stop_jobs, self._linger_seconds = stop_jobs, linger_seconds
        self._lock = threading.Lock()
        self._is_stopped = False
        self.is_draining = False
        """Whether new work is refused."""
        self.is_over = False
        """Whether what is still open may be closed."""

    def watch(self) -> None:
        """Start at SIGTERM, and at the end call the handler that the signal had before; from the server's event loop.

        Outside of the main thread, where signals cannot be handled, this does nothing and `finish` does it all.
        """
        if threading.current_thread() is not threading.main_thread():
            return
        loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
        tasks = []

        def begin(number: int, frame: FrameType | None) -> None:
            if self.is_draining:
                return
            self.is_draining = True
            leave_after(EXIT_SECONDS)
            leave = partial(before, number, frame) if callable(before) else partial(os._exit, 0)
            loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(self._drain(leave))))

        signal.signal(signal.SIGTERM, begin)

    def finish(self) -> None:
        """End the jobs in hand, unless that is done already."""
        self.is_draining = True
        self._end_jobs()
        self.is_over = True

    def hurry(self) -> None:
        """Make everything that waits give up: the process is about to exit."""
        self.is_draining = self.is_over = True

    def _end_jobs(self) -> None:
        with self._lock:
            if not self._is_stopped:
                self._stop_jobs()
                self._is_stopped = True

    async def _drain(self, leave: Callable[[], object]) -> None:
        _log.info("stopping: new jobs are refused, those in hand end")
        started = time.monotonic()
        try:
            await run_in_threadpool(self._end_jobs)
            await asyncio.sleep(max(0.0, self._linger_seconds - (time.monotonic() - started)))
        finally:
            self.is_over = True
            leave()


def leave_after(seconds: float) -> None:
    """End this process after `seconds`; a second later even if a thread holds the interpreter's lock."""

    def leave() -> None:
        _log.error("the server did not stop in time; it leaves now, and jobs in hand run again elsewhere")
        os._exit(1)

    timer = threading.Timer(seconds, leave)
    timer.daemon = True
    timer.start()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
