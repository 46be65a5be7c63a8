from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from service.problems import MEDIA_TYPE
from tests.service_standins import ASKED, stand_in_app

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
