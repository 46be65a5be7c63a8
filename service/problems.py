"""Errors as answers in application/problem+json (RFC 9457): one table of kinds, one of errors.

A `type` is `urn:weightgen:problem:<kind>` and never changes; titles and details may. An answer shows nothing of the
server's inside (paths, tracebacks): a fault of the server has a fixed sentence, and the log has the rest.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException, RequestValidationError
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnection
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response
from starlette.routing import Match

from service.errors import Conflict, OverLimit, QueueFull, StoreFull
from weightgen.errors import (
    BadData,
    BadOption,
    CorruptFile,
    NotFound,
    ServiceFailed,
    SpecMismatch,
    StorageFailed,
    UnknownName,
    UnsupportedTask,
    VerificationFailed,
    WeightgenError,
)

MEDIA_TYPE = "application/problem+json"
RETRY_SECONDS = 2
"""The value of Retry-After, where asking again may help."""

KINDS: dict[str, tuple[int, str]] = {
    "malformed-request": (400, "The request cannot be read"),
    "unauthorized": (401, "A key is asked for"),
    "forbidden": (403, "The key may not do this"),
    "not-found": (404, "There is no such thing"),
    "method-not-allowed": (405, "This method does nothing here"),
    "request-too-slow": (408, "The request took too long to arrive"),
    "conflict": (409, "The request does not fit what is known"),
    "precondition-failed": (412, "The file is not the one that the client knows"),
    "body-too-large": (413, "The body is too large"),
    "target-too-long": (414, "The path and query are too long"),
    "wrong-content-type": (415, "The body is not of a type that is read here"),
    "range-not-satisfiable": (416, "The file has no such bytes"),
    "invalid-request": (422, "The request says something that cannot be asked"),
    "unknown-name": (422, "Nothing has this name"),
    "unusable-data": (422, "The uploaded data cannot be used"),
    "unsupported": (422, "The generator cannot serve this request"),
    "over-limit": (422, "The request is larger than this server takes"),
    "verification-failed": (422, "The generated weights did not pass the gate"),
    "took-too-long": (422, "The job took longer than it may"),
    "cancelled": (409, "The job was cancelled"),
    "queue-full": (429, "Too many jobs wait"),
    "too-many-requests": (429, "The key has asked too much for now"),
    "headers-too-large": (431, "The headers are too large"),
    "internal": (500, "The server failed"),
    "storage-failed": (503, "The server cannot store or read its files"),
    "storage-full": (507, "The server has no room for more"),
    "too-busy": (503, "The server has too many connections"),
    "not-ready": (503, "The server is not ready"),
    "still-generating": (503, "The weights are being made"),
}
"""Kind -> status and title."""

ERRORS: dict[type[WeightgenError], str] = {
    BadOption: "invalid-request",
    BadData: "unsupported",
    CorruptFile: "storage-failed",
    SpecMismatch: "unsupported",
    StorageFailed: "storage-failed",
    ServiceFailed: "internal",
    VerificationFailed: "verification-failed",
    UnsupportedTask: "unsupported",
    NotFound: "not-found",
    UnknownName: "unknown-name",
    Conflict: "conflict",
    QueueFull: "queue-full",
    OverLimit: "over-limit",
    StoreFull: "storage-full",
    WeightgenError: "unsupported",
}
"""Error -> kind; the nearest ancestor of an error decides."""

_OF_STATUS = {400: "malformed-request", 404: "not-found", 405: "method-not-allowed"}
_OWN_FAULT = {
    "internal": "something went wrong that is not the request's fault; the server's log says what",
    "storage-failed": "a file of the server cannot be written or read; the server's log says which",
}


_log = logging.getLogger(__name__)


class Problem(HTTPException):
    """Raised to answer a request with a problem of one of KINDS."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        errors: Sequence[dict[str, Any]] = (),
        headers: dict[str, str] | None = None,
    ) -> None:
        """`errors` are the parts of a ProblemBody: {detail, pointer | parameter, supported}."""
        super().__init__(status_code=KINDS[kind][0], detail=detail, headers=headers)
        self.kind, self.errors = kind, list(errors)

    def body(self) -> dict[str, Any]:
        """The ProblemBody, JSON values."""
        status, title = KINDS[self.kind]
        body = {"type": type_of(self.kind), "title": title, "status": status, "detail": self.detail}
        return {**body, "errors": self.errors} if self.errors else body


def type_of(kind: str) -> str:
    """The `type` of a kind of problem."""
    return f"urn:weightgen:problem:{kind}"


def problem_of(error: WeightgenError) -> Problem:
    """The problem that answers an error of the library or of the service."""
    kind = next(ERRORS[ancestor] for ancestor in type(error).__mro__ if ancestor in ERRORS)
    headers = {"Retry-After": str(RETRY_SECONDS)} if KINDS[kind][0] in (429, 503) else None
    return Problem(kind, _OWN_FAULT.get(kind, str(error)), headers=headers)


def describe_problem(error: WeightgenError) -> dict[str, Any]:
    """The ProblemBody of a job that ended with this error, JSON values."""
    return problem_of(error).body()


def raise_described(body: dict[str, Any]) -> NoReturn:
    """Raise the problem that `describe_problem` described."""
    kind = str(body.get("type", "")).rpartition(":")[2]
    raise Problem(kind if kind in KINDS else "internal", str(body.get("detail", "")), errors=body.get("errors", ()))


def reply(problem: Problem) -> Response:
    """The answer for a problem. It is ASCII, because a name may hold characters that UTF-8 cannot encode."""
    content = json.dumps(problem.body(), allow_nan=False)
    return Response(content, status_code=problem.status_code, headers=problem.headers, media_type=MEDIA_TYPE)


def refuse(problem: Problem, scope: Mapping[str, Any]) -> Response:
    """The answer for a problem of a request, given its ASGI scope; for Hub clients the sentence is in a header too."""
    return reply(told_in_headers(problem) if scope["path"].startswith("/hf/") else problem)


def told_in_headers(problem: Problem) -> Problem:
    """The problem with its sentence in a header too: Hub clients show the header, and a HEAD has no body."""
    sentence = problem.detail.encode("ascii", "replace").decode().replace("\r", " ").replace("\n", " ")
    headers = {**(problem.headers or {}), "X-Error-Message": sentence}
    return Problem(problem.kind, problem.detail, errors=problem.errors, headers=headers)


def tell_problems(app: FastAPI, *, headers: Mapping[str, str] | None = None) -> None:
    """Answer every error of the app with a problem.

    `headers` are added to the answer to a bug, which passes no middleware that could add them.
    """
    app.add_exception_handler(WeightgenError, _tell_error)
    app.add_exception_handler(RequestValidationError, _tell_invalid)
    app.add_exception_handler(StarletteHTTPException, _tell_http)
    for away in (OperationalError, InterfaceError, NoConnection):
        app.add_exception_handler(away, _tell_database)
    app.add_exception_handler(Exception, partial(_tell_bug, dict(headers or {})))


def _tell_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WeightgenError)
    return refuse(problem_of(error), request.scope)


def _tell_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    found = error.errors()
    if any(part["type"] == "json_invalid" for part in found):
        return refuse(Problem("malformed-request", "the body is not valid JSON"), request.scope)
    parts = [_describe_part(part["loc"], part["msg"]) for part in found]
    count = f"{len(parts)} things are" if len(parts) > 1 else "one thing is"
    problem = Problem("invalid-request", f"{count} wrong with the request; errors says what", errors=parts)
    return refuse(problem, request.scope)


def _describe_part(place: Sequence[str | int], detail: str) -> dict[str, str]:
    source, *path = place
    if source != "body":
        return {"detail": detail, "parameter": "/".join(map(str, path))}
    escaped = (str(step).replace("~", "~0").replace("/", "~1") for step in path)
    return {"detail": detail, "pointer": "#" + "".join(f"/{step}" for step in escaped)}


def _tell_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    if isinstance(error, Problem):
        return refuse(error, request.scope)
    kind = _OF_STATUS.get(error.status_code, "internal")
    details = {
        "malformed-request": "the request cannot be read",
        "not-found": "nothing is served under this path; /docs lists what is",
        "method-not-allowed": f"{request.method} does nothing here; the header Allow says what does",
    }
    headers = dict(error.headers) if error.headers else {}
    if kind == "method-not-allowed":  # the router names only the methods of the first route of this path
        matching = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
        headers["Allow"] = ", ".join(sorted({m for route in matching for m in getattr(route, "methods", None) or ()}))
    return refuse(Problem(kind, details.get(kind, _OWN_FAULT["internal"]), headers=headers), request.scope)


def _tell_database(request: Request, error: Exception) -> Response:
    _log.error("the job database does not answer: %s", str(error).partition("\n")[0])
    retry = {"Retry-After": str(RETRY_SECONDS)}
    problem = Problem("not-ready", "the job database does not answer; ask again in a moment", headers=retry)
    return refuse(problem, request.scope)


def _tell_bug(headers: dict[str, str], request: Request, error: Exception) -> Response:
    return reply(Problem("internal", _OWN_FAULT["internal"], headers=headers))
