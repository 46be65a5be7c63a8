"""The service in its own processes, for benchmarks over HTTP, and the memory, time and files of those processes.

It listens on loopback only, in a temporary folder. The caller's settings replace the defaults.
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import ROOT

START_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """A running server."""

    port: int
    pid: int
    folder: Path
    """Its data and its log `server.log`; removed at the end."""

    def processes(self) -> list[int]:
        """The server's process and its descendants, without Python's resource tracker."""
        found, left = [], [self.pid]
        while left:
            pid = left.pop()
            try:
                children = [Path(f"/proc/{pid}/task/{t}/children").read_text() for t in os.listdir(f"/proc/{pid}/task")]
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # the process has ended
                continue
            left += [int(child) for text in children for child in text.split()]
            if b"resource_tracker" not in line:
                found.append(pid)
        return sorted(found)

    def resident_bytes(self) -> int:
        """Resident memory of all its processes, in bytes; shared memory counts in each."""
        return sum(_read_pages(pid) for pid in self.processes()) * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> float:
        """Processor time of all its processes, in seconds."""
        return sum(_read_ticks(pid) for pid in self.processes()) / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> int:
        """Number of file descriptors of all its processes."""
        return sum(_count_files(pid) for pid in self.processes())


@contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    """Run a server with these settings (such as `workers=2`), ready to answer; it is stopped afterwards."""
    with tempfile.TemporaryDirectory(prefix="weightgen-bench-") as name:
        folder = Path(name)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        variables = {"port": port, "data_dir": folder / "data", **settings}
        environment = {k: v for k, v in os.environ.items() if not k.startswith("WEIGHTGEN_") or k == "WEIGHTGEN_SHARED"}
        environment |= {f"WEIGHTGEN_{key.upper()}": str(value) for key, value in variables.items()}
        with (folder / "server.log").open("wb") as log:
            process = subprocess.Popen([sys.executable, "-m", "service"], cwd=ROOT, env=environment, stderr=log)
        try:
            _wait_until_ready(process, port, folder / "server.log")
            yield Server(port=port, pid=process.pid, folder=folder)
        finally:
            process.terminate()
            process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=10):
                return
        except (urllib.error.URLError, OSError):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.1)


def _read_pages(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0


def _read_ticks(pid: int) -> int:
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(words[11]) + int(words[12])


def _count_files(pid: int) -> int:
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0
