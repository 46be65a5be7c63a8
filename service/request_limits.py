"""What is refused of a request before anything reads it: a body too large, or of another type than JSON."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.problems import Problem, reply


class RequestLimits:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app, self._max_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = Headers(scope=scope)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._max_bytes:
            return await reply(self._too_large())(scope, receive, send)
        media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        if scope["method"] in ("POST", "PUT", "PATCH") and media_type != "application/json":
            wrong = Problem("wrong-content-type", "the body has to be JSON, with Content-Type: application/json")
            return await reply(wrong)(scope, receive, send)
        read = 0

        async def receive_limited() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > self._max_bytes:  # a body in chunks does not say its length
                raise self._too_large()
            return message

        return await self._app(scope, receive_limited, send)

    def _too_large(self) -> Problem:
        return Problem("body-too-large", f"a body may have {self._max_bytes} bytes")
