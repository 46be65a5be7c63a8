import json
import subprocess
import sys
import threading
from contextlib import closing
from typing import Any

import pytest

import weightgen
from tests.helpers.live_servers import ScriptedServer, answer, live_service, wait_until
from tests.helpers.paths import ROOT
from tests.helpers.service_standins import ASKED as STRINGS
from tests.helpers.service_standins import write_safetensors
from weightgen.client.client import Client
from weightgen.client.http import Connection
from weightgen.errors import (
    BadOption,
    NotFound,
    ServiceFailed,
    UnsupportedTask,
    VerificationFailed,
    WeightgenError,
)

ASKED: dict[str, Any] = {**STRINGS}


@pytest.fixture
def service(tmp_path):
    with live_service(tmp_path / "data") as (url, run), weightgen.Client(url) as client:
        yield client, run


@pytest.fixture
def slow_service(tmp_path):
    """Answers with a job at once; its weights wait for `go_on`. What runs them, its URL and a client."""
    with live_service(tmp_path / "data", inline_seconds=0) as (url, run), Client(url) as client:
        run.go_on.clear()
        yield run, url, client


def test_importing_it_loads_no_torch():
    code = "import sys, weightgen; weightgen.Client; assert not {'torch', 'numpy'} & set(sys.modules), 'heavy'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_weights_are_made_and_downloaded(service, tmp_path):
    client, run = service
    result = client.generate(**ASKED, seed=3)
    assert result.repository == f"sha/{result.artifact}" and result.report == {"seed": 3}
    assert client.download(result, tmp_path / "out", progress=False) == tmp_path / "out"
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == write_safetensors([3.0] * 300)
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {"num_classes": 10}
    assert run.runs[0]["support_per_class"] == 20


def test_an_artifact_is_downloaded_by_its_sha256(service, tmp_path):
    client, _ = service
    result = client.generate(**ASKED)
    client.download(result.artifact, tmp_path / "out", progress=False)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(NotFound, match="there is no artifact '0000"):
        client.download("0" * 64, tmp_path / "none")


def test_a_result_that_takes_longer_is_waited_for_with_a_bar(slow_service, capsys):
    run, _, client = slow_service
    threading.Thread(target=lambda: (wait_until(lambda: bool(run.runs)), run.go_on.set())).start()
    assert client.generate(**ASKED, progress=True).report == {"seed": 0}
    told = capsys.readouterr()
    assert told.out == "" and "queued" in told.err


def test_nothing_is_shown_where_no_progress_is_asked_for(slow_service, capsys):
    run, _, client = slow_service
    run.go_on.set()
    client.generate(**ASKED, progress=False)
    assert capsys.readouterr() == ("", "")


def test_equal_requests_share_one_result_and_other_ones_do_not(service):
    client, run = service
    first, second, other = (client.generate(**ASKED, seed=seed) for seed in (0, 0, 1))
    assert first == second and first.artifact != other.artifact and len(run.runs) == 2


def test_a_post_whose_answer_was_lost_is_posted_again_under_the_same_key():
    job = {"id": "1", "state": "failed", "problem": {"type": "x:unsupported", "detail": "too many classes"}}
    with ScriptedServer(b"", answer(job)) as server, pytest.raises(UnsupportedTask, match="too many classes"):
        Client(server.url).generate(**ASKED)
    keys = {request.partition("Idempotency-Key: ")[2].partition("\r")[0] for request in server.requests}
    assert len(server.requests) == 2 and len(keys) == 1 and len(keys.pop()) == 32


@pytest.mark.parametrize("inline_seconds", [0.0, 600.0], ids=["followed", "inline"])
def test_weights_that_fail_are_told_as_the_library_tells_it(tmp_path, inline_seconds):
    with live_service(tmp_path, inline_seconds=inline_seconds) as (url, run), Client(url) as client:
        run.error = VerificationFailed("chance does better")
        with pytest.raises(VerificationFailed, match="chance does better"):
            client.generate(**ASKED)


def test_names_that_nothing_has_are_told_with_what_is_meant(service):
    client, _ = service
    with pytest.raises(NotFound, match="no generator is called 'mop'; did you mean 'mip'"):
        client.generate(**{**ASKED, "generator": "mop"})
    with pytest.raises(BadOption, match="#/seed: "):
        client.generate(**ASKED, seed=-1)


def test_what_can_be_asked_for_is_listed(service):
    client, _ = service
    assert (client.generators(), client.architectures(), client.datasets()) == (
        ["mip"], ["cnn", "cnn-tiny"], ["digits", "mnist"]
    )  # fmt: skip


def test_a_job_is_read_and_cancelled_by_its_id(slow_service):
    run, url, client = slow_service
    ended: list[Exception] = []

    def ask() -> None:
        try:
            with Client(url) as another:
                another.generate(**ASKED, progress=False)
        except WeightgenError as error:
            ended.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    wait_until(lambda: bool(run.runs))
    job = ask_for_job(url)
    assert client.job(job)["state"] == "running" and client.cancel(job)["state"] == "cancelled"
    thread.join()
    assert str(ended[0]) == f"job {job} was cancelled; ask again"
    assert client.cancel(job)["state"] == "cancelled"


def ask_for_job(url: str) -> str:
    """The id of the job that the service runs: an equal request is answered with it."""
    with closing(Connection(url)) as connection:
        return connection.ask("POST", "/v1/generations", json={**ASKED, "seed": 0})["id"]


@pytest.mark.parametrize("name", ["../artifacts", "a/b", "", "x?y", "."])
def test_an_id_that_would_reach_another_route_is_refused(name, tmp_path):
    client = Client()
    for ask in (client.job, client.cancel, lambda name: client.download(name, tmp_path / "out")):
        with pytest.raises(BadOption, match="is no name of"):
            ask(name)


@pytest.mark.parametrize(
    "job",
    [
        {},
        {"id": "1", "state": "succeeded"},
        {"id": "1", "state": "succeeded", "result": {"artifact": "0" * 64, "repository": "sha/0", "report": {}}},
        {"id": "../x", "state": "queued"},
        {"id": "1", "state": "failed"},
    ],
    ids=["nothing", "no result", "no files", "path", "no reason"],
)
def test_an_answer_that_no_service_gives_is_refused(job):
    with ScriptedServer(answer(job)) as server, pytest.raises((ServiceFailed, BadOption)):
        Client(server.url).generate(**ASKED)
