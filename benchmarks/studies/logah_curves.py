"""Training curves of transformers from predicted and from usual initial weights; docs/results/logah/curves.json.

    python -m benchmarks.studies.logah_curves --arms default orthogonal "default, support head" "normal 0.02"
    python -m benchmarks.studies.logah_curves --generator FILE --arms predicted generated

Vision transformers learn CIFAR-10 and are scored by test accuracy. A GPT learns the bytes of AG News' training texts
and is scored by bits per byte of its test texts. An arm is the kind of initial weights:

- `predicted`: weights that a graph hypernetwork makes from the architecture alone;
- `generated`: its trunk refined on 50 examples of every class, and a class head solved on them (images only), as
  `generate` makes it;
- `default`: the module's own initialisation;
- `default, support head`: that trunk and a head solved in the same way, to measure the head's share (images only);
- `orthogonal`: orthogonal weights and no biases in linear layers and convolutions, the rest as in `default`;
- `normal 0.02`: GPT-2's own, because nn.Embedding's is far too large for a head that shares it (texts only).

Each arm has the best of five learning rates for AdamW, chosen by the mean score over the whole curve on left-out
training data. Batches are the same for all arms. Scores are means over seeds of batches, support sets and random
initial weights. An arm that the file already holds is not trained again, unless the generator has changed. With other
settings the file starts again. The picture docs/images/logah-curves.png is drawn each time.
"""

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks import ROOT
from benchmarks.studies.logah_table import begin, read_generator
from model_zoo.data import load_data
from model_zoo.data.text import load_text
from model_zoo.spaces import GptMember, ViTMember
from weightgen.condition import Condition
from weightgen.errors import BadOption, UnknownName, WeightgenError
from weightgen.files.storage import read_json, write_json
from weightgen.generators.logah.generator import Logah
from weightgen.graph.arch_graph import build_graph
from weightgen.init.fill import fill_module
from weightgen.labelled_data import LabelledData, draw_support
from weightgen.request import GenerationRequest
from weightgen.solve.refit import refit
from weightgen.target.network import Target
from weightgen.target.trunk import take_trunk

COLOURS = {
    "predicted": "#c0392b",
    "generated": "#e67e22",
    "default": "#7f8c8d",
    "default, support head": "#8e44ad",
    "orthogonal": "#2980b9",
    "normal 0.02": "#27ae60",
}
"""Arm -> its colour in the picture."""
CHOICE_SEED = 1_000_003
_SCORED_WINDOWS = 512
"""Most windows of the scored text, evenly spread."""


@dataclass(frozen=True, slots=True)
class Course:
    """A network, its data, and the steps at which it is scored."""

    member: ViTMember | GptMember
    data: str
    """Name of a set of labelled images, or of texts for a language model."""
    steps: tuple[int, ...]
    batch_size: int
    learning_rates: tuple[float, ...]
    choice_share: float = 0.15
    """Share of the training part that is left out and scored for the choice of a learning rate."""
    warmup: int = 10
    """Steps over which the learning rate rises linearly to its constant value."""
    weight_decay: float = 1e-4
    per_class: int = 50
    """Support examples of each class."""

    @property
    def arms(self) -> list[str]:
        absent = ("generated", "default, support head") if isinstance(self.member, GptMember) else ("normal 0.02",)
        return [arm for arm in COLOURS if arm not in absent]


_VIT_RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
COURSES = {
    "vit 64 x 3": Course(
        ViTMember(64, 3, 4, mlp_ratio=2, in_channels=3), "cifar10", (0, 25, 50, 100, 200, 400), 32, _VIT_RATES
    ),
    "vit 96 x 4": Course(ViTMember(96, 4, 4, in_channels=3), "cifar10", (0, 25, 50, 100, 200), 32, _VIT_RATES),
    "gpt 96 x 3": Course(
        GptMember(96, 3, 6, context=64), "ag_news", (0, 50, 100, 200, 400), 16, (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    ),
}


@dataclass(frozen=True, eq=False)
class ImageTask:
    """Labelled images; scored by the accuracy on the test part, in percent."""

    data: LabelledData
    unit = "test accuracy, %"
    better = 1
    """1 if higher scores are better, -1 if lower ones are."""

    def left_out(self, share: float) -> "ImageTask":
        """A task from the training part alone, with a share of it as the scored part."""
        order = torch.randperm(len(self.data.y_train), generator=torch.Generator().manual_seed(CHOICE_SEED))
        scored, learnt = order.tensor_split([round(share * len(order))])
        x, y = self.data.x_train, self.data.y_train
        return ImageTask(replace(self.data, x_train=x[learnt], y_train=y[learnt], x_test=x[scored], y_test=y[scored]))

    def loss(self, module: nn.Module, size: int, *, rng: torch.Generator) -> Tensor:
        """Cross-entropy on a batch, scalar."""
        rows = torch.randint(len(self.data.y_train), (size,), generator=rng)
        return F.cross_entropy(module(self.data.x_train[rows]), self.data.y_train[rows])

    @torch.no_grad()
    def score(self, module: nn.Module) -> float:
        batches = zip(self.data.x_test.split(250), self.data.y_test.split(250), strict=True)
        right = sum(int((module(x).argmax(1) == y).sum()) for x, y in batches)
        return 100 * right / len(self.data.y_test)


@dataclass(frozen=True, eq=False)
class TextTask:
    """Texts as bytes; scored by bits per byte of the test part."""

    learnt: Tensor
    """(n,) int64"""
    tested: Tensor
    """(m,) int64"""
    context: int
    unit = "bits per byte of test text"
    better = -1

    def left_out(self, share: float) -> "TextTask":
        """A task from the training part alone, with its end as the scored part."""
        learnt, scored = self.learnt.tensor_split([round((1 - share) * len(self.learnt))])
        return TextTask(learnt, scored, self.context)

    def loss(self, module: nn.Module, size: int, *, rng: torch.Generator) -> Tensor:
        """Cross-entropy on a batch of windows, in nats per byte, scalar."""
        starts = torch.randint(len(self.learnt) - self.context, (size,), generator=rng)
        return self._loss(module, self.learnt, starts)

    @torch.no_grad()
    def score(self, module: nn.Module) -> float:
        """Mean bits per byte over up to 512 windows; the first bytes of a window have little context."""
        count = min(_SCORED_WINDOWS, (len(self.tested) - 1) // self.context)
        starts = torch.linspace(0, len(self.tested) - self.context - 1, count).long()
        losses = [self._loss(module, self.tested, part) * len(part) for part in starts.split(128)]
        return float(torch.stack(losses).sum()) / count / math.log(2)

    def _loss(self, module: nn.Module, text: Tensor, starts: Tensor) -> Tensor:
        ids = text[starts[:, None] + torch.arange(self.context + 1)]
        return F.cross_entropy(module(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


Task = ImageTask | TextTask


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generator", type=Path, help="file of a graph hypernetwork; needed for predicted arms")
    parser.add_argument("--networks", nargs="+", default=list(COURSES), help=", ".join(COURSES))
    parser.add_argument("--arms", nargs="+", default=list(COLOURS), choices=list(COLOURS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="curves", help="name of the written file and of the picture")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    path = ROOT / "docs" / "results" / "logah" / f"{options.name}.json"
    try:
        unknown = next((name for name in options.networks if name not in COURSES), None)
        if unknown is not None:
            raise UnknownName("network", unknown, COURSES)
        generator = read_generator(options.generator) if any(map(_is_predicted, options.arms)) else None
        courses = {name: COURSES[name] for name in options.networks}
        curves = fill_curves(path, courses, options.arms, generator=generator, seeds=options.seeds)
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    networks = {name: row for name, row in curves["networks"].items() if row["arms"]}
    figure = Figure(figsize=(4.2 * len(networks), 4.6), layout="constrained")
    draw_curves(figure, networks)
    figure.savefig(ROOT / "docs" / "images" / f"logah-{options.name}.png", dpi=110)
    return 0


def fill_curves(
    path: Path,
    courses: Mapping[str, Course],
    arms: Sequence[str],
    *,
    generator: tuple[Logah, dict[str, Any]] | None,
    seeds: int,
) -> dict[str, Any]:
    """Train these networks for these arms, as far as they apply, and write each to the file at `path` when it ends.

    Earlier content of the file stays: other networks and arms, and these if they have the same number of seeds. Several
    runs may fill one file at the same time.
    """
    found = read_json(path) if path.exists() else {"networks": {}}
    if generator is not None and found.get("generator") != generator[1]:
        found["generator"] = generator[1]
        for row in found["networks"].values():
            row["arms"] = {arm: curve for arm, curve in row["arms"].items() if not _is_predicted(arm)}
            row["comparisons"] = {}
    for name, course in courses.items():
        settings = json.loads(json.dumps(asdict(course)))
        if found["networks"].get(name, {}).get("settings") != settings:
            size = sum(p.numel() for p in course.member.build().parameters())
            found["networks"][name] = {"settings": settings, "parameters": size, "arms": {}, "comparisons": {}}
    write_json(path, found)
    for name, course in courses.items():
        there = {arm: curve["seeds"] for arm, curve in found["networks"][name]["arms"].items()}
        todo = [arm for arm in arms if arm in course.arms and there.get(arm) != seeds]
        task = load_task(course) if todo else None
        for arm in todo:
            assert task is not None
            began = time.process_time()
            curve = train_arm(course, arm, task, generator and generator[0], seeds=seeds)
            found = read_json(path)
            row = found["networks"][name]
            row["arms"][arm] = curve
            row |= {"unit": task.unit, "comparisons": compare(row["arms"], course.steps, better=task.better)}
            write_json(path, found)
            spent = f"{time.process_time() - began:.0f} s"
            print(f"{name}, {arm}: {curve['score']}, {spent}", file=sys.stderr, flush=True)
    return found


def load_task(course: Course) -> Task:
    if isinstance(course.member, ViTMember):
        return ImageTask(load_data(course.data))
    learnt, tested = (load_text(course.data, part) for part in ("train", "test"))
    return TextTask(learnt, tested, course.member.context)


def train_arm(course: Course, arm: str, task: Task, hypernet: Logah | None, *, seeds: int) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the score after each of the course's steps, at the arm's best rate."""
    choice, left_out = {}, task.left_out(course.choice_share)
    for rate in course.learning_rates:
        module = begin_arm(course, arm, left_out, hypernet, seed=CHOICE_SEED)
        choice[rate] = statistics.mean(train_and_score(module, left_out, course, rate, seed=CHOICE_SEED))
    rate = choose_rate(choice, better=task.better)
    curves = [
        train_and_score(begin_arm(course, arm, task, hypernet, seed=seed), task, course, rate, seed=seed)
        for seed in range(seeds)
    ]
    columns = list(zip(*curves, strict=True))
    return {
        "learning_rate": rate,
        "choice": {str(r): round(score, 3) if math.isfinite(score) else None for r, score in choice.items()},
        "seeds": seeds,
        "score": [round(statistics.mean(c), 3) for c in columns],
        "sd": [round(statistics.stdev(c), 3) if seeds > 1 else None for c in columns],
    }


def choose_rate(choice: Mapping[float, float], *, better: int) -> float:
    """The learning rate with the best score; rates at which training diverged are never chosen."""
    finite = {rate: better * score for rate, score in choice.items() if math.isfinite(score)}
    if not finite:
        raise BadOption("training diverges at every learning rate: give lower ones")
    return max(finite, key=lambda rate: finite[rate])


def begin_arm(course: Course, arm: str, task: Task, hypernet: Logah | None, *, seed: int) -> nn.Module:
    """The course's module with an arm's initial weights; a support set is drawn from the task's training part."""
    member = course.member
    if arm in ("default", "orthogonal"):
        return begin(member, arm, None, seed=seed)
    if arm == "normal 0.02":
        module, rng = begin(member, "default", None, seed=seed), torch.Generator().manual_seed(seed)
        for part in module.modules():
            if isinstance(part, (nn.Linear, nn.Embedding)):
                nn.init.normal_(part.weight, std=0.02, generator=rng)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)
        return module
    assert hypernet is not None or not _is_predicted(arm)
    if hypernet is not None and arm == "predicted":
        module = begin(member, "default", None, seed=seed)
        example = torch.zeros(1, 8, dtype=torch.long)
        if isinstance(member, ViTMember):
            example = torch.zeros(1, member.in_channels, member.image_size, member.image_size)
        fill_module(hypernet, module, graph=build_graph(module, example))
        return module
    assert isinstance(task, ImageTask) and isinstance(member, ViTMember)
    target = Target.from_module(
        member.build,
        {"head.weight": f"CLASSES {member.width}", "head.bias": "CLASSES"},
        arch="vit",
        config={},
        input_shape=(member.in_channels, member.image_size, member.image_size),
    )
    support = draw_support(task.data, course.per_class, rng=torch.Generator().manual_seed(seed))
    if hypernet is not None and _is_predicted(arm):
        state = hypernet.generate(GenerationRequest(target, Condition(support=support), seed=seed))[0]
    else:
        state = refit(target, take_trunk(target.init_state(seed), target.spec), support)
    return target.load(state)


def train_and_score(module: nn.Module, task: Task, course: Course, rate: float, *, seed: int) -> list[float]:
    """The score after each of the course's steps of AdamW; equal seeds give equal batches."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=course.weight_decay)
    scores = []
    for step in range(max(course.steps) + 1):
        if step in course.steps:
            scores.append(task.score(module.eval()))
        if step == max(course.steps):
            break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (course.warmup + 1))
        loss = task.loss(module.train(), course.batch_size, rng=rng)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return scores


def compare(arms: Mapping[str, Mapping[str, Any]], steps: Sequence[int], *, better: int) -> dict[str, Any]:
    """Compare every predicted arm with every other one, at each scored step.

    `ahead` is the difference in units of the score, positive if the predicted arm is better. `is_beyond_spread` says
    whether that is more than the sum of both standard deviations. `reached_at` is the first scored step at which the
    other arm reaches the predicted arm's score at this step; None if it never does.
    """
    found: dict[str, Any] = {}
    for name in filter(_is_predicted, arms):
        for other in (arm for arm in arms if not _is_predicted(arm)):
            mine, theirs = arms[name], arms[other]
            rows = list(zip(mine["score"], theirs["score"], strict=True))
            ahead = [round(better * (a - b), 3) for a, b in rows]
            spreads = [(a or 0.0) + (b or 0.0) for a, b in zip(mine["sd"], theirs["sd"], strict=True)]
            clear = [abs(a) > spread for a, spread in zip(ahead, spreads, strict=True)]
            found.setdefault(name, {})[other] = {
                "ahead": ahead,
                "is_beyond_spread": clear,
                "reached_at": [_reached_at(score, theirs["score"], steps, better=better) for score in mine["score"]],
                "verdict": [
                    f"step {step}: {'ahead' if a > 0 else 'behind'} by {abs(a):.3g}{'' if c else ', within the spread'}"
                    for step, a, c in zip(steps, ahead, clear, strict=True)
                ],
            }
    return found


def draw_curves(figure: Figure, networks: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw a panel for every network: each arm's mean score against training steps, with one standard deviation."""
    panels: Sequence[Axes] = figure.subplots(1, len(networks), squeeze=False)[0]
    shown: dict[str, Any] = {}
    for axes, (name, row) in zip(panels, networks.items(), strict=True):
        steps = row["settings"]["steps"]
        places = [math.log1p(step / 10) for step in steps]
        for arm, colour in COLOURS.items():
            if arm in row["arms"]:
                score, sd = row["arms"][arm]["score"], [s or 0.0 for s in row["arms"][arm]["sd"]]
                low, high = ([m + sign * s for m, s in zip(score, sd, strict=True)] for sign in (-1, 1))
                axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
                (shown[arm],) = axes.plot(places, score, "o-", color=colour, markersize=4)
        axes.set_xticks(places, [str(step) for step in steps])
        axes.set_xlabel("steps of training")
        axes.set_ylabel(row.get("unit", ""))
        axes.set_title(f"{name}, {row['settings']['data']}: {row['parameters']:,} parameters", fontsize=10)
        if row.get("unit") == TextTask.unit:  # 8 bits is no information; nn.Embedding starts far above
            axes.set_ylim(min(min(arm["score"]) for arm in row["arms"].values()) - 0.2, 8.3)
    ordered = [arm for arm in COLOURS if arm in shown]
    figure.legend([shown[arm] for arm in ordered], ordered, loc="outside lower center", ncols=3, frameon=False)


def _is_predicted(arm: str) -> bool:
    return arm in ("predicted", "generated")


def _reached_at(score: float, others: Sequence[float], steps: Sequence[int], *, better: int) -> int | None:
    return next((s for s, other in zip(steps, others, strict=True) if better * (other - score) >= 0), None)


if __name__ == "__main__":
    sys.exit(main())
