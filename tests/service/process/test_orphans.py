"""Workers whose parent was killed leave by themselves, and the next server gets their port."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx

from service.process.orphans import leave_with_parent, wait_for_port
from tests.helpers.paths import ROOT


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def start(folder: Path, port: int) -> subprocess.Popen[bytes]:
    settings = {"WEIGHTGEN_DATA_DIR": str(folder), "WEIGHTGEN_PORT": str(port), "WEIGHTGEN_WORKERS": "2"}
    with open(folder / "log", "ab") as log:
        return subprocess.Popen([sys.executable, "-m", "service"], cwd=ROOT, env=os.environ | settings, stderr=log)


def wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    while server.poll() is None:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=60).raise_for_status() and None
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server ended")


def test_the_workers_of_a_killed_server_leave_and_the_next_one_gets_their_port(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    first = start(tmp_path, port)
    wait_until_ready(first, port)
    orphans = children_of(first.pid)
    assert len(orphans) >= 2
    first.kill()
    first.wait()
    second = start(tmp_path, port)
    try:
        while any(map(is_alive, orphans)):  # or one of them would be asked whether it is ready
            time.sleep(0.05)
        wait_until_ready(second, port)
    finally:
        second.send_signal(signal.SIGTERM)
        assert second.wait() == 0
    log = (tmp_path / "log").read_text()
    assert "the worker leaves" in log and "Traceback" not in log, log


def test_a_process_that_is_no_worker_watches_nobody():
    leave_with_parent(lambda: None, is_serving=lambda: True)
    assert "orphan-watch" not in [thread.name for thread in threading.enumerate()]


def test_a_port_is_waited_for_until_it_is_free():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        waiting = threading.Thread(target=wait_for_port, args=("127.0.0.1", port), kwargs={"seconds": 600})
        waiting.start()
        assert waiting.is_alive()
    waiting.join()
    wait_for_port("192.0.2.1", port, seconds=600)  # no address of this machine: whoever binds it is told
