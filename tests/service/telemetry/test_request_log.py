import json
import logging

import pytest
from starlette.testclient import TestClient

from service.telemetry.request_log import LOGGER, JsonLines
from tests.helpers.service_standins import ASKED, stand_in_app


@pytest.fixture
def client(tmp_path):
    app, _ = stand_in_app(tmp_path)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_every_answer_has_an_id_that_the_log_has_too(client, caplog):
    with caplog.at_level(logging.INFO, LOGGER.name):
        ids = [client.get(path).headers["x-request-id"] for path in ("/healthz", "/nothing", "/v1/jobs/none")]
    lines = [json.loads(JsonLines().format(r)) for r in caplog.records if r.name == LOGGER.name]
    assert [line["request"] for line in lines] == ids and len(set(ids)) == 3
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/healthz", 200), ("/nothing", 404), ("/v1/jobs/none", 404)
    ]  # fmt: skip


@pytest.mark.parametrize(("given", "kept"), [("abc-1", True), ("a b", False), ("x" * 65, False), ('"}', False)])
def test_an_id_that_the_client_gives_is_kept_if_it_is_plain(client, given, kept):
    assert (client.get("/healthz", headers={"X-Request-Id": given}).headers["x-request-id"] == given) == kept


def test_a_log_line_is_one_json_object_whatever_it_says():
    record = logging.makeLogRecord({"msg": 'a "b"\nc', "name": "x", "levelname": "INFO", "job": "1"})
    line = JsonLines().format(record)
    assert "\n" not in line and json.loads(line)["message"] == 'a "b"\nc' and json.loads(line)["job"] == "1"


def test_a_traceback_is_logged_in_the_same_line():
    try:
        raise ZeroDivisionError("inside")
    except ZeroDivisionError as error:
        record = logging.makeLogRecord({"msg": "bug", "exc_info": (type(error), error, error.__traceback__)})
    line = JsonLines().format(record)
    assert "\n" not in line and "inside" in json.loads(line)["traceback"]


def test_metrics_count_answers_by_route_and_jobs_by_state(client):
    client.post("/v1/generations", json=ASKED)
    for _ in range(2):
        client.get("/v1/jobs/none")
    client.get("/nothing")
    text = client.get("/metrics").text
    counted = 'weightgen_http_requests_total{method="GET",route="/v1/jobs/{job_id}",status="404"} 2.0'
    assert counted in text and 'route="none",status="404"} 1.0' in text
    assert 'weightgen_http_seconds_count{route="/v1/generations"} 1.0' in text
    assert 'weightgen_jobs{state="succeeded"} 1' in text and 'weightgen_jobs{state="failed"} 0' in text


def test_the_log_tells_the_job_of_a_request_and_every_line_of_a_job_its_id(client, caplog):
    with caplog.at_level(logging.INFO):
        caplog.handler.setFormatter(JsonLines())  # formats where the line is logged, as a server's handler does
        job = client.post("/v1/generations", json=ASKED).json()["id"]
    lines = [json.loads(line) for line in caplog.text.splitlines() if line.startswith("{")]
    answered = next(line for line in lines if line["message"] == "answered")
    assert answered["job"] == job and answered["path"] == "/v1/generations"
    assert [line["job"] for line in lines if line["logger"] == "service.jobs.runner"] == [job, job]


def test_a_key_in_a_path_is_not_logged(client, caplog):
    secret = "s" * 43
    with caplog.at_level(logging.INFO, LOGGER.name):
        client.get(f"/v1/jobs/wg_0123456789ab_{secret}/events")
    [line] = [JsonLines().format(record) for record in caplog.records if record.name == LOGGER.name]
    assert secret not in line and json.loads(line)["path"] == "/v1/jobs/wg_***/events"
