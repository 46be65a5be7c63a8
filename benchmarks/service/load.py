"""Many clients at once: the server's answers, their times, and whether its memory grows.

    python -m benchmarks.service.load                              200 clients, 60 s; docs/results/service/load.json
    python -m benchmarks.service.load --clients 20 --seconds 10 --json /tmp/load.json

The server runs in its own processes, with its default settings. Each client keeps one connection and sends the next
request as soon as it has an answer. It asks for everything: new weights, weights made before, jobs, events, files
(whole, in part, unchanged), listings, estimates, Hub files. The aims: no status but 2xx, 304 and 429 (the queue is
bounded), no broken connection, and memory grows by less than 5% after a warm-up of a third of the time, at most 20 s.
"""

import argparse
import asyncio
import itertools
import os
import platform
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.service.http_connection import Answer, Connection
from benchmarks.service.server_process import Server, serving
from weightgen.files.storage import write_json

WARM_SECONDS, MAX_GROWTH = 20.0, 0.05
ASKED = {"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits", "support_per_class": 10}
NUM_READY = 8
"""Sets of weights that are made before the clients start."""
SAMPLE_SECONDS, FOLLOW_SECONDS = 0.5, 3.0
GOOD = (200, 201, 202, 206, 304, 429)


@dataclass
class Known:
    """Knowledge about the server that all clients share."""

    jobs: list[str] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    """(path, ETag) of each."""
    hub_files: list[str] = field(default_factory=list)
    seeds: "itertools.count[int]" = field(default_factory=lambda: itertools.count(NUM_READY))


@dataclass
class Seen:
    """Answers that the clients got."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, kind: str, status: str, seconds: float) -> None:
        self.statuses.setdefault(kind, Counter())[status] += 1
        self.seconds.setdefault(kind, []).append(seconds)


Act = Callable[[Connection, Known, random.Random], Awaitable[Answer]]


async def generate(connection: Connection, known: Known, rng: random.Random) -> Answer:
    answer = await connection.ask("POST", "/v1/generations", body={**ASKED, "seed": next(known.seeds)})
    if answer.status in (201, 202):
        known.jobs.append(answer.json()["id"])
    return answer


async def repeat(connection: Connection, known: Known, rng: random.Random) -> Answer:
    return await connection.ask("POST", "/v1/generations", body={**ASKED, "seed": rng.randrange(NUM_READY)})


async def poll(connection: Connection, known: Known, rng: random.Random) -> Answer:
    return await connection.ask("GET", f"/v1/jobs/{rng.choice(known.jobs)}")


async def follow(connection: Connection, known: Known, rng: random.Random) -> Answer:
    """Read events until the job ends, or for FOLLOW_SECONDS; then the client breaks off."""
    started = time.perf_counter()
    try:
        async with asyncio.timeout(FOLLOW_SECONDS):
            return await connection.ask("GET", f"/v1/jobs/{rng.choice(known.jobs[-50:])}/events")
    except TimeoutError:
        seconds = time.perf_counter() - started
        return Answer(200, {}, b"", seconds, seconds)


async def download(connection: Connection, known: Known, rng: random.Random) -> Answer:
    return await connection.ask("GET", rng.choice(known.files)[0])


async def download_range(connection: Connection, known: Known, rng: random.Random) -> Answer:
    return await connection.ask("GET", rng.choice(known.files)[0], headers={"Range": "bytes=16-255"})


async def revalidate(connection: Connection, known: Known, rng: random.Random) -> Answer:
    path, etag = rng.choice(known.files)
    return await connection.ask("GET", path, headers={"If-None-Match": etag})


async def list_names(connection: Connection, known: Known, rng: random.Random) -> Answer:
    return await connection.ask("GET", rng.choice(["/v1/generators", "/v1/architectures", "/v1/datasets"]))


async def estimate(connection: Connection, known: Known, rng: random.Random) -> Answer:
    return await connection.ask("POST", "/v1/estimate", body={**ASKED, "seed": rng.randrange(NUM_READY)})


async def read_hub(connection: Connection, known: Known, rng: random.Random) -> Answer:
    return await connection.ask(rng.choice(["HEAD", "GET"]), rng.choice(known.hub_files))


MIX: dict[Act, int] = {
    generate: 3,
    repeat: 15,
    poll: 20,
    follow: 5,
    download: 15,
    download_range: 10,
    revalidate: 10,
    list_names: 8,
    estimate: 4,
    read_hub: 10,
}
"""A client's action -> its share in percent."""


async def prepare(port: int) -> Known:
    """Let the server make a few sets of weights; returns their jobs and files."""
    known, connection = Known(), Connection(port)
    for seed in range(NUM_READY):
        answer = await connection.ask("POST", "/v1/generations", body={**ASKED, "seed": seed})
        while answer.status not in (200, 201) or answer.json()["state"] != "succeeded":
            if answer.status >= 400 or answer.json()["state"] in ("failed", "cancelled"):
                raise RuntimeError(f"weights for the benchmark could not be made: {answer.body[:500]!r}")
            await asyncio.sleep(0.1)
            answer = await connection.ask("GET", f"/v1/jobs/{answer.json()['id']}")
        job = answer.json()
        known.jobs.append(job["id"])
        result = job["result"]
        paths = [(f"/v1/artifacts/{result['artifact']}/files/{f['name']}", f["sha256"]) for f in result["files"]]
        known.files += [(path, f'"{sha}"') for path, sha in paths]
        known.hub_files += [f"/hf/{result['repository']}/resolve/main/{f['name']}" for f in result["files"]]
    await connection.close()
    return known


async def act_until(end: float, port: int, known: Known, seen: Seen, *, seed: int) -> None:
    """Run one client."""
    rng, connection = random.Random(seed), Connection(port)
    acts, weights = list(MIX), list(MIX.values())
    while time.monotonic() < end:
        act = rng.choices(acts, weights)[0]
        started = time.perf_counter()
        try:
            answer = await act(connection, known, rng)
            seen.add(act.__name__, str(answer.status), answer.seconds)
        except (OSError, EOFError, asyncio.IncompleteReadError) as error:
            seen.add(act.__name__, type(error).__name__, time.perf_counter() - started)
    await connection.close()


async def watch(end: float, server: Server, samples: list[tuple[float, int, int]]) -> None:
    """Sample (seconds since the start, resident bytes, open files) until the end."""
    start = time.monotonic()
    while time.monotonic() < end:
        samples.append((time.monotonic() - start, server.resident_bytes(), server.open_files()))
        await asyncio.sleep(SAMPLE_SECONDS)


async def load(server: Server, *, clients: int, seconds: float) -> tuple[Seen, list[tuple[float, int, int]]]:
    """Run `clients` at once for `seconds`; returns their answers and samples of the server's memory."""
    known, seen, samples = await prepare(server.port), Seen(), []
    end = time.monotonic() + seconds
    acting = (act_until(end, server.port, known, seen, seed=i) for i in range(clients))
    await asyncio.gather(watch(end, server, samples), *acting)
    return seen, samples


def summarize(seen: Seen, samples: Sequence[tuple[float, int, int]], *, seconds: float) -> dict[str, Any]:
    """Counts, times and memory, and whether each aim is met."""
    every = [s for found in seen.seconds.values() for s in found]
    statuses = sum(seen.statuses.values(), Counter())
    errors = {status: n for status, n in statuses.items() if not status.isdecimal() or int(status) not in GOOD}
    memory = describe_memory(samples, warm=min(WARM_SECONDS, seconds / 3))
    return {
        "requests": len(every),
        "requests_per_second": round(len(every) / seconds, 1),
        "statuses": dict(sorted(statuses.items())),
        "errors": errors,
        "milliseconds": {"all": _percentiles(every)} | {k: _percentiles(s) for k, s in sorted(seen.seconds.items())},
        "of_kind": {kind: dict(sorted(found.items())) for kind, found in sorted(seen.statuses.items())},
        "memory": memory,
        "met": {"no error but 429": not errors, "memory grows by less than 5%": memory["growth"] < MAX_GROWTH},
    }


def describe_memory(samples: Sequence[tuple[float, int, int]], *, warm: float) -> dict[str, Any]:
    """Resident memory after the warm-up and at the end (medians over a third of that time), and in between."""
    last = samples[-1][0]
    window = (last - warm) / 3  # long, because a batch of jobs takes some tens of MiB while it runs
    early = statistics.median(size for at, size, _ in samples if warm <= at <= warm + window)
    late = statistics.median(size for at, size, _ in samples if at >= last - window)
    step = max(1, len(samples) // 30)
    return {
        "warm_up_seconds": warm,
        "after_warm_up_mib": round(early / 2**20, 1),
        "at_the_end_mib": round(late / 2**20, 1),
        "growth": round(late / early - 1, 4),
        "mib_at_second": {f"{at:.0f}": round(size / 2**20, 1) for at, size, _ in samples[::step]},
        "most_open_files": max(files for _, _, files in samples),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "service" / "load.json")
    options = parser.parse_args(argv)
    with serving(workers=options.workers) as server:
        seen, samples = asyncio.run(load(server, clients=options.clients, seconds=options.seconds))
    summary = summarize(seen, samples, seconds=options.seconds)
    settings = {"clients": options.clients, "seconds": options.seconds, "workers": options.workers,
                "mix": {act.__name__: share for act, share in MIX.items()}, "request": ASKED}  # fmt: skip
    machine = {"cores": os.cpu_count(), "system": platform.platform()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, {"machine": machine, "settings": settings, **summary})
    print(render(summary))
    return int(not all(summary["met"].values()))


def render(summary: dict[str, Any]) -> str:
    lines = [f"{summary['requests']} requests, {summary['requests_per_second']} a second, {summary['statuses']}"]
    for kind, found in summary["milliseconds"].items():
        lines.append(f"{kind:16} p50 {found['p50']:8.1f} ms   p99 {found['p99']:8.1f} ms")
    memory = summary["memory"]
    lines.append(f"memory {memory['after_warm_up_mib']} -> {memory['at_the_end_mib']} MiB ({memory['growth']:+.1%})")
    lines += [f"{aim}: {'met' if is_met else 'missed'}" for aim, is_met in summary["met"].items()]
    return "\n".join(lines)


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{p}": round(1000 * ordered[min(len(ordered) - 1, len(ordered) * p // 100)], 2) for p in (50, 90, 99)}


if __name__ == "__main__":
    sys.exit(main())
