"""How the client speaks HTTP: a request is answered, retried, or raised as a WeightgenError.

The client asks again after a 429 or 503 (after its Retry-After) and after a broken connection (after a growing pause),
until patience ends. If the server has never answered, the error is raised at once.
"""

import json
import random
import time
from dataclasses import dataclass, field
from typing import Any

import httpx2

from weightgen.errors import (
    BadData,
    BadOption,
    NotFound,
    ServiceFailed,
    UnsupportedTask,
    VerificationFailed,
    WeightgenError,
)
from weightgen.version import __version__

CONNECT_SECONDS, SILENCE_SECONDS = 10.0, 60.0
"""A server that is silent for this long counts as gone; while a job is followed, it sends a heartbeat every 15 s."""
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.1, 5.0
MAX_ANSWER_BYTES = 64 * 2**20
"""Limit for an answer that is not a file."""

ERRORS: dict[str, type[WeightgenError]] = {
    "malformed-request": BadOption,
    "unauthorized": BadOption,
    "forbidden": BadOption,
    "not-found": NotFound,
    "conflict": BadOption,
    "cancelled": WeightgenError,
    "body-too-large": BadData,
    "invalid-request": BadOption,
    "unusable-data": BadData,
    "unknown-name": NotFound,
    "unsupported": UnsupportedTask,
    "took-too-long": UnsupportedTask,
    "verification-failed": VerificationFailed,
}
"""Kind of problem -> error. Any other kind is not the caller's fault: ServiceFailed."""


class Patience:
    """How long to keep trying; `renew` starts it again after progress."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.renew()

    def renew(self) -> None:
        self._end, self._pause = time.monotonic() + self._seconds, FIRST_PAUSE_SECONDS

    def wait(self, seconds: float | None = None) -> bool:
        """Sleep for `seconds`, or for a pause that grows; returns False at once if that would outlast the patience."""
        if seconds is None:
            # Random, or all clients of a server that stopped would come back to the next one at once.
            seconds = self._pause * random.uniform(0.5, 1.0)
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        if time.monotonic() + seconds > self._end:
            return False
        time.sleep(seconds)
        return True


@dataclass
class Connection:
    """A connection to one server, for one thread at a time."""

    url: str
    key: str | None = None
    patience_seconds: float = 120.0
    _http: httpx2.Client = field(init=False, repr=False)
    _has_answered: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.url = _check_url(self.url)
        headers = {"User-Agent": f"weightgen/{__version__}", "Accept-Encoding": "identity"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {_check_key(self.key)}"
        seconds = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=seconds)

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **given: Any) -> dict[str, Any]:
        """The JSON object that answers a request; `given` is what httpx2 takes (json, headers, params, content).

        `content` may be a function that returns the body from its start: a request can be sent more than once.

        Raises the error for the server's problem, or ServiceFailed if its answer cannot be understood.
        """
        _, body = self._send(method, path, is_stream=False, **given)
        return _parse_object(body, f"{self.url}{path}")

    def open(self, path: str, *, headers: dict[str, str] | None = None) -> httpx2.Response:
        """A successful answer to a GET; the caller reads and closes its body. Raises like `ask`."""
        answer, _ = self._send("GET", path, is_stream=True, headers=headers)
        return answer

    def lost(self, error: httpx2.TransportError) -> ServiceFailed:
        """The error to raise when a connection broke and patience has ended."""
        return ServiceFailed(f"the connection to {self.url} was lost ({type(error).__name__}); ask again later")

    def _send(self, method: str, path: str, *, is_stream: bool, **given: Any) -> tuple[httpx2.Response, bytes]:
        patience = Patience(self.patience_seconds)
        while True:
            try:
                parts: dict[str, Any] = {name: part() if callable(part) else part for name, part in given.items()}
                answer = self._http.send(self._http.build_request(method, path, **parts), stream=True)
                self._has_answered = True
                is_left = is_stream and answer.is_success
                body = b"" if is_left else _read(answer, self.url)
            except httpx2.TransportError as error:
                self._wait_for_return(error, patience)
                continue
            if answer.is_success:
                return answer, body
            if answer.status_code not in (429, 503) or not patience.wait(_retry_seconds(answer)):
                raise _error_of(answer.status_code, body, self.url)

    def _wait_for_return(self, error: httpx2.TransportError, patience: Patience) -> None:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout) and not self._has_answered:
            raise ServiceFailed(
                f"nothing answers at {self.url}; start the service there (make serve, or python -m service), or say "
                "where it is with --url or WEIGHTGEN_URL"
            ) from error
        # The request may or may not have arrived; every request of the client can be sent twice.
        if not patience.wait():
            raise self.lost(error) from error


def object_in(value: Any, name: str, kind: type) -> Any:
    """`value[name]` of this type; raises ServiceFailed if the server sent something else."""
    found = value.get(name) if isinstance(value, dict) else None
    if not isinstance(found, kind) or (kind is int and isinstance(found, bool)):
        raise ServiceFailed(f"the server's answer has no {name!r} that could be used; is it of another version?")
    return found


def _check_url(url: str) -> str:
    try:
        parsed = httpx2.URL(url)
    except (httpx2.InvalidURL, TypeError) as error:
        raise BadOption(f"{url!r} is no URL; expected one such as http://127.0.0.1:8000") from error
    if parsed.scheme not in ("http", "https") or not parsed.host or parsed.query or parsed.fragment:
        raise BadOption(f"{url!r} is no address of a service; expected one such as http://127.0.0.1:8000")
    if parsed.userinfo:
        raise BadOption("the URL holds a user name or password; give the key as --key or WEIGHTGEN_KEY")
    return str(parsed).rstrip("/")


def _check_key(key: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise BadOption("the key is not one word of printable ASCII; expected it as the service's command printed it")
    return key


def _read(answer: httpx2.Response, url: str) -> bytes:
    """The body of an answer, at most MAX_ANSWER_BYTES; closes the answer."""
    blocks, size = [], 0
    try:
        for block in answer.iter_raw():
            blocks.append(block)
            size += len(block)
            if size > MAX_ANSWER_BYTES:
                raise ServiceFailed(f"{url} answers with more than {MAX_ANSWER_BYTES} bytes where JSON was expected")
    finally:
        answer.close()
    return b"".join(blocks)


def _parse_object(body: bytes, place: str) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise ServiceFailed(f"{place} answers with something that is no JSON object; is a weightgen service there?")
    return value


def _retry_seconds(answer: httpx2.Response) -> float | None:
    """Seconds in Retry-After; None if it is absent or a date."""
    said = answer.headers.get("retry-after", "").strip()
    return float(said) if said.isdecimal() and len(said) < 10 else None


def _error_of(status: int, body: bytes, url: str) -> WeightgenError:
    """The server's message as a WeightgenError."""
    try:
        problem = json.loads(body)
    except (ValueError, RecursionError):
        problem = None
    if not isinstance(problem, dict) or not isinstance(problem.get("detail"), str):
        return ServiceFailed(f"{url} answers with status {status} and no reason; is a weightgen service there?")
    return error_of_problem(problem)


def error_of_problem(body: dict[str, Any]) -> WeightgenError:
    """The WeightgenError for a problem (RFC 9457) of the service, with its message."""
    kind = str(body.get("type", "")).rpartition(":")[2]
    sentence, parts = str(body.get("detail", "")), body.get("errors")
    for part in parts if isinstance(parts, list) else ():
        detail = str(part.get("detail", "")) if isinstance(part, dict) else ""
        if detail and detail != body.get("detail"):
            sentence += f"; {part.get('pointer') or part.get('parameter') or ''}: {detail}"
    printable = "".join(letter if letter.isprintable() else " " for letter in sentence)  # it goes to a terminal
    return ERRORS.get(kind, ServiceFailed)(printable[:2000])
