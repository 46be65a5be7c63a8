"""Refuses bodies before a route reads them: too large, too slow, of another type than JSON, or not strict JSON."""

import asyncio
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.edge.strict_json import NotStrict, check_json
from service.problems import Problem, refuse

WITH_BODY = ("POST", "PUT", "PATCH")
FORMS = "/hf/"
"""Under this path a body may also be a form, because Hub clients send forms."""


class RequestLimits:
    """ASGI middleware that limits bodies."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        max_body_bytes: int,
        max_request_seconds: float,
        streams: Mapping[str, int] | None = None,
    ) -> None:
        """`streams`: path -> most bytes, for routes that read a body of any type as a stream."""
        self._app, self._max_bytes, self._max_seconds = app, max_body_bytes, max_request_seconds
        self._streams = streams or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        try:
            limited: Receive = self._limit(scope, receive)
        except Problem as problem:
            return await refuse(problem, scope)(scope, receive, send)
        await self._app(scope, JsonBody(limited, scope) if self._has_json(scope) else limited, send)

    def _limit(self, scope: Scope, receive: Receive) -> "LimitedBody":
        headers, max_bytes = Headers(scope=scope), self._max_bytes
        if scope["method"] in WITH_BODY:
            max_bytes = self._streams.get(scope["path"], max_bytes)
        body = LimitedBody(
            receive, is_read=scope["method"] in WITH_BODY, max_bytes=max_bytes, max_seconds=self._max_seconds
        )
        length = headers.get("content-length", "0")
        if not (length.isascii() and length.isdecimal()) or len(length) > 18 or int(length) > max_bytes:
            raise body.too_large()
        return body

    def _has_json(self, scope: Scope) -> bool:
        """Whether the body of the request must be JSON."""
        is_form = scope["path"].startswith(FORMS) and _media_type(scope) == "application/x-www-form-urlencoded"
        return scope["method"] in WITH_BODY and scope["path"] not in self._streams and not is_form


class LimitedBody:
    """A `receive` that raises Problem for a body that is too large or too slow.

    If no route reads the body, as with GET, the client counts as disconnected instead: the answer may have begun.
    """

    def __init__(self, receive: Receive, *, is_read: bool, max_bytes: int, max_seconds: float) -> None:
        self._receive, self._max_bytes, self._max_seconds = receive, max_bytes, max_seconds
        self._is_read = is_read
        self._deadline = asyncio.get_running_loop().time() + max_seconds
        self._read, self._is_whole = 0, False

    async def __call__(self) -> Message:
        try:
            return await self._receive_limited()
        except Problem:
            if self._is_read:
                raise
            return {"type": "http.disconnect"}

    async def _receive_limited(self) -> Message:
        if self._is_whole:  # now this waits for the client to leave, which has no time limit
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            detail = f"the body was not there within {self._max_seconds:g} seconds"
            raise Problem("request-too-slow", detail, headers={"Connection": "close"}) from error
        self._is_whole = not message.get("more_body", False)
        self._read += len(message.get("body", b""))
        if self._read > self._max_bytes:  # a chunked body does not say its length before
            raise self.too_large()
        return message

    def too_large(self) -> Problem:
        return Problem("body-too-large", f"a body may have {self._max_bytes} bytes here")


def _media_type(scope: Scope) -> str:
    return Headers(scope=scope).get("content-type", "").partition(";")[0].strip().lower()


class JsonBody:
    """A `receive` that gives the body in one piece, and raises Problem unless it is strict JSON or empty.

    The body is checked when it is first read. Where no route reads it, the answer is 404 or 405, which says more than
    415.
    """

    def __init__(self, receive: Receive, scope: Scope) -> None:
        self._receive, self._scope, self._is_read = receive, scope, False

    async def __call__(self) -> Message:
        if self._is_read:
            return await self._receive()
        self._is_read = True
        if _media_type(self._scope) != "application/json":
            raise Problem("wrong-content-type", "the body has to be JSON, with Content-Type: application/json")
        parts, more = [], True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                return message
            parts.append(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"".join(parts)
        try:
            if body:
                check_json(body)
        except NotStrict as error:
            raise Problem("malformed-request", str(error)) from error
        return {"type": "http.request", "body": body, "more_body": False}
