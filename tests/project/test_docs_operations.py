"""docs/operations.md says what the code does."""

import json
import logging
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.settings import PREFIX, Settings
from service.settings_table import COMMAND, PAGE, main, put_table, render_settings
from service.telemetry.request_log import JsonLines
from tests.helpers.service_standins import ASKED, stand_in_app

TEXT = PAGE.read_text()


def test_the_table_of_settings_is_that_of_the_code():
    assert put_table(TEXT) == TEXT, f"docs/operations.md does not show the settings of the code; run: {COMMAND}"


def test_every_setting_has_one_line_with_its_default_and_what_it_is():
    lines = [line for line in render_settings().splitlines() if line.startswith("| `")]
    assert len(lines) == len(Settings.model_fields)
    for line, (name, field) in zip(lines, Settings.model_fields.items(), strict=True):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        assert len(cells) == 4 and all((cells[0], cells[1], cells[3])), line
        assert cells[0] == f"`{PREFIX}{name.upper()}`" and field.description


def test_a_limit_says_what_it_counts():
    units = {line.split("|")[1].strip(" `"): line.split("|")[3].strip() for line in render_settings().splitlines()}
    assert (units["WEIGHTGEN_MAX_BODY_BYTES"], units["WEIGHTGEN_LEASE_SECONDS"]) == ("bytes", "seconds")
    assert (units["WEIGHTGEN_MAX_QUEUED_JOBS"], units["WEIGHTGEN_HOST"]) == ("jobs", "")


def test_every_setting_that_the_page_names_exists():
    known = {PREFIX + name.upper() for name in Settings.model_fields} | {"WEIGHTGEN_SHARED"}
    assert set(re.findall(r"WEIGHTGEN_[A-Z][A-Z_]*[A-Z]", TEXT)) <= known


@pytest.mark.parametrize("is_stale", [False, True], ids=["fresh", "stale"])
def test_the_command_writes_the_table_and_only_compares_when_asked(tmp_path, monkeypatch, capsys, is_stale):
    page = tmp_path / "operations.md"
    page.write_text(TEXT.replace("| `WEIGHTGEN_PORT` |", "| `WEIGHTGEN_PROT` |") if is_stale else put_table(TEXT))
    monkeypatch.setattr("service.settings_table.PAGE", page)
    assert main(["--check"]) == int(is_stale)
    assert (f"run: {COMMAND}" in capsys.readouterr().err) == is_stale
    assert main([]) == 0 and page.read_text() == put_table(TEXT) and main(["--check"]) == 0


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> list[list[str]]:
    """The cells of the section's first table, without its head."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]


def test_the_metrics_of_the_page_are_those_of_the_server(tmp_path):
    app, _ = stand_in_app(tmp_path)
    with TestClient(app) as client:
        client.post("/v1/generations", json=ASKED)
        told = list(text_string_to_metric_families(client.get("/metrics").text))
    suffix = {"counter": "_total", "gauge": "", "histogram": ""}
    labels = {
        f"{found.name}{suffix[found.type]}": {name for s in found.samples for name in s.labels} - {"le"}
        for found in told
        if not found.name.endswith("_created")
    }
    documented = {name.strip("`"): set(re.findall(r"`(\w+)`", words)) for name, words, _ in rows("Metrics")}
    assert documented == labels
    queried = set(re.findall(r"weightgen_\w+", "\n".join(re.findall(r"```promql\n(.*?)```", TEXT, re.DOTALL))))
    assert {re.sub("_bucket$", "", name) for name in queried} <= set(labels)


def test_the_fields_of_the_log_are_those_of_the_page(tmp_path, caplog):
    app, _ = stand_in_app(tmp_path)
    caplog.handler.setFormatter(JsonLines())  # formats where the line is logged, as a server's handler does
    with caplog.at_level(logging.INFO, "service"), TestClient(app) as client:
        client.post("/v1/generations", json=ASKED)
    lines = [json.loads(line) for line in caplog.text.splitlines() if line.startswith("{")]
    ours = [line for line in lines if line["logger"].startswith("service")]
    told = {name for line in ours for name in line}
    documented = set(re.findall(r"`(\w+)`", " ".join(fields for fields, *_ in rows("Logs"))))
    assert told <= documented | {"time", "level", "logger", "message"}
    assert {"request", "job", "method", "path", "status", "seconds", "attempt"} <= told


def test_the_messages_about_jobs_are_those_of_the_runner():
    source = (PAGE.parents[1] / "service" / "jobs" / "runner.py").read_text()
    named = re.findall(r"`(job [a-z ]+)`", section("Logs").replace("\n", " "))
    assert len(named) >= 5 and all(message in source for message in named)
