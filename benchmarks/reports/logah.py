"""The figures of logah (docs/results/logah/SECTION.json) in Markdown: aims and findings, then the tables.

`benchmarks.reports.report` puts it into the generator's card. A section that has not been measured is left out.
"""

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.reports.markdown import render_table, render_titled

Section = Mapping[str, Any]

SECTIONS = ("unseen", "table", "ranking", "curves", "coverage")
PREDICTED, TRAINED = "predicted, solved head", "default, 100 steps"
ARMS = ("generated", "condition off", "random trunk, refined", "random trunk", TRAINED)
WIDER_OR_DEEPER = ("cnn 64-96-96-96 fc64", "cnn 32-48x5", "cnn 96-128-128", "cnn 24-32x3-48x4", "cnn 64-80-96 no norm")


def read_figures(folder: Path) -> dict[str, Section]:
    """The results of every section that has been measured."""
    paths = {section: folder / f"{section}.json" for section in SECTIONS}
    return {section: json.loads(path.read_text()) for section, path in paths.items() if path.is_file()}


def render_figures(figures: Mapping[str, Section]) -> str:
    """A table of the aims, and a table for each section."""
    if not figures:
        return "Not measured yet."
    aims = [row for section, judge in AIMS.items() if section in figures for row in judge(figures[section])]
    tables = [render(figures[section]) for section, render in RENDERED.items() if section in figures]
    return "\n\n".join([render_table(("aim", "found", ""), aims), *tables])


def _aims_of_unseen(unseen: Section) -> list[tuple[str, str, str]]:
    networks = [row for name, row in unseen["networks"].items() if name not in unseen["learnt_from"]]
    rows = [scores for row in networks for scores in row.values() if set(ARMS) <= set(scores)]
    judged = []
    if not rows:
        return judged
    for arm, words in (("condition off", "without a training step"), ("generated", "refined")):
        ahead = sum(scores[arm] > scores[TRAINED] for scores in rows)
        means = statistics.fmean(s[arm] for s in rows), statistics.fmean(s[TRAINED] for s in rows)
        found = f"{means[0]:.1f} against {means[1]:.1f}, ahead on {ahead} of {len(rows)}"
        aim = f"data and networks never seen: {words}, above default init after 100 steps"
        judged.append((aim, found, "met" if 2 * ahead > len(rows) and means[0] > means[1] else "missed"))
    return judged


def _aims_of_table(table: Section) -> list[tuple[str, str, str]]:
    begun = {name: row[PREDICTED]["accuracy"][0] for name, row in table["networks"].items() if PREDICTED in row}
    cnns = {name: score for name, score in begun.items() if not name.startswith("vit") and name not in WIDER_OR_DEEPER}
    wider = {name: score for name, score in begun.items() if name in WIDER_OR_DEEPER}
    ahead = [row["is_ahead_of_default"] for row in table["networks"].values() if "is_ahead_of_default" in row]
    aims = (("Fashion-MNIST, CNNs never seen: 80 at step 0", cnns, 80.0),
            ("the wider and deeper ones: 60 at step 0", wider, 60.0))  # fmt: skip
    judged = [_judge_all(aim, scores, least) for aim, scores, least in aims if scores]
    soon = f"{sum(ahead)} of {len(ahead)} networks"
    return [*judged, ("after 20 steps above default init after 200", soon, "met" if all(ahead) else "missed")]


def _judge_all(aim: str, scores: Mapping[str, float], least: float) -> tuple[str, str, str]:
    reached = sum(score >= least for score in scores.values())
    found = f"{min(scores.values()):.1f} to {max(scores.values()):.1f}, {reached} of {len(scores)}"
    return aim, found, "met" if reached == len(scores) else "missed"


def _render_unseen(unseen: Section) -> str:
    rows = [
        (
            name + (" (learnt from at other classes)" if name in unseen["learnt_from"] else ""),
            *(f"{means[arm]:.1f}" for arm in ARMS),
            f"{means['ahead_of_default_on']} of {means['of']}",
        )
        for name, means in unseen["mean"].items()
        if set(ARMS) <= set(means)
    ]
    config = unseen["generator"]["config"]
    num_sets = len(next(iter(unseen["networks"].values())))
    legend = (
        f"accuracy in %, mean over {num_sets} data sets never seen, {unseen['settings']['per_class']} examples a "
        "class; networks never seen except where noted; `generated` is refined in "
        f"{len(config['refinement_rates'])} steps on the support set; `condition off` has taken no step; `{TRAINED}` "
        "has the best of three rates, as the test part judges"
    )
    return render_titled("Unseen", legend, ("network", *ARMS, "generated ahead of default on"), rows)


def _render_table(table: Section) -> str:
    steps = table["settings"]["steps"]
    arms = (PREDICTED, "default, solved head", "default", "orthogonal")
    first, last = steps.index(20), len(steps) - 1
    rows = []
    for name, row in table["networks"].items():
        if all(arm in row for arm in arms):
            found = [f"{row[arm]['accuracy'][i]:.1f}" for arm in arms[:2] for i in (0, first, last)]
            found += [f"{row[arm]['accuracy'][i]:.1f}" for arm in arms[2:] for i in (first, last)]
            trial = table["published"]["networks"].get(name)
            rows.append((name, *found, "-" if trial is None else trial["predicted"][0]))
    heads = [
        *(f"{arm}: step {step}" for arm in ("predicted", "default, solved head") for step in (0, 20, steps[-1])),
        *(f"{arm}: step {step}" for arm in arms[2:] for step in (20, steps[-1])),
        "published classes: step 0",
    ]
    training = table["generator"]["training"]
    legend = (
        f"a generator of its own, {table['generator']['parameters']:,} parameters, {training['cpu_seconds']:.0f} CPU "
        "seconds on Fashion-MNIST's training part, never released; accuracy in % on its test part, mean of 3 seeds, "
        f"each at the best of {len(table['settings']['learning_rates'])} rates; solved heads are solved in closed form "
        "on the training part"
    )
    return render_titled("Fashion-MNIST, networks never seen", legend, ("network", *heads), rows)


def _render_ranking(ranking: Section) -> str:
    groups = list(ranking["tau"])
    proxies = [key for key in ranking["tau"]["all"] if key not in ("architectures", "lead")]
    rows = [(proxy, *(_with_interval(ranking["tau"][group][proxy]) for group in groups)) for proxy in proxies]
    legend = (
        "Kendall's tau (90% interval) against accuracy after training on Fashion-MNIST, 50 architectures never seen; "
        "`trained again`: the trainings of one seed against those of another, the most that noise allows"
    )
    heads = [f"{group} ({ranking['tau'][group]['architectures']})" for group in groups]
    return render_titled("Ranking architectures", legend, ("proxy", *heads), rows)


def _with_interval(tau: Mapping[str, float]) -> str:
    return f"{tau['value']:.2f} ({tau['low']:.2f} to {tau['high']:.2f})"


def _render_curves(curves: Section) -> str:
    tables = []
    for name, row in curves["networks"].items():
        if row["arms"]:
            steps = row["settings"]["steps"]
            lines = [
                (arm, f"{curve['learning_rate']:g}", *(f"{score:.2f}" for score in curve["score"]))
                for arm, curve in row["arms"].items()
            ]
            legend = f"{row['unit']} on {row['settings']['data']}, mean of 3 seeds, each at the best of five rates"
            heads = ("begun with", "rate", *(f"step {step}" for step in steps))
            tables.append(render_titled(f"{name}, {row['parameters']:,} parameters", legend, heads, lines))
    return "\n\n".join(tables)


def _render_coverage(coverage: Section) -> str:
    rows = [
        (
            name,
            row["tensors"],
            row["predicted"],
            row["tied"],
            "; ".join(f"{count[0]} {why}" for why, count in row["own"].items()) or "-",
            f"{100 * row['parameters_predicted'] / row['parameters']:.1f}",
        )
        for name, row in coverage["architectures"].items()
    ]
    heads = ("architecture", "tensors", "predicted", "tied", "own initialisation, and why", "parameters predicted, %")
    return render_titled("Coverage", "tiny configurations of known architectures", heads, rows)


AIMS: dict[str, Callable[[Section], list[tuple[str, str, str]]]] = {
    "unseen": _aims_of_unseen,
    "table": _aims_of_table,
}
RENDERED: dict[str, Callable[[Section], str]] = {
    "unseen": _render_unseen,
    "table": _render_table,
    "ranking": _render_ranking,
    "curves": _render_curves,
    "coverage": _render_coverage,
}
"""Section -> function that renders its results in Markdown, in the order of the card."""
