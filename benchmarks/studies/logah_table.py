"""Networks trained from predicted and from usual initial weights; writes docs/results/logah/NAME.json.

    python -m benchmarks.studies.logah_table --generator runs/logah/table/generator.safetensors
    python -m benchmarks.studies.logah_table --arms default orthogonal --networks "cnn 32-32-32" --seeds 1

Every network of `model_zoo.spaces.HELD_OUT` is scored on Fashion-MNIST's test part before training and after some steps
of AdamW on the training part. The hypernetwork has learnt from the training part alone. The arms are:

- the trunk that a graph hypernetwork predicts (`training.logah`, preset `table`), with a class head solved in closed
  form on the training part;
- the module's own initialisation;
- the same with a head solved in the same way;
- an orthogonal initialisation.

Batches are the same for all. Each arm has the best of several learning rates, chosen on left-out training images.
BatchNorm's statistics are measured on training images before every score. Scores are means over seeds of batches and
random weights.

Earlier content of the file for other networks and arms stays if the settings are the same.
"""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import ROOT
from model_zoo.data import load_data
from model_zoo.spaces import HELD_OUT, Member, target_of
from weightgen.condition import Condition, SupportSet
from weightgen.errors import BadOption, UnknownName, WeightgenError
from weightgen.files.storage import read_json, sha256_file, write_json
from weightgen.generators.logah.generator import Logah
from weightgen.labelled_data import LabelledData
from weightgen.references.default_init import RandomTrunkRidge
from weightgen.request import GenerationRequest, WeightGenerator

PREDICTED = "predicted, solved head"
ARMS = (PREDICTED, "default, solved head", "default", "orthogonal")
PUBLISHED = {
    "source": "the published classes with 705k parameters, trained 3.5 CPU minutes on the same 4,000 images; measured "
    "with one thread, torch 2.13",
    "steps": [0, 20, 50, 100, 200],
    "networks": {
        "cnn 32-32-32": {"predicted": [74.8, 75.8, 77.0, 77.6, 78.8], "default": [43.4, 58.0, 69.3, 76.0]},
        "cnn 64-96-96-96 fc64": {"predicted": [50.3, 73.3, 75.4, 77.9, 81.1], "default": [48.1, 68.1, 74.7, 80.5]},
        "cnn 32-48x5": {"predicted": [61.6, 75.4, 76.9, 80.2, 83.2], "default": [57.8, 73.2, 76.8, 81.9]},
        "cnn 24-48-40 no norm fc32": {
            "predicted": [72.2, 74.0, 74.1, 75.0, 77.7],
            "default": [19.2, 38.1, 47.2, 62.5],
        },
        "vit 48 x 2": {"predicted": [73.7, 72.8, 73.2, 73.1, 74.2], "default": [31.6, 49.9, 58.4, 70.7]},
    },
}
"""Accuracy in percent; the values of `default` start at 20 steps."""


@dataclass(frozen=True, slots=True)
class TableConfig:
    """How networks are trained and scored."""

    data: str = "fashion_mnist"
    steps: tuple[int, ...] = (0, 20, 50, 100, 200)
    batch_size: int = 32
    learning_rates: tuple[float, ...] = (1e-4, 5e-4, 2e-3, 8e-3)
    choice_steps: tuple[int, ...] = (20, 60)
    """A learning rate is chosen by the mean accuracy after these steps."""
    choice_examples: int = 600
    """Training images that are left out and scored for the choice."""
    support_per_class: int = 1000
    """Most training images of each class on which a class head is solved."""
    calibration_examples: int = 512
    """Training images on which BatchNorm's statistics are measured."""
    warmup: int = 5
    """Steps over which the learning rate rises linearly to its constant value."""
    weight_decay: float = 1e-4


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generator", type=Path, help="file of a graph hypernetwork, for the first arm")
    parser.add_argument("--networks", nargs="+", default=list(HELD_OUT), help="names in model_zoo.spaces.HELD_OUT")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--name", default="table", help="name of the written file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        generator = read_generator(options.generator) if PREDICTED in options.arms else None
        path = ROOT / "docs" / "results" / "logah" / f"{options.name}.json"
        fill_table(path, options.networks, options.arms, generator=generator, seeds=options.seeds)
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def read_generator(path: Path | None) -> tuple[Logah, dict[str, Any]]:
    """A hypernetwork and its description for results; BadOption without a file."""
    if path is None:
        raise BadOption("predicted weights need a generator: give --generator FILE, or --arms default orthogonal")
    hypernet = Logah.load(path)
    parameters = sum(p.numel() for p in hypernet.parameters())
    training = {key: value for key, value in hypernet.training_record.items() if key != "member_digests"}
    config = json.loads(json.dumps(asdict(hypernet.config)))
    about = {"sha256": sha256_file(path), "parameters": parameters, "config": config, "training": training}
    return hypernet, about


def fill_table(
    path: Path,
    names: Sequence[str],
    arms: Sequence[str],
    *,
    generator: tuple[Logah, dict[str, Any]] | None,
    seeds: int,
    config: TableConfig | None = None,
) -> dict[str, Any]:
    """Score these arms of these networks and write them into the table at `path`, one network at a time."""
    config = config or TableConfig()
    for name in names:
        if name not in HELD_OUT:
            raise UnknownName("network", name, HELD_OUT)
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(config).items()}
    table = read_json(path) if path.exists() else {}
    if table.get("settings") != settings:
        table = {"settings": settings, "published": PUBLISHED, "networks": {}}
    if generator is not None and table.get("generator") != generator[1]:
        table["generator"] = generator[1]
        for row in table["networks"].values():
            row.pop(PREDICTED, None)
    data = load_data(config.data)
    for name in names:
        member = HELD_OUT[name]
        row = table["networks"].setdefault(name, {})
        row["parameters"] = sum(p.numel() for p in member.build().parameters())
        for arm in arms:
            row[arm] = score_arm(member, arm, generator and generator[0], data, config, seeds=seeds)
        row |= compare(row, config)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, table)
        print(name, {arm: row[arm]["accuracy"] for arm in ARMS if arm in row}, file=sys.stderr, flush=True)
    return table


def compare(row: dict[str, Any], config: TableConfig) -> dict[str, Any]:
    """Whether predicted weights after the first training steps are better than others after the last."""
    if any(arm not in row for arm in ARMS):
        return {}
    at = config.steps.index(min(s for s in config.steps if s))
    soon = row[PREDICTED]["accuracy"][at]
    return {f"is_ahead_of_{arm}": soon > row[arm]["accuracy"][-1] for arm in ("default", "orthogonal")}


def score_arm(
    member: Member, arm: str, hypernet: Logah | None, data: LabelledData, config: TableConfig, *, seeds: int
) -> dict[str, Any]:
    """Mean and standard deviation over seeds of the accuracy in percent after `config.steps`, at the best rate."""
    rates = {rate: choice_score(member, arm, hypernet, data, config, rate) for rate in config.learning_rates}
    rate = max(rates, key=lambda r: rates[r])
    curves = []
    for seed in range(seeds):
        support = draw_rows(data.x_train, data.y_train, config.support_per_class, seed=seed)
        scored = train_and_score(
            begin(member, arm, hypernet, support, seed=seed),
            (data.x_train, data.y_train),
            (data.x_test, data.y_test),
            data.x_train[: config.calibration_examples],
            config,
            rate,
            seed=seed,
        )
        curves.append([scored[step] for step in config.steps])
    columns = list(zip(*curves, strict=True))
    return {
        "learning_rate": rate,
        "choice": {str(r): round(score, 2) for r, score in rates.items()},
        "seeds": seeds,
        "accuracy": [round(statistics.mean(c), 2) for c in columns],
        "sd": [round(statistics.stdev(c), 2) if seeds > 1 else None for c in columns],
    }


def choice_score(
    member: Member, arm: str, hypernet: Logah | None, data: LabelledData, config: TableConfig, rate: float
) -> float:
    """Mean accuracy of a short run at a learning rate, on left-out training images."""
    order = torch.randperm(len(data.y_train), generator=torch.Generator().manual_seed(1_000_003))
    rest, chosen = order[config.choice_examples :], order[: config.choice_examples]
    support = draw_rows(data.x_train[rest], data.y_train[rest], config.support_per_class, seed=1_000_003)
    scored = train_and_score(
        begin(member, arm, hypernet, support, seed=1_000_003),
        (data.x_train[rest], data.y_train[rest]),
        (data.x_train[chosen], data.y_train[chosen]),
        data.x_train[rest[: config.calibration_examples]],
        config,
        rate,
        seed=1_000_003,
        steps=config.choice_steps,
    )
    return statistics.mean(scored.values())


def begin(
    member: Member, arm: str, hypernet: Logah | None, support: SupportSet | None = None, *, seed: int
) -> nn.Module:
    """The member's module with an arm's initial weights; arms with a solved head need a support set."""
    if arm.endswith(", solved head"):
        target, condition = target_of(member), Condition(support=support)
        generator: WeightGenerator = RandomTrunkRidge()
        if arm == PREDICTED:
            assert hypernet is not None
            generator = hypernet.without_condition()
        (state,) = generator.generate(GenerationRequest(target, condition, seed=seed))
        return target.load(state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = member.build()
        if arm == "orthogonal":
            for part in module.modules():
                if isinstance(part, (nn.Linear, nn.Conv2d)):
                    nn.init.orthogonal_(part.weight)
                    if part.bias is not None:
                        nn.init.zeros_(part.bias)
    return module


def draw_rows(images: Tensor, labels: Tensor, per_class: int, *, seed: int) -> SupportSet:
    """A support set of `per_class` examples of every class, or all if there are fewer, drawn with `seed`."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    rows = torch.cat([order[labels[order] == k][:per_class] for k in range(int(labels.max()) + 1)])
    names = tuple(str(k) for k in range(int(labels.max()) + 1))
    return SupportSet(images[rows], labels[rows], names)


def train_and_score(
    module: nn.Module,
    learnt: tuple[Tensor, Tensor],
    scored: tuple[Tensor, Tensor],
    calibration: Tensor,
    config: TableConfig,
    rate: float,
    *,
    seed: int,
    steps: Sequence[int] | None = None,
) -> dict[int, float]:
    """Accuracy in percent after each of `steps`; equal seeds give equal batches."""
    steps = config.steps if steps is None else steps
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=config.weight_decay)
    found = {}
    for step in range(max(steps) + 1):
        if step in steps:
            calibrate(module, calibration)
            found[step] = _score(module, *scored)
        rows = torch.randint(len(learnt[1]), (config.batch_size,), generator=rng)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / (config.warmup + 1))
        loss = F.cross_entropy(module.train()(learnt[0][rows]), learnt[1][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


@torch.no_grad()
def calibrate(module: nn.Module, images: Tensor) -> None:
    """Measure the running statistics of every BatchNorm on images (n, c, h, w), in chunks of 256."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over chunks
    module.train()
    for chunk in images.tensor_split(math.ceil(len(images) / 256)) if norms else ():
        module(chunk)


@torch.no_grad()
def _score(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    module.eval()
    right = [(module(x).argmax(1) == y).sum() for x, y in zip(images.split(300), labels.split(300), strict=True)]
    return 100 * float(torch.stack(right).sum()) / len(labels)


if __name__ == "__main__":
    sys.exit(main())
