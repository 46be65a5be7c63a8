"""A server in a process of its own, for tests of what only a process does: signals, several workers, its log."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.helpers.paths import ROOT

STAND_IN = """
import logging.config, sys, threading, time, uvicorn
from pathlib import Path
from service.telemetry.request_log import LOGGING
from tests.helpers.service_standins import stand_in_app

folder, port, drain_seconds = sys.argv[1:]
app, run = stand_in_app(Path(folder), inline_seconds=0, drain_seconds=float(drain_seconds))

def let_go():
    while not (Path(folder) / "go").exists():
        time.sleep(0.01)
    run.go_on.set()

run.go_on.clear()
threading.Thread(target=let_go, daemon=True).start()
uvicorn.run(app, port=int(port), log_config=LOGGING, access_log=False)
"""
"""A server of one process whose jobs are held until the file `go` is in its data folder."""


class ServerProcess:
    """A server that was started, and what it logs."""

    def __init__(self, arguments: list[str], *, port: int, log: Path, environment: dict[str, str]) -> None:
        self.port, self.log = port, log
        with log.open("wb") as file:
            self.process = subprocess.Popen(arguments, cwd=ROOT, env=os.environ | environment, stderr=file)

    def ask(self, method: str, path: str, **given: Any) -> httpx.Response:
        """The answer, once the server listens."""
        while True:
            try:
                return httpx.request(method, f"http://127.0.0.1:{self.port}{path}", timeout=60, **given)
            except httpx.ConnectError:
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.05)

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def wait(self) -> int:
        """The exit code, once it has ended."""
        return self.process.wait()

    def lines(self) -> list[dict[str, Any]]:
        """What it logged so far."""
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@contextmanager
def running_server(tmp_path: Path, **settings: Any) -> Iterator[ServerProcess]:
    """`python -m service` with settings by name, its data folder below `tmp_path`."""
    port = free_port()
    variables = {"data_dir": tmp_path / "data", "port": port, **settings}
    environment = {f"WEIGHTGEN_{name.upper()}": str(value) for name, value in variables.items()}
    arguments = [sys.executable, "-m", "service"]
    yield from _ended(ServerProcess(arguments, port=port, log=tmp_path / "server.log", environment=environment))


@contextmanager
def running_stand_in(tmp_path: Path, *, drain_seconds: float) -> Iterator[ServerProcess]:
    """A server whose jobs are held until `tmp_path` / "go" is there."""
    port = free_port()
    arguments = [sys.executable, "-c", STAND_IN, str(tmp_path), str(port), str(drain_seconds)]
    yield from _ended(ServerProcess(arguments, port=port, log=tmp_path / "server.log", environment={}))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def read_metric(text: str, name: str) -> float:
    """The sum of all samples whose line begins with `name`."""
    return sum(float(found) for found in re.findall(rf"^{re.escape(name)}.* (\S+)$", text, re.MULTILINE))


def _ended(server: ServerProcess) -> Iterator[ServerProcess]:
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.terminate()  # not killed: its workers would stay
        server.wait()
