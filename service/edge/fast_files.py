"""A fast way to answer the most common request: a GET of a whole file that is in memory.

A request is answered here only if its bytes are one complete, plain GET of a file by its content, without any header
that could change the answer, and only while no key is needed. Every other request goes the long way, through h11 and
the application. So does one request for each file every `FRESH_SECONDS`, which checks that the file is still stored.
Answers from here have the same headers, log lines and measurements as others
(tests/service/edge/test_fast_files.py compares them).
"""

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.artifacts.artifact_store import ArtifactFile, ArtifactStore
from service.artifacts.content_cache import Content
from service.edge.file_reply import FOREVER, describe_file
from service.edge.security_headers import HEADERS
from service.telemetry.request_log import REQUEST_ID, FastAnswer, make_request_id

FRESH_SECONDS = 2.0
"""How long a file is answered from memory after it was last seen in the store."""
MAX_REQUEST_BYTES = 2048
ARTIFACT_ROUTE = "/v1/artifacts/{artifact}/files/{name:path}"
HUB_ROUTE = "/hf/{org}/{name}/resolve/{revision}/{path:path}"

WriteDown = Callable[[Sequence[FastAnswer]], None]

_NAME = rb"([A-Za-z0-9][A-Za-z0-9_.-]{0,95})"
_SHA = rb"([0-9a-f]{64})"
_REQUEST = re.compile(
    rb"GET (/v1/artifacts/" + _SHA + rb"/files/" + _NAME + rb"|/hf/sha/" + _SHA + rb"/resolve/(main|[0-9a-f]{40})/"
    + _NAME + rb") HTTP/1\.1\r\n((?:[A-Za-z-]+: [!-~](?:[ -~]*[!-~])?\r\n)+)\r\n"
)  # fmt: skip
_HARMLESS = frozenset({b"host", b"user-agent", b"accept", b"accept-encoding", b"accept-language", b"connection",
                       b"x-request-id"})  # fmt: skip
"""Headers that do not change the answer."""
_MAX_KNOWN = 1024

WRITE_SECONDS, MAX_UNWRITTEN = 0.1, 4096
"""Answers are logged and measured together: after this time, or when so many wait."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request asks for."""

    path: str
    route: str
    sha: str
    name: str
    revision: str
    """Empty under /v1."""
    request_id: str
    """The id that the client gave; empty if it gave none."""


class FastFiles:
    """The fast way of one process."""

    def __init__(self, store: ArtifactStore, *, is_open: Callable[[], bool], write_down: WriteDown) -> None:
        """`is_open` returns whether this process knows, without a query, that no key is needed."""
        self._store, self._is_open, self._write_down = store, is_open, write_down
        self._answered: list[FastAnswer] = []
        self._known: dict[bytes, _Asked | None] = {}
        self._heads: dict[tuple[str, str, str], bytes] = {}

    def answer(self, data: bytes, default_headers: Sequence[tuple[bytes, bytes]]) -> tuple[bytes, bytes] | None:
        """Head and content of the answer to these bytes; None if the request goes the long way."""
        start = time.perf_counter()
        asked = self._understand(data)
        if asked is None:
            return None
        content = self._store.peek(asked.sha, asked.name)
        if content is None or time.monotonic() - content.checked > FRESH_SECONDS or not self._is_open():
            return None
        request_id = asked.request_id or make_request_id()
        head = b"%sx-request-id: %s\r\n%s\r\n" % (
            self._head(asked, content), request_id.encode(), b"".join([b"%s: %s\r\n" % h for h in default_headers])
        )  # fmt: skip
        self._answered.append(FastAnswer(time.time(), request_id, asked.path, asked.route, time.perf_counter() - start))
        if len(self._answered) >= MAX_UNWRITTEN:
            self.flush()
        elif len(self._answered) == 1:
            asyncio.get_running_loop().call_later(WRITE_SECONDS, self.flush)
        return head, content.data

    def flush(self) -> None:
        """Log and measure the answers that wait for it."""
        answered, self._answered = self._answered, []
        if answered:
            self._write_down(answered)

    def _understand(self, data: bytes) -> _Asked | None:
        """What the bytes of a request ask for; remembered, because a client sends the same bytes again."""
        try:
            return self._known[data]
        except KeyError:
            pass
        asked = _parse(data)
        if len(data) <= MAX_REQUEST_BYTES and not (asked is not None and asked.request_id):
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[data] = asked
        return asked

    def _head(self, asked: _Asked, content: Content) -> bytes:
        """The status line and the headers that are the same every time."""
        key = (asked.sha, asked.name, asked.revision)
        head = self._heads.get(key)
        if head is None:
            file = ArtifactFile(content.name, content.sha256, len(content.data))
            headers = {} if not asked.revision else {"X-Repo-Commit": asked.sha[:40]}
            cache = "no-cache" if asked.revision == "main" else FOREVER
            headers = HEADERS | describe_file(file, cache=cache, headers=headers)
            lines = "".join(f"{name.lower()}: {value}\r\n" for name, value in headers.items())
            head = f"HTTP/1.1 200 OK\r\n{lines}".encode()
            if len(self._heads) >= _MAX_KNOWN:
                self._heads.clear()
            self._heads[key] = head
        return head


def _parse(data: bytes) -> _Asked | None:
    match = _REQUEST.fullmatch(data) if len(data) <= MAX_REQUEST_BYTES else None
    if match is None:
        return None
    path, sha, name, hub_sha, revision, hub_name, lines = match.groups()
    headers = [line.partition(b": ") for line in lines.split(b"\r\n")[:-1]]
    names = [header.lower() for header, _, _ in headers]
    if len(set(names)) < len(names) or not _HARMLESS.issuperset(names) or b"host" not in names:
        return None
    if hub_sha is not None and revision not in (b"main", hub_sha[:40]):
        return None
    if any(header.lower() == b"connection" and value.lower() != b"keep-alive" for header, _, value in headers):
        return None
    given = next((value.decode() for header, _, value in headers if header.lower() == b"x-request-id"), "")
    if given and not REQUEST_ID.fullmatch(given):
        return None
    return _Asked(
        path=path.decode(),
        route=HUB_ROUTE if hub_sha is not None else ARTIFACT_ROUTE,
        sha=(hub_sha or sha).decode(),
        name=(hub_name or name).decode(),
        revision=(revision or b"").decode(),
        request_id=given,
    )
