"""What operators and load balancers ask: /healthz, /readyz, /version and /metrics."""

from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import Response

from service.api.description import problem_answers
from service.api.schemas import StatusBody, VersionBody
from service.jobs.job_store import JobStore
from service.problems import Problem
from service.process.drain import Drain
from service.telemetry.measurements import Measurements
from weightgen import __version__


def status_routes(jobs: JobStore, drain: Drain, measurements: Measurements) -> APIRouter:
    """The routes that say how the server is; they need no key."""
    routes = APIRouter()

    @routes.get("/healthz")
    def is_alive() -> StatusBody:
        """Whether the server answers."""
        return StatusBody(status="ok")

    @routes.get("/readyz", responses=problem_answers("not-ready"))
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
        text = measurements.render(jobs.count())
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes
