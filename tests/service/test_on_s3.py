"""The whole service with its artifacts in a bucket."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service.__main__ import main
from tests.helpers.s3_server import new_bucket, running_s3
from tests.helpers.service_standins import ASKED, REPOSITORY, stand_in_app

pytest.importorskip("s3fs", reason="the extra s3 is not installed")
pytest.importorskip("moto", reason="the extra dev is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_s3() as url:
        yield url


@pytest.fixture
def settings(server) -> dict[str, Any]:
    return {"artifacts_url": f"s3://{new_bucket(server)}/weightgen", "s3_endpoint_url": server}


def read_as_clients_do(client: TestClient, sha: str, content: bytes) -> None:
    for path in (f"/v1/artifacts/{sha}/files/model.safetensors", f"/hf/sha/{sha}/resolve/main/model.safetensors"):
        whole = client.get(path)
        assert (whole.status_code, whole.content) == (200, content)
        part = client.get(path, headers={"Range": "bytes=8-19"})
        assert (part.status_code, part.content) == (206, content[8:20])
        assert client.get(path, headers={"If-None-Match": whole.headers["etag"]}).status_code == 304
        assert client.head(path).headers["content-length"] == str(len(content))


def test_what_was_generated_is_read_before_and_after_a_restart_and_without_the_database(settings, tmp_path):
    app, _ = stand_in_app(tmp_path / "first", **settings)
    with TestClient(app) as client:
        sha = client.post("/v1/generations", json=ASKED).json()["result"]["artifact"]
        content = client.get(f"/v1/artifacts/{sha}/files/model.safetensors").content
        read_as_clients_do(client, sha, content)
    assert not (tmp_path / "first" / "artifacts").exists() and files_below(tmp_path / "first" / "scratch") == []
    app, run = stand_in_app(tmp_path / "first", **settings)
    with TestClient(app) as client:
        read_as_clients_do(client, sha, content)
        assert client.get(f"/hf/{REPOSITORY}/resolve/main/model.safetensors").content == content
        assert run.runs == []
    app, _ = stand_in_app(tmp_path / "second", **settings)
    with TestClient(app) as client:
        read_as_clients_do(client, sha, content)


def test_a_bucket_that_cannot_be_reached_is_told_before_anything_is_served(settings, tmp_path, monkeypatch, capsys):
    for name, value in settings.items():
        monkeypatch.setenv(f"WEIGHTGEN_{name.upper()}", value.replace("s3://", "s3://absent-"))
    monkeypatch.setenv("WEIGHTGEN_DATA_DIR", str(tmp_path))
    assert main([]) != 0
    assert "the bucket does not exist" in capsys.readouterr().err


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
