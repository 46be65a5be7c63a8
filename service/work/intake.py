"""How a request becomes a job, and how its result is waited for: the same for every front end of the service."""

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
"""Between two looks at a job that may be run by another process: it grows from the one to the other."""


@dataclass(frozen=True)
class Intake:
    """What every route needs."""

    settings: Settings
    jobs: JobStore
    artifacts: ArtifactStore
    catalogue: Catalogue
    wake: Callable[[], None]
    """Tells this process's runner that there is work."""
    drain: Drain
    """Whether this process is stopping; then it takes no new jobs, and answers requests that have one."""
    endings: Endings = field(default_factory=Endings)
    """Of the jobs that this process's runner runs."""

    def examine(self, body: GenerationRequestBody) -> tuple[dict[str, Any], str]:
        """The canonical request and its digest; Problem for what is not served here, by its names or its size."""
        if body.num_samples > self.settings.max_samples:
            detail = f"num_samples is {body.num_samples}, at most {self.settings.max_samples} may be asked for"
            raise Problem("invalid-request", detail, errors=[{"detail": detail, "pointer": "#/num_samples"}])
        request = body.canonical()
        return request, body.digest(contents=self.catalogue.check(request))

    def accept(
        self, body: GenerationRequestBody, *, owner: str = "", may_make: bool = True, idempotency_key: str | None = None
    ) -> Job:
        """The job of a request of `owner`; Problem for unknown names, Conflict and QueueFull as JobStore.submit.

        Who may not make anything gets a job that there is already; Problem if there is none.
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
                self.jobs.forget_artifact(job.result["artifact"])  # deleted: the weights are made anew
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
        """Whether every artifact of a result is there, and used now."""
        others = {sample["artifact"] for sample in result.get("samples", ())}
        return all(self.artifacts.note_use(artifact) for artifact in others | {result["artifact"]})

    async def wait(self, job: Job, *, seconds: float | None = None) -> Job:
        """The job once it has ended, or as it is after `seconds`, or if this process stops and it waits.

        Without `seconds` it is `inline_seconds`.
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
