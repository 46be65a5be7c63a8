"""A kept-alive HTTP/1.1 connection with little Python code, so that a benchmark measures the server."""

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer, and the times until its first and last byte."""

    status: int
    headers: Mapping[str, str]
    """Name in lower case -> value."""
    body: bytes
    first_byte_seconds: float
    seconds: float

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """A client's only connection, opened when it is first needed and again after the server closed it."""

    def __init__(self, port: int, *, host: str = "127.0.0.1", token: str = "") -> None:
        self._host, self._port = host, port
        self._fixed = f"Host: {host}:{port}\r\n" + (f"Authorization: Bearer {token}\r\n" if token else "")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(
        self, method: str, path: str, *, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """The answer; raises OSError or EOFError if the connection breaks."""
        try:
            return await self._ask(method, path, body, headers or {})
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _ask(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, self._port)
        reader, writer = self._streams
        content = b"" if body is None else json.dumps(body).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if body is not None:
            lines += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        start = time.perf_counter()
        writer.write(f"{method} {path} HTTP/1.1\r\n{self._fixed}{lines}\r\n".encode() + content)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first = time.perf_counter() - start
        status, found = _parse_head(head)
        if method == "HEAD" or status in (204, 304):
            received = b""
        elif found.get("transfer-encoding") == "chunked":
            received = await _read_chunks(reader)
        else:
            received = await reader.readexactly(int(found.get("content-length", 0)))
        if found.get("connection") == "close":
            await self.close()
        return Answer(status, found, received, first, time.perf_counter() - start)


def _parse_head(head: str) -> tuple[int, dict[str, str]]:
    first, *lines = head.rstrip("\r\n").split("\r\n")
    pairs = (line.partition(":") for line in lines)
    return int(first.split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs}


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    parts = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    await reader.readuntil(b"\r\n")
    return b"".join(parts)
