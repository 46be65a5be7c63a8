"""A server that is killed in several ways, and started again on the same port and folder."""

import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks import ROOT

START_SECONDS = 120.0
WAYS = ("group", "parent", "worker")
"""What is killed: all processes, only the parent (its workers must then end), or one worker (it is replaced)."""


class KillableServer:
    """`python -m service` in its own session."""

    def __init__(self, folder: Path, port: int, **settings: Any) -> None:
        self.folder, self.port = folder, port
        self._settings = {"port": port, "data_dir": folder / "data", "workers": 2, **settings}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_begins = 0
        self.sessions: list[int] = []
        """Every process group that was started."""

    @property
    def log(self) -> Path:
        return self.folder / "server.log"

    def start(self) -> None:
        """Start it without waiting."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WEIGHTGEN_") or k == "WEIGHTGEN_SHARED"}
        environment |= {f"WEIGHTGEN_{key.upper()}": str(value) for key, value in self._settings.items()}
        self._log_begins = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "service"], cwd=ROOT, env=environment, stderr=log, start_new_session=True
            )
        self.sessions.append(self._process.pid)

    def is_ready(self) -> bool:
        """Whether it answers; raises RuntimeError with the end of its log if it has ended by itself."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=10):
                return True
        except (urllib.error.URLError, OSError):
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"the server ended by itself: {self.log.read_text()[-2000:]}") from None
            return False

    def wait_until_ready(self, *, workers: int = 1) -> None:
        """Wait until it answers and `workers` of its workers have begun to serve."""
        end = time.monotonic() + START_SECONDS
        while not (self.is_ready() and self._num_begun() >= workers):
            if time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def kill(self, way: str, rng: random.Random) -> str:
        """Kill it in one of WAYS, and start it again unless its parent lives; returns what was really killed."""
        assert self._process is not None
        workers = self._workers() if way == "worker" else []
        if workers:
            os.kill(rng.choice(workers), signal.SIGKILL)
            return "worker"
        if way == "group":
            os.killpg(self._process.pid, signal.SIGKILL)
        else:  # the parent is requested, or there is no worker yet
            self._process.kill()
        self._process.wait()
        self.start()
        return "group" if way == "group" else "parent"

    def stop(self) -> None:
        """End it with SIGTERM."""
        assert self._process is not None
        self._process.terminate()
        self._process.wait()

    def wait_until_gone(self, *, seconds: float = 30.0) -> bool:
        """Whether all started processes have ended within `seconds`."""
        end = time.monotonic() + seconds
        while self.living_sessions() and time.monotonic() < end:
            time.sleep(0.1)
        return not self.living_sessions()

    def remove(self) -> None:
        """Kill all processes that are left."""
        for session in self.living_sessions():
            os.killpg(session, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def living_sessions(self) -> list[int]:
        """Process groups that still have running processes."""
        return [session for session in self.sessions if _has_processes(session)]

    def _workers(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in _command_line(int(child))]

    def _num_begun(self) -> int:
        with self.log.open("rb") as log:
            log.seek(self._log_begins)
            return log.read().count(b"Application startup complete")


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _has_processes(session: int) -> bool:
    """Whether a process group has a running process; zombies do not count."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = status.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(group) == session and state != "Z":
            return True
    return False
