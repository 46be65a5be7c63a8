"""Throughput of small requests made in one pass, and one by one (`max_batch_jobs=1`), by two servers in turn.

    python -m benchmarks.service.batching                         docs/results/service/batching.json, five minutes
    python -m benchmarks.service.batching --requests 16 --rounds 2 --json /tmp/batching.json

A round posts many requests with new seeds at once and waits until all are done. The order of the servers alternates.
The same is measured with `make_weights_many` and `make_weights` in this process, by processor time, because other
programs may run on the machine. Each is measured with several numbers of examples per class: the fewer, the smaller a
pass. The aim is twice the throughput.
"""

import argparse
import asyncio
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.service.http_connection import Connection
from benchmarks.service.server_process import Server, serving
from model_zoo.lookup import look_up
from weightgen.files.storage import write_json
from weightgen.order import Order
from weightgen.pipeline import Job, make_weights, make_weights_many
from weightgen.runtime.freed_memory import keep_freed_memory

AIM = 2.0
SHOTS = (1, 5, 20)
BATCH = 8
NAMES = {"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits"}
PATIENCE_SECONDS = 300.0


async def make_one(port: int, asked: dict[str, Any]) -> None:
    """Post a request and wait for its end."""
    connection, end = Connection(port), time.monotonic() + PATIENCE_SECONDS
    answer = await connection.ask("POST", "/v1/generations", body=asked)
    while answer.json()["state"] in ("queued", "running"):
        assert time.monotonic() < end, "the job has not ended"
        await asyncio.sleep(0.25)  # rarely: frequent requests would take processor time from the server
        answer = await connection.ask("GET", f"/v1/jobs/{answer.json()['id']}")
    assert answer.json()["state"] == "succeeded", answer.body[:300]
    await connection.close()


async def run_round(server: Server, asked: dict[str, Any], seeds: Sequence[int]) -> tuple[float, float]:
    """Seconds until all are done, and processor seconds of the server."""
    began, processor = time.perf_counter(), server.processor_seconds()
    await asyncio.gather(*(make_one(server.port, {**asked, "seed": seed}) for seed in seeds))
    return time.perf_counter() - began, server.processor_seconds() - processor


async def measure_servers(together: Server, alone: Server, *, shots: int, requests: int, rounds: int) -> dict[str, Any]:
    """Requests per second of both servers, over rounds after one that warms up."""
    asked = {**NAMES, "support_per_class": shots}
    found: dict[str, list[tuple[float, float]]] = {"together": [], "one_by_one": []}
    for number in range(rounds + 1):
        sides = [("together", together), ("one_by_one", alone)]
        for name, server in sides if number % 2 else sides[::-1]:
            took = await run_round(server, asked, range(number * requests, (number + 1) * requests))
            if number:
                found[name].append(took)
    return compare_rounds(found, requests)


def measure_here(job: Job, *, shots: int, rounds: int) -> dict[str, Any]:
    """Requests per second of `BATCH` orders made together, and one by one, in wall clock and processor time."""
    found: dict[str, list[tuple[float, float]]] = {"together": [], "one_by_one": []}
    for number in range(rounds + 1):
        seeds = range(number * BATCH, (number + 1) * BATCH)
        orders = [job.order(support_per_class=shots, seed=seed) for seed in seeds]
        for name in list(found) if number % 2 else list(found)[::-1]:
            began, processor = time.perf_counter(), time.thread_time()
            if name == "together":
                make_weights_many([(job, order) for order in orders])
            else:
                for order in orders:
                    make_weights(job, order)
            if number:
                found[name].append((time.perf_counter() - began, time.thread_time() - processor))
    return compare_rounds(found, BATCH)


def compare_rounds(found: dict[str, list[tuple[float, float]]], requests: int) -> dict[str, Any]:
    """Medians over the rounds."""
    per_second = {name: requests / statistics.median(s for s, _ in took) for name, took in found.items()}
    processor = {name: statistics.median(s for _, s in took) / requests for name, took in found.items()}
    pairs = list(zip(found["together"], found["one_by_one"], strict=True))
    return {
        "requests_per_second": {name: round(value, 2) for name, value in per_second.items()},
        "processor_ms_per_request": {name: round(1000 * value, 1) for name, value in processor.items()},
        "ratio": round(statistics.median(alone / together for (together, _), (alone, _) in pairs), 2),
        "processor_ratio": round(statistics.median(alone / together for (_, together), (_, alone) in pairs), 2),
    }


async def measure_all(options: argparse.Namespace, job: Job) -> dict[str, Any]:
    results: dict[str, Any] = {"service": {}, "in_process": {}}
    common = {"workers": options.workers, "runner_threads": 1, "inline_seconds": 9, "max_queued_jobs": 4096}
    with serving(**common, max_batch_jobs=BATCH) as together, serving(**common, max_batch_jobs=1) as alone:
        for shots in options.shots:
            found = await measure_servers(
                together, alone, shots=shots, requests=options.requests, rounds=options.rounds
            )
            results["service"][f"{shots} a class"] = found
            print(f"service, {shots} a class: {found}", flush=True)
    for shots in options.shots:
        results["in_process"][f"{shots} a class"] = found = measure_here(job, shots=shots, rounds=options.rounds)
        print(f"in process, {shots} a class: {found}", flush=True)
    return results


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shots", type=int, nargs="+", default=SHOTS)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "service" / "batching.json")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    keep_freed_memory()  # as the servers do
    os.environ["OMP_NUM_THREADS"] = "1"  # for the servers
    job = look_up(Order.from_json(NAMES))
    results = asyncio.run(measure_all(options, job))
    met = {f"service, {shots}: at least twice": found["ratio"] >= AIM for shots, found in results["service"].items()}
    settings = {"requests": options.requests, "rounds": options.rounds, "workers": options.workers,
                "max_batch_jobs": BATCH, "runner_threads": 1, "request": NAMES}  # fmt: skip
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "torch": torch.__version__}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, {"machine": machine, "settings": settings, **results, "met": met})
    return int(not all(met.values()))


if __name__ == "__main__":
    sys.exit(main())
