"""The short way answers as the long way does."""

import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from service.artifacts.artifact_store import ArtifactStore, open_store
from service.edge.fast_files import FastFiles
from service.edge.http_protocol import guarded_http
from service.keys.key_store import KeyStore
from service.telemetry.request_log import LOGGER, FastAnswer, JsonLines
from tests.helpers.service_standins import ASKED, stand_in_app

LONG_WAY = {"X-Unusual": "1"}
DATE = [(b"date", b"Sat, 21 Nov 2026 21:00:00 GMT")]


class Served:
    """A service with one artifact, and how many requests went the short way."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder, self.num_fast = url, folder, 0
        self.client = httpx.Client(base_url=url, headers={"Connection": "keep-alive"}, timeout=60)
        self.sha = self.client.post("/v1/generations", json=ASKED).json()["result"]["artifact"]

    def get_fast(self, path: str, **headers: str) -> httpx.Response:
        """The answer of the short way, once the long way has filled the memory and seen that there are no keys."""
        while True:
            before = self.num_fast
            answer = self.client.get(path, headers=headers)
            if self.num_fast > before or answer.status_code != 200:
                return answer


@pytest.fixture
def served(tmp_path, monkeypatch) -> Iterator[Served]:
    app, _ = stand_in_app(tmp_path)
    guarded = guarded_http(max_request_seconds=600, max_connections=100)
    server = uvicorn.Server(uvicorn.Config(app, port=0, http=guarded, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    served = Served(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}", tmp_path)
    answer = FastFiles.answer

    def count(self: FastFiles, *given):
        found = answer(self, *given)
        served.num_fast += found is not None
        return found

    monkeypatch.setattr(FastFiles, "answer", count)
    yield served
    served.client.close()
    server.should_exit = True
    thread.join()


def paths(sha: str) -> list[str]:
    places = [f"/v1/artifacts/{sha}/files", f"/hf/sha/{sha}/resolve/main", f"/hf/sha/{sha}/resolve/{sha[:40]}"]
    return [f"{place}/{name}" for place in places for name in ("model.safetensors", "config.json")]


def test_the_short_way_says_what_the_long_way_says(served):
    for path in paths(served.sha):
        fast = served.get_fast(path)
        before = served.num_fast
        long = served.client.get(path, headers=LONG_WAY)
        assert served.num_fast == before
        assert (fast.status_code, fast.content) == (long.status_code, long.content) == (200, long.content)
        assert fast.reason_phrase == long.reason_phrase
        differ = {"date", "x-request-id"}
        assert {k: v for k, v in fast.headers.items() if k not in differ} == {
            k: v for k, v in long.headers.items() if k not in differ
        }
        assert set(fast.headers) == set(long.headers) and len(fast.headers["x-request-id"]) == 16


def test_a_request_keeps_the_id_that_the_client_gave(served):
    path = paths(served.sha)[0]
    served.get_fast(path)
    assert served.get_fast(path, **{"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert served.client.get(path, headers={"X-Request-Id": "no id"}).headers["x-request-id"] != "no id"


def test_both_ways_are_logged_and_measured_alike(served):
    path, lines = paths(served.sha)[0], io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonLines())
    level = LOGGER.level
    LOGGER.setLevel(logging.INFO)
    LOGGER.addHandler(handler)
    try:
        served.client.get(path, headers=LONG_WAY)
        fast = served.get_fast(path, **{"X-Request-Id": "quick"})
        while "quick" not in lines.getvalue():
            time.sleep(0.01)
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
    told = [json.loads(line) for line in lines.getvalue().splitlines()]
    slow, quick = told[0], next(line for line in told if line["request"] == "quick" and line["seconds"] < 1)
    assert fast.status_code == 200 and list(slow) == list(quick)
    same = {"level", "logger", "message", "method", "path", "status"}
    assert {k: slow[k] for k in same} == {k: quick[k] for k in same}
    metrics = served.client.get("/metrics").text
    route = 'route="/v1/artifacts/{artifact}/files/{name:path}"'
    counted = [
        line for line in metrics.splitlines() if line.startswith("weightgen_http_requests_total") and route in line
    ]
    assert len(counted) == 1 and float(counted[0].split()[-1]) >= len(told)


def test_requests_in_pieces_in_a_row_and_all_at_once_are_answered_in_order(served):
    path = paths(served.sha)[0]
    whole = served.get_fast(path).content
    request = f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    other = request.replace(b"Host: x", b"Host: x\r\nRange: bytes=0-7")
    last = request.replace(b"Host: x", b"Host: x\r\nConnection: close")
    with socket.create_connection(("127.0.0.1", httpx.URL(served.url).port or 0), timeout=60) as connection:
        connection.sendall(request + other + request[:30])
        time.sleep(0.05)  # so that the rest comes by itself
        connection.sendall(request[30:] + request)
        connection.sendall(other + last)
        got = b"".join(iter(lambda: connection.recv(65536), b""))
    answers = got.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"206", b"200", b"200", b"206", b"200"]
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in answers]
    assert bodies == [whole, whole[:8], whole, whole, whole[:8], whole]


def test_the_first_key_closes_the_short_way_too(served):
    path = paths(served.sha)[0]
    served.get_fast(path)
    keys = KeyStore(f"sqlite:///{served.folder / 'jobs.sqlite'}")
    keys.make("one", ["read"])
    keys.close()
    while served.client.get(path).status_code == 200:
        time.sleep(0.01)
    assert served.client.get(path).status_code == 401


def test_an_artifact_that_another_process_removed_is_soon_not_found(served):
    path = paths(served.sha)[0]
    served.get_fast(path)
    open_store(served.folder / "artifacts").delete(served.sha)
    while served.client.get(path).status_code == 200:
        time.sleep(0.01)
    assert served.client.get(path).status_code == 404


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    return open_store(tmp_path / "artifacts", max_cached_bytes=1000)


@pytest.fixture
def sha(store, tmp_path) -> str:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_bytes(b"1")
    sha = store.add(tmp_path / "made")
    assert list(store.read(sha, store.find(sha, "a"))) == [b"1"]
    return sha


@pytest.fixture
def make_files(store, monkeypatch) -> Callable[..., FastFiles]:
    monkeypatch.setattr("service.edge.fast_files.MAX_UNWRITTEN", 1)

    def make(*, is_open: bool = True, answered: list[FastAnswer] | None = None) -> FastFiles:
        return FastFiles(store, is_open=lambda: is_open, write_down=(answered if answered is not None else []).extend)

    return make


def request(sha: str, *lines: str, first: str = "GET /v1/artifacts/{sha}/files/a HTTP/1.1") -> bytes:
    return "\r\n".join([first.format(sha=sha, commit=sha[:40]), *lines, "", ""]).encode()


@pytest.mark.parametrize(
    "lines",
    [
        ["Host: x"],
        ["host: x", "user-agent: curl/8", "accept: */*"],
        ["Host: x", "Connection: keep-alive", "Accept-Encoding: gzip, deflate"],
    ],
    ids=["bare", "curl", "kept"],
)
def test_plain_requests_go_the_short_way_and_are_written_down(make_files, sha, lines):
    answered: list[FastAnswer] = []
    head, content = make_files(answered=answered).answer(request(sha, *lines), DATE) or (b"", b"")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n") and head.endswith(b"\r\n\r\n") and content == b"1"
    assert b"\r\ndate: Sat, 21 Nov 2026 21:00:00 GMT\r\n" in head
    assert [(answer.path, answer.request_id) for answer in answered] == [
        (f"/v1/artifacts/{sha}/files/a", head.partition(b"x-request-id: ")[2][:16].decode())
    ]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["Host: x", "Host: y"],
        ["Host: x", "Range: bytes=0-1"],
        ["Host: x", "If-None-Match: *"],
        ["Host: x", "Authorization: Bearer wg_1"],
        ["Host: x", "Content-Length: 0"],
        ["Host: x", "Transfer-Encoding: chunked"],
        ["Host: x", "Connection: close"],
        ["Host: x", "Connection: upgrade"],
        ["Host: x", "X-Request-Id: a b"],
        ["Host: x", "Accept : */*"],
        ["Host: x", " folded"],
        ["Host: x", "Accept: \x7f"],
        ["Host: x", "Accept:"],
        ["Host: x", "Accept: " + "x" * 3000],
        ["Host: x", "Unknown: 1"],
    ],
    ids=["no host", "two hosts", "range", "condition", "key", "body", "chunked", "close", "upgrade", "odd id", "space",
         "folded", "control", "empty", "long", "unknown"],
)  # fmt: skip
def test_whatever_could_change_the_answer_goes_the_long_way(make_files, sha, lines):
    assert make_files().answer(request(sha, *lines), DATE) is None


@pytest.mark.parametrize(
    "first",
    [
        "HEAD /v1/artifacts/{sha}/files/a HTTP/1.1",
        "GET /v1/artifacts/{sha}/files/a HTTP/1.0",
        "GET /v1/artifacts/{sha}/files/a?x=1 HTTP/1.1",
        "GET /v1/artifacts/{sha}/files/%61 HTTP/1.1",
        "GET /v1/artifacts/{sha}/files/../a HTTP/1.1",
        "GET  /v1/artifacts/{sha}/files/a HTTP/1.1",
        "GET http://x/v1/artifacts/{sha}/files/a HTTP/1.1",
        "GET /v1/artifacts/{sha}/files/b HTTP/1.1",
        "GET /v1/artifacts/{commit}/files/a HTTP/1.1",
        "GET /hf/sha/{sha}/resolve/" + "0" * 40 + "/a HTTP/1.1",
        "GET /hf/gen/{sha}/resolve/main/a HTTP/1.1",
    ],
)
def test_whatever_is_no_file_by_its_content_goes_the_long_way(make_files, sha, first):
    assert make_files().answer(request(sha, "Host: x", first=first), DATE) is None


def test_nothing_is_answered_while_keys_are_asked_for_or_the_file_was_not_seen_lately(make_files, store, sha):
    asked = request(sha, "Host: x")
    assert make_files(is_open=False).answer(asked, DATE) is None
    files = make_files()
    assert files.answer(asked + asked, DATE) is None and files.answer(asked[:-2], DATE) is None
    assert files.answer(asked, DATE) is not None
    store.peek(sha, "a").checked -= 3
    assert files.answer(asked, DATE) is None
    list(store.read(sha, store.find(sha, "a")))
    assert files.answer(asked, DATE) is not None
    store.delete(sha)
    assert files.answer(asked, DATE) is None
