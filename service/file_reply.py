"""A file of an artifact as an answer: ETag, If-None-Match, If-Range, and one Range of bytes."""

import re
from collections.abc import Callable, Iterator, Mapping

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from service.artifacts import ArtifactFile
from service.problems import Problem

Read = Callable[[int, int], Iterator[bytes]]
"""(start, end): the bytes of the file in between, in blocks, the first of which is read at once."""

MAX_WHOLE_BYTES = 2**20
"""Of an answer that is sent in one piece."""
MAX_RANGE_DIGITS = 18
FOREVER = "public, max-age=31536000, immutable"
"""Cache-Control of what is addressed by its content."""


def reply_with_file(
    request: Request, read: Read, file: ArtifactFile, *, cache: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The file, a range of it, or 304 if the client has it; Problem for a range outside the file.

    A Range that is malformed or asks for several ranges is ignored, as RFC 9110 allows. A HEAD is answered without
    reading the file.
    """
    etag = f'"{file.sha256}"'
    headers = {**(headers or {}), "ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": cache}
    headers |= {"X-Content-Type-Options": "nosniff"}
    if _has(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range") if request.method == "GET" else None
    if request.headers.get("if-range", etag) != etag:
        asked = None
    chosen = _parse_range(asked, file.size) if asked else None
    start, end = chosen or (0, file.size)
    status = 206 if chosen else 200
    headers |= {"Content-Range": f"bytes {start}-{end - 1}/{file.size}"} if chosen else {}
    media_type = "application/json" if file.name.endswith(".json") else "application/octet-stream"
    if file.name.endswith(".md"):
        media_type = "text/markdown"
    headers |= {"Content-Length": str(end - start)}
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers, media_type=media_type)
    blocks = read(start, end)
    if end - start <= MAX_WHOLE_BYTES:
        return Response(b"".join(blocks), status_code=status, headers=headers, media_type=media_type)
    return StreamingResponse(blocks, status_code=status, headers=headers, media_type=media_type)


def _has(header: str, etag: str) -> bool:
    known = {part.strip().removeprefix("W/") for part in header.split(",")}
    return etag in known or "*" in known


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for what is ignored."""
    match = re.fullmatch(r"bytes=\s*(\d*)-(\d*)\s*", header, re.ASCII | re.IGNORECASE)
    if match is None or not any(match.groups()) or max(map(len, match.groups())) > MAX_RANGE_DIGITS:
        return None
    first, last = match.groups()
    start, end = (int(first), int(last or size) + 1) if first else (max(size - int(last), 0), size)
    if first and last and int(last) < start:
        return None
    if start >= size:
        detail = f"the file has {size} bytes, the range begins at {start}"
        raise Problem("range-not-satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
    return start, min(end, size)
