"""A file of an artifact as an answer: ETag, If-Match, If-None-Match, If-Range, and one Range of bytes."""

import re
from collections.abc import Callable, Iterator, Mapping

from fastapi import Request
from starlette.responses import Response, StreamingResponse

from service.artifacts.artifact_store import ArtifactFile
from service.problems import Problem

Read = Callable[[int, int], Iterator[bytes]]
"""(start, end): the bytes of the file from start up to end, in blocks; the first block is read at once."""

MAX_WHOLE_BYTES = 2**20
"""Largest answer that is sent in one piece."""
MAX_RANGE_DIGITS = 18
MEDIA_TYPES = {"json": "application/json", "md": "text/markdown; charset=utf-8"}
FOREVER = "public, max-age=31536000, immutable"
"""Cache-Control of files that are addressed by their content."""


def reply_with_file(
    request: Request, read: Read, file: ArtifactFile, *, cache: str, headers: Mapping[str, str] | None = None
) -> Response:
    """The file, a range of it, or 304 if the client has it; Problem for a range outside the file.

    A Range that is malformed or asks for several ranges is ignored, as RFC 9110 allows. A HEAD is answered without
    reading the file.
    """
    etag = f'"{file.sha256}"'
    if not _has_strong(request.headers.get("if-match", "*"), etag):
        raise Problem("precondition-failed", f"the file's ETag is {etag}, If-Match asks for another")
    whole = describe_file(file, cache=cache, headers=headers)
    headers = {name: value for name, value in whole.items() if not name.startswith("Content-")}
    if _has(request.headers.get("if-none-match", ""), etag):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range") if request.method == "GET" else None
    if request.headers.get("if-range", etag) != etag:
        asked = None
    chosen = _parse_range(asked, file.size) if asked else None
    start, end = chosen or (0, file.size)
    status = 206 if chosen else 200
    headers |= {"Content-Range": f"bytes {start}-{end - 1}/{file.size}"} if chosen else {}
    headers |= {"Content-Length": str(end - start), "Content-Type": whole["Content-Type"]}
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    blocks = read(start, end)
    if end - start <= MAX_WHOLE_BYTES:
        return Response(b"".join(blocks), status_code=status, headers=headers)
    return StreamingResponse(blocks, status_code=status, headers=headers)


def describe_file(file: ArtifactFile, *, cache: str, headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """The headers of an answer with the whole file, after the given ones."""
    ending = file.name.rpartition(".")[2]
    return {
        **(headers or {}),
        "ETag": f'"{file.sha256}"',
        "Accept-Ranges": "bytes",
        "Cache-Control": cache,
        "X-Content-Type-Options": "nosniff",
        "Content-Type": MEDIA_TYPES.get(ending, "application/octet-stream"),
        "Content-Length": str(file.size),
    }


def _has_strong(header: str, etag: str) -> bool:
    return header.strip() == "*" or etag in (part.strip() for part in header.split(","))


def _has(header: str, etag: str) -> bool:
    known = {part.strip().removeprefix("W/") for part in header.split(",")}
    return etag in known or "*" in known


def _parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The first byte and the byte after the last; None for a Range that is ignored."""
    match = re.fullmatch(r"bytes=\s*(\d*)-(\d*)\s*", header, re.ASCII | re.IGNORECASE)
    if match is None or not any(match.groups()) or max(map(len, match.groups())) > MAX_RANGE_DIGITS:
        return None
    first, last = match.groups()
    if not first and not size and int(last):
        return None  # the last bytes of an empty file are all of it, and no Content-Range can say so
    start, end = (int(first), int(last or size) + 1) if first else (max(size - int(last), 0), size)
    if first and last and int(last) < start:
        return None
    if start >= size:
        detail = f"the file has {size} bytes, the range begins at {start}"
        raise Problem("range-not-satisfiable", detail, headers={"Content-Range": f"bytes */{size}"})
    return start, min(end, size)
