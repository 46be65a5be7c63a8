"""Draws the results of the study of d2nwg: docs/images/d2nwg-{steps,novelty,map}.png.

    python -m benchmarks.reports.d2nwg_pictures --zoo runs/zoo/training

The first two are drawn from docs/results; the map shows the latents of the zoo's `train` runs on their two principal
axes, and samples for held-out tasks among them.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import ROOT
from benchmarks.speed.d2nwg import Bench
from model_zoo.released import generator_file
from weightgen.condition import Condition
from weightgen.errors import WeightgenError
from weightgen.generators import load_generator
from weightgen.request import GenerationRequest

ARMS = {"generated": "#c0392b", "retrieval": "#2980b9", "default_init": "#7f8c8d"}
IMAGES = ROOT / "docs" / "images"


def draw_steps(axes: Axes, scores: dict[str, Any]) -> None:
    """Draw mean accuracy over the evaluation sets against fine-tuning steps, and that of training from scratch."""
    boards = list(scores["data"].values())
    for arm, colour in ARMS.items():
        steps = sorted(int(step) for step in boards[0]["curve"][arm])
        means = [100 * statistics.fmean(b["curve"][arm][str(step)] for b in boards) for step in steps]
        axes.plot(
            [math.log1p(step) for step in steps], means, "o-", color=colour, label=arm.replace("_", " "), markersize=4
        )
    scratch = 100 * statistics.fmean(b["accuracy"]["scratch"] for b in boards)
    axes.axhline(scratch, color="black", linestyle=":", label="from scratch, to convergence")
    axes.set_xticks([math.log1p(step) for step in steps], [str(step) for step in steps])
    axes.set_xlabel("fine-tuning steps")
    axes.set_ylabel("test accuracy, %")
    axes.set_title(f"{scores['generator']['name']} for {scores['arch']}: mean of {len(boards)} data sets never seen")
    axes.legend(frameon=False)


def draw_novelty(axes: Axes, study: dict[str, Any]) -> None:
    """Draw each sample's gain in accuracy over retrieval against its distance to the nearest trunk of the zoo."""
    points = study["points"]
    distance = [p["distance"] / study["leave_one_out_median"] for p in points]
    gain = [100 * (p["accuracy"] - p["retrieval"]) for p in points]
    axes.scatter(distance, gain, s=14, color=ARMS["generated"], alpha=0.6, label="samples")
    references = {"retrieval": {"distance": 0.0, "gain": 0.0}, **study["references"]}
    for marker, (name, at) in zip("sDv^", references.items(), strict=True):
        place = at["distance"] / study["leave_one_out_median"]
        label = f"{name.replace('_', ' ')}, solved head (mean)"
        axes.scatter(place, 100 * at["gain"], s=60, marker=marker, color=ARMS["retrieval"], label=label)
    axes.axhline(0, color=ARMS["retrieval"], linewidth=1)
    axes.axvline(
        study["novel_from"] / study["leave_one_out_median"], color="black", linestyle=":", label="novel from here on"
    )
    axes.set_xlabel("distance to the nearest trunk of the zoo / median distance within the zoo")
    axes.set_ylabel("accuracy above retrieval, points")
    axes.set_title("Novelty and accuracy on held-out tasks")
    axes.legend(frameon=False)


def draw_map(axes: Axes, bench: Bench, member: str) -> None:
    """Draw latents of the zoo's train runs on their two principal axes, coloured by data set; samples as crosses."""
    networks, generator = bench.networks[member], bench.generator
    rows = networks.rows("train")
    with torch.no_grad():
        latents = generator.codec(member).encode(networks.tokens[rows]).flatten(1)
        samples = []
        for _, task in bench.held_out(networks):
            target, support, _ = bench.prepare(networks, task)
            request = GenerationRequest(target, Condition(support=support), num_samples=bench.seeds)
            samples.append((task.dataset, generator.sample(request).flatten(1)))
    mean = latents.mean(0)
    principal = torch.linalg.svd(latents - mean, full_matrices=False).Vh[:2].T
    names = sorted({networks.datasets[i] for i in rows})
    colours = {name: colormaps["tab20"](i / 20) for i, name in enumerate(names)}
    for name in names:
        chosen = [place for place, i in enumerate(rows) if networks.datasets[i] == name]
        flat = (latents[chosen] - mean) @ principal
        axes.scatter(flat[:, 0], flat[:, 1], s=5, color=colours[name], alpha=0.5, label=name)
    for name, drawn in samples:
        flat = (drawn - mean) @ principal
        axes.scatter(flat[:, 0], flat[:, 1], s=40, marker="X", color=colours.get(name, "black"), edgecolor="black")
    axes.set_title(f"Latents of the zoo ({member}); crosses: samples for held-out tasks", fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.legend(frameon=False, fontsize=7, markerscale=3, loc="center left", bbox_to_anchor=(1, 0.5))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generator", default="d2nwg")
    parser.add_argument("--arch", default="cnn-tiny")
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo/training"))
    options = parser.parse_args(argv)
    results = ROOT / "docs" / "results"
    try:
        generator: Any = load_generator(generator_file(options.generator))
        bench = Bench(generator, options.zoo, num_tasks=12, seeds=3)
        scores = json.loads((results / f"{options.generator}-{options.arch}.json").read_text())
        novelty = json.loads((results / "d2nwg" / "novelty.json").read_text())["results"]
    except (WeightgenError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    member = next(iter(novelty))
    drawings = {
        "steps": lambda axes: draw_steps(axes, scores),
        "novelty": lambda axes: draw_novelty(axes, novelty[member]),
        "map": lambda axes: draw_map(axes, bench, member),
    }
    for name, draw in drawings.items():
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(IMAGES / f"d2nwg-{name}.png", dpi=110)
    return 0


if __name__ == "__main__":
    sys.exit(main())
