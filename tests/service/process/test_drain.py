"""A server that is told to stop ends what it has begun, refuses what is new, and leaves."""

import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest

from service.jobs.job_store import JobStore
from service.process.drain import Drain
from tests.helpers.paths import ROOT
from tests.helpers.service_process import running_server, running_stand_in
from tests.helpers.service_standins import ASKED


def begin_job(server) -> str:
    """The id of a job that is running."""
    job = server.ask("POST", "/v1/generations", json=ASKED).json()
    while job["state"] == "queued":
        job = server.ask("GET", f"/v1/jobs/{job['id']}").json()
    return job["id"]


def wait_until_not_ready(server) -> httpx.Response:
    while (answer := server.ask("GET", "/readyz")).status_code == 200:
        time.sleep(0.01)
    return answer


def read_job(folder, job_id):
    store = JobStore(f"sqlite:///{folder}/jobs.sqlite")
    try:
        return store.get(job_id)
    finally:
        store.close()


def test_a_stopping_server_is_not_ready_refuses_new_jobs_and_ends_those_in_hand(tmp_path):
    with running_stand_in(tmp_path, drain_seconds=20) as server:
        running = begin_job(server)
        waiting = server.ask("POST", "/v1/generations", json=ASKED | {"seed": 1}).json()["id"]
        server.terminate()
        assert wait_until_not_ready(server).json()["type"] == "urn:weightgen:problem:not-ready"
        refused = server.ask("POST", "/v1/generations", json=ASKED | {"seed": 2})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "2")
        assert server.ask("GET", "/hf/api/models/gen/cnn-tiny.digits.mip.s3").status_code == 503
        assert server.ask("POST", "/v1/generations", json=ASKED | {"seed": 1}).json()["id"] == waiting
        assert server.ask("GET", f"/v1/jobs/{running}").json()["state"] == "running"
        assert server.ask("GET", "/healthz").status_code == 200
        (tmp_path / "go").touch()
        assert server.wait() == -15  # uvicorn by itself tells by what signal it ended; `python -m service` says 0
    assert (read_job(tmp_path, running).state, read_job(tmp_path, waiting).state) == ("succeeded", "queued")


def test_a_job_that_outlasts_the_drain_is_handed_back_and_event_streams_end(tmp_path):
    with running_stand_in(tmp_path, drain_seconds=0.5) as server:
        running = begin_job(server)
        seen: list[str] = []

        def follow() -> None:
            with httpx.stream("GET", f"http://127.0.0.1:{server.port}/v1/jobs/{running}/events", timeout=60) as answer:
                for line in answer.iter_lines():
                    seen.append(line)

        follower = threading.Thread(target=follow)
        follower.start()
        while not seen:
            time.sleep(0.01)
        server.terminate()
        follower.join()
        assert server.wait() == -15
        logged = {line["message"]: line for line in server.lines()}
        assert logged["job handed back"]["job"] == running
    job = read_job(tmp_path, running)
    assert (job.state, job.attempt) == ("queued", 0)
    assert not any("Cancel" in message for message in logged), "an event stream was cut off"


@pytest.mark.parametrize("workers", [1, 2])
def test_under_load_every_accepted_job_is_done_or_waits_when_the_server_has_stopped(tmp_path, workers):
    accepted: dict[int, str] = {}
    refused = threading.Event()

    def load(first: int) -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60) as client:
            for seed in range(first, first + 10_000):
                try:
                    answer = client.post("/v1/generations", json=ASKED | {"seed": seed, "support_per_class": 2})
                except httpx.TransportError:  # it has gone
                    return
                if answer.status_code in (201, 202):
                    accepted[seed] = answer.json()["id"]
                else:
                    assert answer.status_code in (429, 503), answer.text
                    refused.set()

    with running_server(tmp_path, workers=workers, inline_seconds=0, linger_seconds=1) as server:
        assert server.ask("GET", "/readyz").status_code == 200
        threads = [threading.Thread(target=load, args=(10_000 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        while len(accepted) < 20:
            time.sleep(0.01)
        server.terminate()
        assert server.wait() == 0
        for thread in threads:
            thread.join()
        assert refused.is_set()
        assert "Traceback" not in server.log.read_text()
    assert {read_job(tmp_path / "data", job).state for job in accepted.values()} <= {"succeeded", "queued"}


@pytest.mark.parametrize(
    ("hangs", "code"),
    [("threading.Event().wait()", 1), ("re.match('(a+)+$', 40 * 'a' + 'b')", -signal.SIGALRM)],
    ids=["waits", "holds the interpreter's lock"],
)
def test_a_process_that_hangs_leaves_all_the_same(hangs, code):
    program = f"import re, threading\nfrom service.process.drain import leave_after\nleave_after(0.1)\n{hangs}"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == code
    assert ("the server did not stop in time" in done.stderr) == (code == 1)


def test_who_hurries_lets_nobody_wait_and_asks_for_no_end_of_jobs():
    asked = []
    drain = Drain(lambda: asked.append("stop"), linger_seconds=600)
    drain.hurry()
    assert drain.is_draining and drain.is_over and asked == []
    drain.finish()
    assert asked == ["stop"]
