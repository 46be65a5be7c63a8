"""SIGKILL at random moments under load: every accepted job is done exactly once, and no files are left behind.

    python -m benchmarks.service.chaos                             100 kills; docs/results/service/chaos.json
    python -m benchmarks.service.chaos --database postgresql       docs/results/service/chaos-postgresql.json
    python -m benchmarks.service.chaos --kills 3 --json /tmp/chaos.json

Clients post requests as fast as they are answered: new ones, repeated ones, and some with an Idempotency-Key. Meanwhile
the server is killed: all its processes, its parent, or one worker; in a fifth of the cases while it is still starting.
Afterwards every request is posted once more. These answers are compared with every earlier answer, with the files in
the server's folders, and, for some requests, with the answers of a server that was not killed.
"""

import argparse
import asyncio
import hashlib
import itertools
import os
import platform
import random
import shutil
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.service.http_connection import Answer, Connection
from benchmarks.service.killable_server import WAYS, KillableServer
from benchmarks.service.postgres_server import PostgresServer
from benchmarks.service.server_process import serving
from weightgen.files.storage import write_json

ASKED = {"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits", "support_per_class": 10}
SETTINGS = {
    "workers": 2,
    "lease_seconds": 3,
    "inline_seconds": 0.5,
    "max_queued_jobs": 64,
    "max_job_attempts": 100,  # high, or a job whose processes are killed three times in a row fails
}
END_SECONDS = 300.0
"""How long the server may take at the end for all accepted jobs."""
NUM_COMPARED = 10
"""Number of requests that are also sent to a server that is not killed."""
BROKEN = (OSError, EOFError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


@dataclass
class Ledger:
    """Requests that clients sent, and their answers."""

    seeds: "itertools.count[int]" = field(default_factory=itertools.count)
    sent: list[int] = field(default_factory=list)
    """Seeds that were posted, with or without an answer."""
    accepted: dict[int, set[str]] = field(default_factory=dict)
    """Seed -> ids of the jobs in the answers."""
    keys: dict[str, set[str]] = field(default_factory=dict)
    """Idempotency key -> ids of the jobs in the answers."""
    results: dict[int, set[str]] = field(default_factory=dict)
    """Seed -> artifacts in the answers."""
    statuses: Counter[str] = field(default_factory=Counter)
    posts: int = 0
    unexpected: list[str] = field(default_factory=list)
    """Answers that should never occur."""

    def write_down(self, seed: int, key: str, answer: Answer) -> None:
        self.statuses[str(answer.status)] += 1
        if answer.status in (201, 202):
            job = answer.json()
            self.accepted.setdefault(seed, set()).add(job["id"])
            if key:
                self.keys.setdefault(key, set()).add(job["id"])
            if job["result"] is not None:
                self.results.setdefault(seed, set()).add(job["result"]["artifact"])
        elif answer.status not in (429, 503):
            self.unexpected.append(f"{answer.status} {answer.body[:300]!r}")


async def post(connection: Connection, ledger: Ledger, seed: int, key: str) -> Answer | None:
    """Post a request and record the answer; None if there is none."""
    ledger.posts += 1
    try:
        headers = {"Idempotency-Key": key} if key else {}
        answer = await connection.ask("POST", "/v1/generations", body={**ASKED, "seed": seed}, headers=headers)
    except BROKEN as error:
        ledger.statuses[type(error).__name__] += 1
        return None
    ledger.write_down(seed, key, answer)
    return answer


async def act(port: int, ledger: Ledger, is_over: asyncio.Event, *, seed: int) -> None:
    """One client: posts each request until it is accepted, then the next one."""
    rng, connection = random.Random(seed), Connection(port)
    while not is_over.is_set():
        if ledger.sent and rng.random() < 0.3:
            asked = rng.choice(ledger.sent[-200:])
        else:
            asked = next(ledger.seeds)
            ledger.sent.append(asked)
        key = f"key of {asked}, {rng.randrange(2)}" if rng.random() < 0.5 else ""
        while not is_over.is_set():
            answer = await post(connection, ledger, asked, key)
            if answer is not None and answer.status in (201, 202):
                break
            await asyncio.sleep(rng.uniform(0.05, 0.5))
    await connection.close()


async def kill_often(server: KillableServer, kills: int, rng: random.Random) -> Counter[str]:
    """Kill the server `kills` times at random moments; returns how often in each way."""
    killed: Counter[str] = Counter()
    for number in range(kills):
        if rng.random() < 0.8:
            await asyncio.to_thread(server.wait_until_ready)
        await asyncio.sleep(rng.uniform(0, 3))
        way = await asyncio.to_thread(server.kill, rng.choice(WAYS), rng)
        killed[way] += 1
        print(f"kill {number + 1} of {kills}: {way}", file=sys.stderr)
    return killed


async def be_chaotic(server: KillableServer, *, kills: int, clients: int, seed: int) -> tuple[Ledger, Counter[str]]:
    """Run load and kills together; returns the clients' ledger and the kills by way."""
    ledger, is_over, rng = Ledger(), asyncio.Event(), random.Random(seed)
    await asyncio.to_thread(server.wait_until_ready)
    acting = [asyncio.create_task(act(server.port, ledger, is_over, seed=rng.randrange(2**32))) for _ in range(clients)]
    try:
        killed = await kill_often(server, kills, rng)
    finally:
        is_over.set()
        await asyncio.gather(*acting)
    return ledger, killed


async def settle(port: int, seeds: Sequence[int], *, seconds: float = END_SECONDS) -> dict[int, dict[str, Any]]:
    """Post every request once more; returns its job after it has ended, or as it is after `seconds`."""
    ledger, connection, jobs = Ledger(), Connection(port), {}
    end = time.monotonic() + seconds
    for seed in seeds:
        while seed not in jobs and time.monotonic() < end:
            answer = await post(connection, ledger, seed, "")
            if answer is not None and answer.status in (201, 202):
                jobs[seed] = answer.json()
            elif answer is not None and answer.status not in (429, 503):  # the job's problem
                jobs[seed] = {"id": None, "state": "failed", "result": None, "attempt": 0, "said": answer.json()}
    for seed in seeds:
        while jobs.get(seed, {}).get("state") in ("queued", "running") and time.monotonic() < end:
            await asyncio.sleep(0.05)
            jobs[seed] = (await connection.ask("GET", f"/v1/jobs/{jobs[seed]['id']}")).json()
    await connection.close()
    return jobs


async def read_artifact(port: int, result: dict[str, Any]) -> bool:
    """Whether every file of a result matches its sha256."""
    connection = Connection(port)
    for file in result["files"]:
        answer = await connection.ask("GET", f"/v1/artifacts/{result['artifact']}/files/{file['name']}")
        if answer.status != 200 or hashlib.sha256(answer.body).hexdigest() != file["sha256"]:
            return False
    await connection.close()
    return True


async def count_jobs(port: int) -> dict[str, int]:
    """How many jobs are in each state."""
    text = (await Connection(port).ask("GET", "/metrics")).body.decode()
    lines = (line for line in text.splitlines() if line.startswith("weightgen_jobs{"))
    return {line.split('"')[1]: int(float(line.rpartition(" ")[2])) for line in lines}


def find_orphans(data: Path, artifacts: set[str]) -> list[str]:
    """Unexpected files and folders in the data folder of a stopped server."""
    found = []
    for path in data.rglob("*"):
        parts = list(path.relative_to(data).parts)
        if parts[0] == "jobs.sqlite" or path.name.endswith("lock") or (len(parts) == 1 and path.is_dir()):
            continue
        is_artifact = parts[0] == "artifacts" and (len(parts) == 2 or parts[2].removesuffix(".json") in artifacts)
        if not is_artifact:
            found.append(str(path.relative_to(data)))
    return sorted(found)


def judge(ledger: Ledger, jobs: dict[int, dict[str, Any]], counts: dict[str, int]) -> dict[str, Any]:
    """Compare accepted requests with the jobs at the end."""
    states = Counter(job["state"] for job in jobs.values())
    answered = {seed: ids | {jobs[seed]["id"]} for seed, ids in ledger.accepted.items() if seed in jobs}
    artifacts = {seed: {job["result"]["artifact"]} for seed, job in jobs.items() if job["result"]}
    answers = {seed: shas | artifacts.get(seed, set()) for seed, shas in ledger.results.items()}
    attempts = Counter(job["attempt"] for job in jobs.values())
    return {
        "requests": len(jobs),
        "accepted": len(ledger.accepted),
        "posts": ledger.posts,
        "answers": dict(sorted(ledger.statuses.items())),
        "jobs": counts,
        "attempts": {str(attempt): number for attempt, number in sorted(attempts.items())},
        "lost": sum(seed not in jobs or jobs[seed]["state"] != "succeeded" for seed in ledger.accepted),
        "doubled": sum(len(ids) > 1 for ids in answered.values()) + counts.get("succeeded", 0) - states["succeeded"],
        "keys_with_two_jobs": sum(len(ids) > 1 for ids in ledger.keys.values()),
        "requests_with_two_results": sum(len(shas) > 1 for shas in answers.values()),
        "artifacts": len(set().union(*artifacts.values())) if artifacts else 0,
        "unexpected": ledger.unexpected[:10],
        "problems": [job["said"] for job in jobs.values() if "said" in job][:10],
    }


def run(options: argparse.Namespace, folder: Path, database: dict[str, str]) -> dict[str, Any]:
    """Run the whole benchmark; returns counts, times and findings."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = KillableServer(folder, port, **SETTINGS, **database)
    started = time.monotonic()
    try:
        server.start()
        ledger, killed = asyncio.run(
            be_chaotic(server, kills=options.kills, clients=options.clients, seed=options.seed)
        )
        chaos_seconds = time.monotonic() - started
        server.wait_until_ready()
        jobs = asyncio.run(settle(port, ledger.sent))
        settle_seconds = time.monotonic() - started - chaos_seconds
        results = [job["result"] for job in jobs.values() if job["result"]]
        intact = [asyncio.run(read_artifact(port, result)) for result in results]
        report = judge(ledger, jobs, asyncio.run(count_jobs(port)))
        server.stop()
        is_gone = server.wait_until_gone()  # Python's resource tracker and orphans take a moment
        server.start()  # the next start removes what the last killed processes left
        server.wait_until_ready(workers=SETTINGS["workers"])
        server.stop()
        is_gone = server.wait_until_gone() and is_gone
    finally:
        server.remove()
        if options.log:
            shutil.copy(server.log, options.log)
    return report | {
        "killed": dict(sorted(killed.items())),
        "damaged_artifacts": intact.count(False),
        "orphan_files": find_orphans(folder / "data", {result["artifact"] for result in results}),
        "orphan_processes": not is_gone,
        "other_bytes": compare_with_calm_server(jobs, seed=options.seed),
        "seconds": {"chaos": round(chaos_seconds, 1), "settling": round(settle_seconds, 1)},
        "tracebacks": server.log.read_text().count("Traceback"),
    }


def compare_with_calm_server(jobs: dict[int, dict[str, Any]], *, seed: int) -> int:
    """How many of some requests get another artifact from a server that is not killed."""
    done = [asked for asked, job in jobs.items() if job["result"]]
    chosen = random.Random(seed).sample(done, min(NUM_COMPARED, len(done)))
    with serving(workers=1) as calm:
        again = asyncio.run(settle(calm.port, chosen))
    return sum(again[asked]["result"]["artifact"] != jobs[asked]["result"]["artifact"] for asked in chosen)


def check_aims(report: dict[str, Any], *, kills: int) -> dict[str, bool]:
    """Aim -> whether it is met."""
    counts = report["jobs"]
    return {
        "every kill was dealt": sum(report["killed"].values()) == kills,
        "something was accepted, and every job succeeded": report["accepted"] > 0
        and counts["succeeded"] == report["requests"] == sum(counts.values()),
        "none lost": report["lost"] == 0,
        "none doubled": report["doubled"] == report["keys_with_two_jobs"] == 0,
        "one artifact a request, the same bytes": report["artifacts"] == report["requests"]
        and report["requests_with_two_results"] == report["damaged_artifacts"] == report["other_bytes"] == 0,
        "no orphan files or processes": not report["orphan_files"] and not report["orphan_processes"],
        "no answer but 201, 202, 429, 503": not report["unexpected"],
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--log", type=Path, help="where to keep the server's log")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    name = "chaos" if options.database == "sqlite" else "chaos-postgresql"
    place = options.json or ROOT / "docs" / "results" / "service" / f"{name}.json"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weightgen-chaos-")))
        database = {}
        if options.database == "postgresql":
            postgres = PostgresServer()
            stack.callback(postgres.remove)
            database = {"database_url": postgres.make_database()}
        report = run(options, folder, database)
    met = check_aims(report, kills=options.kills)
    settings = {"kills": options.kills, "clients": options.clients, "seed": options.seed, "request": ASKED,
                "database": options.database, "server": SETTINGS}  # fmt: skip
    machine = {"cores": os.cpu_count(), "system": platform.platform()}
    place.parent.mkdir(parents=True, exist_ok=True)
    write_json(place, {"machine": machine, "settings": settings, **report, "met": met})
    print(f"{report['requests']} requests, {report['posts']} posts, killed {report['killed']}, {report['seconds']}")
    print("\n".join(f"{aim}: {'met' if is_met else 'missed'}" for aim, is_met in met.items()))
    return int(not all(met.values()))


if __name__ == "__main__":
    sys.exit(main())
