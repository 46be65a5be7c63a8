"""The container image, without an engine: its file is linted and read, and what it runs is run on a read-only root."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import PREFIX, Settings
from tests.helpers.paths import ROOT
from tests.helpers.service_process import ServerProcess, free_port
from tests.helpers.service_standins import ASKED

TEXT = (ROOT / "Dockerfile").read_text()
NOBODY = 65534
LOCKED = """
import os, subprocess, sys
folder, user, *command = sys.argv[1:]
run = lambda *words: subprocess.run(["mount", *words], check=True)
run("--make-rprivate", "/")
run("--bind", folder + "/data", folder + "/data")
run("-t", "tmpfs", "tmpfs", folder + "/tmp")
places = [line.split()[1].encode().decode("unicode_escape") for line in open("/proc/self/mounts")]
for place in sorted(set(places)):
    if not place.startswith((folder, "/proc", "/sys", "/dev")):
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=place == "/", stderr=subprocess.DEVNULL)
os.chmod(folder + "/tmp", 0o1777)
reads = "-all,+dac_read_search"
os.execvp("setpriv", ["setpriv", "--reuid", user, "--regid", user, "--clear-groups", "--no-new-privs",
                      "--inh-caps", reads, "--ambient-caps", reads, *command])
"""
"""Runs a command as `user` with everything read-only but the folders `data` and `tmp` (a tmpfs) of `folder`.

It may read what others may not, for Python itself may lie in somebody's home.
"""


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the last stage."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
    pairs = [(line.split(" ", 1)[0], line.split(" ", 1)[1].strip()) for line in lines if line.strip()]
    last = max(i for i, (word, _) in enumerate(pairs) if word == "FROM")
    return pairs[last:]


def last(word: str) -> str:
    return [arguments for found, arguments in instructions() if found == word][-1]


def environment() -> dict[str, str]:
    return dict(part.split("=", 1) for part in re.sub(r'"', "", last("ENV")).split())


def exec_form(arguments: str) -> list[str]:
    words = re.fullmatch(r'\[((?:"[^"]*"(?:, )?)+)\]', arguments)
    assert words, f"expected the exec form, by which signals arrive: {arguments}"
    return re.findall(r'"([^"]*)"', words[1])


def test_the_file_lints():
    if not shutil.which("hadolint"):
        pytest.skip("hadolint is not installed; PyPI has no build of it for this machine")
    found = subprocess.run(["hadolint", "--no-color", "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_the_image_serves_as_an_ordinary_user_and_writes_to_its_volume():
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last("USER"))
    assert exec_form(last("ENTRYPOINT")) == ["python", "-m", "service"]
    assert exec_form(last("HEALTHCHECK").partition(" CMD ")[2]) == ["python", "-m", "service.process.health"]
    assert last("VOLUME") == environment()["WEIGHTGEN_DATA_DIR"] == "/data"
    assert last("EXPOSE") == environment()["WEIGHTGEN_PORT"]
    assert environment()["HOME"] == "/tmp" and environment()["PYTHONDONTWRITEBYTECODE"] == "1"
    settings = {name.removeprefix(PREFIX).lower() for name in environment() if name.startswith(PREFIX)}
    assert settings <= set(Settings.model_fields)


def test_the_extras_of_the_image_are_those_of_the_project():
    import tomllib

    extras = re.findall(r"^ARG EXTRAS=(\S+)", TEXT, re.MULTILINE)[0].split(",")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "service" in extras and set(extras) <= set(project["optional-dependencies"])


def locked(folder: Path, command: list[str]) -> list[str]:
    program = ["unshare", "--mount", sys.executable, "-c", LOCKED, str(folder), str(NOBODY)]
    return [*program, *command]


@pytest.fixture
def image(tmp_path) -> Any:
    """(folder, environment, port): where what the image runs can be run as the image would."""
    folder = tmp_path / "container"
    for name in ("data", "tmp"):
        (folder / name).mkdir(parents=True)
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("mounts can only be made read-only by root, with unshare and setpriv")
    os.chown(folder / "data", NOBODY, NOBODY)
    if subprocess.run(locked(folder, ["true"]), capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody make mounts")
    port = free_port()
    given = {**environment(), "WEIGHTGEN_PORT": str(port), "WEIGHTGEN_DATA_DIR": str(folder / "data"),
             "HOME": str(folder / "tmp"), "TMPDIR": str(folder / "tmp"), "PATH": os.environ["PATH"]}  # fmt: skip
    return folder, given, port


def run(image: Any, *command: str) -> subprocess.CompletedProcess[str]:
    folder, given, _ = image
    return subprocess.run(locked(folder, list(command)), cwd=ROOT, env=given, capture_output=True, text=True)


def test_nothing_but_its_volume_can_be_written_where_the_image_is_run(image):
    folder, _, _ = image
    for place in (ROOT, Path("/"), Path("/usr"), Path("/var/tmp")):
        assert run(image, "touch", str(place / "written-by-a-test")).returncode != 0, place
        assert not (place / "written-by-a-test").exists()
    assert run(image, "touch", str(folder / "data" / "written")).returncode == 0


def test_a_read_only_root_without_a_temporary_folder_is_told(image):
    folder, given, port = image
    without = (folder, {**given, "TMPDIR": "/nowhere"}, port)
    done = run(without, sys.executable, *exec_form(last("ENTRYPOINT"))[1:])
    assert done.returncode != 0 and done.stderr == (
        "error: no temporary folder can be written; mount one at /tmp, or name one in the variable TMPDIR\n"
    )


def test_what_the_image_runs_serves_on_a_read_only_root_and_leaves_at_sigterm(image, tmp_path):
    folder, given, port = image
    entry = [sys.executable, *exec_form(last("ENTRYPOINT"))[1:]]
    refused = run(image, *entry)
    assert refused.returncode == 2 and "there is no key" in refused.stderr, refused.stderr
    made = run(image, *entry, "keys", "make", "--name", "first", "--scope", "generate", "--scope", "read")
    assert made.returncode == 0, made.stderr
    key = {"Authorization": f"Bearer {made.stdout.split()[-1]}"}
    server = ServerProcess(locked(folder, entry), port=port, log=tmp_path / "server.log", environment=given)
    try:
        assert server.ask("GET", "/v1/generators").status_code == 401
        health = run(image, sys.executable, *exec_form(last("HEALTHCHECK").partition(" CMD ")[2])[1:])
        assert health.returncode == 0, health.stderr
        job = server.ask("POST", "/v1/generations", json=ASKED, headers=key).json()
        while job.get("state") in ("queued", "running"):
            time.sleep(0.05)
            job = server.ask("GET", f"/v1/jobs/{job['id']}", headers=key).json()
        assert job["state"] == "succeeded", job
        files = f"http://127.0.0.1:{port}/v1/artifacts/{job['result']['artifact']}/files/model.safetensors"
        assert httpx.get(files, headers=key).status_code == 200
    finally:
        server.terminate()
        assert server.wait() == 0
    log = server.log.read_text()
    assert "Traceback" not in log and "Read-only" not in log and "Permission denied" not in log, log
    written = {path.stat().st_uid for path in (folder / "data").rglob("*")}
    assert written == {NOBODY}
