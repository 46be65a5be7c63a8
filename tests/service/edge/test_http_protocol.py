"""Whatever bytes a client sends, it gets an answer that is HTTP, or none, and the connection ends."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from service.edge.http_protocol import GuardedHttp, guarded_http
from service.problems import MEDIA_TYPE

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The length of the body; at once, before the body is there, under /early."""
    length, more = 0, scope["path"] != "/early"
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message["more_body"]
    await PlainTextResponse(str(length))(scope, receive, send)


@pytest.fixture
def serve(monkeypatch) -> Iterator[Callable[..., Any]]:
    """Starts a server, and returns what opens a connection to it."""
    monkeypatch.setattr("service.edge.http_protocol.GRACE_SECONDS", 0.0)
    with ExitStack() as stack:

        def serve(*, max_request_seconds: float = 600, max_connections: int = 100) -> Any:
            listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            guarded = guarded_http(max_request_seconds=max_request_seconds, max_connections=max_connections)
            config = uvicorn.Config(
                answer, http=guarded, lifespan="off", log_config=None, h11_max_incomplete_event_size=1000
            )
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "should_exit", True)

            def connect(sent: bytes = b"") -> socket.socket:
                connection = stack.enter_context(socket.create_connection(listening.getsockname(), timeout=60))
                connection.sendall(sent)
                return connection

            connect.server = server  # pyright: ignore[reportFunctionMemberAccess]
            return connect

        yield serve


def read(connection: socket.socket) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer after which the connection ends; 0 if it ends without."""
    received = b""
    try:
        while part := connection.recv(65536):
            received += part
    except ConnectionResetError:
        pass
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, head.lower(), body


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: \x00\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: xchunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 2000,
        b"GET / HTTP/1.1\r\nHost : x\r\n\r\n",
    ],
    ids=["tls", "word", "no host", "two hosts", "nul", "byte", "lengths", "negative", "coding", "chunk",
         "head without end", "space before colon"],
)  # fmt: skip
def test_what_is_no_http_is_refused_as_a_problem(serve, sent):
    status, head, body = read(serve()(sent))
    assert status == 400 and f"content-type: {MEDIA_TYPE}".encode() in head and b"nosniff" in head
    assert json.loads(body)["type"] == "urn:weightgen:problem:malformed-request" and b"server:" not in head


def test_a_request_that_is_http_is_answered_and_the_connection_kept(serve):
    connection = serve()(GET)
    assert connection.recv(65536).endswith(b"0")
    connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc")
    status, _, body = read(connection)
    assert (status, body) == (200, b"3")


@pytest.mark.parametrize(
    "sent", [b"", b"GET / HT", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\na"],
    ids=["nothing", "half a head", "half a body"],
)  # fmt: skip
def test_a_request_that_stops_coming_is_refused_and_its_connection_ended(serve, sent):
    status, _, body = read(serve(max_request_seconds=0.5)(sent))
    assert status == 408 and json.loads(body)["detail"] == "the request was not there within 0.5 seconds"


def test_a_body_that_never_ends_after_its_answer_ends_with_its_connection(serve):
    connection = serve(max_request_seconds=0.5)(
        b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"
    )
    status, _, body = read(connection)
    assert (status, body) == (200, b"0")


def test_bad_bytes_after_an_answer_end_the_connection(serve):
    connection = serve()(b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert connection.recv(65536).endswith(b"0")
    connection.sendall(b"zz\r\n")
    assert read(connection)[0] == 0


def test_a_request_is_timed_from_its_first_byte_to_its_last(serve):
    connect = serve()

    def wait_until_timed(is_timed: bool) -> None:
        while [c for c in connect.server.server_state.connections if c.is_timed != is_timed]:
            threading.Event().wait(0.01)

    connection = connect()
    for sent, is_timed in [(b"", True), (b"GET /", True), (GET[5:], False), (GET[:9], True), (GET[9:], False)]:
        connection.sendall(sent)
        if not is_timed:
            assert connection.recv(65536).endswith(b"0")
        wait_until_timed(is_timed)
    assert isinstance(next(iter(connect.server.server_state.connections)), GuardedHttp)


def test_a_connection_too_many_is_refused_and_the_others_stay(serve):
    connect = serve(max_connections=1)
    kept = connect(GET)
    assert kept.recv(65536).endswith(b"0")
    status, head, body = read(connect(b""))
    assert status == 503 and b"retry-after: 2" in head and json.loads(body)["type"].endswith("too-busy")
    kept.sendall(GET)
    assert kept.recv(65536).endswith(b"0")
