"""The native API under /v1: generations, jobs and their events, artifacts, and the names that requests can use."""

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Body, Header, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from service.api.description import problem_answers
from service.api.schemas import (
    ArchitecturesBody,
    ArtifactBody,
    DatasetsBody,
    FileBody,
    GeneratorBody,
    GeneratorFactsBody,
    GeneratorsBody,
    JobBody,
)
from service.edge.file_reply import FOREVER, reply_with_file
from service.jobs.job_store import FINAL
from service.problems import Problem, raise_described
from service.work.intake import Intake
from service.work.request_body import GenerationRequestBody
from weightgen.errors import NotFound

EVENT_SECONDS = 0.2
"""Pause between two looks at a job whose events a client follows."""
HEARTBEAT_SECONDS = 15.0


def native_routes(intake: Intake) -> APIRouter:
    """The routes under /v1."""
    routes = APIRouter(prefix="/v1")

    @routes.post(
        "/generations",
        status_code=201,
        response_model=JobBody,
        responses={
            202: {"model": JobBody, "description": "Not made yet; Location names the job to ask again"},
            **problem_answers(*_REFUSALS),
        },
    )
    async def generate(
        body: Annotated[GenerationRequestBody, Body()],
        request: Request,
        response: Response,
        idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
        prefer: Annotated[
            str | None, Header(description="respond-async: get the job at once, finished or not.")
        ] = None,
    ) -> JobBody:
        """Make weights. The answer has the result if it is ready soon, else the job to ask for it."""
        owner = request.state.owner
        job = await run_in_threadpool(intake.accept, body, owner=owner, idempotency_key=idempotency_key)
        if "respond-async" not in (prefer or "").lower():  # RFC 7240
            job = await intake.wait(job)
        if job.problem is not None:
            raise_described(job.problem)
        if job.state == "cancelled":
            raise Problem("cancelled", f"job {job.id} was cancelled; post the request again, without its key")
        response.status_code = 201 if job.state == "succeeded" else 202
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return JobBody.of(job)

    @routes.get("/jobs/{job_id}", responses=problem_answers("not-found"))
    def read_job(job_id: str) -> JobBody:
        """A job: its state, progress, and result or problem."""
        return JobBody.of(intake.jobs.get(job_id))

    @routes.delete("/jobs/{job_id}", responses=problem_answers("not-found", "conflict"))
    def cancel_job(job_id: str, request: Request) -> JobBody:
        """Cancel a job that is queued or running. Only the key that asked for it first may do this."""
        owner = intake.jobs.get(job_id).owner
        if request.state.owner and owner not in ("", request.state.owner):
            raise Problem("forbidden", f"job {job_id} is one that another key asked for")
        return JobBody.of(intake.jobs.cancel(job_id))

    @routes.get(
        "/jobs/{job_id}/events",
        response_class=StreamingResponse,
        responses={
            200: {"description": "Server-sent events, each a job", "content": {"text/event-stream": {}}},
            **problem_answers("not-found"),
        },
    )
    async def follow_job(job_id: str, last_event_id: Annotated[str | None, Header()] = None) -> StreamingResponse:
        """Every change of a job as a server-sent event, until it has ended. Last-Event-ID resumes."""
        await run_in_threadpool(intake.jobs.get, job_id)  # an unknown job is a 404, not a broken stream
        known = int(last_event_id) if last_event_id and last_event_id.isdecimal() and len(last_event_id) < 18 else 0
        events = _events(intake, job_id, known=known)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @routes.get("/artifacts/{artifact}", responses=problem_answers("not-found", "storage-failed"))
    def list_files(artifact: str) -> ArtifactBody:
        """The files of an artifact."""
        files = [FileBody(name=f.name, sha256=f.sha256, size=f.size) for f in intake.artifacts.files(artifact)]
        return ArtifactBody(artifact=artifact, repository=f"sha/{artifact}", files=files)

    @routes.head("/artifacts/{artifact}/files/{name:path}", include_in_schema=False)
    @routes.get(
        "/artifacts/{artifact}/files/{name:path}",
        response_class=Response,
        responses={
            200: {"description": "The file", "content": {"application/octet-stream": {}}},
            206: {"description": "The bytes that Range asks for"},
            304: {"description": "The client has the file already"},
            **problem_answers("not-found", "precondition-failed", "range-not-satisfiable", "storage-failed"),
        },
    )
    def read_file(artifact: str, name: str, request: Request) -> Response:
        """One file of an artifact, with Range, ETag and If-None-Match."""
        file = intake.artifacts.find(artifact, name)
        return reply_with_file(request, partial(intake.artifacts.read, artifact, file), file, cache=FOREVER)

    @routes.get("/generators")
    def list_generators() -> GeneratorsBody:
        """The released generators."""
        found = intake.catalogue.generators()
        return GeneratorsBody(generators=[GeneratorBody(name=name, sha256=sha) for name, sha in sorted(found.items())])

    @routes.get("/generators/{name}", responses=problem_answers("not-found"))
    def describe_generator(name: str) -> GeneratorFactsBody:
        """A generator: what it is, the architectures it serves, and its scoreboards."""
        found = intake.catalogue.generators()
        if name not in found:
            raise NotFound(f"no generator is called {name[:80]!r}; there are {', '.join(sorted(found))}")
        return GeneratorFactsBody(name=name, sha256=found[name], **intake.catalogue.facts(name))

    @routes.get("/architectures")
    def list_architectures() -> ArchitecturesBody:
        """The registered architectures."""
        return ArchitecturesBody(architectures=intake.catalogue.architectures())

    @routes.get("/datasets")
    def list_datasets() -> DatasetsBody:
        """The data sets found here."""
        return DatasetsBody(datasets=intake.catalogue.datasets())

    return routes


_REFUSALS = (
    "malformed-request",
    "cancelled",
    "conflict",
    "body-too-large",
    "wrong-content-type",
    "invalid-request",
    "unknown-name",
    "unsupported",
    "over-limit",
    "verification-failed",
    "took-too-long",
    "queue-full",
    "not-ready",
    "storage-failed",
    "storage-full",
)


async def _events(intake: Intake, job_id: str, *, known: int) -> AsyncIterator[bytes]:
    """The changes of a job after version `known`, in the form of an event stream; it ends with the job."""
    said = time.monotonic()
    while True:
        job = await run_in_threadpool(intake.jobs.get, job_id)
        if job.version > known:
            known, said = job.version, time.monotonic()
            yield f"id: {known}\nevent: job\ndata: {JobBody.of(job).model_dump_json()}\n\n".encode()
        if job.state in FINAL or intake.drain.is_over:  # the client goes on elsewhere, with Last-Event-ID
            return
        if time.monotonic() - said >= HEARTBEAT_SECONDS:
            said = time.monotonic()
            yield b": waiting\n\n"
        await asyncio.sleep(EVENT_SECONDS)
