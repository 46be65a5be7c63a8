"""Accuracy of training from scratch by number of steps: the scoreboard's reference should be trained to convergence.

    python -m benchmarks.studies.scratch_length --arch cnn-tiny          # docs/results/scratch_length/ARCH.json

It uses training sets, never evaluation sets, because it decides how the reference is trained. Runs are augmented, with
the best of `ScratchConfig`'s learning rates on the test part, for several numbers of steps.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from benchmarks import ROOT
from model_zoo.architectures import build_target
from model_zoo.data import load_data
from weightgen.errors import WeightgenError
from weightgen.evaluation.training import ScratchConfig, sweep_from_scratch
from weightgen.files.storage import write_json
from weightgen.labelled_data import draw_support
from weightgen.target.predict import accuracy

SETS = ("kannada_mnist", "devnum", "notmnist", "bccd_cells")
STEPS = (300, 600, 1000, 2000)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--arch", default="cnn-tiny")
    parser.add_argument("--data", nargs="*", default=SETS)
    parser.add_argument("--support-per-class", type=int, default=20)
    options = parser.parse_args(argv)
    try:
        found = {name: measure(options.arch, name, options.support_per_class) for name in options.data}
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    mean = {str(steps): fmean(by_steps[str(steps)] for by_steps in found.values()) for steps in STEPS}
    out = ROOT / "docs" / "results" / "scratch_length" / f"{options.arch}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, {"arch": options.arch, "per_class": options.support_per_class, "accuracy": {**found, "mean": mean}})
    return 0


def measure(arch: str, data: str, per_class: int) -> dict[str, Any]:
    """Best test accuracy of the augmented runs from scratch by number of steps."""
    loaded = load_data(data)
    support = draw_support(loaded, per_class, rng=torch.Generator().manual_seed(0))
    target = build_target(arch, num_classes=loaded.num_classes, in_channels=loaded.in_channels or 1)
    found = {}
    for steps in STEPS:
        # Runs without augmentation end by their loss; they are not used here, so one step is enough.
        config = replace(ScratchConfig(), max_steps=1, max_steps_augmented=steps)
        runs = [run for run in sweep_from_scratch(target, support, config, seed=0) if run.augmented]
        found[str(steps)] = max(accuracy(target, r.state, loaded.x_test, loaded.y_test) for r in runs)
        print(f"{data}, {steps} steps: {100 * found[str(steps)]:.1f}", file=sys.stderr)
    return found


if __name__ == "__main__":
    sys.exit(main())
