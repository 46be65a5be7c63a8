"""One JSON line and one set of measurements for every request, each with an id that the answer tells too."""

import json
import logging
import re
import secrets
import time
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.log_context import current_fields, logged_with
from service.measurements import Measurements

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
    """Log records as JSON objects: time (seconds since the epoch), level, logger, message, request and job, `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "logger": record.name,
                "message": record.getMessage(), **current_fields()}  # fmt: skip
        line |= {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


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

        with logged_with(request=request_id) as fields:
            try:
                await self._app(scope, receive, send_named)
            finally:
                seconds = seconds if seconds is not None else time.perf_counter() - start
                route = getattr(scope.get("route"), "path", "none")
                self._measurements.observe_request(method=scope["method"], route=route, status=status, seconds=seconds)
                owner = scope.get("state", {}).get("owner")
                fields |= {"owner": owner} if owner else {}
                said = {**fields, "method": scope["method"], "path": scope["path"], "status": status,
                        "seconds": round(seconds, 4)}  # fmt: skip
                LOGGER.info("answered", extra=said)
