"""Copies the figures in docs/results/*.json into the README, docs/results.md, the cards and the generators' JSON.

    python -m benchmarks.reports.report            write them   (make report)
    python -m benchmarks.reports.report --check    only compare; exit 1 if one differs

Each JSON file was written by `python -m benchmarks.studies.scores`: scores of one generator and architecture on several
data sets. A folder with the name of a generator holds a study of it (`benchmarks.studies.d2nwg`), only for its card.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from benchmarks.reports import service as service_report
from benchmarks.reports.d2nwg import read_study, render_study
from benchmarks.reports.generator_facts import describe_generator
from benchmarks.reports.logah import read_figures, render_figures
from benchmarks.reports.markdown import render_table
from model_zoo.released import FOLDER, RELEASED
from model_zoo.zoo.training_zoo import summarize
from weightgen.canonical_json import encode_json
from weightgen.files.checkpoint import read_manifest
from weightgen.files.storage import write_file

ZOO_INDEX = ROOT / "model_zoo" / "zoo" / "training.jsonl"
BEGIN, END = "<!-- {}:begin -->", "<!-- {}:end -->"
COLUMNS = {
    "generated": "generated",
    "generated, 50 steps": "…after 50 steps",
    "scratch": "scratch",
    "retrieval": "retrieval",
    "soup": "soup",
    "random_trunk_ridge": "random trunk",
    "unconditioned_trunk": "condition off",
    "shuffled_condition": "shuffled",
    "default_init": "default init",
}
"""Key of the accuracy in the JSON -> heading; 'ARM, N steps' is a point of the fine-tuning curve."""

CHEAP = ("retrieval", "soup", "random_trunk_ridge")
"""References that take about as long as generation."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if README.md differs")
    options = parser.parse_args(argv)
    stale = {path: text for path, text in written().items() if not path.is_file() or path.read_text() != text}
    for path, text in stale.items():
        name = path.relative_to(ROOT)
        if options.check:
            print(f"{name} does not show the figures of docs/results; run: make report", file=sys.stderr)
        else:
            write_file(path, text.encode())
            print(f"{name} shows the figures of docs/results")
    return int(bool(stale) and options.check)


def written() -> dict[Path, str]:
    """Every file with figures -> its text with the current figures."""
    results = read_results(ROOT / "docs" / "results")
    few_way = read_results(ROOT / "docs" / "results" / "few_way")
    service = service_report.render_figures(service_report.read_figures(ROOT / "docs" / "results" / "service"))
    files = {
        ROOT / "README.md": {"summary": render_summary(results)},
        ROOT / "docs" / "results.md": {"results": render(results, few_way)},
        ROOT / "docs" / "service.md": {"figures": service},
    }
    for name, file in RELEASED.items():
        if (FOLDER / file).is_file():
            own = [[r for r in group if r["generator"]["name"] == name] for group in (results, few_way)]
            training = render_training(read_manifest(FOLDER / file)["training"])
            files[FOLDER / f"{name}.md"] = {"results": render(*own), "training": training}
            if study := render_study_of(name):
                files[FOLDER / f"{name}.md"]["study"] = study
    if ZOO_INDEX.is_file():
        rows = [json.loads(line) for line in ZOO_INDEX.read_text().splitlines()]
        files[ZOO_INDEX.with_suffix(".md")] = {"zoo": render_zoo(summarize(rows))}
    texts = {}
    for path, blocks in files.items():
        texts[path] = path.read_text()
        for marker, block in blocks.items():
            texts[path] = replace_block(texts[path], block, marker=marker)
    return texts | _written_facts(results)


def _written_facts(results: Sequence[dict[str, Any]]) -> dict[Path, str]:
    """The JSON file of every released generator -> its text."""
    texts = {}
    for name, file in RELEASED.items():
        if (FOLDER / file).is_file():
            own = [result for result in results if result["generator"]["name"] == name]
            facts = describe_generator((FOLDER / f"{name}.md").read_text(), read_manifest(FOLDER / file), own)
            texts[FOLDER / f"{name}.json"] = encode_json(facts, name=name, indent=2).decode() + "\n"
    return texts


def render_study_of(name: str) -> str | None:
    """The study of a generator in Markdown; None if it has none."""
    folder = ROOT / "docs" / "results" / name
    if name == "logah":
        return render_figures(read_figures(folder))
    study = read_study(folder)
    return render_study(study) if study else None


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The contents of the result files, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def render(results: list[dict[str, Any]], few_way: Sequence[dict[str, Any]] = ()) -> str:
    """The results in Markdown: one table for each file."""
    if not results:
        return "No released generator has been scored yet."
    return "\n\n".join([*(_table(r) for r in results), *(_few_way_table(r) for r in few_way)])


def render_summary(results: Sequence[dict[str, Any]]) -> str:
    """One row for each generator and architecture: mean accuracies of generated, scratch and best cheap reference."""
    rows = []
    for result in results:
        means = {arm: mean_accuracy(result, arm) for arm in ("generated", "scratch", *CHEAP)}
        cheap = max(CHEAP, key=lambda arm: means[arm])
        seconds = [[score["seconds"][side] for score in result["data"].values()] for side in ("generate", "scratch")]
        faster = min(scratch / made for made, scratch in zip(*seconds, strict=True))
        rows.append(
            (
                f"`{result['generator']['name']}` for `{result['arch']}`",
                f"{100 * means['generated']:.1f}",
                f"{100 * means['scratch']:.1f}",
                f"{100 * means[cheap]:.1f} ({COLUMNS[cheap]})",
                f"{faster:,.0f} times",
            )
        )
    heads = ("generator", "generated", "scratch", "best cheap reference", "faster than scratch, at least")
    return render_table(heads, rows)


def render_training(training: dict[str, Any]) -> str:
    """Training times, scores on held-out tasks of the training sets, and those sets, in Markdown."""
    kinds = {"runs": _render_runs, "spent": _render_stages, "members": _render_members}
    lines = next(render for key, render in kinds.items() if key in training)(training)
    lines += ["| training set | licence, as stated |", "|---|---|"]
    lines += [f"| {name} | {licence} |" for name, licence in sorted(training["data"].items())]
    return "\n".join(lines)


def _render_runs(training: dict[str, Any]) -> list[str]:
    lines = ["| architecture | steps | minutes | held-out tasks, % | condition off, % |", "|---|---|---|---|---|"]
    for arch, run in training["runs"].items():
        score = run["held_out"]
        lines.append(
            f"| {arch} | {run['steps']:,} | {run['minutes']:.0f} | {100 * score['accuracy']:.1f} "
            f"| {100 * score['unconditioned']:.1f} |"
        )
    note = "Held-out tasks are drawn from the test splits of the training sets. Each run had one CPU thread."
    return [*lines, "", note, ""]


def _render_stages(training: dict[str, Any]) -> list[str]:
    heads = {
        "generated": "generated",
        "unrefined": "unrefined",
        "unconditioned": "condition off",
        "decoded": "reconstructed",
        "original": "original",
    }
    lines = ["| member | " + " | ".join(heads.values()) + " |", "|---" * (1 + len(heads)) + "|"]
    for member, score in training["held_out_tasks"].items():
        lines.append(f"| {member} | " + " | ".join(f"{100 * score[key]:.1f}" for key in heads) + " |")
    spent = "; ".join(
        f"{name}: {s['steps']:,} steps, {s['minutes']:.0f} minutes" for name, s in training["spent"].items()
    )
    measured = "Accuracy in % under a solved head, on tasks of the zoo's `val` runs; nothing was learnt from these."
    return [*lines, "", f"{measured} Training, on one CPU thread each: {spent}.", ""]


def _render_members(training: dict[str, Any]) -> list[str]:
    heads = {"generated": "generated", "unrefined": "unrefined", "unconditioned": "condition off"}
    heads["random trunk"] = "random trunk"
    rows = [(name, *(f"{100 * s[key]:.1f}" for key in heads)) for name, s in training["held_out"].items()]
    spaces = ", ".join(f"{count} {space}" for space, count in training["members"].items())
    refined = ", ".join(f"{name}: {100 * value:.1f}" for name, value in training["refinements"]["accuracy"].items())
    return [
        f"Learnt from {sum(training['members'].values())} architectures: {spaces}. {training['steps']:,} steps, "
        f"{training['cpu_seconds'] / 60:.0f} CPU minutes.",
        "",
        "Accuracy in % on tasks drawn from the test splits of the training sets:",
        "",
        render_table(("network", *heads.values()), rows),
        "",
        f"The refinement was chosen on other such tasks, for {', '.join(training['refinements']['networks'])}. "
        f"Accuracy in % with each: {refined}.",
        "",
    ]


def render_zoo(summary: dict[str, Any]) -> str:
    """The contents of a zoo in two tables."""
    lines = [
        f"{summary['runs']:,} runs, {summary['tasks']:,} tasks, {summary['checkpoints']:,} checkpoints.",
        "",
        "| architecture | runs |",
        "|---|---|",
        *(f"| {name} | {count:,} |" for name, count in summary["runs_of"].items()),
        "",
        "| data set | runs | mean test accuracy, % |",
        "|---|---|---|",
    ]
    accuracies = summary["mean_test_accuracy_on"]
    lines += [f"| {name} | {count:,} | {100 * accuracies[name]:.1f} |" for name, count in summary["runs_on"].items()]
    return "\n".join(lines)


def replace_block(text: str, block: str, *, marker: str = "results") -> str:
    """`text` with `block` between the markers."""
    begin, end = BEGIN.format(marker), END.format(marker)
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    assert before and after, f"the {marker} markers are lost"
    return f"{before}{begin}\n{block}\n{end}{after}"


def mean_accuracy(result: dict[str, Any], column: str) -> float:
    """Mean accuracy over the data sets of one result file, a fraction."""
    values = [_accuracy(scores, column) for scores in result["data"].values()]
    return sum(values) / len(values)


def _table(result: dict[str, Any]) -> str:
    columns = [c for c in COLUMNS if all(_has(s, c) for s in result["data"].values())]
    speedups = [s["seconds"]["scratch"] / s["seconds"]["generate"] for s in result["data"].values()]
    milliseconds = [1000 * s["seconds"]["generate"] for s in result["data"].values()]
    lines = [
        f"**`{result['generator']['name']}` for `{result['arch']}`**: {result['per_class']} support images a class, "
        f"{_classes(result)}. Accuracy in % on the test split. Generated in {max(milliseconds):.0f} ms or less, at "
        f"least {min(speedups):.0f} times faster than training from scratch. {_standing(result)}",
        "",
        "| data set | " + " | ".join(COLUMNS[c] for c in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name, scores in sorted(result["data"].items()):
        lines.append(_row(name, [_accuracy(scores, c) for c in columns]))
    lines.append(_row("**mean**", [mean_accuracy(result, c) for c in columns]))
    return "\n".join(lines)


def _standing(result: dict[str, Any]) -> str:
    """A sentence that compares the generated weights with training from scratch."""
    scores = result["data"].values()
    above = sum(_accuracy(s, "generated") > _accuracy(s, "scratch") for s in scores)
    margin = 100 * (mean_accuracy(result, "generated") - mean_accuracy(result, "scratch"))
    return f"Above scratch on {above} of {len(scores)} data sets; the difference in the mean is {margin:+.1f} points."


def _few_way_table(result: dict[str, Any]) -> str:
    arms = ("generated", "unconditioned_trunk", "random_trunk_ridge")
    lines = [
        f"**Tasks of {result['ways']} classes** of `{result['data']}`, {result['shots']} support images a class, "
        f"mean of {result['tasks']} tasks (10th percentile):",
        "",
        "| architecture | " + " | ".join(COLUMNS[arm] for arm in arms) + " |",
        "|---" * (1 + len(arms)) + "|",
    ]
    for arch, scores in result["accuracy"].items():
        cells = [f"{100 * scores[arm]['mean']:.1f} ({100 * scores[arm]['p10']:.0f})" for arm in arms]
        lines.append(f"| {arch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _classes(result: dict[str, Any]) -> str:
    ways = result.get("ways")
    return "all classes" if ways is None else f"{result['tasks']} tasks of {ways} classes"


def _accuracy(scores: dict[str, Any], column: str) -> float:
    arm, _, steps = column.partition(", ")
    return scores["curve"][arm][steps.removesuffix(" steps")] if steps else scores["accuracy"][arm]


def _has(scores: dict[str, Any], column: str) -> bool:
    arm, _, steps = column.partition(", ")
    return bool(scores.get("curve", {}).get(arm)) if steps else scores["accuracy"].get(arm) is not None


def _row(name: str, accuracies: list[float]) -> str:
    best = max(accuracies)
    cells = [f"**{100 * a:.1f}**" if a == best else f"{100 * a:.1f}" for a in accuracies]
    return f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
