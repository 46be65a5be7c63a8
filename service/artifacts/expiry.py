"""Removes artifacts that nobody has used for long, and additions that never finished.

A job is forgotten before its artifact is removed, so that no job answers with a missing artifact. An artifact is
removed only if it is still unused at that moment. A thread of every process does this once an hour. On one machine one
process does it at a time; processes of several machines do not harm each other.
"""

import contextlib
import fcntl
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from service.artifacts.artifact_store import ArtifactStore
from service.jobs.job_store import JobStore
from weightgen.errors import StorageFailed

EVERY_SECONDS = 3600.0
UNFINISHED_SECONDS = 86400.0
"""Age at which an unfinished addition is removed, because nobody works on it any more."""
_STOP_SECONDS = 5.0

_log = logging.getLogger(__name__)


class Expiry:
    """Removes what the stores of artifacts and of uploaded data sets need no longer keep."""

    def __init__(
        self,
        artifacts: ArtifactStore,
        jobs: JobStore,
        *,
        lock: Path,
        keep_seconds: float,
        datasets: ArtifactStore | None = None,
        keep_datasets_seconds: float = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """An artifact is removed `keep_seconds` after its last use, a data set `keep_datasets_seconds`; 0: never.

        `lock` is a file that the processes of this machine share.
        """
        self._artifacts, self._jobs, self._datasets = artifacts, jobs, datasets
        self._keep_seconds, self._keep_datasets_seconds = keep_seconds, keep_datasets_seconds
        self._lock, self._clock = lock, clock
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="expiry", daemon=True)
        artifacts.make_room = self.expire
        if datasets is not None:
            datasets.make_room = self.expire

    def start(self) -> None:
        """Remove things now, and again every hour."""
        self._thread.start()

    def stop(self) -> None:
        """Start nothing more, and wait a few seconds for the work in hand."""
        self._stopping.set()
        self._thread.join(_STOP_SECONDS)

    def expire(self) -> int:
        """Remove what was not used for long; returns how many. Does nothing while another process does it."""
        removed = 0
        with self._alone() as is_alone:
            if is_alone and self._keep_seconds:
                since = self._clock() - self._keep_seconds
                removed += self._remove_unused(self._artifacts, since, self._jobs.let_go_of)
            if is_alone and self._keep_datasets_seconds and self._datasets is not None:
                removed += self._remove_unused(self._datasets, self._clock() - self._keep_datasets_seconds)
        if removed:
            _log.info("artifacts expired", extra={"artifacts": removed})
        return removed

    def _remove_unused(self, store: ArtifactStore, since: float, let_go_of: Callable[..., bool] | None = None) -> int:
        removed = 0
        for stored in store.list_all():
            if stored.used >= since or self._stopping.is_set():
                continue
            if let_go_of is None or let_go_of(stored.sha, unchanged_since=since):
                removed += store.delete_unused(stored.sha, since=since)
        return removed

    def sweep(self) -> int:
        """Remove old unfinished additions; returns how many pieces. Does nothing while another process does it."""
        removed = 0
        with self._alone() as is_alone:
            for store in (self._artifacts, self._datasets) if is_alone else ():
                if store is not None:
                    removed += store.sweep(before=self._clock() - UNFINISHED_SECONDS)
        if removed:
            _log.info("unfinished artifacts removed", extra={"pieces": removed})
        return removed

    def _repeat(self) -> None:
        while not self._stopping.is_set():
            try:
                self.expire()
                self.sweep()
            except (SQLAlchemyError, StorageFailed, OSError):  # away for a while: the next hour tries again
                _log.exception("artifacts could not be expired")
            self._stopping.wait(EVERY_SECONDS)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with open(self._lock, "wb") as guard:
            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
