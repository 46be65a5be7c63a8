"""Puts the service together: stores, the runner of jobs, middleware and routes."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from service.api.datasets import PATH as UPLOAD_PATH
from service.api.datasets import dataset_routes
from service.api.description import complete_description
from service.api.docs_page import docs_routes
from service.api.estimate import estimate_routes
from service.api.hub import hub_routes
from service.api.native import native_routes
from service.api.page import page_routes
from service.api.status import status_routes
from service.artifacts.artifact_store import ArtifactStore, open_store
from service.artifacts.expiry import Expiry
from service.edge.fast_files import FastFiles
from service.edge.request_head import RequestHead
from service.edge.request_limits import RequestLimits
from service.edge.security_headers import HEADERS, SecurityHeaders
from service.jobs.endings import Endings
from service.jobs.job_store import JobStore
from service.jobs.runner import Batching, Run, Runner
from service.keys.authentication import Authentication, KeyRing
from service.keys.key_limits import KeyLimits
from service.keys.key_store import KeyStore
from service.problems import tell_problems
from service.process.drain import Drain
from service.process.orphans import leave_with_parent
from service.process.scratch import Scratch
from service.settings import Settings, is_loopback, read_settings
from service.telemetry.measurements import Measurements
from service.telemetry.request_log import RequestLog, write_down
from service.uploads.reading import Limits
from service.uploads.upload_store import Uploads
from service.work.catalogue import Catalogue, registered
from service.work.estimate import Estimator
from service.work.generation import Generation, import_libraries
from service.work.intake import Intake
from service.work.size_limits import SizeLimits
from weightgen import __version__
from weightgen.runtime.freed_memory import keep_freed_memory


def create_app(
    settings: Settings | None = None, *, run: Run | None = None, catalogue: Catalogue | None = None
) -> FastAPI:
    """The service for these settings, or for those of the environment.

    `run` replaces generation, and then there are no estimates; `catalogue` replaces what is registered. The database
    must be migrated already.
    """
    settings = settings or read_settings()
    jobs, keys = JobStore(settings.database_url), KeyStore(settings.database_url)
    artifacts = open_artifacts(settings)
    uploads = open_uploads(settings)
    catalogue = replace(catalogue or registered(), uploads=uploads, limits=SizeLimits.of(settings))
    work_of_jobs = run or _generation(settings, artifacts, uploads)
    measurements = Measurements()
    endings = Endings()
    runner = Runner(
        jobs,
        work_of_jobs,
        threads=settings.runner_threads,
        lease_seconds=settings.lease_seconds,
        max_attempts=settings.max_job_attempts,
        max_job_seconds=settings.max_job_seconds,
        keep_seconds=settings.keep_jobs_seconds,
        batching=_batching(work_of_jobs, settings),
        measurements=measurements,
        on_end=endings.tell,
    )
    expiry = Expiry(
        artifacts,
        jobs,
        lock=settings.data_dir / "expiry.lock",
        keep_seconds=settings.keep_artifacts_seconds,
        datasets=uploads.store,
        keep_datasets_seconds=settings.keep_datasets_seconds,
    )
    drain = Drain(partial(runner.stop, settings.drain_seconds), linger_seconds=settings.linger_seconds)
    ring, may_be_open = KeyRing(keys), is_loopback(settings.host) or settings.insecure
    fast_files = FastFiles(
        artifacts, is_open=lambda: may_be_open and ring.is_known_empty(), write_down=partial(write_down, measurements)
    )
    intake = Intake(settings, jobs, artifacts, catalogue, runner.wake, drain, endings)

    serving = threading.Event()

    @asynccontextmanager
    async def work(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        leave_with_parent(drain.hurry, is_serving=serving.is_set)
        if isinstance(work_of_jobs, Generation):
            await run_in_threadpool(import_libraries)
        runner.start()
        expiry.start()
        drain.watch()
        serving.set()
        try:
            yield {"fast_files": fast_files}
        finally:
            await run_in_threadpool(drain.finish)
            fast_files.flush()
            await run_in_threadpool(expiry.stop)
            if isinstance(work_of_jobs, Generation):
                work_of_jobs.close()
            uploads.scratch.remove()
            jobs.close()
            keys.close()

    app = FastAPI(
        title="weightgen",
        version=__version__,
        description="Weights for small networks, generated from labelled examples and verified before they are handed "
        "over. Hub clients load them with HF_ENDPOINT=<this server>/hf.",
        lifespan=work,
        docs_url=None,  # FastAPI's own page loads scripts from other hosts
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the client's Host header, which may be forged
    )
    tell_problems(app, headers=HEADERS)
    complete_description(app)
    app.add_middleware(
        RequestLimits,
        max_body_bytes=settings.max_body_bytes,
        max_request_seconds=settings.max_request_seconds,
        streams={UPLOAD_PATH: settings.max_upload_bytes},
    )
    app.add_middleware(
        KeyLimits,
        keys=keys,
        max_per_minute=settings.max_requests_per_key_per_minute,
        max_concurrent=settings.max_concurrent_requests_per_key,
    )
    app.add_middleware(Authentication, keys=ring, may_be_open=may_be_open)
    app.add_middleware(RequestHead, max_header_bytes=settings.max_header_bytes)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(RequestLog, measurements=measurements)  # the middleware that is added last runs first
    app.include_router(native_routes(intake))
    if isinstance(work_of_jobs, Generation):
        app.include_router(estimate_routes(intake, Estimator(jobs, work_of_jobs.look_up, catalogue.facts)))
    app.include_router(dataset_routes(uploads, catalogue))
    app.include_router(hub_routes(intake))
    app.include_router(docs_routes(app))
    app.include_router(page_routes())
    app.include_router(status_routes(jobs, drain, measurements))
    return app


def open_artifacts(settings: Settings, kind: Literal["artifacts", "datasets"] = "artifacts") -> ArtifactStore:
    """The store of generated artifacts or of uploaded data sets, at the place that the settings name."""
    return open_store(
        settings.location(kind),
        max_bytes=settings.max_artifact_bytes,
        max_stored_bytes=settings.max_stored_bytes,
        max_cached_bytes=settings.max_cached_bytes if kind == "artifacts" else 0,
        s3_endpoint_url=settings.s3_endpoint_url,
    )


def open_uploads(settings: Settings) -> Uploads:
    """The uploaded data sets, at the place and within the limits that the settings name."""
    limits = Limits(**{limit.name: getattr(settings, limit.name) for limit in fields(Limits)})
    return Uploads(open_artifacts(settings, "datasets"), Scratch(settings.data_dir / "scratch"), limits)


def _batching(run: Run, settings: Settings) -> Batching | None:
    if not isinstance(run, Generation):
        return None
    return Batching(run.group_of, run.run_many, max_jobs=settings.max_batch_jobs, sharers=settings.workers)


def _generation(settings: Settings, artifacts: ArtifactStore, uploads: Uploads) -> Generation:
    keep_freed_memory()
    return Generation(
        artifacts,
        uploads,
        scratch=settings.data_dir / "scratch",
        max_generators=settings.max_loaded_generators,
        max_datasets=settings.max_loaded_datasets,
        limits=SizeLimits.of(settings),
    )
