import asyncio
from collections.abc import Iterator

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.edge.request_limits import RequestLimits
from service.problems import MEDIA_TYPE, Problem
from tests.helpers.service_standins import ASKED, stand_in_app

LIMIT = 1000


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    app, _ = stand_in_app(tmp_path_factory.mktemp("data"), max_body_bytes=LIMIT)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, content: bytes | Iterator[bytes], content_type: str | None = "application/json"):
    headers = {"Content-Type": content_type} if content_type else {}
    return client.post("/v1/generations", content=content, headers=headers)


def pad(size: int) -> bytes:
    return b"{" + b" " * (size - 2) + b"}"


def test_a_body_over_the_limit_is_refused_before_it_is_read(client):
    answer = post(client, pad(LIMIT + 1))
    assert (answer.status_code, answer.headers["content-type"]) == (413, MEDIA_TYPE)
    assert "1000 bytes" in answer.json()["detail"]


def test_a_body_in_chunks_is_refused_once_it_is_over_the_limit(client):
    answer = post(client, iter([pad(LIMIT // 2)] * 3))
    assert (answer.status_code, answer.json()["type"]) == (413, "urn:weightgen:problem:body-too-large")


def test_a_body_at_the_limit_is_read(client):
    assert post(client, pad(LIMIT)).json()["type"] == "urn:weightgen:problem:invalid-request"


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 30, "٣"])
def test_a_length_that_is_no_number_of_bytes_is_refused(client, length):
    headers = {"Content-Type": "application/json", "Content-Length": length.encode()}
    assert client.post("/v1/generations", content=b"{}", headers=headers).status_code == 413


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "json", "application/jso"]
)
def test_a_body_of_another_type_is_refused(client, content_type):
    answer = post(client, b"{}", content_type)
    assert (answer.status_code, answer.json()["type"]) == (415, "urn:weightgen:problem:wrong-content-type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_is_read_however_its_type_is_spelt(client, content_type):
    assert client.post("/v1/generations", json=ASKED, headers={"Content-Type": content_type}).status_code == 201


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"seed": 1, "seed": 2}', "an object has 'seed' twice"),
        (b"[" * LIMIT, "nest more than"),
        (b'{"seed": NaN}', "NaN is no JSON number"),
        (b"\xff", "not UTF-8"),
        (b'{"seed": 1e999}', "a number is too large"),
    ],
    ids=["twice", "nested", "nan", "no text", "infinite"],
)
def test_json_that_is_not_strict_is_malformed(client, content, sentence):
    answer = post(client, content)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:weightgen:problem:malformed-request")
    assert sentence in answer.json()["detail"]


def ask(
    app: ASGIApp, messages: list[Message], *, path: str = "/", length: str = "0", method: str = "POST"
) -> list[Message]:
    """What a request of these messages is answered; after them nothing comes."""
    sent: list[Message] = []
    headers = [(b"content-type", b"application/json"), (b"content-length", length.encode())]
    scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    asyncio.run(_call(app, scope, receive, send))
    return sent


async def _call(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)


async def wait_for_end(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers once the client is gone, as a stream does."""
    while (await receive())["type"] != "http.disconnect":
        pass
    await PlainTextResponse("gone")(scope, receive, send)


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the body and what comes after it."""
    body, message = b"", {"more_body": True}
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    await PlainTextResponse(body)(scope, receive, send)


def chunk(body: bytes, *, more: bool = True) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


def test_a_body_that_stops_coming_is_refused():
    limits = RequestLimits(echo, max_body_bytes=LIMIT, max_request_seconds=0.01)
    with pytest.raises(Problem, match="the body was not there within 0.01 seconds") as caught:
        ask(limits, [chunk(b"{")])
    assert caught.value.status_code == 408 and caught.value.headers == {"Connection": "close"}


def test_a_body_in_pieces_reaches_the_route_whole():
    limits = RequestLimits(echo, max_body_bytes=LIMIT, max_request_seconds=60)
    sent = ask(limits, [chunk(b'{"a"'), chunk(b":"), chunk(b" 1}", more=False)])
    assert (sent[0]["status"], sent[1]["body"]) == (200, b'{"a": 1}')


def test_the_route_learns_that_a_client_left_before_its_body_was_whole():
    limits = RequestLimits(wait_for_end, max_body_bytes=LIMIT, max_request_seconds=60)
    assert ask(limits, [chunk(b"{"), {"type": "http.disconnect"}])[1]["body"] == b"gone"


def test_where_no_route_reads_a_body_its_type_does_not_matter(client):
    assert client.put("/healthz", content=b"x").status_code == 405
    assert client.post("/nothing", content=b"x").status_code == 404


def test_a_path_that_streams_has_its_own_limit_and_reads_any_type():
    limits = RequestLimits(echo, max_body_bytes=1, max_request_seconds=60, streams={"/upload": 8})
    assert ask(limits, [chunk(b"no json", more=False)], path="/upload")[1]["body"] == b"no json"
    assert ask(limits, [], path="/upload", length="9")[0]["status"] == 413
    assert ask(limits, [], path="/uploads", length="8")[0]["status"] == 413
    with pytest.raises(Problem, match="a body may have 8 bytes here"):
        ask(limits, [chunk(b"12345"), chunk(b"6789")], path="/upload")


@pytest.mark.parametrize("messages", [[chunk(b"{")], [chunk(b"x" * LIMIT), chunk(b"x")]], ids=["slow", "large"])
def test_who_sends_too_much_where_nothing_reads_it_counts_as_gone(messages):
    limits = RequestLimits(wait_for_end, max_body_bytes=LIMIT, max_request_seconds=0.01)
    assert ask(limits, messages, method="GET")[1]["body"] == b"gone"


def test_forms_are_read_where_hub_clients_post_them_and_nowhere_else(client):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    asked = {
        path: client.post(path, content=b"paths=a", headers=form).status_code
        for path in ("/hf/none", "/v1/generations")
    }
    assert asked == {"/hf/none": 405, "/v1/generations": 415}
    too_much = client.post("/hf/none", content=b"a" * (LIMIT + 1), headers=form)
    assert too_much.status_code == 413
