import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.service_process import running_server
from tests.helpers.service_standins import ASKED

STAND_IN = """
import sys, uvicorn
from pathlib import Path
from tests.helpers.service_standins import stand_in_app

folder, port, held = sys.argv[1:]
app, run = stand_in_app(Path(folder), inline_seconds=0, lease_seconds=0.5)
if held == "held":
    run.go_on.clear()
uvicorn.run(app, port=int(port), log_level="warning")
"""


@pytest.fixture
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        started.append(
            subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE
            )
        )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def ask(port: int, method: str, path: str, **given: Any) -> httpx.Response:
    """The answer, once the server listens."""
    while True:
        try:
            return httpx.request(method, f"http://127.0.0.1:{port}{path}", timeout=60, **given)
        except httpx.ConnectError:
            time.sleep(0.05)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_server_serves_until_it_is_told_to_end_and_leaves_nothing_behind(start, port, tmp_path, workers):
    (tmp_path / "tmp").mkdir()
    settings = {"DATA_DIR": str(tmp_path / "data"), "PORT": str(port), "WORKERS": workers}
    environment = {f"WEIGHTGEN_{name}": value for name, value in settings.items()}
    server = start("-m", "service", TMPDIR=str(tmp_path / "tmp"), **environment)
    assert ask(port, "GET", "/readyz").json() == {"status": "ok"}
    assert b"weightgen_http_requests_total" in ask(port, "GET", "/metrics").content
    server.send_signal(signal.SIGTERM)
    _, log = server.communicate()
    assert server.returncode == 0 and b"Traceback" not in log, log.decode()
    assert (tmp_path / "data" / "jobs.sqlite").exists() and list((tmp_path / "tmp").iterdir()) == []
    assert [path.name for path in (tmp_path / "data" / "metrics").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("setting", "value", "sentence"),
    [("HOST", "0.0.0.0", b"error: host is '0.0.0.0'"), ("PORT", "many", b"error: "), ("DATABASE_URL", "x", b"error: ")],
)
def test_settings_that_cannot_be_used_end_the_server_with_one_sentence(start, tmp_path, setting, value, sentence):
    server = start("-m", "service", **{"WEIGHTGEN_DATA_DIR": str(tmp_path), f"WEIGHTGEN_{setting}": value})
    _, said = server.communicate()
    assert server.returncode == 2 and said.startswith(sentence) and said.count(b"\n") == 1, said.decode()


def test_a_job_whose_server_is_killed_is_done_once_by_the_next(start, port, tmp_path, database_url):
    database = {"WEIGHTGEN_DATABASE_URL": database_url}
    killed = start("-c", STAND_IN, str(tmp_path), str(port), "held", **database)
    job = ask(port, "POST", "/v1/generations", json=ASKED).json()
    while job["state"] == "queued":
        job = ask(port, "GET", f"/v1/jobs/{job['id']}").json()
    killed.kill()
    killed.wait()
    start("-c", STAND_IN, str(tmp_path), str(port), "free", **database)
    while job["state"] == "running":
        job = ask(port, "GET", f"/v1/jobs/{job['id']}").json()
    assert (job["state"], job["attempt"]) == ("succeeded", 2)
    assert ask(port, "POST", "/v1/generations", json=ASKED).json()["id"] == job["id"]
    assert 'weightgen_jobs{state="succeeded"} 1' in ask(port, "GET", "/metrics").text
    assert len(list((tmp_path / "artifacts").glob("*/*/"))) == 1


def test_a_server_on_postgresql_says_that_its_database_is_away_and_goes_on_when_it_is_back(postgres, tmp_path):
    with running_server(tmp_path, database_url=postgres.make_database(), inline_seconds=0) as server:
        job = server.ask("POST", "/v1/generations", json=ASKED).json()
        # If the database goes while a runner claims the job, the job is claimed again when that lease ends.
        while server.ask("GET", f"/v1/jobs/{job['id']}").json()["state"] == "queued":
            time.sleep(0.01)
        postgres.stop(signal.SIGQUIT)
        try:
            refused = [server.ask("GET", "/readyz"), server.ask("POST", "/v1/generations", json={**ASKED, "seed": 1})]
        finally:
            postgres.start()
        for answer in refused:
            assert answer.status_code == 503 and answer.json()["type"] == "urn:weightgen:problem:not-ready"
        while (ended := server.ask("GET", f"/v1/jobs/{job['id']}").json())["state"] in ("queued", "running"):
            time.sleep(0.05)
        assert (ended["state"], ended["attempt"]) == ("succeeded", 1)
        assert server.ask("POST", "/v1/generations", json=ASKED).json()["result"] == ended["result"]
