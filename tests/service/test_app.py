import re
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from service.__main__ import refuse_open_door
from service.app import create_app
from service.jobs.job_store import JobStore
from service.problems import KINDS
from service.settings import read_settings
from tests.helpers.service_standins import ASKED, stand_in_app
from weightgen import __version__
from weightgen.delivery.artifact import read_artifact
from weightgen.errors import BadOption


@pytest.fixture
def client(tmp_path):
    app, _ = stand_in_app(tmp_path)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def test_the_server_tells_that_it_is_well_and_which_it_is(client):
    assert client.get("/healthz").json() == client.get("/readyz").json() == {"status": "ok"}
    assert client.get("/version").json() == {"weightgen": __version__}


def test_a_server_whose_database_is_gone_is_alive_but_not_ready(tmp_path):
    app, _ = stand_in_app(tmp_path, runner_threads=0)
    with TestClient(app, raise_server_exceptions=False) as client:
        for file in tmp_path.glob("jobs.sqlite*"):
            file.unlink()
        (tmp_path / "jobs.sqlite").write_bytes(b"no database" * 100)
        assert client.get("/healthz").status_code == 200
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:weightgen:problem:not-ready")
        assert str(tmp_path) not in answer.text


def test_the_description_names_every_route_and_only_statuses_of_the_table(client):
    described = client.get("/openapi.json").json()
    assert {"/v1/generations", "/v1/jobs/{job_id}", "/v1/jobs/{job_id}/events", "/healthz"} <= set(described["paths"])
    post = described["paths"]["/v1/generations"]["post"]["responses"]
    assert {"201", "202", "409", "413", "415", "422", "429"} <= set(post)
    told = {status for status, _ in KINDS.values()}
    for operations in described["paths"].values():
        for operation in operations.values():
            assert {int(s) for s in operation["responses"] if int(s) >= 400} <= told
    named = set(re.findall(r"#/components/schemas/(\w+)", client.get("/openapi.json").text))
    assert named <= set(described["components"]["schemas"])


def test_a_job_that_was_accepted_before_is_run_after_a_restart(tmp_path):
    app, _ = stand_in_app(tmp_path, inline_seconds=0, runner_threads=0)
    with TestClient(app) as client:
        job = client.post("/v1/generations", json=ASKED).json()
    app, run = stand_in_app(tmp_path)
    with TestClient(app) as client:
        again = client.post("/v1/generations", json=ASKED)
    assert again.status_code == 201 and again.json()["id"] == job["id"] and len(run.runs) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_is_listened_on(host, tmp_path):
    refuse_open_door(read_settings(host=host, data_dir=tmp_path), has_key=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.1", "example.org", "127.0.0.1.example.org"])
def test_beyond_loopback_only_who_has_a_key_or_says_insecure_listens(host, tmp_path):
    with pytest.raises(BadOption, match="make one with `python -m service keys make`"):
        refuse_open_door(read_settings(host=host, data_dir=tmp_path), has_key=False)
    refuse_open_door(read_settings(host=host, data_dir=tmp_path, insecure=True), has_key=False)
    refuse_open_door(read_settings(host=host, data_dir=tmp_path), has_key=True)


def test_real_weights_are_made_and_their_artifact_reads_back(tmp_path):
    settings = read_settings(data_dir=tmp_path / "data", inline_seconds=9)
    jobs = JobStore(settings.database_url)
    jobs.migrate()
    folder = tmp_path / "loaded"
    folder.mkdir()
    with TestClient(create_app(settings)) as client:
        answer = client.post("/v1/generations", json=ASKED)
        while answer.status_code == 202:  # the first one loads the generator
            answer = client.post("/v1/generations", json=ASKED)
        assert answer.status_code == 201, answer.text
        result = answer.json()["result"]
        for file in result["files"]:
            (folder / file["name"]).write_bytes(
                client.get(f"/hf/{result['repository']}/resolve/main/{file['name']}").content
            )
        missing = client.post("/v1/generations", json={**ASKED, "architecture": "resnet8"}).json()
    artifact = read_artifact(folder)
    assert artifact.manifest["arch"] == "cnn-tiny" and artifact.manifest["seed"] == 0
    assert missing["type"] == "urn:weightgen:problem:unsupported"
    assert str(Path.cwd()) not in answer.text and str(tmp_path) not in answer.text
