import io
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.live_servers import ScriptedServer, answer, live_service
from weightgen.client.client import Client
from weightgen.client.upload import pack
from weightgen.errors import BadData, NotFound


def read(data) -> tuple[bytes, str]:
    with pack(data) as upload:
        content = upload.content(progress=False)
        body = b"".join(content())
        assert b"".join(content()) == body and len(body) == upload.size  # it can be sent once more
        return body, upload.media_type


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("a.npz", "application/x-npz"),
        ("a.ZIP", "application/zip"),
        ("a.csv", "text/csv"),
        ("a.parquet", "application/vnd.apache.parquet"),
    ],
)
def test_a_file_is_sent_as_it_is(tmp_path, name, media_type):
    (tmp_path / name).write_bytes(b"bytes" * 100_000)
    assert read(tmp_path / name) == (b"bytes" * 100_000, media_type)


def test_a_folder_is_sent_as_a_zip_without_what_is_hidden_or_linked(tmp_path):
    folder = tmp_path / "pictures"
    for name in ("cat/1.png", "dog/2.png", "dog/.thumbs", ".git/config"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "cat" / "link.png").symlink_to(tmp_path / "secret")
    body, media_type = read(str(folder))
    archive = zipfile.ZipFile(io.BytesIO(body))
    assert media_type == "application/zip"
    assert {name: archive.read(name) for name in archive.namelist()} == {
        "cat/1.png": b"cat/1.png",
        "dog/2.png": b"dog/2.png",
    }
    assert read(folder)[0] == body


def test_arrays_are_sent_as_an_npz():
    x, y = np.arange(12.0).reshape(4, 3), np.array(["a", "b", "a", "b"])
    body, media_type = read({"x": x, "y": y})
    arrays = np.load(io.BytesIO(body), allow_pickle=False)
    assert media_type == "application/x-npz" and np.array_equal(arrays["x"], x) and np.array_equal(arrays["y"], y)


@pytest.mark.parametrize(
    ("data", "error", "sentence"),
    [
        ("nothing", NotFound, "nothing: no such file or folder"),
        ("notes.txt", BadData, "expected a file of labelled data"),
        ("empty", BadData, "there is no file in this folder"),
        ({}, BadData, "no arrays were given"),
        ({"x": np.array([None])}, BadData, "array 'x' holds Python objects"),
    ],
    ids=["missing", "other", "empty", "none", "objects"],
)
def test_what_is_no_labelled_data_is_refused_before_it_is_sent(tmp_path, monkeypatch, data, error, sentence):
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("notes")
    Path("empty").mkdir()
    with ScriptedServer(answer({})) as server, pytest.raises(error, match=sentence):
        Client(server.url).upload(data)
    assert server.requests == []


def test_the_body_is_sent_again_from_its_start_when_the_connection_breaks():
    with ScriptedServer(b"", answer({"name": "up-1"})) as server:
        assert Client(server.url).upload({"x": np.ones(3), "y": np.arange(3)}, label="y", progress=False)["name"]
    first, second = server.requests
    assert first == second and first.startswith("POST /v1/datasets?label=y HTTP/1.1") and "chunked" not in first


def test_the_service_names_the_data_by_their_content(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {"x": rng.integers(0, 255, (40, 9, 9)).astype(np.uint8), "y": np.arange(40) % 2}
    np.savez(tmp_path / "same.npz", **arrays)
    with live_service(tmp_path / "data") as (url, run), Client(url) as client:
        told = client.upload(arrays, progress=False)
        assert client.upload(tmp_path / "same.npz", progress=False) == told
        client.generate(generator="mip", architecture="cnn", dataset=told["name"], progress=False)
        assert run.runs[0]["dataset"] == told["name"] and len(told["classes"]) == 2
