import hashlib
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request
from starlette.responses import Response
from starlette.testclient import TestClient

from service.artifacts.artifact_store import ArtifactFile
from service.edge.file_reply import FOREVER, MAX_WHOLE_BYTES, reply_with_file
from service.problems import tell_problems

SMALL = bytes(range(100))
LARGE = bytes(range(256)) * (MAX_WHOLE_BYTES // 256) * 2 + b"end"
FILES = {"small.safetensors": SMALL, "large.safetensors": LARGE, "config.json": b"{}", "empty.safetensors": b""}


def etag(data: bytes) -> str:
    return f'"{hashlib.sha256(data).hexdigest()}"'


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    tell_problems(app)

    @app.api_route("/{name}", methods=["GET", "HEAD"])
    def read(name: str, request: Request) -> Response:
        file = ArtifactFile(name, hashlib.sha256(FILES[name]).hexdigest(), len(FILES[name]))

        def read_bytes(start: int, end: int) -> Iterator[bytes]:
            for first in range(start, end, 1000):
                yield FILES[name][first : min(first + 1000, end)]

        return reply_with_file(request, read_bytes, file, cache=FOREVER, headers={"X-Repo-Commit": "c"})

    return TestClient(app)


@pytest.mark.parametrize("name", FILES)
def test_a_file_comes_whole_with_its_length_and_etag(client, name):
    answer = client.get(f"/{name}")
    assert (answer.status_code, answer.content) == (200, FILES[name])
    assert answer.headers["content-length"] == str(len(FILES[name])) and answer.headers["etag"] == etag(FILES[name])
    assert answer.headers["accept-ranges"] == "bytes" and answer.headers["cache-control"] == FOREVER
    assert answer.headers["x-repo-commit"] == "c"


@pytest.mark.parametrize("name", FILES)
def test_a_head_tells_the_same_headers_and_no_content(client, name):
    head, answer = client.head(f"/{name}"), client.get(f"/{name}")
    assert head.status_code == 200 and head.content == b""
    assert dict(head.headers) == dict(answer.headers)


@pytest.mark.parametrize("data", [SMALL, LARGE])
@pytest.mark.parametrize(
    ("header", "start", "stop"),
    [
        ("0-9", 0, 10),
        ("90-", 90, None),
        ("-7", -7, None),
        ("5-5", 5, 6),
        ("0-99999999999", 0, None),
        ("-9999999", 0, None),
    ],
)
def test_a_range_is_those_bytes(client, data, header, start, stop):
    name = "small.safetensors" if data is SMALL else "large.safetensors"
    answer = client.get(f"/{name}", headers={"Range": f"bytes={header}"})
    first, end, _ = slice(start, stop).indices(len(data))
    assert (answer.status_code, answer.content) == (206, data[start:stop])
    assert answer.headers["content-range"] == f"bytes {first}-{end - 1}/{len(data)}"
    assert answer.headers["content-length"] == str(end - first)


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_a_range_outside_the_file_is_refused_with_its_size(client, header):
    answer = client.get("/small.safetensors", headers={"Range": header})
    assert answer.status_code == 416 and answer.headers["content-range"] == "bytes */100"
    assert answer.json()["type"] == "urn:weightgen:problem:range-not-satisfiable"


@pytest.mark.parametrize(
    "header", ["bytes=9-3", "bytes=-", "bytes=a-b", "pages=1-2", "bytes=0-1,3-4", "", "bytes=" + "9" * 5000 + "-"]
)
def test_a_range_that_is_malformed_or_many_is_ignored(client, header):
    answer = client.get("/small.safetensors", headers={"Range": header})
    assert (answer.status_code, answer.content) == (200, SMALL)


@pytest.mark.parametrize("header", [etag(SMALL), f'"x", {etag(SMALL)}', f"W/{etag(SMALL)}", "*"])
def test_a_client_that_has_the_file_is_told_so(client, header):
    answer = client.get("/small.safetensors", headers={"If-None-Match": header, "Range": "bytes=0-1"})
    assert (answer.status_code, answer.content) == (304, b"") and answer.headers["etag"] == etag(SMALL)


def test_a_client_that_has_another_file_gets_this_one(client):
    assert client.get("/small.safetensors", headers={"If-None-Match": etag(LARGE)}).content == SMALL


@pytest.mark.parametrize("header", ["*", etag(SMALL), f'"x", {etag(SMALL)}'])
def test_a_client_that_wants_this_very_file_gets_it(client, header):
    assert client.get("/small.safetensors", headers={"If-Match": header}).content == SMALL


@pytest.mark.parametrize("header", [etag(LARGE), f"W/{etag(SMALL)}", '"x"'])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_client_that_wants_another_file_than_this_is_refused(client, header, method):
    headers = {"If-Match": header, "If-None-Match": etag(SMALL), "Range": "bytes=0-1"}
    answer = client.request(method, "/small.safetensors", headers=headers)
    assert answer.status_code == 412
    assert method == "HEAD" or answer.json()["type"] == "urn:weightgen:problem:precondition-failed"


@pytest.mark.parametrize(("header", "status"), [("bytes=-5", 200), ("bytes=-0", 416), ("bytes=0-", 416)])
def test_the_end_of_an_empty_file_is_all_of_it(client, header, status):
    answer = client.get("/empty.safetensors", headers={"Range": header})
    assert answer.status_code == status and (status == 416 or answer.content == b"")


@pytest.mark.parametrize(("known", "status"), [(SMALL, 206), (LARGE, 200)])
def test_a_range_of_a_file_that_has_changed_is_the_whole_file(client, known, status):
    headers = {"Range": "bytes=0-1", "If-Range": etag(known)}
    assert client.get("/small.safetensors", headers=headers).status_code == status
