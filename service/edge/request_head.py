"""Refuses requests by their head: too many or too large headers, a path that is not text, request smuggling."""

from urllib.parse import unquote_to_bytes

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.problems import Problem, refuse

MAX_HEADERS = 100
MAX_TARGET_BYTES = 8192
"""Most bytes of path and query together, as they are sent."""
_SAFE = ("GET", "HEAD", "OPTIONS")


class RequestHead:
    """ASGI middleware that refuses requests by their head."""

    def __init__(self, app: ASGIApp, *, max_header_bytes: int) -> None:
        self._app, self._max_bytes = app, max_header_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            problem = self._find_fault(scope)
            if problem is not None:
                return await refuse(problem, scope)(scope, receive, send)
        await self._app(scope, receive, send)

    def _find_fault(self, scope: Scope) -> Problem | None:
        raw: list[tuple[bytes, bytes]] = scope["headers"]
        size = sum(len(name) + len(value) for name, value in raw)
        if len(raw) > MAX_HEADERS or size > self._max_bytes:
            detail = f"a request may have {MAX_HEADERS} headers of {self._max_bytes} bytes in all"
            return Problem("headers-too-large", detail)
        target = scope.get("raw_path") or scope["path"].encode()
        if len(target) + len(scope["query_string"]) > MAX_TARGET_BYTES:
            return Problem("target-too-long", f"path and query may have {MAX_TARGET_BYTES} bytes")
        if not _is_text(target) or not _is_text(scope["query_string"]):
            detail = "the path or the query is no text: it holds control characters or is not UTF-8"
            return Problem("malformed-request", detail)
        if scope.get("http_version") not in ("1.0", "1.1"):
            return Problem("malformed-request", "the request is of another version of HTTP than 1.0 and 1.1")
        headers = Headers(raw=raw)
        if "transfer-encoding" in headers and "content-length" in headers:
            detail = "the request has both Content-Length and Transfer-Encoding, so that its end is in doubt"
            return Problem("malformed-request", detail, headers={"Connection": "close"})
        if scope["method"] not in _SAFE and headers.get("sec-fetch-site") == "cross-site":
            return Problem("forbidden", "a page of another site may not change anything here")
        return None


def _is_text(encoded: bytes) -> bool:
    """Whether percent-encoded bytes are UTF-8 without control characters."""
    try:
        text = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        return False
    return (text.isascii() and text.isprintable()) or not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)
