import asyncio
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.edge.request_head import MAX_HEADERS, MAX_TARGET_BYTES, RequestHead
from service.problems import MEDIA_TYPE
from tests.helpers.service_standins import ASKED, stand_in_app

LIMIT = 2048


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    app, _ = stand_in_app(tmp_path_factory.mktemp("data"), max_header_bytes=LIMIT)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


@pytest.mark.parametrize(
    "headers", [{"X-Big": "x" * LIMIT}, {f"X-{i}": "" for i in range(MAX_HEADERS + 1)}, {"x" * LIMIT: ""}],
    ids=["value", "number", "name"],
)  # fmt: skip
def test_headers_over_the_limit_are_refused(client, headers):
    answer = client.get("/healthz", headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (431, MEDIA_TYPE)
    assert answer.json()["detail"] == f"a request may have {MAX_HEADERS} headers of {LIMIT} bytes in all"


def test_a_path_or_query_over_the_limit_is_refused(client):
    assert client.get("/v1/jobs/" + "x" * MAX_TARGET_BYTES).status_code == 414
    assert client.get("/healthz?" + "x" * MAX_TARGET_BYTES).status_code == 414
    assert client.get("/healthz?" + "x" * (MAX_TARGET_BYTES - 20)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/jobs/%00", "/v1/jobs/%ff", "/v1/jobs/a%0d%0aSet-Cookie:x", "/healthz?x=%00",
                                  "/v1/jobs/%c0%ae", "/v1/jobs/%1b", "/v1/jobs/%7f", "/v1/jobs/%C2%85"])  # fmt: skip
def test_what_is_no_text_is_refused_before_any_route_sees_it(client, path):
    answer = client.get(path)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:weightgen:problem:malformed-request")


def test_text_of_any_language_is_passed_on(client):
    assert client.get("/v1/jobs/%C3%A4%E2%82%AC").status_code == 404


def test_a_request_whose_end_is_in_doubt_is_refused_and_its_connection_closed(client):
    headers = {"Transfer-Encoding": "chunked", "Content-Length": "2", "Content-Type": "application/json"}
    answer = client.post("/v1/generations", content=b"{}", headers=headers)
    assert answer.status_code == 400 and answer.headers["connection"] == "close"
    assert "its end is in doubt" in answer.json()["detail"]


def test_a_page_of_another_site_may_look_and_not_change(client):
    other = {"Sec-Fetch-Site": "cross-site"}
    assert client.get("/healthz", headers=other).status_code == 200
    answer = client.post("/v1/generations", json=ASKED, headers=other)
    assert answer.status_code == 403 and "a page of another site" in answer.json()["detail"]
    same = client.post("/v1/generations", json=ASKED, headers={"Sec-Fetch-Site": "same-origin"})
    assert same.status_code == 201


def test_hub_clients_are_told_in_a_header(client):
    answer = client.get("/hf/api/models/gen/%00")
    assert answer.status_code == 400 and "no text" in answer.headers["x-error-message"]


def test_a_slash_too_many_is_not_redirected_to_a_host_that_the_client_made_up(client):
    assert client.get("/healthz/", headers={"Host": "evil.example"}).status_code == 404


def test_another_version_of_http_is_refused():
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def nothing(*args: object) -> Any:
        raise AssertionError

    scope = {"type": "http", "http_version": "9.9", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    head = RequestHead(nothing, max_header_bytes=LIMIT)
    asyncio.run(_call(head, scope, nothing, send))
    assert sent[0]["status"] == 400 and b"another version of HTTP" in sent[1]["body"]


async def _call(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    await app(scope, receive, send)
