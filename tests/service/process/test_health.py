import pytest

from service.process.health import health_url, main
from tests.helpers.service_process import free_port, running_stand_in


@pytest.mark.parametrize(
    ("host", "url"),
    [
        (None, "http://127.0.0.1:8000/healthz"),
        ("0.0.0.0", "http://127.0.0.1:8000/healthz"),
        ("::", "http://[::1]:8000/healthz"),
        ("::1", "http://[::1]:8000/healthz"),
        ("10.0.0.7", "http://10.0.0.7:8000/healthz"),
    ],
)
def test_the_server_is_asked_where_it_listens(host, url):
    assert health_url({} if host is None else {"WEIGHTGEN_HOST": host}) == url
    assert health_url({"WEIGHTGEN_PORT": "9"}) == "http://127.0.0.1:9/healthz"


def test_the_exit_code_says_whether_the_server_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WEIGHTGEN_PORT", str(free_port()))
    assert main() == 1 and "does not answer" in capsys.readouterr().err
    with running_stand_in(tmp_path, drain_seconds=0) as server:
        server.ask("GET", "/healthz")
        monkeypatch.setenv("WEIGHTGEN_PORT", str(server.port))
        assert main() == 0
