"""Copies the figures of docs/results/*.json into the README, between its two markers.

    python -m benchmarks.report            write README.md   (make report)
    python -m benchmarks.report --check    only compare; exit 1 if README.md differs

Each JSON file is what `python -m benchmarks.scores` wrote: one generator and architecture, scored on several data sets.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weightgen.storage import write_file

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
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


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only compare; exit 1 if README.md differs")
    options = parser.parse_args(argv)
    readme = ROOT / "README.md"
    text = readme.read_text()
    wanted = replace_block(text, render(read_results(ROOT / "docs" / "results")))
    if options.check:
        if wanted != text:
            print("README.md does not show the figures of docs/results; run: make report", file=sys.stderr)
        return int(wanted != text)
    write_file(readme, wanted.encode())
    print("README.md shows the figures of docs/results")
    return 0


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The result files in order of their names."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]


def render(results: list[dict[str, Any]]) -> str:
    """The results in Markdown: one table for each file."""
    if not results:
        return "No released generator has been scored yet."
    return "\n\n".join(_table(r) for r in results)


def replace_block(text: str, block: str) -> str:
    """`text` with what stands between the markers replaced."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert before and after, "README.md has lost its results markers"
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def mean_accuracy(result: dict[str, Any], column: str) -> float:
    """Mean over the data sets of one result file, a fraction."""
    values = [_accuracy(scores, column) for scores in result["data"].values()]
    return sum(values) / len(values)


def _table(result: dict[str, Any]) -> str:
    columns = [c for c in COLUMNS if all(_has(s, c) for s in result["data"].values())]
    speedups = [s["seconds"]["scratch"] / s["seconds"]["generate"] for s in result["data"].values()]
    milliseconds = [1000 * s["seconds"]["generate"] for s in result["data"].values()]
    lines = [
        f"**`{result['generator']['name']}` for `{result['arch']}`**: {result['per_class']} support images a class, "
        f"all classes, accuracy in % on the test split; generated in {max(milliseconds):.0f} ms or less, at least "
        f"{min(speedups):.0f} times faster than the scratch training beside it.",
        "",
        "| data set | " + " | ".join(COLUMNS[c] for c in columns) + " |",
        "|---" * (1 + len(columns)) + "|",
    ]
    for name, scores in sorted(result["data"].items()):
        lines.append(_row(name, [_accuracy(scores, c) for c in columns]))
    lines.append(_row("**mean**", [mean_accuracy(result, c) for c in columns]))
    return "\n".join(lines)


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
