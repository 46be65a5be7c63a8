"""A small run of schemathesis: what the app answers is what its description says."""

import threading
import time

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks

import benchmarks.service.schemathesis_run as benchmark
from service.edge.http_protocol import guarded_http
from tests.helpers.service_standins import stand_in_app


@pytest.fixture(scope="module")
def description(tmp_path_factory):
    """The description of a server that answers."""
    app, _ = stand_in_app(tmp_path_factory.mktemp("data"))
    config = uvicorn.Config(app, port=0, log_config=None, http=guarded_http(max_request_seconds=60, max_connections=99))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield schemathesis.openapi.from_url(f"http://127.0.0.1:{port}/openapi.json")
    server.should_exit = True
    thread.join()


# Nobody is asked for a key here, which to the other two is wrong.
CHECKED = [name for name in benchmark.CHECKS if name not in ("ignored_auth", "negative_data_rejection")]
FEW = settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_every_operation_answers_as_described(description, mode):
    load_all_checks()
    checks, tested = CHECKS.get_by_names(CHECKED), []
    for found in description.get_all_operations():
        operation = found.ok()

        @FEW
        @given(operation.as_strategy(generation_mode=mode))
        def answer(case):
            case.call_and_validate(checks=checks)

        try:
            answer()
        except Unsatisfiable:
            continue  # nothing about this operation can be wrong
        tested.append(operation.label)
    assert "POST /v1/generations" in tested and "GET /v1/jobs/{job_id}" in tested


def report(**found):
    told = {
        "failures": [],
        "errors": [],
        "complete": True,
        "schemathesis_version": "4",
        "running_time": 1.0,
        "phases": {},
    }
    return {**told, "operations": {"tested": 2, "total": 2}, "test_cases": {"generated": 9}, **found}


@pytest.mark.parametrize(
    ("found", "met"),
    [
        ({}, [True, True]),
        ({"operations": {"tested": 1, "total": 2}}, [False, True]),
        ({"failures": [{"title": "Server error", "count": 2, "operations": ["GET /x"]}]}, [True, False]),
        ({"errors": [{"title": "Network Error", "count": 1}]}, [True, False]),
        ({"complete": False}, [True, False]),
    ],
    ids=["fine", "untested", "failure", "error", "incomplete"],
)
def test_a_report_is_summed_up(found, met):
    summary = benchmark.summarize(report(**found))
    assert list(summary["met"].values()) == met
    assert ("Server error, 2 times: GET /x" in benchmark.render(summary)) == ("failures" in found)
