"""Servers on loopback for tests of clients: the service with stand-ins, and one that says what it is told to."""

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.jobs.job_store import JobStore
from service.settings import Settings
from tests.helpers.service_standins import StandInRun, stand_in_app


@contextlib.contextmanager
def live_service(folder: Path, **settings: Any) -> Iterator[tuple[str, StandInRun]]:
    """The URL of a service over `folder` with stand-ins, and what runs its jobs."""
    app, run = stand_in_app(folder, **settings)
    with served(app) as url:
        try:
            yield url, run
        finally:
            run.go_on.set()


@contextlib.contextmanager
def live_generation(folder: Path) -> Iterator[tuple[str, Settings]]:
    """The URL of a service that generates in earnest, and its settings."""
    settings = Settings(data_dir=folder, inline_seconds=9, drain_seconds=0.5)
    jobs = JobStore(settings.database_url)
    jobs.migrate()
    jobs.close()
    with served(create_app(settings)) as url:
        yield url, settings


@contextlib.contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The URL at which a thread of this process serves an app."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


class ScriptedServer:
    """Answers one request a connection with the next of its `script`, bytes as they go over the wire, and hangs up."""

    def __init__(self, *script: bytes) -> None:
        self.script, self.requests = list(script), []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> "ScriptedServer":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self._listener.close()
        self._thread.join()

    @property
    def asked(self) -> list[str]:
        """The first line of each request."""
        return [request.partition("\r\n")[0].removesuffix(" HTTP/1.1") for request in self.requests]

    def _serve(self) -> None:
        for answer in self.script:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(_read_request(connection))
                with contextlib.suppress(OSError):  # the client may have gone
                    connection.sendall(answer)
                    connection.shutdown(socket.SHUT_RDWR)
        self._listener.close()  # one request too many is refused, not kept waiting


class RecordingProxy:
    """Passes connections on to a server and keeps the requests; the first answer over `cut_after` bytes is cut off."""

    def __init__(self, url: str, *, cut_after: int | None = None) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._target, self._cut_after = (host, int(port)), cut_after
        self.heads: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __enter__(self) -> "RecordingProxy":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()

    def asked(self, method: str, ending: str = "") -> list[str]:
        """The heads of the requests of this method whose paths have this ending."""
        lines = [(head, head.partition("\r\n")[0].split(" ")) for head in self.heads]
        return [head for head, line in lines if line[0] == method and line[1].endswith(ending)]

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass, args=(source, sink, source is client), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, are_requests: bool) -> None:
        passed = 0
        with source, contextlib.suppress(OSError):
            while data := source.recv(65536):
                if are_requests:
                    self.heads += re.findall(r"(?:GET|HEAD|POST) /.*?\r\n\r\n", data.decode("latin-1"), re.DOTALL)
                passed += len(data)
                if not are_requests and self._cut_after is not None and passed > self._cut_after:
                    self._cut_after = None
                    break
                sink.sendall(data)
            with contextlib.suppress(OSError):
                source.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)


def answer(
    body: bytes | dict[str, Any] = b"", *, status: str = "200 OK", length: int | None = None, **headers: str
) -> bytes:
    """An HTTP answer; with a `length` larger than its body it breaks off."""
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    told = {"Content-Length": str(len(content) if length is None else length), "Connection": "close", **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in told.items()), "", ""]
    return "\r\n".join(lines).encode() + content


def problem(kind: str, status: str, detail: str, **headers: str) -> bytes:
    """An HTTP answer that tells a problem."""
    body = {"type": f"urn:weightgen:problem:{kind}", "title": "", "detail": detail}
    return answer(body, status=status, length=None, **headers)


def events(*jobs: dict[str, Any], first: int = 1) -> bytes:
    """An HTTP answer that tells of a job by events and ends."""
    said = [": waiting\n\n", *(f"id: {first + i}\nevent: job\ndata: {json.dumps(j)}\n\n" for i, j in enumerate(jobs))]
    return answer("".join(said).encode(), Content_Type="text/event-stream")


def wait_until(is_so: Callable[[], bool]) -> None:
    """Return once it is so; what a test waits for comes, or the test hangs."""
    while not is_so():
        time.sleep(0.01)


def _read_request(connection: socket.socket) -> str:
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := connection.recv(65536)):
            return data.decode()
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lines = [line.partition(b":") for line in head.lower().split(b"\r\n")]
    length = next((int(value) for name, _, value in lines if name == b"content-length"), 0)
    while len(body) < length and (more := connection.recv(65536)):
        body += more
    return (head + b"\r\n\r\n" + body).decode("latin-1")
