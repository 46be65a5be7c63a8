"""The figures of the service (docs/results/service/*.json, written by `benchmarks.service`) in Markdown."""

import json
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.reports.markdown import render_table

Figures = dict[str, Any]
Row = tuple[str, str, str]
"""(aim, finding, benchmark that measured it)"""


def read_figures(folder: Path) -> dict[str, Figures]:
    """Name of a file -> its figures; {} if nothing was measured."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def render_figures(figures: dict[str, Figures]) -> str:
    """A table of aims and findings."""
    rows = [row for name, render in RENDER.items() if name in figures for row in render(figures[name])]
    if not rows:
        return "Nothing was measured yet."
    return render_table(("asked", "found", "`python -m benchmarks.…`"), rows)


def _overhead(found: Figures) -> Iterator[Row]:
    said = (
        f"{found['added_ms']:.1f} ms ({found['over_http_ms']:.0f} over HTTP, {found['in_process_ms']:.0f} in process)"
    )
    yield "HTTP adds less than 10 ms to an inline generation, at the median", said, "service_overhead"


def _batching(found: Figures) -> Iterator[Row]:
    ratios = {place: _join_ratios(found[place]) for place in ("service", "in_process")}
    said = f"{ratios['service']}; without the service {ratios['in_process']}"
    yield "small requests that wait together: twice the throughput of one by one", said, "service_batching"


def _join_ratios(found: Figures) -> str:
    return ", ".join(f"{one['ratio']:.1f} with {shots}" for shots, one in sorted(found.items(), key=_first_number))


def _first_number(item: tuple[str, Any]) -> int:
    return int(item[0].split()[0])


def _artifact_speed(found: Figures) -> Iterator[Row]:
    for (name, size), cells in groupby(found["cells"], key=lambda cell: (cell["file"], cell["bytes"])):
        said = ", ".join(f"{cell['ratio']:.2f} over {cell['connections']}" for cell in cells)
        asked = f"{name} of {size:,} bytes: at least {found['aim']} of nginx's rate"
        yield asked, f"{said} connections", "service_artifact_speed"


def _load(found: Figures) -> Iterator[Row]:
    clients, seconds = found["settings"]["clients"], found["settings"]["seconds"]
    statuses = _join_statuses(found)
    yield (
        f"{clients} clients for {seconds:.0f} s: no error but 429",
        f"{_answer(found, 'error')}: {statuses}",
        "service_load",
    )
    memory = found["memory"]
    said = f"{100 * memory['growth']:.1f}% ({memory['after_warm_up_mib']:.0f} to {memory['at_the_end_mib']:.0f} MiB)"
    yield "… memory grows by less than 5% after the warm-up", said, "service_load"
    said = "; ".join(f"{kind} {ms['p50']:,.0f} and {ms['p99']:,.0f}" for kind, ms in found["milliseconds"].items())
    yield "… milliseconds at the median and at p99", said, "service_load"


def _schemathesis(found: Figures) -> Iterator[Row]:
    said = f"{_answer(found, 'failure')} in {found['requests']:,} requests to {found['operations']} operations"
    yield "schemathesis: no 5xx, no undocumented status", said, "service_schemathesis"


def _hostile(found: Figures) -> Iterator[Row]:
    statuses = _join_statuses(found)
    said = f"{found['unexpected']} answers that should not be; {statuses}"
    said += " (200: Range headers that a server may ignore; none: no request, so the connection was closed)"
    yield (
        f"{found['sent']:,} hostile requests and files: nothing but 4xx, no leak, server alive",
        said,
        "service_hostile",
    )


def _chaos(found: Figures) -> Iterator[Row]:
    killed = sum(found["killed"].values())
    said = (
        f"{found['accepted']:,} accepted, {found['lost']} lost, {found['doubled']} doubled, "
        f"{len(found['orphan_files'])} orphan files"
    )
    database = found["settings"]["database"]
    option = "" if database == "sqlite" else f" --database {database}"
    yield f"{killed} SIGKILLs under load on {database}: none lost, none doubled", said, f"service_chaos{option}"


def _join_statuses(found: Figures) -> str:
    return ", ".join(f"{status} {number:,} times" for status, number in found["statuses"].items())


def _answer(found: Figures, what: str) -> str:
    number = sum(found["errors"].values()) if what == "error" else len(found["failures"])
    return f"{number} {what}{'' if number == 1 else 's'}"


RENDER: dict[str, Callable[[Figures], Iterator[Row]]] = {
    "overhead": _overhead,
    "batching": _batching,
    "artifact_speed": _artifact_speed,
    "load": _load,
    "schemathesis": _schemathesis,
    "hostile": _hostile,
    "chaos": _chaos,
    "chaos-postgresql": _chaos,
}
"""Name of a file -> function that makes its rows."""
