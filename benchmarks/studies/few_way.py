"""Scores a released generator on many small tasks and writes docs/results/few_way/DATA.json.

    python -m benchmarks.studies.few_way --data omniglot_held_out --ways 5 --shots 15 --tasks 200

Each task is `ways` classes drawn from one group: for Omniglot, characters of one alphabet that was not used in
training. The generator is compared with references of the same cost: itself without the trunk's condition, and a solved
head on a random trunk. Training from scratch takes minutes per task and is left to `benchmarks.studies.scores`.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import ROOT
from model_zoo.architectures import build_target
from model_zoo.data import load_data
from model_zoo.released import generator_file
from weightgen.condition import Condition
from weightgen.errors import WeightgenError
from weightgen.files.storage import sha256_file, write_json
from weightgen.generators.mip.generator import Mip
from weightgen.labelled_data import LabelledData, draw_support, select_classes
from weightgen.references.default_init import RandomTrunkRidge
from weightgen.request import GenerationRequest
from weightgen.target.predict import accuracy


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generator", default="mip")
    parser.add_argument("--data", default="omniglot_held_out")
    parser.add_argument("--ways", type=int, default=5)
    parser.add_argument("--shots", type=int, default=15)
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    try:
        path = generator_file(options.generator)
        generator, data = Mip.load(path), load_data(options.data)
        result = {
            "generator": {"name": options.generator, "sha256": sha256_file(path)},
            **{key: getattr(options, key) for key in ("data", "ways", "shots", "tasks", "seed")},
            "accuracy": {arch: score_arch(generator, arch, data, options) for arch in generator.archs},
        }
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    out = ROOT / "docs" / "results" / "few_way" / f"{options.data}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, result)
    return 0


def score_arch(generator: Mip, arch: str, data: LabelledData, options: argparse.Namespace) -> dict[str, Any]:
    """Mean, standard deviation and tenth percentile of the accuracy over tasks, for each arm."""
    arms = {
        "generated": generator,
        "unconditioned_trunk": generator.without_condition(),
        "random_trunk_ridge": RandomTrunkRidge(),
    }
    target = build_target(arch, num_classes=options.ways, in_channels=data.in_channels or 1)
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    groups = group_classes(data)
    for task in range(options.tasks):
        rng = torch.Generator().manual_seed(options.seed + task)
        group = groups[task % len(groups)]
        classes = [group[i] for i in torch.randperm(len(group), generator=rng)[: options.ways].tolist()]
        support = draw_support(data, options.shots, rng=rng, classes=classes)
        part = select_classes(data, classes)
        for arm, source in arms.items():
            request = GenerationRequest(target, Condition(support=support), seed=options.seed + task)
            found[arm].append(accuracy(target, source.generate(request)[0], part.x_test, part.y_test))
    print(f"{arch}: " + ", ".join(f"{arm} {100 * statistics.mean(v):.1f}" for arm, v in found.items()), file=sys.stderr)
    return {
        arm: {
            "mean": statistics.mean(values),
            "sd": statistics.stdev(values),
            "p10": statistics.quantiles(values, n=10)[0],
        }
        for arm, values in found.items()
    }


def group_classes(data: LabelledData) -> list[list[int]]:
    """Classes grouped by the part of their name before the slash; names without a slash form one group."""
    groups: dict[str, list[int]] = {}
    for label, name in enumerate(data.class_names):
        groups.setdefault(name.partition("/")[0] if "/" in name else "", []).append(label)
    return list(groups.values())


if __name__ == "__main__":
    sys.exit(main())
