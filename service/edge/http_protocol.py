"""uvicorn's HTTP/1.1 on h11, with what uvicorn lacks: a time limit for requests, a limit of connections, problems.

Only h11 is used and not httptools: h11 refuses an incomplete head over a size, and every request with doubtful framing.
"""

import asyncio
from functools import partial
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from service.edge.fast_files import FastFiles
from service.edge.security_headers import HEADERS
from service.problems import RETRY_SECONDS, Problem, reply

GRACE_SECONDS = 1.0
"""How much longer the connection waits for a body than the application, which can answer with the reason."""


def guarded_http(*, max_request_seconds: float, max_connections: int) -> Any:
    """GuardedHttp with its limits, which uvicorn calls for every connection; it can be sent to another process."""
    return partial(GuardedHttp, max_request_seconds=max_request_seconds, max_connections=max_connections)


class GuardedHttp(H11Protocol):
    """One connection; it ends if a request takes too long to arrive, or if there are too many others."""

    def __init__(self, *args: Any, max_request_seconds: float, max_connections: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seconds, self._max_connections = max_request_seconds, max_connections
        self._timer: asyncio.TimerHandle | None = None
        self._timed: object = None
        self._fast_files: FastFiles | None = self.app_state.get("fast_files")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            retry = {"Retry-After": str(RETRY_SECONDS)}
            self._refuse(Problem("too-busy", "the server has as many connections as it may have", headers=retry))
            return
        self._start_timer(None)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self._answer_fast(data):
            return
        super().data_received(data)
        self._watch()

    @property
    def is_timed(self) -> bool:
        """Whether a request is awaited: its first byte, or the rest of it."""
        return self._timer is not None

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer with a problem; uvicorn's own answer is plain text, and fails if an answer has begun already."""
        self._refuse(Problem("malformed-request", "the request is not HTTP/1.1 as RFC 9112 has it"))

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def _answer_fast(self, data: bytes) -> bool:
        """Answer the bytes if they are a whole request for a file in memory; whether they were."""
        if self._fast_files is None or not self._is_idle():
            return False
        answer = self._fast_files.answer(data, self.server_state.default_headers)
        if answer is None:
            return False
        self._stop_timer()
        self._unset_keepalive_if_required()
        self.server_state.total_requests += 1
        self.transport.writelines(answer)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)
        return True

    def _is_idle(self) -> bool:
        """Whether nothing of an earlier request or answer is left."""
        conn = self.conn
        if conn.our_state is not h11.IDLE or conn.their_state is not h11.IDLE or conn.trailing_data[0]:
            return False
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.get_write_buffer_size()

    def _watch(self) -> None:
        """Time a request from its first byte to its last; uvicorn itself times connections without a request."""
        state = self.conn.their_state
        is_arriving = state is h11.SEND_BODY or (state is h11.IDLE and bool(self.conn.trailing_data[0]))
        if not is_arriving:
            self._stop_timer()
        elif self._timer is None or self._timed is not self.cycle:
            self._start_timer(self.cycle)

    def _start_timer(self, timed: object) -> None:
        self._stop_timer()
        self._timed, self._timer = timed, self.loop.call_later(self._seconds + GRACE_SECONDS, self._end)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        detail = f"the request was not there within {self._seconds:g} seconds"
        self._refuse(Problem("request-too-slow", detail))

    def _refuse(self, problem: Problem) -> None:
        """Answer with the problem, if nothing was answered yet, and end the connection."""
        self._stop_timer()
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            told = reply(problem)
            for event in (_head(told), h11.Data(data=bytes(told.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def _head(told: Response) -> h11.Response:
    guarded = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    headers = [*told.raw_headers, *guarded, (b"connection", b"close")]
    return h11.Response(status_code=told.status_code, headers=headers)
