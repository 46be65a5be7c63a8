"""The README and docs say what is true: snippets run, figures come from JSON, lists match registries, links lead on."""

import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reports.d2nwg import read_study
from benchmarks.reports.report import mean_accuracy, render, render_training, render_zoo, replace_block, written
from model_zoo.architectures import ARCHITECTURES
from model_zoo.released import FOLDER, RELEASED, expected_hashes
from model_zoo.zoo.training_zoo import summarize
from tests.helpers.live_servers import live_generation
from tests.helpers.paths import ROOT
from weightgen.files.storage import sha256_file
from weightgen.generators import METHODS, load_generator

DOCS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
LINKED = sorted([*DOCS, *(ROOT / "model_zoo").rglob("*.md")])
EXPERIMENTS = sorted((ROOT / "docs" / "experiments").glob("*.md"))
PARTS = ["Aim", "Set-up", "Command", "Result", "Verdict"]
"""What every entry of docs/experiments has, in this order."""
README = (ROOT / "README.md").read_text()
STUDY = read_study(ROOT / "docs" / "results" / "d2nwg")
SERVED = "http://127.0.0.1:8000"
"""Where `make serve` answers; snippets that ask there get a server of their own."""
RESULTS = {p.name: json.loads(p.read_text()) for p in sorted((ROOT / "docs" / "results").glob("*.json"))}


def doc_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def snippets(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    lines = "\n".join(snippets(text, "console")).splitlines()
    return [line.partition("#")[0].strip() for line in lines if line.strip()]


def need_released(text: str) -> None:
    """Skip what names a released generator whose file this copy does not hold yet."""
    for name, file in RELEASED.items():
        if re.search(rf"\b{name}\b", text) and not (FOLDER / file).is_file():
            pytest.skip(f"generator {name!r} has not been released yet")


def run_python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


@pytest.mark.parametrize("path", DOCS, ids=doc_id)
def test_python_snippets_run(path, tmp_path):
    code = "\n".join(snippets(path.read_text(), "python"))
    if not code:
        return
    need_released(code)
    with contextlib.ExitStack() as stack:
        if SERVED in code:
            code = code.replace(SERVED, stack.enter_context(live_generation(tmp_path / "served"))[0])
        done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("line", [c for c in commands(README) if c.startswith("weightgen ")])
def test_commands_of_the_readme_run(line, tmp_path):
    need_released(line)
    done = run_python(f"import sys; sys.argv = {shlex.split(line)!r}; from weightgen.cli import main; main()", tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCS, ids=doc_id)
def test_make_targets_that_docs_name_exist(path):
    named = set(
        re.findall(r"\bmake ([a-z][a-z-]*)\b", "\n".join(re.findall(r"`[^`\n]*`|^make .*", path.read_text(), re.M)))
    )
    made = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= made


def anchors(path: Path) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", path.read_text(), flags=re.M | re.S), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("path", LINKED, ids=doc_id)
def test_links_lead_to_files_and_headings(path):
    absent = []
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if "://" not in link and not (target.exists() and (not anchor or anchor in anchors(target))):
            absent.append(link)
    assert absent == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=doc_id)
def test_every_experiment_has_its_five_parts_and_a_line_in_the_index(path):
    entries = re.split(r"^## ", path.read_text(), flags=re.MULTILINE)[1:]
    index = (ROOT / "docs" / "experiments.md").read_text()
    assert [a for a in anchors(path)[1:] if f"(experiments/{path.name}#{a})" not in index] == []
    for entry in entries:
        assert re.findall(r"^\*\*([A-Z][a-z-]+)\.\*\*", entry, re.MULTILINE) == PARTS, entry.splitlines()[0]


def test_readme_and_cards_show_the_figures_of_the_committed_results():
    stale = [str(path) for path, text in written().items() if path.read_text() != text]
    assert stale == [], "run: make report"


def test_report_replaces_only_what_stands_between_the_markers():
    text = "before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n"
    assert replace_block(text, "new") == text.replace("old", "new")


def test_report_shows_what_a_generator_learnt_in_stages_and_what_a_zoo_holds():
    scores = {"generated": 0.7, "unrefined": 0.65, "unconditioned": 0.6, "decoded": 0.5, "original": 0.4}
    training = {
        "held_out_tasks": {"cnn-tiny/1x28x28": scores},
        "spent": {"denoiser": {"steps": 1200, "minutes": 3.2}},
        "data": {"mnist": "free"},
    }
    text = render_training(training)
    assert "| cnn-tiny/1x28x28 | 70.0 | 65.0 | 60.0 | 50.0 | 40.0 |" in text
    assert "denoiser: 1,200 steps, 3 minutes" in text and "| mnist | free |" in text
    row = {"arch": "mlp", "in_channels": 1, "dataset": "mnist", "classes": [1, 0], "steps": [5], "test_accuracy": [0.5]}
    text = render_zoo(summarize([row, row]))
    assert "2 runs, 1 tasks, 2 checkpoints." in text and "| mnist | 2 | 50.0 |" in text


def test_report_shows_which_architectures_a_generator_learnt_from():
    held_out = {"cnn": {"generated": 0.8, "unrefined": 0.7, "unconditioned": 0.65, "random trunk": 0.5}}
    training = {
        "members": {"cnns": 30, "mlps": 10},
        "steps": 1200,
        "cpu_seconds": 90.0,
        "held_out": held_out,
        "refinements": {"networks": ["cnn"], "accuracy": {"none": 0.7, "8 steps": 0.8}},
        "data": {"mnist": "free"},
    }
    text = render_training(training)
    assert "40 architectures: 30 cnns, 10 mlps. 1,200 steps, 2 CPU minutes." in text
    assert "| cnn | 80.0 | 70.0 | 65.0 | 50.0 |" in text and "none: 70.0, 8 steps: 80.0" in text


def test_report_shows_every_data_set_with_the_best_in_bold_and_the_mean_below():
    scores = {"seconds": {"generate": 0.01, "scratch": 2.0}}
    result = {
        "generator": {"name": "mip"},
        "arch": "cnn-tiny",
        "per_class": 20,
        "data": {
            "digits": scores | {"accuracy": {"generated": 0.9, "scratch": 0.8}},
            "coil20": scores | {"accuracy": {"generated": 0.5, "scratch": 0.75}},
        },
    }
    text = render([result])
    assert "| coil20 | 50.0 | **75.0** |" in text
    assert "| digits | **90.0** | 80.0 |" in text
    assert f"| **mean** | {100 * mean_accuracy(result, 'generated'):.1f} |" in text
    assert "200 times faster" in text


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_for_the_released_generator(name):
    generator = RESULTS[name]["generator"]
    released: Any = load_generator(FOLDER / RELEASED[generator["name"]])
    assert generator["digest"] == released.digest_of(RESULTS[name]["arch"])


@pytest.mark.parametrize("section", STUDY)
def test_every_section_of_the_study_is_of_the_released_generator(section):
    studied = json.loads((ROOT / "docs" / "results" / "d2nwg" / f"{section}.json").read_text())["generator"]
    assert studied == {"name": "d2nwg", "sha256": expected_hashes()[RELEASED["d2nwg"]]}


@pytest.mark.parametrize(("marker", "registry"), [("architectures", ARCHITECTURES), ("generators", METHODS)])
def test_docs_list_what_is_registered(marker, registry):
    text = (ROOT / "docs" / "concepts.md").read_text()
    listed = re.search(rf"<!-- {marker}:begin -->(.*?)<!-- {marker}:end -->", text, re.DOTALL)
    assert listed and re.findall(r"`([^`]+)`", listed[1]) == sorted(registry)


def test_docs_list_the_floors_of_the_service_in_order():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (floors,) = (contract["layers"] for contract in contracts if contract["id"] == "service-floors")
    text = (ROOT / "docs" / "concepts.md").read_text()
    assert f"`{' → '.join(floors[1:])}`" in text  # the first one is what the command line starts
    table = text.partition("| part of `service/` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == re.findall(r"\w+", " ".join(floors[1:]))


def test_readme_lists_every_command_of_the_command_line():
    from weightgen.cli import app

    names = {c.name or c.callback.__name__ for c in app.registered_commands if c.callback}
    assert {name for name in names if not re.search(rf"`{name}`|weightgen {name} ", README)} == set()


def test_every_released_file_is_small_listed_and_unchanged():
    files = {str(p.relative_to(FOLDER)): p for p in FOLDER.rglob("*.safetensors")}
    assert set(expected_hashes()) == set(files)
    for name, path in files.items():
        assert sha256_file(path) == expected_hashes()[name], name
        assert path.stat().st_size <= 20e6, name


def test_every_released_generator_has_a_card():
    assert [
        f for f in RELEASED.values() if (FOLDER / f).is_file() and not (FOLDER / f).with_suffix(".md").is_file()
    ] == []


def test_every_installed_extra_of_the_doctor_is_an_extra_of_the_project():
    from weightgen.cli.doctor import EXTRAS

    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(EXTRAS) | {"dev", "service", "postgres", "s3"} == set(extras)  # the last three are the service's


def test_no_doc_or_code_names_a_path_of_one_machine():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    home = re.compile(r"(?<![\w.])/(home|Users|root)/(?!weightgen)\w")
    texts = [(f, (ROOT / f)) for f in tracked if f.endswith((".md", ".py", ".toml", ".txt"))]
    assert [f for f, path in texts if path.is_file() and home.search(path.read_text())] == []
