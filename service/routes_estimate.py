"""POST /v1/estimate: what a generation would give, without it."""

from typing import Annotated

from fastapi import APIRouter, Body

from service.estimate import Estimator
from service.intake import Intake
from service.routes_native import tell
from service.schemas import EstimateBody, GenerationRequestBody


def estimate_routes(intake: Intake, estimator: Estimator) -> APIRouter:
    """The route of estimates."""
    routes = APIRouter(prefix="/v1")

    @routes.post("/estimate", responses=tell(*_REFUSALS))
    def estimate(body: Annotated[GenerationRequestBody, Body()]) -> EstimateBody:
        """What a generation would give: its size, time, accuracy, and whether its task is a stranger."""
        request = body.canonical()
        digest = body.digest(generator_sha256=intake.catalogue.check(request))
        return estimator.estimate(request, digest=digest)

    return routes


_REFUSALS = (
    "malformed-request",
    "body-too-large",
    "wrong-content-type",
    "invalid-request",
    "unknown-name",
    "unsupported",
    "storage-failed",
)
