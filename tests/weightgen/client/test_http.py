import socket

import pytest

import service.problems
from tests.helpers.live_servers import ScriptedServer, answer, problem
from weightgen.client.http import ERRORS, Connection, object_in
from weightgen.errors import BadOption, NotFound, ServiceFailed, UnsupportedTask, VerificationFailed, WeightgenError


def test_an_answer_is_a_json_object():
    with ScriptedServer(answer({"generators": []})) as server:
        assert Connection(server.url).ask("GET", "/v1/generators") == {"generators": []}
        assert server.asked == ["GET /v1/generators"]


@pytest.mark.parametrize("body", [b"[]", b"<html>", b"", b"\xff", b"[" * 100_000], ids=range(5))
def test_what_is_no_json_object_is_no_service(body):
    with (
        ScriptedServer(answer(body)) as server,
        pytest.raises(ServiceFailed, match="is no JSON object"),
    ):
        Connection(server.url).ask("GET", "/v1/generators")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("unknown-name", NotFound),
        ("invalid-request", BadOption),
        ("unsupported", UnsupportedTask),
        ("verification-failed", VerificationFailed),
        ("of-another-year", ServiceFailed),
    ],
)
def test_a_problem_is_told_as_the_library_would_tell_it(kind, error):
    said = problem(kind, "422 Unprocessable Content", "no generator is called 'mop'; did you mean 'mip'?")
    with ScriptedServer(said) as server, pytest.raises(WeightgenError, match="did you mean 'mip'") as raised:
        Connection(server.url).ask("POST", "/v1/generations", json={})
    assert type(raised.value) is error


def test_every_error_here_is_of_a_kind_that_the_service_tells():
    assert set(ERRORS) <= set(service.problems.KINDS)


def test_each_part_of_a_request_that_is_wrong_is_told():
    parts = [{"detail": "Field required", "pointer": "#/dataset"}, {"detail": "too short", "parameter": "key"}]
    body = {"type": "urn:weightgen:problem:invalid-request", "detail": "2 things are wrong", "errors": parts}
    with (
        ScriptedServer(answer(body, status="422 No")) as server,
        pytest.raises(BadOption, match="2 things are wrong; #/dataset: Field required; key: too short"),
    ):
        Connection(server.url).ask("POST", "/v1/generations", json={})


def test_what_a_server_says_reaches_a_terminal_without_control_characters():
    said = problem("not-found", "404 Not Found", "gone\x1b[2J\r\nerror: all is well")
    with ScriptedServer(said) as server, pytest.raises(NotFound) as raised:
        Connection(server.url).ask("GET", "/v1/jobs/1")
    assert str(raised.value) == "gone [2J  error: all is well"


def test_a_server_that_fails_without_a_reason_is_named():
    said = answer(b"oops", status="502 Bad Gateway")
    with ScriptedServer(said) as server, pytest.raises(ServiceFailed, match="answers with status 502 and no reason"):
        Connection(server.url).ask("GET", "/v1/generators")


def test_a_busy_server_is_asked_again_when_it_says():
    full = problem("queue-full", "429 Too Many Requests", "256 jobs wait", Retry_After="0")
    away = problem("not-ready", "503 Service Unavailable", "not ready")
    with ScriptedServer(full, away, answer({"id": "1"})) as server:
        assert Connection(server.url).ask("POST", "/v1/generations", json={"seed": 1}) == {"id": "1"}
        assert len(server.requests) == 3 and all(r.endswith('{"seed":1}') for r in server.requests)


def test_a_server_that_stays_busy_longer_than_patience_is_told():
    full = problem("queue-full", "429 Too Many Requests", "256 jobs wait", Retry_After="3600")
    with ScriptedServer(full) as server, pytest.raises(ServiceFailed, match="256 jobs wait"):
        Connection(server.url).ask("POST", "/v1/generations", json={})


@pytest.mark.parametrize("broken", [b"", b"HTTP/1.1 200", answer(b"{", length=99)], ids=["none", "head", "body"])
def test_a_connection_that_breaks_is_made_again(broken):
    with ScriptedServer(broken, answer({"id": "1"})) as server:
        assert Connection(server.url).ask("POST", "/v1/generations", json={}) == {"id": "1"}


def test_a_connection_that_keeps_breaking_is_told_when_patience_ends():
    with ScriptedServer(*[b""] * 50) as server, pytest.raises(ServiceFailed, match="was lost .*; ask again later"):
        Connection(server.url, patience_seconds=0.3).ask("GET", "/v1/generators")


def test_where_nothing_listens_one_sentence_says_what_to_do():
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ServiceFailed, match=rf"nothing answers at {url}; start the service there \(make serve"):
        Connection(url).ask("GET", "/v1/generators")


def test_an_answer_without_end_is_left(monkeypatch):
    monkeypatch.setattr("weightgen.client.http.MAX_ANSWER_BYTES", 1000)
    with ScriptedServer(answer(b" " * 2000)) as server, pytest.raises(ServiceFailed, match="more than 1000 bytes"):
        Connection(server.url).ask("GET", "/v1/generators")


def test_the_key_is_sent_with_every_request_and_shown_nowhere():
    with ScriptedServer(answer({})) as server:
        Connection(server.url, key="wg_secret").ask("GET", "/v1/generators")
    assert "authorization: bearer wg_secret\r\n" in server.requests[0].lower()


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("127.0.0.1:8000", "is no "),
        ("ftp://127.0.0.1", "is no address of a service"),
        ("http://", "is no address of a service"),
        ("http://host/?a=1", "is no address of a service"),
        ("http://user:secret@host", "give the key as --key or WEIGHTGEN_KEY"),
        ("http://host:port", "is no URL"),
    ],
)
def test_a_url_that_is_none_is_refused(url, sentence):
    with pytest.raises(BadOption, match=sentence):
        Connection(url)


@pytest.mark.parametrize("key", ["", "two words", "one\nline", "clé"])
def test_a_key_that_no_header_holds_is_refused(key):
    with pytest.raises(BadOption, match="the key is not one word"):
        Connection("http://127.0.0.1", key)


@pytest.mark.parametrize("value", [{}, {"size": "1"}, {"size": True}, {"size": None}, [], None])
def test_what_another_server_answers_is_refused(value):
    with pytest.raises(ServiceFailed, match="has no 'size' that could be used"):
        object_in(value, "size", int)


def test_a_server_that_answered_before_is_waited_for_while_it_is_away():
    with ScriptedServer(answer({})) as server:
        connection = Connection(server.url, patience_seconds=0.3)
        assert connection.ask("GET", "/v1/generators") == {}
    with pytest.raises(ServiceFailed, match=r"the connection to .* was lost \(Connect"):
        connection.ask("GET", "/v1/generators")
