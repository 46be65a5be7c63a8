import pytest

from tests.helpers.live_servers import ScriptedServer, answer, events, problem
from weightgen.client.events import follow
from weightgen.client.http import Connection
from weightgen.errors import NotFound, ServiceFailed

QUEUED, RUNNING, DONE = {"state": "queued"}, {"state": "running"}, {"state": "succeeded"}


def test_a_job_is_followed_to_its_end():
    with ScriptedServer(events(QUEUED, RUNNING, DONE, QUEUED)) as server:
        assert list(follow(Connection(server.url), "1")) == [QUEUED, RUNNING, DONE]
        assert server.asked == ["GET /v1/jobs/1/events"]


def test_a_stream_that_ends_or_breaks_is_taken_up_where_it_was():
    broken = events(RUNNING, first=2).replace(b"Content-Length: ", b"Content-Length: 9")
    with ScriptedServer(events(QUEUED), b"", broken, events(DONE, first=3)) as server:
        assert list(follow(Connection(server.url), "1")) == [QUEUED, RUNNING, DONE]
    last_seen = [request.lower().partition("last-event-id: ")[2].partition("\r")[0] for request in server.requests]
    assert last_seen == ["", "1", "1", "2"]


def test_data_on_several_lines_is_one_event():
    stream = b'retry: 5\r\nevent: job\r\ndata: {"state":\r\ndata: "cancelled"}\r\n\r\n'
    with ScriptedServer(answer(stream)) as server:
        assert list(follow(Connection(server.url), "1")) == [{"state": "cancelled"}]


def test_a_job_that_nobody_knows_is_told():
    said = problem("not-found", "404 Not Found", "no job is called '1'")
    with ScriptedServer(said) as server, pytest.raises(NotFound, match="no job is called '1'"):
        list(follow(Connection(server.url), "1"))


def test_a_stream_that_never_says_anything_ends_with_patience():
    with (
        ScriptedServer(*[events()] * 50) as server,
        pytest.raises(ServiceFailed, match="connection to .* was lost"),
    ):
        list(follow(Connection(server.url, patience_seconds=0.3), "1"))


@pytest.mark.parametrize("data", [b"data: [1]\n\n", b"data: {\n\n"], ids=["array", "broken"])
def test_an_event_that_is_no_job_is_refused(data):
    with ScriptedServer(answer(data)) as server, pytest.raises(ServiceFailed, match="something that is no JSON object"):
        list(follow(Connection(server.url), "1"))


def test_an_event_without_end_is_refused(monkeypatch):
    monkeypatch.setattr("weightgen.client.events.MAX_EVENT_CHARS", 1000)
    with ScriptedServer(answer(b"data: x\n" * 1000)) as server, pytest.raises(ServiceFailed, match="larger than any"):
        list(follow(Connection(server.url), "1"))
