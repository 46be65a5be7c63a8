"""A request becomes a job of its owner, and a result whose artifact is gone answers nobody."""

import shutil

from fastapi.testclient import TestClient

from tests.service_standins import ASKED, stand_in_app


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
