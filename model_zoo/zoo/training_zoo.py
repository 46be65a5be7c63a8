"""The zoo that generators of weight distributions learn from: its recipe, and an index to check it.

    python -m model_zoo training-zoo --out runs/zoo/training --index model_zoo/zoo/training.jsonl

Every part is a `ZooConfig` on training sets only, in its own folder. The tasks are random classes in random order, so
nearly every run has its own task. The two parts with the published tiny network have one task and many seeds.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from model_zoo.data.shared import TRAIN_SETS
from model_zoo.zoo.builder import GroupReport, build_zoo
from model_zoo.zoo.config import ZooConfig
from weightgen.errors import CorruptFile
from weightgen.files.storage import read_json, write_file

_QUICK = {"learning_rate": (1.5e-3, 5e-3), "weight_decay": (1e-3, 1e-1)}
"""Rates for short training of a few hundred steps."""


def training_zoo() -> dict[str, ZooConfig]:
    """The parts of the zoo by name: 2,000 networks, about 40 minutes of two CPU cores."""
    shared: dict[str, Any] = {"seed": 3, "eval_examples": 1000, **_QUICK}
    tasks: dict[str, Any] = {"data": TRAIN_SETS, "ways": 10, **shared}
    one_task: dict[str, Any] = {"num_runs": 120, "steps": 600, "augmented": 0.0, **shared}
    return {
        "cnn-tiny": ZooConfig(arch="cnn-tiny", in_channels=1, num_runs=400, steps=600, **tasks),
        "cnn-tiny-colour": ZooConfig(arch="cnn-tiny", in_channels=3, num_runs=200, steps=600, **tasks),
        "published-mnist": ZooConfig(arch="cnn-tiny", data=("mnist",), in_channels=1, **one_task),
        "published-cifar10": ZooConfig(arch="cnn-tiny", data=("cifar10",), in_channels=3, **one_task),
        "mlp": ZooConfig(arch="mlp-w32-d2", in_channels=1, num_runs=900, steps=500, **tasks),
        "cnn-w8-d2": ZooConfig(arch="cnn-w8-d2", in_channels=1, num_runs=120, steps=300, **tasks),
        "cnn-w8-d3": ZooConfig(arch="cnn-w8-d3", in_channels=1, num_runs=80, steps=300, **tasks),
        "resnet8": ZooConfig(arch="resnet8", in_channels=1, num_runs=60, steps=300, **tasks),
    }


def build_training_zoo(
    out: Path,
    *,
    device: str = "cpu",
    num_workers: int = 1,
    report: Callable[[str, int, int], None] = lambda part, done, total: None,
) -> dict[str, dict[str, Any]]:
    """Train the missing runs of all parts, each in its folder in `out`; returns part -> summary.

    `report(part, runs done, runs planned)` is called on progress.
    """

    def report_on(part: str) -> Callable[[int, int, GroupReport | None], None]:
        return lambda done, total, group: report(part, done, total)

    return {
        part: build_zoo(config, out / part, device=device, num_workers=num_workers, report=report_on(part))
        for part, config in training_zoo().items()
    }


def index_runs(zoo: Path) -> Iterator[dict[str, Any]]:
    """A row for each complete run, by run id: its task, its accuracies, its last state's hash."""
    for path in sorted(zoo.glob("*/runs/*/run.json")):
        run = read_json(path)
        try:
            last = run["checkpoints"][-1] if run["checkpoints"] else None
            yield {
                "run_id": run["run_id"],
                "arch": run["arch"],
                "in_channels": run["config"].get("in_channels", 1),
                "dataset": run["task"]["dataset"],
                "classes": run["task"]["classes"],
                "split": run["split"],
                "steps": [c["step"] for c in run["checkpoints"]],
                "test_accuracy": [round(c["test_accuracy"], 4) for c in run["checkpoints"]],
                "sha256": last and last["sha256"],
            }
        except (KeyError, TypeError) as error:
            raise CorruptFile(f"{path}: not the record of a run of a zoo") from error


def write_index(zoo: Path, file: Path) -> dict[str, Any]:
    """Write `index_runs` as JSON lines; returns the numbers of runs, tasks and checkpoints, JSON values."""
    rows = list(index_runs(zoo))
    write_file(file, "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows).encode())
    return summarize(rows)


def summarize(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over the rows of an index."""
    return {
        "runs": len(rows),
        "tasks": len({(row["dataset"], tuple(row["classes"])) for row in rows}),
        "checkpoints": sum(len(row["steps"]) for row in rows),
        "runs_of": dict(sorted(Counter(f"{row['arch']}, {row['in_channels']} channels" for row in rows).items())),
        "runs_on": dict(sorted(Counter(row["dataset"] for row in rows).items())),
        "mean_test_accuracy_on": {
            name: round(sum(found) / len(found), 4)
            for name in sorted({row["dataset"] for row in rows})
            if (found := [row["test_accuracy"][-1] for row in rows if row["dataset"] == name and row["steps"]])
        },
    }
