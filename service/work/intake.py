"""Makes a request a job and waits for its result, in the same way for every route."""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from starlette.concurrency import run_in_threadpool

from service.artifacts.artifact_store import ArtifactStore
from service.errors import QueueFull
from service.jobs.endings import Endings
from service.jobs.job_store import FINAL, Job, JobStore
from service.problems import RETRY_SECONDS, Problem
from service.process.drain import Drain
from service.settings import Settings
from service.telemetry.log_context import note
from service.work.catalogue import Catalogue
from service.work.request_body import GenerationRequestBody

FIRST_LOOK_SECONDS, LONGEST_LOOK_SECONDS = 0.1, 0.25
"""Pause between two looks at a job that another process may run; it grows from the first value to the second."""


@dataclass(frozen=True)
class Intake:
    """Accepts requests and waits for jobs; holds what the routes need for that."""

    settings: Settings
    jobs: JobStore
    artifacts: ArtifactStore
    catalogue: Catalogue
    wake: Callable[[], None]
    """Wakes this process's runner when there is work."""
    drain: Drain
    """Says whether this process is stopping. Then it takes no new jobs, but answers requests that have one already."""
    endings: Endings = field(default_factory=Endings)
    """Says when a job of this process's runner has ended."""

    def examine(self, body: GenerationRequestBody) -> tuple[dict[str, Any], str]:
        """The canonical request and its digest; Problem for a name or a size that is not served here."""
        if body.num_samples > self.settings.max_samples:
            detail = f"num_samples is {body.num_samples}, at most {self.settings.max_samples} may be asked for"
            raise Problem("invalid-request", detail, errors=[{"detail": detail, "pointer": "#/num_samples"}])
        request = body.canonical()
        return request, body.digest(contents=self.catalogue.check(request))

    def accept(
        self, body: GenerationRequestBody, *, owner: str = "", may_make: bool = True, idempotency_key: str | None = None
    ) -> Job:
        """The job of a request of `owner`; Problem for unknown names, Conflict and QueueFull as JobStore.submit.

        Without `may_make` only a job that exists already is returned; Problem if there is none.
        """
        request, digest = self.examine(body)
        submit = partial(
            self.jobs.submit,
            request,
            digest=digest,
            owner=owner,
            idempotency_key=idempotency_key,
            max_queued=self.settings.max_queued_jobs if may_make and not self.drain.is_draining else 0,
            max_queued_of_owner=self.settings.max_queued_jobs_per_key if owner else None,
        )
        try:
            job, is_new = submit()
            if job.result is not None and not self._are_kept(job.result):
                self.jobs.forget_artifact(job.result["artifact"])  # an artifact was deleted: make it again
                job, is_new = submit()
        except QueueFull:
            if not may_make:
                detail = "these weights are not made yet, and making them needs a key with the scope 'generate'"
                raise Problem("forbidden", detail) from None
            if not self.drain.is_draining:
                raise
            retry = {"Retry-After": str(RETRY_SECONDS)}
            raise Problem("not-ready", "this server is stopping; ask again in a moment", headers=retry) from None
        note(job=job.id)
        if is_new:
            self.wake()
        return job

    def _are_kept(self, result: Mapping[str, Any]) -> bool:
        """Whether every artifact of a result still exists; notes that they are used now."""
        others = {sample["artifact"] for sample in result.get("samples", ())}
        return all(self.artifacts.note_use(artifact) for artifact in others | {result["artifact"]})

    async def wait(self, job: Job, *, seconds: float | None = None) -> Job:
        """The job when it has ended, or as it is after `seconds` (`inline_seconds` if not given).

        A process that is stopping does not wait for a job that is still queued, and in the end for no job at all.
        """
        patience = self.settings.inline_seconds if seconds is None else seconds
        end, pause = time.monotonic() + patience, FIRST_LOOK_SECONDS
        with self.endings.expected(job.id) as ended:
            while job.state not in FINAL and (left := end - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), min(pause, left))
                ended.clear()
                pause = min(1.5 * pause, LONGEST_LOOK_SECONDS)
                job = await run_in_threadpool(self.jobs.get, job.id)
                if self.drain.is_over or (job.state == "queued" and self.drain.is_draining):
                    break
        return job
