import pytest
from starlette.testclient import TestClient

from service.edge.security_headers import HEADERS
from tests.helpers.service_standins import ASKED, StandInRun, stand_in_app


@pytest.fixture
def service(tmp_path):
    app, run = stand_in_app(tmp_path)

    @app.get("/bug")
    def bug() -> None:
        raise ZeroDivisionError

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, run


@pytest.mark.parametrize("path", ["/healthz", "/nothing", "/openapi.json", "/docs", "/v1/jobs/%00", "/bug", "/metrics"])
def test_every_answer_has_them_and_none_names_the_server(service, path):
    answer = service[0].get(path)
    assert {name: answer.headers.get(name) for name in HEADERS}.keys() == HEADERS.keys()
    assert answer.headers["x-content-type-options"] == "nosniff" and "server" not in answer.headers
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_file_is_never_taken_for_something_that_runs(service: tuple[TestClient, StandInRun]):
    client, _ = service
    result = client.post("/v1/generations", json=ASKED).json()["result"]
    for file in result["files"]:
        answer = client.get(f"/v1/artifacts/{result['artifact']}/files/{file['name']}")
        assert answer.headers.get_list("x-content-type-options") == ["nosniff"]
        assert answer.headers["content-type"].partition(";")[0] in ("application/octet-stream", "application/json")
