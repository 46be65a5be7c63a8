"""Thousands of hostile requests and files against a real server: its answers, and its state afterwards.

    python -m benchmarks.service.hostile                     10,000 attacks; docs/results/service/hostile.json
    python -m benchmarks.service.hostile --number 500 --json /tmp/hostile.json

The server runs in its own processes and requires keys; most attacks have a valid one. The aims: only 4xx as status (but
a range that may be ignored is answered with the file, and the connection may just end if a request never ends or is not
a request), no internals of the server in any answer, no key in its log, no job made, no file left, and a server that
works as before without using more memory.
"""

import argparse
import asyncio
import os
import platform
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.service.hostile_files import FILE_KINDS
from benchmarks.service.hostile_requests import KINDS, VALID, Attack, Known, attacks, request, to_json
from benchmarks.service.server_process import Server, serving
from weightgen.canonical_json import parse_json
from weightgen.files.storage import write_json

AT_ONCE, ANSWER_SECONDS, HALF_CLOSE_SECONDS = 16, 60.0, 1.0
MAX_GROWTH_MIB = 100
"""Limit over all processes, after a warm-up of a tenth of the attacks: reading uploads loads libraries once."""
SETTINGS = {"workers": 2, "max_request_seconds": 3, "max_requests_per_key_per_minute": 1_000_000}
NEVER_SENT = (
    "Traceback", "site-packages", 'File "', "sqlalchemy", "SQLite format 3", "root:x:0", "/proc/", "object at 0x",
    "-----BEGIN", "X-Injected", "x-injected",
)  # fmt: skip


@dataclass
class Seen:
    """The answers."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    """The first answers that should never occur."""
    num_faults: int = 0

    def add(self, attack: Attack, answer: bytes, *, secrets: Sequence[str]) -> None:
        """Count an answer, and look for text that it must not contain."""
        head, _, body = answer.partition(b"\r\n\r\n")
        words = head.split(b" ", 2)
        status = words[1].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") and len(words) > 1 else "none"
        self.statuses.setdefault(attack.kind, Counter())[status] += 1
        if not is_expected(attack, status):
            self._fault(f"{attack.kind}: {status} for {attack.sent[:300]!r}: {body[:200]!r}")
        text = answer.decode("latin-1")
        for secret in (*NEVER_SENT, *secrets):
            if secret in text:
                self._fault(f"{attack.kind}: an answer of status {status} has {secret[:20]!r}: {attack.sent[:300]!r}")

    def _fault(self, fault: str) -> None:
        self.num_faults += 1
        if len(self.faults) < 20:
            self.faults.append(fault)


def is_expected(attack: Attack, status: str) -> bool:
    """Whether an attack may get this status; "none" means that the connection ended without an answer."""
    if status == "none":
        return attack.may_be_silent
    return status.startswith("4") or (attack.may_succeed and status in ("200", "206"))


async def send_all(port: int, found: Iterable[Attack], seen: Seen, *, secrets: Sequence[str]) -> None:
    """Send every attack on its own connection, `AT_ONCE` at a time."""
    waiting = iter(found)

    async def send_some() -> None:
        for attack in waiting:
            seen.add(attack, await send(port, attack.sent, is_half_closed=attack.may_be_silent), secrets=secrets)

    await asyncio.gather(*(send_some() for _ in range(AT_ONCE)))


async def send(port: int, sent: bytes, *, is_half_closed: bool = False) -> bytes:
    """The answer until the connection ends; with `is_half_closed` the client closes its side after a while."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answer = b""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            write = asyncio.create_task(_write(writer, sent, is_half_closed=is_half_closed))
            try:
                while part := await reader.read(65536):
                    answer += part
            except OSError:
                pass  # the server closed the connection before it had read everything
            finally:
                write.cancel()
    except TimeoutError:
        return b"HTTP/1.1 hung \r\n\r\n"
    finally:
        writer.close()
    return answer


async def _write(writer: asyncio.StreamWriter, sent: bytes, *, is_half_closed: bool) -> None:
    try:
        writer.write(sent)
        await writer.drain()
        if is_half_closed:
            await asyncio.sleep(HALF_CLOSE_SECONDS)  # the server drops requests that it has not answered by then
            writer.write_eof()
    except OSError:
        pass


def make_key(server: Server) -> str:
    """A key with every scope, made by the operator's command."""
    command = [sys.executable, "-m", "service", "keys", "make", "--name", "attacker"]
    scopes = [word for scope in ("read", "generate", "upload") for word in ("--scope", scope)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WEIGHTGEN_")}
    environment["WEIGHTGEN_DATA_DIR"] = str(server.folder / "data")
    made = subprocess.run([*command, *scopes], cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    return made.stdout.strip()


def generate(server: Server, token: str, *, seed: int) -> dict[str, Any]:
    """A finished job of the server; raises RuntimeError if it does not make weights."""
    known = Known(token, "")
    sent = request(known, "POST", "/v1/generations", to_json({**VALID, "seed": seed, "support_per_class": 5}))
    body = asyncio.run(send(server.port, sent)).partition(b"\r\n\r\n")[2]
    job = parse_json(body, name="the answer")
    while job["state"] in ("queued", "running"):
        time.sleep(0.2)
        sent = request(known, "GET", f"/v1/jobs/{job['id']}")
        job = parse_json(asyncio.run(send(server.port, sent)).partition(b"\r\n\r\n")[2], name="the answer")
    if job["state"] != "succeeded":
        raise RuntimeError(f"the server does not make weights: {job}")
    return job


def count_jobs(server: Server) -> int:
    """Number of jobs of the server, from its metrics."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.split()[-1])) for line in lines if line.startswith("weightgen_jobs{"))


def attack_server(server: Server, *, number: int, seed: int) -> dict[str, Any]:
    """Attack a server; returns its answers, and its state before and after."""
    token = make_key(server)
    job = generate(server, token, seed=0)
    known = Known(token, job["result"]["artifact"])
    secrets = [token.split("_", 2)[2], str(server.folder), str(ROOT), sys.prefix]
    found = list(attacks(number, known, seed=seed, kinds={**KINDS, **FILE_KINDS}))
    seen, start, num_jobs = Seen(), time.monotonic(), count_jobs(server)
    asyncio.run(send_all(server.port, found[: number // 10], seen, secrets=secrets))
    before = server.resident_bytes()
    asyncio.run(send_all(server.port, found[number // 10 :], seen, secrets=secrets))
    seconds, after, made = time.monotonic() - start, server.resident_bytes(), count_jobs(server) - num_jobs
    again = generate(server, token, seed=1)
    kept = [path for name in ("scratch", "datasets") for path in (server.folder / "data" / name).rglob("*")]
    left = [path for path in kept if path.is_file() and path.stat().st_size > 0]  # a lock has no bytes
    log = (server.folder / "server.log").read_text(errors="replace")
    statuses = sum(seen.statuses.values(), Counter())
    met = {
        "nothing came back that should not": seen.num_faults == 0,
        "no job was made": made == 0,
        "no file of an upload is left": not left,
        "weights are made as before": again["state"] == "succeeded",
        f"memory grew by less than {MAX_GROWTH_MIB} MiB": after - before < MAX_GROWTH_MIB * 2**20,
        "no key is in the log": secrets[0] not in log,
        "no traceback is in the log": '"traceback"' not in log and "Traceback" not in log,
    }
    return {
        "sent": number,
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(statuses.items())),
        "by_kind": {kind: dict(sorted(counts.items())) for kind, counts in sorted(seen.statuses.items())},
        "unexpected": seen.num_faults,
        "first_unexpected": seen.faults,
        "memory_mib": {"after_warm_up": round(before / 2**20, 1), "at_the_end": round(after / 2**20, 1)},
        "met": met,
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--number", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "service" / "hostile.json")
    options = parser.parse_args(argv)
    with serving(**SETTINGS) as server:
        summary = attack_server(server, number=options.number, seed=options.seed)
    machine = {"cores": os.cpu_count(), "system": platform.platform()}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    settings = {"number": options.number, "seed": options.seed, "at_once": AT_ONCE, "server": SETTINGS}
    write_json(options.json, {"machine": machine, "settings": settings, **summary})
    print(render(summary))
    return int(not all(summary["met"].values()))


def render(summary: dict[str, Any]) -> str:
    lines = [f"{summary['sent']} attacks in {summary['seconds']} s: {summary['statuses']}"]
    lines += [f"{kind:20} {counts}" for kind, counts in summary["by_kind"].items()]
    lines += [f"unexpected: {fault}" for fault in summary["first_unexpected"]]
    lines += [f"{aim}: {'met' if is_met else 'missed'}" for aim, is_met in summary["met"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
