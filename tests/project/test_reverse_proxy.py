"""The proxy of docs/operations.md, run as it is written there: TLS outside, events as they happen, no metrics."""

import re
import shutil
import subprocess
import time
from contextlib import closing

import httpx
import pytest

from tests.helpers.paths import ROOT
from tests.helpers.service_process import free_port, running_stand_in
from tests.helpers.service_standins import ASKED

PAGE = ROOT / "docs" / "operations.md"
FRAME = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    {server}
}}
"""


@pytest.fixture
def proxy(tmp_path):
    """Starts the proxy in front of a port, and returns a client of it."""
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin:/usr/local/sbin")
    if nginx is None or not shutil.which("openssl"):
        pytest.skip("nginx and openssl are not both installed; on Debian: apt-get install nginx openssl")
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int) -> httpx.Client:
        outside = free_port()
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-keyout", str(tmp_path / "weights.key"), "-out", str(tmp_path / "weights.pem")],
            check=True, capture_output=True,
        )  # fmt: skip
        (server,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
        for written, here in (
            ("listen 443 ssl", f"listen 127.0.0.1:{outside} ssl"),
            ("http://127.0.0.1:8000", f"http://127.0.0.1:{port}"),
            ("/etc/ssl/", f"{tmp_path}/"),
        ):
            assert written in server
            server = server.replace(written, here)
        (tmp_path / "nginx.conf").write_text(FRAME.format(folder=tmp_path, server=server))
        started.append(
            subprocess.Popen([nginx, "-e", f"{tmp_path}/error.log", "-c", f"{tmp_path}/nginx.conf", "-p", tmp_path])
        )
        client = httpx.Client(base_url=f"https://localhost:{outside}", verify=False, timeout=60)
        while True:
            try:
                client.get("/healthz")
                return client
            except httpx.ConnectError:
                assert started[-1].poll() is None, (tmp_path / "error.log").read_text()
                time.sleep(0.05)

    yield start
    for process in started:
        process.terminate()
        process.wait()


def test_a_client_outside_is_served_over_tls_and_sees_events_as_they_happen(proxy, tmp_path):
    with running_stand_in(tmp_path, drain_seconds=0) as server:
        server.ask("GET", "/healthz")
        with closing(proxy(server.port)) as client:
            job = client.post("/v1/generations", json=ASKED).json()
            with client.stream("GET", f"/v1/jobs/{job['id']}/events") as events:
                lines = events.iter_lines()
                first = next(lines)
                assert first.startswith("id: "), "the job is held: an event that arrives now was not kept back"
                (tmp_path / "go").touch()
                assert any('"state":"succeeded"' in line for line in lines)
            artifact = client.get(f"/v1/jobs/{job['id']}").json()["result"]["artifact"]
            path = f"/v1/artifacts/{artifact}/files/model.safetensors"
            part = client.get(path, headers={"Range": "bytes=0-7"})
            assert (part.status_code, len(part.content)) == (206, 8)
            assert client.get(path, headers={"If-None-Match": part.headers["etag"]}).status_code == 304
            assert client.get("/metrics").status_code == 403
            ids = {client.get("/version").headers["x-request-id"] for _ in range(3)}
            assert len(ids) == 3 and ids <= {line.get("request") for line in server.lines()}
