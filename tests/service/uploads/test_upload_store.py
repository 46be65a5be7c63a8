"""Uploaded sets are there by what they hold, in any process, until they are forgotten."""

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from starlette.testclient import TestClient

from service.app import create_app
from service.artifacts.artifact_store import open_store
from service.jobs.job_store import JobStore
from service.problems import Problem
from service.settings import read_settings
from service.uploads.names import is_upload
from service.uploads.upload_store import Uploads
from tests.helpers.s3_server import new_bucket, running_s3
from tests.helpers.upload_samples import LIMITS, class_folders, npz_bytes, some_images, some_uploads, upload, zip_bytes
from weightgen.errors import UnknownName

IMAGES, LABELS = some_images()
NPZ = npz_bytes(x=IMAGES, y=LABELS)


@pytest.mark.parametrize("name", ["up-" + "a" * 64, "up-" + "0123456789abcdef" * 4])
def test_names_of_uploads_are_told_from_others(name):
    assert is_upload(name)
    for other in (name[:-1], name + "a", name.upper(), name[3:], f"../{name}", f"{name}\n", "digits"):
        assert not is_upload(other)


def test_a_set_is_called_by_what_it_holds(tmp_path):
    uploads, others = some_uploads(tmp_path / "a"), some_uploads(tmp_path / "b")
    name = upload(uploads, NPZ)
    assert is_upload(name)
    assert name == upload(uploads, zip_bytes(class_folders(IMAGES, LABELS))) == upload(others, NPZ)
    assert name != upload(uploads, npz_bytes(x=255 - IMAGES, y=LABELS))


def test_another_process_loads_it(tmp_path):
    name = upload(some_uploads(tmp_path), NPZ)
    data = some_uploads(tmp_path).load(name)
    assert (data.name, data.class_names, len(data.x_train)) == (name, ("0", "1", "2"), 15)


def test_what_cannot_be_used_leaves_nothing_behind(tmp_path):
    uploads = some_uploads(tmp_path)
    with pytest.raises(Problem, match="the upload cannot be used: .* one class") as refused:
        upload(uploads, npz_bytes(x=IMAGES, y=LABELS * 0))
    assert refused.value.kind == "unusable-data"
    assert not (tmp_path / "datasets").exists() or not list((tmp_path / "datasets").rglob("*.json"))
    assert list(uploads.scratch.folder.iterdir()) == []


def test_what_was_forgotten_is_told_so(tmp_path):
    uploads = some_uploads(tmp_path)
    name = upload(uploads, NPZ)
    uploads.check(name)
    uploads.delete(name)
    assert not uploads.exists(name)
    for ask in (uploads.check, uploads.describe, uploads.load, uploads.delete):
        with pytest.raises(UnknownName, match="was not uploaded here, or has been forgotten; upload it again"):
            ask(name)
    assert upload(uploads, NPZ) == name and uploads.exists(name)


@pytest.mark.parametrize("name", ["digits", "..", "up-..", "up-" + "g" * 64, "up-" + "0" * 64])
def test_what_is_no_upload_is_unknown(name, tmp_path):
    uploads = some_uploads(tmp_path)
    assert not uploads.exists(name)
    with pytest.raises(UnknownName, match="no data set is called"):
        uploads.describe(name)


def test_a_set_may_lie_in_a_bucket(tmp_path):
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    pytest.importorskip("moto", reason="the extra dev is not installed")
    local = some_uploads(tmp_path)
    with running_s3() as url:
        store = open_store(f"s3://{new_bucket(url)}/datasets", s3_endpoint_url=url)
        uploads = Uploads(store, local.scratch, LIMITS)
        name = upload(uploads, NPZ)
        assert name == upload(local, NPZ)
        assert uploads.load(name).digest() == local.load(name).digest()
        uploads.check(name)
        uploads.delete(name)
        with pytest.raises(UnknownName, match="upload it again"):
            uploads.load(name)


def test_weights_are_made_for_uploaded_digits_from_end_to_end(tmp_path):
    digits: Any = load_digits()
    images = np.kron((digits.images * 15.9375).astype(np.uint8), np.ones((3, 3), np.uint8))[:700, 1:, 1:]
    settings = read_settings(data_dir=tmp_path / "data", inline_seconds=9)
    jobs = JobStore(settings.database_url)
    jobs.migrate()
    jobs.close()
    with TestClient(create_app(settings)) as client:
        name = client.post("/v1/datasets", files={"file": npz_bytes(x=images, y=digits.target[:700])}).json()["name"]
        folders = zip_bytes(class_folders(images, digits.target[:700]))
        assert client.post("/v1/datasets", files={"file": folders}).json()["name"] == name
        asked = {"generator": "mip", "architecture": "cnn-tiny", "dataset": name}
        while (answer := client.post("/v1/generations", json=asked)).status_code == 202:
            pass  # the first one loads the generator
        result = answer.json()["result"]
        assert (result["report"]["data"], result["report"]["classes"]) == (name, 10)
        assert result["report"]["accuracy"] > 0.6
        repository = f"gen/cnn-tiny.{name}.mip.s0"
        assert client.get(f"/hf/api/models/{repository}").json()["sha"] == result["artifact"][:40]
        size = len(client.get(f"/hf/{repository}/resolve/main/model.safetensors").content)
        assert size == next(file["size"] for file in result["files"] if file["name"] == "model.safetensors")
        assert client.post("/v1/estimate", json=asked).json()["parameters"] == result["report"]["parameters"]
        assert str(tmp_path) not in answer.text
        client.delete(f"/v1/datasets/{name}")
        assert client.post("/v1/generations", json=asked).status_code == 422
