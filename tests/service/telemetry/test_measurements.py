"""What /metrics says: of requests, of jobs from acceptance to their end, with labels that clients cannot multiply."""

import re

import pytest
from starlette.testclient import TestClient

from service.jobs.job_store import JobStore
from service.telemetry.measurements import OUTCOMES, Measurements
from tests.helpers.service_process import read_metric, running_server
from tests.helpers.service_standins import ASKED, Refused, stand_in_app
from weightgen import __version__


@pytest.fixture
def jobs(tmp_path):
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    store.migrate()
    yield store
    store.close()


def test_answers_are_counted_by_method_route_and_status(jobs):
    measurements = Measurements()
    for method, status in (("GET", 200), ("GET", 200), ("BREW", 405)):
        measurements.observe_request(method=method, route="/v1/jobs/{job_id}", status=status, seconds=0.01)
    text = measurements.render(jobs.count()).decode()
    assert 'weightgen_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="200"} 2.0' in text
    assert 'method="other",route="/v1/jobs/{job_id}",status="405"} 1.0' in text
    assert 'weightgen_http_seconds_count{route="/v1/jobs/{job_id}"} 3.0' in text


def test_every_outcome_is_there_before_it_happens(jobs):
    text = Measurements().render(jobs.count()).decode()
    assert all(f'weightgen_jobs_ended_total{{outcome="{outcome}"}} 0.0' in text for outcome in OUTCOMES)
    assert re.search(rf'weightgen_build_info{{version="{re.escape(__version__)}",python="3\.[0-9.]+"}} 1\n', text)


def test_a_job_is_measured_from_its_acceptance_to_its_end(tmp_path):
    app, run = stand_in_app(tmp_path)
    with TestClient(app) as client:
        client.post("/v1/generations", json=ASKED)
        run.error = Refused("no")
        client.post("/v1/generations", json=ASKED | {"seed": 1})
        text = client.get("/metrics").text
    assert read_metric(text, "weightgen_job_wait_seconds_count") == 2
    assert read_metric(text, 'weightgen_job_stage_seconds_count{stage="generating"}') == 2
    ended = {outcome: read_metric(text, f'weightgen_jobs_ended_total{{outcome="{outcome}"}}') for outcome in OUTCOMES}
    assert ended == {"succeeded": 1, "failed": 1, "lost": 0, "released": 0}
    assert (
        read_metric(text, 'weightgen_jobs{state="succeeded"}') == 1
        and read_metric(text, 'weightgen_jobs{state="failed"}') == 1
    )


def test_no_label_holds_what_a_client_sends(tmp_path):
    app, _ = stand_in_app(tmp_path)
    with TestClient(app, raise_server_exceptions=False) as client:
        for path in ("/v1/jobs/abc123", "/abc123", "/hf/api/models/gen/abc123", "/v1/artifacts/abc123/files/abc123"):
            client.get(path, headers={"X-Request-Id": "abc123"})
        client.request("ABC123", "/healthz")
        assert "abc123" not in client.get("/metrics").text.lower()


def test_the_answers_of_all_processes_are_added_up(tmp_path):
    with running_server(tmp_path, workers=2) as server:
        for _ in range(50):  # each by a connection of its own, which either process takes
            server.ask("GET", "/version")
        for _ in range(5):
            text = server.ask("GET", "/metrics").text
            assert read_metric(text, 'weightgen_http_requests_total{method="GET",route="/version"') == 50
            assert text.count("weightgen_build_info{") == 1
