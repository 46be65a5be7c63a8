"""The service in processes of its own, for benchmarks that ask it over HTTP, and what those processes hold.

Loopback only, in a temporary folder, with the settings that the caller gives over the defaults.
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

ROOT = Path(__file__).resolve().parents[1]
START_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    port: int
    pid: int
    folder: Path
    """Its data and its log `server.log`; gone afterwards."""

    def processes(self) -> list[int]:
        """The server's process and all below it that serve; Python's own resource tracker is none."""
        found, left = [], [self.pid]
        while left:
            pid = left.pop()
            try:
                children = [Path(f"/proc/{pid}/task/{t}/children").read_text() for t in os.listdir(f"/proc/{pid}/task")]
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            left += [int(child) for text in children for child in text.split()]
            if b"resource_tracker" not in line:
                found.append(pid)
        return sorted(found)

    def resident_bytes(self) -> int:
        """Memory in use by all its processes; what they share counts in each."""
        return sum(_read_pages(pid) for pid in self.processes()) * os.sysconf("SC_PAGE_SIZE")

    def processor_seconds(self) -> float:
        """Time that its processes have had of a processor."""
        return sum(_read_ticks(pid) for pid in self.processes()) / os.sysconf("SC_CLK_TCK")

    def open_files(self) -> int:
        """File descriptors of all its processes."""
        return sum(_count_files(pid) for pid in self.processes())


@contextmanager
def serving(**settings: Any) -> Iterator[Server]:
    """A server with these settings (`workers=2`), once it is ready; it is told to end afterwards."""
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
