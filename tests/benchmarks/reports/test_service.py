"""The figures of the service in Markdown."""

import json

import pytest

from benchmarks.reports.service import RENDER, read_figures, render_figures

SPEED = {"file": "config.json", "bytes": 44, "connections": 16, "ratio": 0.61234,
         "requests_per_second": {"service": 6123.0, "nginx": 10_000.0}}  # fmt: skip
KILLED = {"killed": {"group": 60, "worker": 40}, "accepted": 1234, "lost": 0, "doubled": 2, "orphan_files": ["a"]}
FIGURES = {
    "overhead": {"added_ms": 4.25, "over_http_ms": 104.2, "in_process_ms": 99.9},
    "batching": {
        "service": {"5 a class": {"ratio": 1.84}, "20 a class": {"ratio": 1.5}},
        "in_process": {"5 a class": {"ratio": 2.1}},
    },
    "artifact_speed": {"aim": 0.5, "cells": [SPEED, {**SPEED, "connections": 64, "ratio": 1.2}]},
    "load": {
        "settings": {"clients": 200, "seconds": 60.0},
        "statuses": {"200": 4000, "429": 3, "500": 1},
        "errors": {"500": 1},
        "memory": {"growth": 0.0123, "after_warm_up_mib": 900.1, "at_the_end_mib": 911.2},
        "milliseconds": {"all": {"p50": 12.3, "p99": 1234.5}, "look": {"p50": 1.0, "p99": 2.0}},
    },
    "schemathesis": {"failures": [], "requests": 4321, "operations": 17},
    "hostile": {"sent": 10_000, "unexpected": 0, "statuses": {"400": 9000, "422": 1000}},
    "chaos": {**KILLED, "settings": {"database": "sqlite"}},
    "chaos-postgresql": {**KILLED, "settings": {"database": "postgresql"}},
}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("overhead", "| 4.2 ms (104 over HTTP, 100 in process) | service_overhead |"),
        ("batching", "| 1.8 with 5 a class, 1.5 with 20 a class; without the service 2.1 with 5 a class |"),
        ("artifact_speed", "of 44 bytes: at least 0.5 of nginx's rate | 0.61 over 16, 1.20 over 64 connections |"),
        ("load", "| 200 clients for 60 s: no error but 429 | 1 error: 200 4,000 times, 429 3 times, 500 1 times |"),
        ("load", "| 1.2% (900 to 911 MiB) |"),
        ("load", "| all 12 and 1,234; look 1 and 2 |"),
        ("schemathesis", "| 0 failures in 4,321 requests to 17 operations |"),
        ("hostile", "| 10,000 hostile requests and files: nothing but 4xx, no leak, server alive | 0 answers that"),
        ("chaos", "| 100 SIGKILLs under load on sqlite: none lost, none doubled | 1,234 accepted, 0 lost, 2 doubled"),
        ("chaos-postgresql", "| service_chaos --database postgresql |"),
    ],
)  # fmt: skip
def test_what_was_found_stands_beside_what_was_asked(name, said):
    assert said in render_figures({name: FIGURES[name]})


def test_every_file_of_figures_is_shown_in_one_table(tmp_path):
    for name, found in FIGURES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    read = read_figures(tmp_path)
    assert set(read) == set(RENDER) and len(render_figures(read).splitlines()) == 2 + len(RENDER) + 2


def test_where_nothing_was_measured_nothing_is_claimed(tmp_path):
    assert render_figures(read_figures(tmp_path)) == "Nothing was measured yet."
