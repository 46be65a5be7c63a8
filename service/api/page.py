"""The page at /: one HTML file, one style sheet and a few scripts, all in `service/api/static`.

The files are read once, when the app is made. They need no build. They name no other host, and the HTML has no inline
script or style, so that the policy below holds: the page talks only to this server.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import Response

from weightgen.errors import NotFound

FOLDER = Path(__file__).parent / "static"
INDEX = "index.html"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
HEADERS = {
    "Cache-Control": "no-cache",  # browsers ask every time and get a 304, so a new version shows at once
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class PageFile:
    """One file of the page, in memory."""

    content: bytes
    media_type: str
    etag: str


def page_routes() -> APIRouter:
    """The routes / and /static, which are not part of the API's description."""
    files = {path.name: _read(path) for path in FOLDER.iterdir() if path.suffix in TYPES}
    routes = APIRouter(include_in_schema=False)

    @routes.head("/")
    @routes.get("/")
    def show_page(request: Request) -> Response:
        return _reply(request, files[INDEX])

    @routes.head("/static/{name}")
    @routes.get("/static/{name}")
    def show_file(name: str, request: Request) -> Response:
        if name not in files:
            raise NotFound("the page has no such file")
        return _reply(request, files[name])

    return routes


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    return PageFile(content, TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()}"')


def _reply(request: Request, file: PageFile) -> Response:
    headers = {**HEADERS, "ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)
