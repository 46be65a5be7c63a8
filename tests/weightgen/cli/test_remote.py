"""`weightgen remote` as a user meets it, against a service with stand-ins."""

import hashlib
from contextlib import closing

import pytest

from tests.helpers.command_line import assert_refused
from tests.helpers.live_servers import ScriptedServer, answer, live_generation, live_service, problem, wait_until
from tests.helpers.service_standins import ASKED, write_safetensors
from weightgen.canonical_json import encode_json
from weightgen.client.http import Connection

GENERATE = ("remote", "generate", "--generator", "mip", "--arch", "cnn-tiny", "--data", "digits")


@pytest.fixture
def service(tmp_path, monkeypatch):
    with live_service(tmp_path / "served") as (url, stand_in):
        monkeypatch.setenv("WEIGHTGEN_URL", url)
        yield url, stand_in


@pytest.mark.parametrize("command", ["generate", "estimate", "upload", "list", "status", "cancel"])
def test_every_command_has_help_and_names_the_variables(run, command):
    done = run("remote", command, "--help")
    assert done.code == 0 and f"weightgen remote {command}" in done.out and "WEIGHTGEN_KEY" in done.out


def test_generated_weights_are_written_as_a_folder(run, service, tmp_path):
    done = run(*GENERATE, "--seed", 2, "--support-per-class", 5, "--no-fallback", "--out", "out", "--json")
    assert done.code == 0, done.err
    assert done.json["artifact"] == "out" and done.json["report"] == {"seed": 2}
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == write_safetensors([2.0] * 300)
    assert "download" in done.err and "download" not in done.out
    asked = service[1].runs[0]
    assert (asked["support_per_class"], asked["fallback"], asked["seed"]) == (5, False, 2)


def test_a_table_says_where_the_weights_are(run, service):
    done = run(*GENERATE, "--out", "out")
    assert done.code == 0 and "artifact" in done.out and "repository  sha/" in done.out


def test_several_sets_of_weights_go_into_folders_of_their_own(run, tmp_path):
    listed = [{"name": "a", "sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}]
    artifact = hashlib.sha256(encode_json(listed, name="files")).hexdigest()
    sample = {"artifact": artifact, "repository": f"sha/{artifact}", "files": listed, "report": {"accuracy": 0.5}}
    job = {"id": "1", "state": "succeeded", "result": {**sample, "samples": [sample, sample]}}
    with ScriptedServer(answer(job), answer(b"x"), answer(b"x")) as server:
        done = run(*GENERATE, "--samples", 2, "--out", "out", "--json", "--url", server.url)
    assert '"num_samples":2' in server.requests[0]
    assert [report["artifact"] for report in done.json["samples"]] == ["out/0", "out/1"]
    assert [(tmp_path / "out" / i / "a").read_bytes() for i in "01"] == [b"x", b"x"]


def test_data_that_lie_here_are_uploaded_before_they_are_asked_for(run, service, tmp_path):
    (tmp_path / "flowers.csv").write_text("size,kind\n" + "".join(f"{i},{'ab'[i % 2]}\n" for i in range(60)))
    uploaded = run("remote", "upload", "flowers.csv", "--label", "kind", "--json")
    assert uploaded.code == 0, uploaded.err
    assert [c["name"] for c in uploaded.json["classes"]] == ["a", "b"]
    table = [line.split() for line in run("remote", "upload", "flowers.csv").out.splitlines()]
    assert ["name", uploaded.json["name"]] in table and ["classes", "a,", "b"] in table
    done = run("remote", "generate", "--generator", "mip", "--arch", "cnn", "--data", "./flowers.csv", "--out", "out")
    assert done.code == 0 and "uploading ./flowers.csv" in done.err
    assert service[1].runs[0]["dataset"] == uploaded.json["name"]


def test_data_that_cannot_be_used_are_told_with_the_reason(run, service, tmp_path):
    (tmp_path / "broken.npz").write_bytes(b"PK")
    assert_refused(run("remote", "upload", "broken.npz"), 1, "the upload cannot be used")
    assert_refused(run(*GENERATE[:-1], "./none.npz", "--out", "out"), 5, "none.npz: no such file or folder")


def test_a_folder_with_something_in_it_is_kept(run, service, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    assert_refused(run(*GENERATE, "--out", "out"), 1, "it exists and is not an empty folder")


def test_names_are_listed(run, service):
    assert run("remote", "list", "--json").json == {
        "generators": ["mip"], "architectures": ["cnn", "cnn-tiny"], "datasets": ["digits", "mnist"]
    }  # fmt: skip
    assert "architectures  cnn, cnn-tiny" in run("remote", "list").out


def test_a_job_is_followed_and_cancelled_by_its_id(run, tmp_path):
    with live_service(tmp_path / "served", inline_seconds=0) as (url, stand_in):
        stand_in.go_on.clear()
        with closing(Connection(url)) as connection:
            job = connection.ask("POST", "/v1/generations", json=ASKED)["id"]
        wait_until(lambda: bool(stand_in.runs))
        assert run("remote", "status", job, "--url", url, "--json").json["state"] == "running"
        done = run("remote", "cancel", job, "--url", url)
        assert done.code == 0 and "cancelled" in done.out


def test_the_folder_is_the_one_that_generate_writes_here(run, tmp_path):
    asked = ("--generator", "mip", "--arch", "cnn-tiny", "--data", "digits", "--seed", 7)
    assert run("generate", *asked, "--out", "here").code == 0
    with live_generation(tmp_path / "served") as (url, _):
        done = run("remote", "generate", *asked, "--out", "there", "--url", url)
    assert done.code == 0, done.err
    here, there = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("here", "there"))
    assert here == there and set(here) == {"README.md", "config.json", "manifest.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (problem("unknown-name", "422 No", "no generator is called 'mip'"), 5),
        (problem("invalid-request", "422 No", "one thing is wrong"), 2),
        (problem("verification-failed", "422 No", "chance does better"), 3),
        (problem("unsupported", "422 No", "too many classes"), 4),
        (problem("unauthorized", "401 No", "a key is asked for"), 2),
        (answer(b"<html>"), 1),
    ],
    ids=["unknown", "invalid", "verification", "unsupported", "key", "no service"],
)
def test_what_the_service_refuses_ends_with_the_exit_code_of_the_library(run, said, code):
    with ScriptedServer(said) as server:
        assert_refused(run(*GENERATE, "--out", "out", "--url", server.url), code)


def test_the_key_comes_from_the_environment(run, monkeypatch):
    monkeypatch.setenv("WEIGHTGEN_KEY", "wg_secret")
    with ScriptedServer(problem("forbidden", "403 No", "the key may not do this")) as server:
        assert_refused(run("remote", "list", "--url", server.url), 2, "the key may not do this")
    assert "bearer wg_secret" in server.requests[0].lower()


def test_where_nothing_listens_one_sentence_says_what_to_do(run):
    with ScriptedServer() as server:
        pass
    assert_refused(run("remote", "list", "--url", server.url), 1, "nothing answers at", "make serve", "WEIGHTGEN_URL")
