"""The application: routes, and the runner that works while it serves."""

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any, Literal

from fastapi import APIRouter, FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import HTMLResponse, Response

from service.artifacts.artifact_store import ArtifactStore, open_store
from service.artifacts.expiry import Expiry
from service.artifacts.fast_files import FastFiles
from service.artifacts.scratch import Scratch
from service.catalogue import Catalogue, registered
from service.estimate import Estimator
from service.generation import Generation, import_libraries
from service.http.api_description import complete_description
from service.http.api_page import HEADERS, render_page
from service.http.measurements import Measurements
from service.http.request_head import RequestHead
from service.http.request_limits import RequestLimits
from service.http.request_log import RequestLog, write_down
from service.http.security_headers import SecurityHeaders
from service.intake import Intake
from service.jobs.drain import Drain
from service.jobs.endings import Endings
from service.jobs.job_store import JobStore
from service.jobs.orphans import leave_with_parent
from service.jobs.runner import Batching, Run, Runner
from service.keys.authentication import Authentication, KeyRing
from service.keys.key_limits import KeyLimits
from service.keys.key_store import KeyStore
from service.problems import Problem, tell_problems
from service.routes.datasets import PATH as UPLOAD_PATH
from service.routes.datasets import dataset_routes
from service.routes.estimate import estimate_routes
from service.routes.hub import hub_routes
from service.routes.native import native_routes, tell
from service.routes.page import page_routes
from service.schemas import StatusBody, VersionBody
from service.settings import Settings, is_loopback, read_settings
from service.size_limits import SizeLimits
from service.uploads.reading import Limits
from service.uploads.upload_store import Uploads
from weightgen import __version__
from weightgen.runtime.freed_memory import keep_freed_memory


def create_app(
    settings: Settings | None = None, *, run: Run | None = None, catalogue: Catalogue | None = None
) -> FastAPI:
    """The service by its settings, which the environment gives if the caller does not.

    `run` and `catalogue` stand in for generation and for what is registered; without generation there are no estimates.
    The database has to be migrated already.
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
        docs_url=None,  # FastAPI's own page loads scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would repeat the Host that the client made up
    )
    tell_problems(app)
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
    app.add_middleware(RequestLog, measurements=measurements)  # the last one added is the first one asked
    app.include_router(native_routes(intake))
    if isinstance(work_of_jobs, Generation):
        app.include_router(estimate_routes(intake, Estimator(jobs, work_of_jobs.look_up, catalogue.facts)))
    app.include_router(dataset_routes(uploads, catalogue))
    app.include_router(hub_routes(intake))
    app.include_router(_docs_routes(app))
    app.include_router(page_routes())
    app.include_router(_health_routes(jobs, drain, measurements))
    return app


def open_artifacts(settings: Settings, kind: Literal["artifacts", "datasets"] = "artifacts") -> ArtifactStore:
    """The store of what was generated, or of what was uploaded, where the settings say."""
    return open_store(
        settings.location(kind),
        max_bytes=settings.max_artifact_bytes,
        max_stored_bytes=settings.max_stored_bytes,
        max_cached_bytes=settings.max_cached_bytes if kind == "artifacts" else 0,
        s3_endpoint_url=settings.s3_endpoint_url,
    )


def open_uploads(settings: Settings) -> Uploads:
    """The uploaded data sets, where the settings say."""
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


def _docs_routes(app: FastAPI) -> APIRouter:
    routes = APIRouter()

    @routes.get("/docs", include_in_schema=False)
    def read_docs() -> Response:
        return HTMLResponse(render_page(app.openapi()), headers=HEADERS)

    return routes


def _health_routes(jobs: JobStore, drain: Drain, measurements: Measurements) -> APIRouter:
    routes = APIRouter()

    @routes.get("/healthz")
    def is_alive() -> StatusBody:
        """Whether the server answers."""
        return StatusBody(status="ok")

    @routes.get("/readyz", responses=tell("not-ready"))
    def is_ready() -> StatusBody:
        """Whether the server can take requests: its database answers, and it is not stopping."""
        if drain.is_draining:
            raise Problem("not-ready", "this server is stopping")
        try:
            jobs.count()
        except SQLAlchemyError as error:
            raise Problem("not-ready", "the job database does not answer") from error
        return StatusBody(status="ok")

    @routes.get("/version")
    def read_version() -> VersionBody:
        """Which version answers."""
        return VersionBody(weightgen=__version__)

    @routes.get("/metrics", response_class=Response)
    def read_metrics() -> Response:
        """Counts and times of requests, and jobs by state, as Prometheus reads them."""
        return Response(measurements.render(jobs), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
