"""POST /v1/estimate: what a generation would give, without generating."""

from dataclasses import asdict
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Body

from service.api.description import problem_answers
from service.api.schemas import EstimateBody
from service.work.estimate import Estimator
from service.work.intake import Intake
from service.work.request_body import GenerationRequestBody

MAX_THREADS = 2
"""Estimates that one process works on at a time; they wait for generators, and must not keep other requests waiting."""


def estimate_routes(intake: Intake, estimator: Estimator) -> APIRouter:
    """The route of estimates."""
    routes = APIRouter(prefix="/v1")
    limiter = CapacityLimiter(MAX_THREADS)

    @routes.post("/estimate", responses=problem_answers(*_REFUSALS))
    async def estimate(body: Annotated[GenerationRequestBody, Body()]) -> EstimateBody:
        """What a generation would give: size, time, accuracy, and whether the task is unlike the training tasks."""
        return await to_thread.run_sync(_estimate, body, limiter=limiter)

    def _estimate(body: GenerationRequestBody) -> EstimateBody:
        request, digest = intake.examine(body)
        return EstimateBody.model_validate(asdict(estimator.estimate(request, digest=digest)))

    return routes


_REFUSALS = (
    "malformed-request",
    "body-too-large",
    "wrong-content-type",
    "invalid-request",
    "unknown-name",
    "unsupported",
    "over-limit",
    "storage-failed",
)
