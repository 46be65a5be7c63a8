"""One JSON line and one set of measurements for every request, each with an id that the answer tells too."""

import json
import logging
import os
import re
import secrets
import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.jobs import JobStore

LOGGER = logging.getLogger("service.requests")
_OF_EVERY_RECORD = {*vars(logging.makeLogRecord({})), "message", "asctime", "color_message"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9_.-]{1,64}")

LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "service.request_log.JsonLines"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "root": {"level": "INFO", "handlers": ["stderr"]},
    "loggers": {
        "alembic": {"level": "WARNING"},
        "httpx": {"level": "WARNING"},
        "uvicorn.access": {"level": "CRITICAL"},
    },
}
"""For logging.config.dictConfig: everything goes to stderr, one JSON object a line."""


class JsonLines(logging.Formatter):
    """Log records as JSON objects: time (seconds since the epoch), level, logger, message, and what `extra` held."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name,
                "message": record.getMessage()}  # fmt: skip
        line |= {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Measurements:
    """Counts and times of requests, and the number of jobs in each state, as Prometheus reads them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "weightgen_http_requests", "Answers.", ["method", "route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "weightgen_http_seconds", "Time to the first byte of an answer.", ["route"], registry=self._registry
        )

    def render(self, jobs: JobStore) -> bytes:
        """The text that Prometheus scrapes; of all processes where PROMETHEUS_MULTIPROC_DIR is set."""
        registry = self._registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            MultiProcessCollector(registry)
        # Not a file of this process as the others are: every process sees the same jobs.
        lines = ["# HELP weightgen_jobs Jobs by state.", "# TYPE weightgen_jobs gauge"]
        lines += [f'weightgen_jobs{{state="{state}"}} {number}' for state, number in jobs.count().items()]
        return generate_latest(registry) + "\n".join([*lines, ""]).encode()


class RequestLog:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, measurements: Measurements) -> None:
        self._app, self._measurements = app, measurements

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        start, status, seconds = time.perf_counter(), 500, None

        async def send_named(message: Message) -> None:
            nonlocal status, seconds
            if message["type"] == "http.response.start":
                status, seconds = message["status"], time.perf_counter() - start
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            seconds = seconds if seconds is not None else time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "none")
            self._measurements.requests.labels(scope["method"], route, str(status)).inc()
            self._measurements.seconds.labels(route).observe(seconds)
            said = {"request": request_id, "method": scope["method"], "path": scope["path"], "status": status,
                    "seconds": round(seconds, 4)}  # fmt: skip
            LOGGER.info("answered", extra=said)
