"""Speed of a cached artifact from the service and of the same file from nginx, measured in turn by wrk.

    python -m benchmarks.service.artifact_speed     5 rounds of 4 s per cell; docs/results/service/artifact_speed.json
    python -m benchmarks.service.artifact_speed --rounds 1 --seconds 1 --json /tmp/speed.json

Both serve with two worker processes, on the same machine as wrk, which has one thread and keeps its connections open.
nginx uses sendfile and writes no log; the service logs and measures every request, as always. The files are config.json
and model.safetensors of a real `cnn-tiny` that the server generates, one file of 4 MiB, and one of 32 MiB, which is not
kept in memory. The aim is at least half of nginx's requests per second. Needs Debian's nginx and wrk.
"""

import argparse
import hashlib
import json
import os
import platform
import pwd
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.service.server_process import Server, serving
from weightgen.canonical_json import encode_json
from weightgen.files.storage import write_json

AIM = 0.5
LARGE_BYTES = 4 * 2**20
"""Size of the largest file that the service keeps in memory."""
STREAMED_BYTES = 32 * 2**20
CONNECTIONS = (1, 16, 64)
ASKED = {"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits"}
NGINX = """
user {user}; worker_processes 2; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000000; default_type application/octet-stream;
  client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; root {root}; }}
}}
"""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=4, help="seconds for one cell, one side, one round")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "service" / "artifact_speed.json")
    options = parser.parse_args(argv)
    for program in ("nginx", "wrk"):
        if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin") is None:
            print(f"{program} is not installed; apt-get install nginx wrk", file=sys.stderr)
            return 1
    with serving(workers=options.workers) as server:
        artifact = generate(server)
        added = [add_artifact(server.folder / "data" / "artifacts", size) for size in (LARGE_BYTES, STREAMED_BYTES)]
        files = [(artifact, "config.json"), *((sha, "model.safetensors") for sha in (artifact, *added))]
        with nginx(server.folder / "data" / "artifacts") as port:
            cells = [
                measure(server, port, sha, name, connections, rounds=options.rounds, seconds=options.seconds)
                for sha, name in files
                for connections in (CONNECTIONS if sha != added[-1] else CONNECTIONS[:2])  # 64 get none in time
            ]
    settings = {"rounds": options.rounds, "seconds": options.seconds, "workers": options.workers, "wrk_threads": 1}
    machine = {"cores": os.cpu_count(), "system": platform.platform()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, {"machine": machine, "settings": settings, "aim": AIM, "cells": cells})
    return 0


def measure(
    server: Server, nginx_port: int, sha: str, name: str, connections: int, *, rounds: int, seconds: int
) -> dict[str, Any]:
    """Requests per second of both sides, measured in turn, and the median of their ratio."""
    size = (server.folder / "data" / "artifacts" / sha[:2] / sha / name).stat().st_size
    ours = f"http://127.0.0.1:{server.port}/v1/artifacts/{sha}/files/{name}"
    theirs = f"http://127.0.0.1:{nginx_port}/{sha[:2]}/{sha}/{name}"
    for url in (ours, theirs):
        load(url, connections, 1)  # not counted
    rates: dict[str, list[float]] = {"service": [], "nginx": []}
    for number in range(rounds):
        sides = [("service", ours), ("nginx", theirs)]
        for side, url in sides if number % 2 else sides[::-1]:
            rates[side].append(load(url, connections, seconds))
    ratio = statistics.median(a / b for a, b in zip(rates["service"], rates["nginx"], strict=True))
    median = {side: round(statistics.median(found), 1) for side, found in rates.items()}
    print(f"{name:18} {size:8} bytes {connections:3} connections: {ratio:5.2f} of nginx ({median})", flush=True)
    return {"file": name, "bytes": size, "connections": connections, "requests_per_second": median,
            "ratio": round(ratio, 3), "is_met": ratio >= AIM}  # fmt: skip


def load(url: str, connections: int, seconds: int) -> float:
    """Answered requests per second by wrk; raises RuntimeError for any error."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s", url]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"{url}: {said}")
    found = re.search(r"Requests/sec:\s+([\d.]+)", said)
    assert found is not None, said
    return float(found[1])


def generate(server: Server) -> str:
    """The sha256 of an artifact that the server makes."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        request = urllib.request.Request(
            f"http://127.0.0.1:{server.port}/v1/generations",
            data=json.dumps(ASKED).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            if answer.status == 201:
                return json.load(answer)["result"]["artifact"]
    raise RuntimeError("the server did not make weights within 120 seconds")


def add_artifact(root: Path, size: int) -> str:
    """Put an artifact of one file into the store of service/artifacts/local_place.py; returns its sha256."""
    data = os.urandom(size)
    listing = [{"name": "model.safetensors", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}]
    text = encode_json(listing, name="the list")
    sha = hashlib.sha256(text).hexdigest()
    (root / sha[:2] / sha).mkdir(parents=True)
    (root / sha[:2] / sha / "model.safetensors").write_bytes(data)
    (root / sha[:2] / f"{sha}.json").write_bytes(text)
    return sha


@contextmanager
def nginx(root: Path) -> Iterator[int]:
    """Run an nginx that serves a folder; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="weightgen-nginx-") as name:
        (Path(name) / "nginx.conf").write_text(
            NGINX.format(folder=name, port=port, root=root, user=pwd.getpwuid(os.getuid()).pw_name)
        )
        command = [shutil.which("nginx", path="/usr/sbin:/usr/bin") or "nginx", "-p", name, "-c", f"{name}/nginx.conf"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            _wait_for(port)
            yield port
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
