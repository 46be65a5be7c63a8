"""`weightgen remote` as a user meets it, against a service with stand-ins."""

from contextlib import closing

import pytest

from tests.live_servers import ScriptedServer, answer, live_service, problem, wait_until
from tests.service_standins import ASKED, write_safetensors
from tests.test_cli import assert_refused, run
from weightgen.client_http import Connection

__all__ = ["run"]  # a fixture

GENERATE = ("remote", "generate", "--generator", "mip", "--arch", "cnn-tiny", "--data", "digits")


@pytest.fixture
def service(tmp_path, monkeypatch):
    with live_service(tmp_path / "served") as (url, stand_in):
        monkeypatch.setenv("WEIGHTGEN_URL", url)
        yield url, stand_in


@pytest.mark.parametrize("command", ["generate", "estimate", "list", "status", "cancel"])
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
