"""The study of d2nwg (docs/results/d2nwg/SECTION.json) in Markdown: aims and findings, then the figures.

`benchmarks.reports.report` puts it into the generator's card. A section that has not been measured is left out.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.reports.markdown import render_table, render_titled
from weightgen.generators.d2nwg.method import D2nwgOptions

Section = Mapping[str, Any]
Study = Mapping[str, Section]
"""Name of a section -> its results."""

SECTIONS = ("tasks", "reconstruction", "published", "steps", "speed", "novelty", "diversity", "aim")
SHOTS = ("5 examples a class", "20 examples a class", "50 examples a class")
STEPS = ("1", "2", "5", "20", "100")


def read_study(folder: Path) -> dict[str, Section]:
    """The results of every section that has been measured."""
    paths = {section: folder / f"{section}.json" for section in SECTIONS}
    return {section: json.loads(path.read_text())["results"] for section, path in paths.items() if path.is_file()}


def render_study(study: Study) -> str:
    """A table of the aims, and a table for each section."""
    if not study:
        return "Not measured yet."
    aims = list_aims(study)
    tables = [render(study[section]) for section, render in RENDERED.items() if section in study]
    return "\n\n".join([render_table(("aim", "found", ""), aims), *tables] if aims else tables)


def list_aims(study: Study) -> list[tuple[str, str, str]]:
    """Rows of (aim, finding, verdict) for a table."""
    return [row for section, judge in AIMS.items() if section in study for row in judge(study[section])]


def _aims_of_tasks(tasks: Section) -> list[tuple[str, str, str]]:
    beyond = {m: s["generated"] - s["retrieval"] for m, s in tasks.items() if "retrieval" in s}
    shuffled = {m: s["generated"] - s["shuffled_condition"] for m, s in tasks.items() if "shuffled_condition" in s}
    return [
        _judge("held-out tasks: 5 points above retrieval", beyond, _points, lambda d: d >= 0.05),
        _judge("held-out tasks: 20 points above the shuffled condition", shuffled, _points, lambda d: d >= 0.2),
    ]


def _aims_of_reconstruction(members: Section) -> list[tuple[str, str, str]]:
    lost = {m: _codec(r, "vae") - _codec(r, "original") for m, r in members.items()}
    return [_judge("reconstruction: within 1 point of the originals", lost, _points, lambda d: d >= -0.01)]


def _aims_of_published(sets: Section) -> list[tuple[str, str, str]]:
    mean = sets["cifar10"]["zoo_mean"]
    aims = {
        "mnist": ("published tiny network, MNIST: 90", 0.9),
        "cifar10": (f"published tiny network, CIFAR-10: within 2 points of the zoo's {_percent(mean)}", mean - 0.02),
    }
    rows = []
    for name, (aim, least) in aims.items():
        scores = [sets[name][shots]["generated"] for shots in SHOTS]
        found = f"{', '.join(map(_percent, scores))} from {', '.join(s.split()[0] for s in SHOTS)} images a class"
        rows.append((aim, found, "met" if max(scores) >= least else "missed"))
    beyond = {name: arms["generated"] - arms["soup"] for name, arms in _known_tasks(sets) if "soup" in arms}
    return [*rows, _judge("new seeds of known tasks: at least the soup", beyond, _points, lambda d: d >= 0)]


def _known_tasks(sets: Section) -> list[tuple[str, Section]]:
    """Results from twenty examples per class on tasks of the zoo's training runs, by data set."""
    return [(name, arms[SHOTS[1]]) for name, arms in sorted(sets.items())]


def _aims_of_novelty(members: Section) -> list[tuple[str, str, str]]:
    both = {m: s["novel_and_accurate"] for m, s in members.items()}
    z_u = {m: s["z_u"] for m, s in members.items()}
    return [
        _judge("half of the samples novel and accurate", both, lambda share: f"{100 * share:.0f}%", lambda s: s >= 0.5),
        _judge("Z_U above -3", z_u, lambda z: f"{z:+.1f}", lambda z: z > -3),
    ]


def _aims_of_steps(steps: Section) -> list[tuple[str, str, str]]:
    few = str(D2nwgOptions().steps)
    gained = {name: curve[few] - curve["100"] for name, curve in steps["accuracy"].items()}
    return [_judge(f"20 steps or fewer ({few}): no loss over 100", gained, _points, lambda d: d >= 0)]


def _aims_of_speed(speed: Section) -> list[tuple[str, str, str]]:
    ratios = {"by default": speed["ratio"], "in one step without refinement": speed["ratio_plainly"]}
    aim = "64 samples: 100 times faster than training them"
    return [_judge(aim, ratios, lambda r: f"{r:.0f} times", lambda r: r >= 100)]


def _judge(
    aim: str, found: Mapping[str, float], show: Callable[[float], str], is_met: Callable[[float], bool]
) -> tuple[str, str, str]:
    """A row of the table of aims; "met" if all findings meet the aim."""
    verdicts = [is_met(value) for value in found.values()]
    verdict = "met" if all(verdicts) else f"{sum(verdicts)} of {len(verdicts)}" if any(verdicts) else "missed"
    return aim, ", ".join(f"{name} {show(value)}" for name, value in found.items()), verdict


AIMS = {
    "tasks": _aims_of_tasks,
    "published": _aims_of_published,
    "reconstruction": _aims_of_reconstruction,
    "novelty": _aims_of_novelty,
    "steps": _aims_of_steps,
    "speed": _aims_of_speed,
}
"""Section -> function that compares its results with the aims."""


def _render_tasks(members: Section) -> str:
    arms = {
        "generated": "generated",
        "unrefined": "unrefined",
        "unconditioned_trunk": "condition off",
        "shuffled_condition": "shuffled",
        "generated_head": "generated head",
        "retrieval": "retrieval",
        "retrieval_refined": "retrieval, refined",
        "soup": "soup",
        "own_trunk": "the task's own trunk",
        "own_trunk_refined": "own, refined",
    }
    rows = [
        (m, s["tasks"], *(_percent(s.get(arm)) for arm in arms), _points(s["generated"] - s["retrieval"]))
        for m, s in members.items()
    ]
    return render_titled(
        "Held-out tasks of the zoo's data sets", "accuracy in %; the difference is generated minus retrieval",
        ("member", "tasks", *arms.values(), "difference"), rows,
    )  # fmt: skip


def _render_reconstruction(members: Section) -> str:
    rows = []
    for m, r in members.items():
        learnt, original = _codec(r, "vae"), _codec(r, "original")
        error, latents = r["codecs"]["vae"]["weight_error"], r["codecs"]["vae"]["latents"]
        shown = (_percent(original), _percent(learnt), _points(learnt - original), f"{error:.2f}")
        rows.append((m, r["networks"], f"{r['weights']:,}", latents, *shown))
    return render_titled(
        "Reconstruction of held-out networks",
        "accuracy in % under a solved head; the error of the weights is in units of their variance",
        ("member", "networks", "weights", "latents", "original", "decoded", "difference", "weight error"), rows,
    )  # fmt: skip


def _render_published(sets: Section) -> str:
    rows = [
        (
            name, *(_percent(s[shots]["generated"]) for shots in SHOTS),
            *(_percent(s[SHOTS[1]].get(arm)) for arm in ("unrefined", "retrieval", "soup")),
            _percent(s["zoo_mean"]), _percent(s["zoo_mean_of_those_that_learnt"]),
        )
        for name, s in sorted(sets.items(), reverse=True)
    ]  # fmt: skip
    return render_titled(
        "The published tiny network",
        "accuracy in % from 5, 20 and 50 support images a class; then references from 20; then the zoo's own networks",
        (
            "data set", *(shots.split()[0] for shots in SHOTS), "unrefined", "retrieval", "soup", "zoo's mean",
            "of those that learnt",
        ), rows,
    )  # fmt: skip


def _render_novelty(members: Section) -> str:
    rows = []
    for m, s in members.items():
        shares = (f"{100 * s[key]:.0f}" for key in ("novel", "accurate", "novel_and_accurate"))
        best = s["best_of_16_on_held_back"]
        chosen = (_percent(best["mean_sample"]), _percent(best["chosen"]))
        rows.append((m, s["samples"], *shares, f"{s['z_u']:+.1f}", *chosen))
    return render_titled(
        "Novelty",
        "`novel`: % of samples that are no nearer to a trunk of the zoo than 95 in 100 of the zoo's trunks are to each "
        "other; `accurate`: % no worse than retrieval; `both`: % that are novel and accurate; then accuracy in %: the "
        "mean of 16 samples, and the sample that is best on held-back examples",
        ("member", "samples", "novel", "accurate", "both", "Z_U", "mean of 16", "chosen"), rows,
    )  # fmt: skip


def _render_steps(steps: Section) -> str:
    rows = [(name, *(_percent(curve[s]) for s in STEPS)) for name, curve in steps["accuracy"].items()]
    title = f"Steps of sampling, {steps['member']}"
    return render_titled(title, "accuracy in % by scheduler", ("scheduler", *STEPS), rows)


def _render_speed(speed: Section) -> str:
    seconds = speed["seconds"]
    return (
        f"**Speed, {speed['member']}**: 64 samples take {seconds['sample 64']:.1f} s, or "
        f"{seconds['sample 64 plainly']:.1f} s in one step without refinement. Training as many takes "
        f"{seconds['train 64']:.0f} s ({speed['trained']}). So sampling is {speed['ratio']:.0f} and "
        f"{speed['ratio_plainly']:.0f} times faster."
    )


def _render_diversity(members: Section) -> str:
    keys = ("disagreement", "ensemble_gain", "error_overlap")
    rows = []
    for m, s in members.items():
        cells = [show(s[kind][key]) for key, show in zip(keys, (_percent, _points, _share), strict=True)
                 for kind in ("samples", "zoo")]  # fmt: skip
        rows.append((m, *cells))
    size = max(s["networks"] for s in members.values())
    return render_titled(
        "Diversity",
        f"{size} samples for each held-out task; `…zoo`: as many trunks of the zoo, finished in the same way; "
        "`disagree`: test images in % on which two of them disagree; `vote`: points that a vote gains over their mean; "
        "`error overlap`: overlap of the errors of two",
        ("member", "disagree", "…zoo", "vote", "…zoo", "error overlap", "…zoo"), rows,
    )  # fmt: skip


def _render_aim(members: Section) -> str:
    asked = sorted(next(iter(members.values()))["asked"], key=lambda aim: (aim != "none", aim))
    rows = [
        (m, *(_percent(s["asked"][aim]["accuracy"]) for aim in asked), f"{s['rank_correlation']:+.2f}")
        for m, s in members.items()
    ]
    return render_titled(
        "The accuracy asked for",
        "accuracy in % of samples for each accuracy asked for, and the rank correlation of asked and reached",
        ("member", *(f"asked {aim}" for aim in asked), "correlation"), rows,
    )  # fmt: skip


RENDERED = {
    "tasks": _render_tasks,
    "reconstruction": _render_reconstruction,
    "published": _render_published,
    "novelty": _render_novelty,
    "diversity": _render_diversity,
    "aim": _render_aim,
    "steps": _render_steps,
    "speed": _render_speed,
}
"""Section -> function that renders its results in Markdown, in the order of the card."""


def _codec(reconstruction: Section, name: str) -> float:
    return reconstruction["codecs"][name]["accuracy"]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"


def _share(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction:.2f}"
