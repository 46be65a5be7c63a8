"""Completes the OpenAPI description that FastAPI writes: refusals of the middleware, problems, and keys."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI

from service.api.schemas import ProblemBody
from service.edge.request_limits import WITH_BODY
from service.keys.authentication import needed_scope
from service.problems import KINDS, MEDIA_TYPE

OF_EVERY_REQUEST = ("malformed-request", "body-too-large", "target-too-long", "headers-too-large")
OF_KEYS = ("unauthorized", "forbidden", "too-many-requests", "not-ready")
OF_BODIES = ("request-too-slow", "wrong-content-type", "forbidden")
BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key that the operator made with `python -m service keys make`. A service that has no keys, and "
    "listens on loopback only, asks for none.",
}
_OF_FASTAPI = ("HTTPValidationError", "ValidationError")


def problem_answers(*kinds: str) -> dict[int | str, dict[str, Any]]:
    """The answers with problems of these kinds, for the OpenAPI description of a route."""
    statuses = sorted({KINDS[kind][0] for kind in kinds})
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}}
    known = dict.fromkeys(kinds)
    titles = {status: "; ".join(KINDS[kind][1] for kind in known if KINDS[kind][0] == status) for status in statuses}
    return {status: {"description": title, "content": content} for status, title in titles.items()}


def complete_description(app: FastAPI) -> None:
    """Add to the app's description every status, one schema for all problems, and the key that each request needs."""
    plain: Callable[[], dict[str, Any]] = app.openapi
    is_complete = False

    def openapi() -> dict[str, Any]:
        nonlocal is_complete
        described = plain()  # FastAPI keeps this object, so it is completed once
        if not is_complete:
            _complete(described)
            is_complete = True
        return described

    app.openapi = openapi


def _complete(described: dict[str, Any]) -> None:
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            _complete_operation(method.upper(), path, operation)
    components = described.setdefault("components", {})
    components["securitySchemes"] = {"bearer": BEARER}
    schemas = components.setdefault("schemas", {})
    for name in _OF_FASTAPI:
        schemas.pop(name, None)
    problem = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}), ProblemBody=problem)


def _complete_operation(method: str, path: str, operation: dict[str, Any]) -> None:
    scope = needed_scope(method, path)
    kinds = [*OF_EVERY_REQUEST, *(OF_KEYS if scope else ()), *(OF_BODIES if method in WITH_BODY else ())]
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422")):  # FastAPI's own form of errors, which no answer here has
        kinds.append("invalid-request")
        del responses["422"]
    for status, told in problem_answers(*kinds).items():
        known = responses.setdefault(str(status), told)
        if told["description"] not in known["description"]:
            known["description"] += f"; {told['description']}"
    operation["responses"] = dict(sorted(responses.items()))
    operation["security"] = [{"bearer": []}] if scope else []
    if scope:
        description = operation.get("description", "")
        operation["description"] = f"{description}\n\nNeeds a key with the scope `{scope}`.".strip()
