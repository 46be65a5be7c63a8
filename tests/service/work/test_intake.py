"""A request becomes a job of its owner, and a result whose artifact is gone answers nobody."""

import asyncio
import shutil

from fastapi.testclient import TestClient

from service.app import open_artifacts
from service.jobs.job_store import JobStore
from service.jobs.runner import Runner
from service.process.drain import Drain
from service.settings import Settings
from service.work.intake import Intake
from tests.helpers.service_standins import ASKED, stand_in_app, stand_in_catalogue


def test_a_request_whose_artifact_was_deleted_is_made_anew(tmp_path):
    app, run = stand_in_app(tmp_path)
    with TestClient(app) as client:
        made, again = (client.post("/v1/generations", json=ASKED).json() for _ in range(2))
        assert made == again and len(run.runs) == 1
        sha = made["result"]["artifact"]
        shutil.rmtree(tmp_path / "artifacts" / sha[:2])
        anew = client.post("/v1/generations", json=ASKED).json()
        assert anew["id"] != made["id"] and anew["result"] == made["result"] and len(run.runs) == 2
        assert client.get(f"/v1/jobs/{made['id']}").status_code == 404
        assert client.get(f"/v1/artifacts/{sha}/files/config.json").status_code == 200


def test_more_samples_than_may_be_asked_for_are_refused(tmp_path):
    app, run = stand_in_app(tmp_path, max_samples=3)
    with TestClient(app) as client:
        refused = client.post("/v1/generations", json=ASKED | {"num_samples": 4})
        assert (refused.status_code, run.runs) == (422, [])
        (part,) = refused.json()["errors"]
        assert part["pointer"] == "#/num_samples"
        assert part["detail"] == "num_samples is 4, at most 3 may be asked for"
        assert client.post("/v1/generations", json=ASKED | {"num_samples": 3}).status_code == 201


def test_a_result_is_the_first_of_its_samples_and_lists_them_all(tmp_path):
    app, _ = stand_in_app(tmp_path)
    with TestClient(app) as client:
        result = client.post("/v1/generations", json=ASKED).json()["result"]
        samples = result.pop("samples")
        assert samples == [result]


def test_a_job_run_by_another_process_is_found_by_looking(tmp_path):
    app, run = stand_in_app(tmp_path, runner_threads=0)
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    runner = Runner(store, run, threads=1, lease_seconds=30)
    with TestClient(app) as client:
        runner.start()
        try:
            assert client.post("/v1/generations", json=ASKED).status_code == 201
        finally:
            runner.stop(60)
            store.close()


def test_nobody_waits_for_a_running_job_once_the_server_is_about_to_leave(tmp_path):
    settings = Settings(data_dir=tmp_path).model_copy(update={"inline_seconds": 600.0})
    jobs, drain = JobStore(settings.database_url), Drain(lambda: None, linger_seconds=0)
    jobs.migrate()
    jobs.submit({}, digest="a", max_queued=1)
    job = jobs.claim("r", lease_seconds=600)
    assert job is not None
    drain.hurry()
    intake = Intake(settings, jobs, open_artifacts(settings), stand_in_catalogue(), lambda: None, drain)
    assert asyncio.run(intake.wait(job)) == job
    jobs.close()
