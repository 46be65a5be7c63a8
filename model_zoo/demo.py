"""The main job from end to end, on data that no generator has learnt from: scikit-learn's handwritten digits.

    python -m model_zoo.demo --out out/demo     (make demo)

Prints the accuracy of the generated weights and of every reference, and writes

    report.json     what `weightgen compare --json` prints, plus the artifact's report
    artifact/       the weights as a folder that any Hub client loads
    accuracy.png    accuracy against fine-tuning steps
"""

import argparse
import itertools
import math
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightgen.errors import WeightgenError
from weightgen.files.storage import new_file, write_json

NAMES = {
    "generated": "generated",
    "scratch": "trained from scratch",
    "retrieval": "nearest trained network, solved head",
    "soup": "soup of 16 networks, solved head",
    "zoo_mean": "mean of the zoo, solved head",
    "noise": "nearest network + noise, solved head",
    "random_trunk_ridge": "random trunk, solved head",
    "unconditioned_trunk": "generated, trunk's condition off",
    "default_init": "default initialisation",
    "shuffled_condition": "generated for another task",
}
"""Key of the accuracy in the report -> its name on screen."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=Path("out/demo"))
    parser.add_argument("--generator", default="mip")
    parser.add_argument("--arch", default="cnn-tiny")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--support-per-class", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        run_demo(options)
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def run_demo(options: argparse.Namespace) -> dict[str, Any]:
    """Run the demo; returns the report that is also written to `options.out`/report.json."""
    from model_zoo.lookup import look_up
    from weightgen.order import Order
    from weightgen.pipeline import compare_job, make_weights

    start = time.perf_counter()
    order = Order(
        generator=options.generator,
        architecture=options.arch,
        dataset=options.data,
        support_per_class=options.support_per_class,
        seed=options.seed,
    )
    job = look_up(order)
    data, num_weights = job.data, job.target.spec.num_parameters
    print(
        f"data       {data.name}: {data.num_classes} classes, {order.support_per_class} support images a class",
        flush=True,
    )
    print(f"target     {options.arch}: {num_weights:,} weights", flush=True)
    made = make_weights(job, order)[0]
    artifact = options.out / "artifact"
    if (artifact / "manifest.json").is_file():
        shutil.rmtree(artifact)  # from an earlier demo; any other folder is refused
    saved = made.save(artifact)
    print(f"made by    {made.source}; training the references takes a little longer", flush=True)
    report = {**compare_job(job, order), "artifact": saved}
    write_json(options.out / "report.json", report)
    draw_accuracy(report, options.out / "accuracy.png")
    print_scores(report)
    print(f"\nwrote report.json, accuracy.png and artifact/ to {options.out} in {time.perf_counter() - start:.0f} s")
    return report


def print_scores(report: Mapping[str, Any]) -> None:
    """Print the accuracies as bars, best first."""
    request = report["request"]
    print(f"\naccuracy on {request['test_examples']} test images")
    scores = [(value, key) for key, value in report["accuracy"].items() if value is not None]
    for value, key in sorted(scores, reverse=True):
        print(f"  {NAMES.get(key, key):<36} {100 * value:5.1f} %  {'█' * round(30 * value)}")
    for note in request["notes"]:
        print(f"  note: {note}")
    generate, scratch = report["seconds"]["generate"], report["seconds"]["scratch"]
    print(f"\ngenerated in {1000 * generate:.0f} ms; that training from scratch took {scratch:.1f} s, "
          f"{scratch / generate:.0f} times as long")  # fmt: skip


def draw_accuracy(report: Mapping[str, Any], path: str | Path) -> None:
    """Write a PNG of accuracy against fine-tuning steps: generated weights, two other starts, and from scratch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), dpi=160, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.075, 0.115, 0.715, 0.68))
    _draw_curves(axes, report)
    request, seconds = report["request"], report["seconds"]
    detail = (
        f"{request['arch']} ({request['num_parameters']:,} weights), {request['per_class']} labelled images a class. "
        f"Generated in {1000 * seconds['generate']:.0f} ms, trained from scratch in {seconds['scratch']:.1f} s."
    )
    figure.text(0.02, 0.955, state_finding(report), fontsize=13, fontweight="bold", color=_INK, va="top")
    figure.text(0.02, 0.885, detail, fontsize=10, color=_GREY, va="top")
    with new_file(path) as file:
        figure.savefig(file, format="png")


_INK, _GREY = "#1f2430", "#6b7280"
_STARTS = {
    "generated": ("generated", "#c2410c", 2.8),
    "retrieval": ("nearest trained", "#2563eb", 1.8),
    "default_init": ("default init", "#9ca3af", 1.8),
}
"""Arm of the curve -> label, colour, line width."""


def _draw_curves(axes: Any, report: Mapping[str, Any]) -> None:
    curves = {arm: curve for arm, curve in report["curve"].items() if curve is not None and arm in _STARTS}
    steps = [int(step) for step in curves["generated"]]
    # Logarithmic in 1 + step, so that step 0 can be shown.
    places = [math.log1p(step) for step in steps]
    ends = []
    for arm, curve in curves.items():
        label, colour, width = _STARTS[arm]
        values = [100 * curve[str(step)] for step in steps]
        front = 3 if arm == "generated" else 2
        axes.plot(
            places, values, color=colour, linewidth=width, marker="o", markersize=4.5, zorder=front, clip_on=False
        )
        ends.append((values[-1], label, colour))
    first = 100 * curves["generated"]["0"]
    axes.annotate(f"{first:.1f}", (places[0], first), (2, 9), textcoords="offset points", color=_STARTS["generated"][1])
    scratch = 100 * report["accuracy"]["scratch"]
    axes.axhline(scratch, color=_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    ends.append((scratch, "from scratch", _INK))
    lowest = min(min(100 * v for v in curve.values()) for curve in curves.values())
    bottom = max(0.0, math.floor((lowest - 4) / 10) * 10)
    axes.set_ylim(bottom, 100)
    for height, (value, label, colour) in zip(
        spread_heights([e[0] for e in ends], 0.05 * (100 - bottom)), ends, strict=True
    ):
        axes.annotate(
            f"{label}  {value:.1f}", (1.02, height), xycoords=("axes fraction", "data"), color=colour, fontsize=10,
            va="center", linespacing=1.0, annotation_clip=False,
        )  # fmt: skip
    axes.set_xticks(places, [str(step) for step in steps])
    axes.set_xlim(places[0], places[-1])
    axes.set_xlabel("fine-tuning steps on the same labelled images", color=_GREY, fontsize=10)
    axes.set_title("accuracy on the test part, %", loc="left", color=_GREY, fontsize=10)
    axes.grid(axis="y", color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_GREY, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d1d5db")


def spread_heights(heights: Sequence[float], gap: float) -> list[float]:
    """The heights moved apart, so that labels at them stand at least `gap` from each other, order kept."""
    order = sorted(range(len(heights)), key=lambda i: heights[i])
    placed = list(heights)
    for _ in range(100):
        for low, high in itertools.pairwise(order):
            overlap = gap - (placed[high] - placed[low])
            if overlap > 1e-6:
                placed[low] -= overlap / 2
                placed[high] += overlap / 2
    return placed


def state_finding(report: Mapping[str, Any]) -> str:
    """The title of the picture: which of the two is more accurate, and by how much."""
    generated, scratch = 100 * report["accuracy"]["generated"], 100 * report["accuracy"]["scratch"]
    name = report["request"]["data"]
    if generated > scratch:
        return f"{generated:.1f}% on {name} without a training step; trained from scratch: {scratch:.1f}%"
    return f"{name}: trained from scratch {scratch:.1f}%, generated only {generated:.1f}%"


if __name__ == "__main__":
    sys.exit(main())
