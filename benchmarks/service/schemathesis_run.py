"""Compares the service's answers with its OpenAPI description, by schemathesis.

    python -m benchmarks.service.schemathesis_run                a few minutes; docs/results/service/schemathesis.json
    python -m benchmarks.service.schemathesis_run --examples 20 --json /tmp/schemathesis.json

Every operation gets examples, edge cases of its schema, random requests that the schema allows or forbids, and chains
of requests. The server runs in its own processes and requires keys. The aims: no 5xx but the described ones, no status,
header or body that is not described, and no answer without a key where a key is required.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.service.hostile import make_key
from benchmarks.service.server_process import Server, serving
from weightgen.files.storage import write_json

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "negative_data_rejection", "missing_required_header", "unsupported_method",
    "allow_header_conformance", "ignored_auth",
)  # fmt: skip
"""Without checks that everything the schema allows is accepted: a name of the right form may not exist."""
PHASES = ("examples", "coverage", "fuzzing", "stateful")
SETTINGS = {"workers": 2, "inline_seconds": 1, "max_requests_per_key_per_minute": 1_000_000}
LIMIT_SECONDS = 1800


def run_schemathesis(server: Server, token: str, *, examples: int, seed: int) -> dict[str, Any]:
    """Run schemathesis on the server; returns its report."""
    report = server.folder / "report.json"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"http://127.0.0.1:{server.port}/openapi.json",
        "--header", f"Authorization: Bearer {token}", "--checks", ",".join(CHECKS), "--phases", ",".join(PHASES),
        "--max-examples", str(examples), "--seed", str(seed), "--continue-on-failure", "--no-shrink",
        "--warnings", "off", "--report", "json", "--report-json-path", str(report),
        "--request-retries", "2", "--request-timeout", "120",  # a kept connection may end, and a busy machine be slow
    ]  # fmt: skip
    ended = subprocess.run(command, cwd=server.folder, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    if not report.exists():
        raise RuntimeError(f"schemathesis wrote no report: {ended.stdout[-1000:]} {ended.stderr[-1000:]}")
    return json.loads(report.read_text())


def summarize(report: dict[str, Any]) -> dict[str, Any]:
    """The part of the report that is kept."""
    failures = [{name: found[name] for name in ("title", "count", "operations")} for found in report["failures"]]
    cases = report["test_cases"]
    return {
        "schemathesis": report["schemathesis_version"],
        "seconds": round(report["running_time"], 1),
        "operations": report["operations"]["tested"],
        "requests": cases["generated"],
        "phases": {name: phase["status"] for name, phase in report["phases"].items()},
        "failures": failures,
        "errors": [f"{found['title']}, {found['count']} times" for found in report["errors"]],
        "met": {
            "every operation was tested": report["operations"]["tested"] == report["operations"]["total"],
            "no answer that is not described": not failures and not report["errors"] and report["complete"],
        },
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--examples", type=int, default=200, help="most random requests of an operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, default=ROOT / "docs" / "results" / "service" / "schemathesis.json")
    options = parser.parse_args(argv)
    with serving(**SETTINGS) as server:
        report = run_schemathesis(server, make_key(server), examples=options.examples, seed=options.seed)
    summary = summarize(report)
    machine = {"cores": os.cpu_count(), "system": platform.platform()}
    settings = {"examples": options.examples, "seed": options.seed, "checks": list(CHECKS), "server": SETTINGS}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, {"machine": machine, "settings": settings, **summary})
    print(render(summary))
    return int(not all(summary["met"].values()))


def render(summary: dict[str, Any]) -> str:
    lines = [f"{summary['requests']} requests of {summary['operations']} operations in {summary['seconds']} s"]
    lines += [
        f"{failure['title']}, {failure['count']} times: {', '.join(failure['operations'])}"
        for failure in summary["failures"]
    ]
    lines += summary["errors"]
    lines += [f"{aim}: {'met' if is_met else 'missed'}" for aim, is_met in summary["met"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
