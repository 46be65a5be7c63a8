"""docs/operations.md says what the code does."""

import re

import pytest

from service.settings import PREFIX, Settings
from service.settings_table import COMMAND, PAGE, main, put_table, render_settings

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
