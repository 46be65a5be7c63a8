import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from starlette.testclient import TestClient

from tests.helpers.service_standins import ASKED, Refused, stand_in_app
from weightgen.errors import VerificationFailed


@pytest.fixture
def service(tmp_path):
    app, run = stand_in_app(tmp_path)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, run
        run.go_on.set()


@pytest.fixture
def slow_service(tmp_path):
    """Nothing is waited for, and jobs are held until `go_on` is set."""
    app, run = stand_in_app(tmp_path, inline_seconds=0, max_queued_jobs=2)
    run.go_on.clear()
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, run
        run.go_on.set()


def wait_for(client: TestClient, job: dict, *states: str) -> dict:
    while job["state"] not in states:
        time.sleep(0.01)
        job = client.get(f"/v1/jobs/{job['id']}").json()
    return job


def read_events(text: str) -> list[dict]:
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.split("\n\n") if block]
    return [{"version": int(block["id"]), **json.loads(block["data"])} for block in blocks if "data" in block]


def test_a_quick_request_is_answered_with_its_result_whose_files_are_there(service):
    client, _ = service
    answer = client.post("/v1/generations", json=ASKED)
    job = answer.json()
    assert (answer.status_code, job["state"]) == (201, "succeeded")
    assert client.get(answer.headers["location"]).json() == job
    listed = client.get(f"/v1/artifacts/{job['result']['artifact']}").json()
    assert listed["files"] == job["result"]["files"]
    for file in listed["files"]:
        read = client.get(f"/v1/artifacts/{listed['artifact']}/files/{file['name']}")
        assert len(read.content) == file["size"] and read.headers["etag"] == f'"{file["sha256"]}"'


def test_a_slow_request_is_answered_with_a_job_to_ask_again(slow_service):
    client, run = slow_service
    answer = client.post("/v1/generations", json=ASKED)
    assert answer.status_code == 202 and answer.json()["state"] in ("queued", "running")
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['id']}"
    run.go_on.set()
    assert wait_for(client, answer.json(), "succeeded")["result"]["report"] == {"seed": 0}


def test_who_prefers_not_to_wait_is_answered_with_the_job_at_once(service):
    client, run = service  # it would wait as long as it takes
    run.go_on.clear()
    answer = client.post("/v1/generations", json=ASKED, headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    run.go_on.set()
    wait_for(client, answer.json(), "succeeded")
    again = client.post("/v1/generations", json=ASKED, headers={"Prefer": "handling=strict, Respond-Async"})
    assert (again.status_code, again.json()["state"]) == (201, "succeeded")


def test_requests_that_are_the_same_share_one_job_even_at_once(service):
    client, run = service
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: client.post("/v1/generations", json=ASKED), range(8)))
    assert {a.status_code for a in answers} == {201} and len({a.json()["id"] for a in answers}) == 1
    assert len(run.runs) == 1


def test_a_key_belongs_to_one_request(service):
    client, _ = service
    first = client.post("/v1/generations", json=ASKED, headers={"Idempotency-Key": "k"})
    again = client.post("/v1/generations", json=ASKED, headers={"Idempotency-Key": "k"})
    other = client.post("/v1/generations", json={**ASKED, "seed": 1}, headers={"Idempotency-Key": "k"})
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["type"]) == (409, "urn:weightgen:problem:conflict")


def test_a_key_that_is_too_long_is_refused(service):
    client, _ = service
    answer = client.post("/v1/generations", json=ASKED, headers={"Idempotency-Key": "k" * 256})
    assert answer.status_code == 422 and answer.json()["errors"][0]["parameter"] == "idempotency-key"


@pytest.mark.parametrize(
    ("field", "name", "supported"),
    [
        ("generator", "mop", ["mip"]),
        ("architecture", "cnn-tony", ["cnn", "cnn-tiny"]),
        ("dataset", "digit", ["digits", "mnist"]),
    ],
)
def test_an_unknown_name_is_told_with_its_place_and_what_is_supported(service, field, name, supported):
    client, run = service
    answer = client.post("/v1/generations", json={**ASKED, field: name})
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:weightgen:problem:unknown-name")
    part = answer.json()["errors"][0]
    assert part["pointer"] == f"#/{field}" and part["supported"] == supported and repr(name) in part["detail"]
    assert run.runs == []


def test_a_request_that_cannot_be_served_is_answered_with_its_problem_and_may_be_asked_again(service):
    client, run = service
    run.error = VerificationFailed("a reference did better")
    answer = client.post("/v1/generations", json=ASKED)
    assert (answer.status_code, answer.json()["detail"]) == (422, "a reference did better")
    assert answer.json()["type"] == "urn:weightgen:problem:verification-failed"
    run.error = None
    assert client.post("/v1/generations", json=ASKED).status_code == 201


@pytest.mark.parametrize("error", [Refused("no"), ZeroDivisionError("secret")])
def test_a_failed_job_says_why_without_the_servers_inside(slow_service, error):
    client, run = slow_service
    run.error = error
    run.go_on.set()
    failed = wait_for(client, client.post("/v1/generations", json=ASKED).json(), "failed")
    assert failed["problem"]["status"] == (422 if isinstance(error, Refused) else 500)
    assert "secret" not in json.dumps(failed)


def test_a_full_queue_says_when_to_ask_again(slow_service):
    client, _ = slow_service
    first = client.post("/v1/generations", json=ASKED).json()
    wait_for(client, first, "running")
    answers = [client.post("/v1/generations", json={**ASKED, "seed": seed}) for seed in (1, 2, 3)]
    assert [a.status_code for a in answers] == [202, 202, 429]
    assert answers[-1].headers["retry-after"] == "2"
    assert client.post("/v1/generations", json={**ASKED, "seed": 1}).status_code == 202  # it waits already


def test_a_job_is_cancelled_once_and_an_ended_one_is_not(slow_service):
    client, run = slow_service
    job = client.post("/v1/generations", json=ASKED).json()
    for _ in range(2):
        answer = client.delete(f"/v1/jobs/{job['id']}")
        assert (answer.status_code, answer.json()["state"]) == (200, "cancelled")
    run.go_on.set()
    other = client.post("/v1/generations", json={**ASKED, "seed": 1}).json()
    wait_for(client, other, "succeeded")
    assert client.delete(f"/v1/jobs/{other['id']}").status_code == 409


def test_the_key_of_a_cancelled_job_tells_so(slow_service):
    client, _ = slow_service
    post = lambda: client.post("/v1/generations", json=ASKED, headers={"Idempotency-Key": "k"})  # noqa: E731
    client.delete(f"/v1/jobs/{post().json()['id']}")
    assert (post().status_code, post().json()["type"]) == (409, "urn:weightgen:problem:cancelled")


def test_events_tell_every_change_until_the_end_and_resume_after_the_last_seen(slow_service):
    client, run = slow_service
    job = client.post("/v1/generations", json=ASKED).json()
    wait_for(client, job, "running")
    run.go_on.set()
    wait_for(client, job, "succeeded")
    answer = client.get(f"/v1/jobs/{job['id']}/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = read_events(answer.text)
    assert events[-1]["state"] == "succeeded" and events[-1]["result"]["report"] == {"seed": 0}
    seen = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": str(events[-1]["version"])})
    before = client.get(f"/v1/jobs/{job['id']}/events", headers={"Last-Event-ID": str(events[-1]["version"] - 1)})
    assert read_events(seen.text) == [] and read_events(before.text) == events[-1:]


def test_events_follow_a_job_while_it_runs(slow_service):
    client, run = slow_service
    job = client.post("/v1/generations", json=ASKED).json()
    with ThreadPoolExecutor(1) as threads:
        following = threads.submit(client.get, f"/v1/jobs/{job['id']}/events")
        wait_for(client, job, "running")
        run.go_on.set()
        states = [event["state"] for event in read_events(following.result().text)]
    assert states[-1] == "succeeded" and states == sorted(states, key=["queued", "running", "succeeded"].index)


@pytest.mark.parametrize("path", ["/v1/jobs/none", "/v1/jobs/none/events", "/v1/jobs/%F0%9F%92%A9"])
def test_a_job_that_is_not_there_is_told(service, path):
    client, _ = service
    assert (client.get(path).status_code, client.get(path).json()["status"]) == (404, 404)


@pytest.mark.parametrize(
    "name", ["none", "..%2f..%2fjobs.sqlite", "%2e%2e/config.json", "/etc/passwd", "config.json%20"]
)
def test_only_files_of_the_artifact_are_served(service, name):
    client, _ = service
    artifact = client.post("/v1/generations", json=ASKED).json()["result"]["artifact"]
    assert client.get(f"/v1/artifacts/{artifact}/files/{name}").status_code == 404
    assert client.get(f"/v1/artifacts/..%2f{artifact}/files/config.json").status_code == 404


def test_what_can_be_asked_for_is_listed(service):
    client, _ = service
    assert client.get("/v1/generators").json() == {"generators": [{"name": "mip", "sha256": "a" * 64}]}
    assert client.get("/v1/architectures").json() == {"architectures": ["cnn", "cnn-tiny"]}
    assert client.get("/v1/datasets").json() == {"datasets": ["digits", "mnist"]}


def test_a_generator_tells_what_it_serves_and_its_scoreboards(service):
    client, _ = service
    facts = client.get("/v1/generators/mip").json()
    assert (facts["name"], facts["sha256"]) == ("mip", "a" * 64) and "cnn-tiny" in facts["architectures"]
    boards = {board["architecture"]: board for board in facts["scoreboards"]}
    for board in boards.values():
        values = [scores["generated"] for scores in board["accuracy"].values()]
        assert board["mean"]["generated"] == pytest.approx(sum(values) / len(values), abs=1e-3)
        assert set(board["mean"]) >= {"generated", "scratch", "random_trunk_ridge"}
    assert set(boards) <= set(facts["architectures"])


def test_a_generator_that_is_not_there_is_not_found_and_those_that_are_named(service):
    client, _ = service
    answer = client.get("/v1/generators/mop")
    assert (answer.status_code, answer.json()["detail"]) == (404, "no generator is called 'mop'; there are mip")
