import json
import shutil

import pytest

from benchmarks.service.artifact_speed import add_artifact, main, measure, nginx
from benchmarks.service.server_process import Server
from service.artifacts.artifact_store import open_store

needs_programs = pytest.mark.skipif(
    not (shutil.which("wrk") and shutil.which("nginx", path="/usr/sbin:/usr/bin")), reason="Debian's wrk and nginx"
)


def test_the_large_artifact_is_one_of_the_store(tmp_path):
    sha = add_artifact(tmp_path / "artifacts", 1000)
    store = open_store(tmp_path / "artifacts")
    file = store.find(sha, "model.safetensors")
    assert file.size == 1000 == sum(map(len, store.read(sha, file)))


@needs_programs
def test_both_sides_are_asked_for_the_same_file(tmp_path):
    root = tmp_path / "data" / "artifacts"
    sha = add_artifact(root, 1000)
    with nginx(root) as port, nginx(_as_the_service_has_it(tmp_path, root, sha)) as other:
        server = Server(port=other, pid=0, folder=tmp_path)
        cell = measure(server, port, sha, "model.safetensors", 1, rounds=1, seconds=1)
    assert cell["bytes"] == 1000 and cell["ratio"] > 0 and cell["is_met"] == (cell["ratio"] >= 0.5)


def _as_the_service_has_it(tmp_path, root, sha):
    folder = tmp_path / "service" / "web" / "v1" / "artifacts" / sha
    folder.mkdir(parents=True)
    shutil.copytree(root / sha[:2] / sha, folder / "files")
    return tmp_path / "service" / "web"


def test_absent_programs_are_told(monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    assert main([]) == 1
    assert "apt-get install nginx wrk" in capsys.readouterr().err


@pytest.mark.slow
@needs_programs
def test_the_service_itself_is_measured(tmp_path):
    assert main(["--rounds", "1", "--seconds", "1", "--json", str(tmp_path / "speed.json")]) == 0
    cells = json.loads((tmp_path / "speed.json").read_text())["cells"]
    assert len(cells) == 11 and all(cell["requests_per_second"]["service"] > 0 for cell in cells)
