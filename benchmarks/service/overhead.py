"""Time that the HTTP layer adds to an inline generation: the same requests over HTTP and in this process, in turn.

    python -m benchmarks.service.overhead                            docs/results/service/overhead.json, a minute
    python -m benchmarks.service.overhead --pairs 20 --json /tmp/overhead.json

A round makes weights with a new seed once over HTTP on a kept-alive connection, and once by `make_weights` and `save`
in this process; the order alternates. Server and this process use one thread each and are warm. The aim is that the
median over HTTP is less than 10 ms above the other.
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.service.http_connection import Connection
from benchmarks.service.server_process import Server, serving
from model_zoo.lookup import look_up
from weightgen.files.storage import write_json
from weightgen.order import Order
from weightgen.pipeline import Job, make_weights
from weightgen.runtime.freed_memory import keep_freed_memory

AIM_SECONDS = 0.010
WARM_PAIRS = 3


async def ask(connection: Connection, asked: dict[str, Any]) -> float:
    """Seconds until the result arrives; inf if it is not inline."""
    answer = await connection.ask("POST", "/v1/generations", body=asked)
    assert answer.status in (201, 202), f"status {answer.status}: {answer.body[:200]!r}"
    return answer.seconds if answer.status == 201 else float("inf")  # not inline


def make(job: Job, asked: dict[str, Any], folder: Path) -> tuple[float, float]:
    """Wall clock and processor seconds of the same request in this process."""
    started, began = time.perf_counter(), time.thread_time()
    made = make_weights(job, Order.from_json(asked))
    made[0].save(folder / str(asked["seed"]))
    return time.perf_counter() - started, time.thread_time() - began


@dataclass
class Found:
    """The measured times."""

    seconds: list[tuple[float, float]] = field(default_factory=list)
    """(over HTTP, in this process) for each pair."""
    processor_seconds: tuple[float, float] = (0.0, 0.0)
    """Processor time of all pairs: (the server, this process)."""


async def measure(server: Server, job: Job, asked: dict[str, Any], *, pairs: int) -> Found:
    """The times of every pair, after a few pairs that warm up."""
    connection, found = Connection(server.port), Found()
    server_began, here_took = 0.0, 0.0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as pool:  # a thread, as in the server
        for number in range(-WARM_PAIRS, pairs):
            if number == 0:
                server_began, here_took = server.processor_seconds(), 0.0
            request = asked | {"seed": number + WARM_PAIRS}
            there = 0.0 if number % 2 else await ask(connection, request)
            here, took = pool.submit(make, job, request, Path(folder)).result()
            here_took += took
            there = there or await ask(connection, request)
            if number >= 0:
                found.seconds.append((there, here))
    found.processor_seconds = (server.processor_seconds() - server_began, here_took)
    await connection.close()
    return found


def summarize(found: Found) -> dict[str, Any]:
    """Medians, and whether the aim is met."""
    there, here = (statistics.median(side) for side in zip(*found.seconds, strict=True))
    server, own = (seconds / len(found.seconds) for seconds in found.processor_seconds)
    return {
        "over_http_ms": round(1000 * there, 2),
        "in_process_ms": round(1000 * here, 2),
        "added_ms": round(1000 * (there - here), 2),
        "median_of_differences_ms": round(1000 * statistics.median(a - b for a, b in found.seconds), 2),
        "processor_ms": {"server": round(1000 * server, 2), "in_process": round(1000 * own, 2)},
        "met": {"adds less than 10 ms at the median": there - here < AIM_SECONDS},
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--support-per-class", type=int, default=20)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "service" / "overhead.json")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as the servers do
    os.environ["OMP_NUM_THREADS"] = "1"  # for the server
    asked = {"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits"}
    job = look_up(Order.from_json(asked))
    asked |= {"support_per_class": options.support_per_class}
    settings = {"workers": options.workers, "runner_threads": 1}
    with serving(**settings) as server:
        found = asyncio.run(measure(server, job, asked, pairs=options.pairs))
    summary = summarize(found)
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "torch": torch.__version__}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    settings |= {"pairs": options.pairs, "request": asked}
    write_json(options.json, {"machine": machine, "settings": settings, **summary})
    print("\n".join(f"{name}: {value}" for name, value in summary.items()))
    return int(not all(summary["met"].values()))


if __name__ == "__main__":
    sys.exit(main())
