import pytest
from starlette.testclient import TestClient

from service.app import create_app
from service.jobs.job_store import JobStore
from service.settings import Settings
from tests.helpers.service_standins import ASKED, stand_in_app


@pytest.fixture
def client(tmp_path):
    settings = Settings(data_dir=tmp_path, runner_threads=0)
    jobs = JobStore(settings.database_url)
    jobs.migrate()
    jobs.close()
    with TestClient(create_app(settings), raise_server_exceptions=False) as client:
        yield client


def test_an_estimate_is_answered_without_a_job(client):
    told = client.post("/v1/estimate", json=ASKED)
    assert told.status_code == 200
    body = told.json()
    assert set(body) == {"parameters", "bytes", "seconds", "accuracy", "out_of_distribution", "basis"}
    assert body["parameters"] > 0 and body["bytes"] >= 4 * body["parameters"] and body["seconds"] is None
    assert set(body["basis"]) == {"seconds", "accuracy", "out_of_distribution"}
    assert 'weightgen_jobs{state="queued"} 0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"generator": "mpi"}, "unknown-name"),
        ({"dataset": "digit"}, "unknown-name"),
        ({"architecture": "mlp"}, "unsupported"),
        ({"support_per_class": 0}, "invalid-request"),
        ({"extra": 1}, "invalid-request"),
        ({"num_samples": 10**6}, "invalid-request"),
        ({"architecture": "mlp-w4096-d64"}, "over-limit"),
    ],
    ids=["generator", "dataset", "architecture", "support", "field", "samples", "size"],
)
def test_what_could_not_be_generated_is_refused_alike(client, changes, kind):
    answer = client.post("/v1/estimate", json=ASKED | changes)
    assert (answer.status_code, answer.json()["type"]) == (422, f"urn:weightgen:problem:{kind}")


def test_an_app_with_other_weights_than_generated_ones_has_no_estimates(tmp_path):
    app, _ = stand_in_app(tmp_path)
    with TestClient(app) as client:
        assert client.post("/v1/estimate", json=ASKED).status_code in (404, 405)
