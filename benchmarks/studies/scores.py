"""Scores a released generator on every evaluation data set and writes docs/results/GENERATOR-ARCH.json.

    python -m benchmarks.studies.scores --generator mip --arch cnn-tiny     then: make report
    python -m benchmarks.studies.scores --arch cnn-tiny --data omniglot_held_out \\
        --ways 5 --support-per-class 15 --tasks 20

The file holds, for each data set, the output of `weightgen compare --json`. A missing data set is an error. Data sets
that are already in the file for the same weights of the generator are kept. So a run can be resumed, and an
architecture whose part of the generator has not changed need not be scored again.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import ROOT
from model_zoo.data import EVALUATION_SETS, load_data
from model_zoo.lookup import look_up
from model_zoo.released import generator_file
from weightgen.errors import WeightgenError
from weightgen.files.storage import read_json, write_json
from weightgen.generators import load_generator
from weightgen.order import Order
from weightgen.pipeline import compare_job


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generator", default="mip")
    parser.add_argument("--arch", default="cnn-tiny")
    parser.add_argument("--data", nargs="*", default=sorted(EVALUATION_SETS))
    parser.add_argument("--support-per-class", type=int, default=20)
    parser.add_argument("--tasks", type=int, default=1, help="support sets drawn on each data set")
    parser.add_argument("--ways", type=int, default=None, help="classes of each task; all if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(argv)
    name = f"{options.generator}-{options.arch}" + (f"-{options.ways}-way" if options.ways else "")
    out = options.out or ROOT / "docs" / "results" / f"{name}.json"
    try:
        score_all(options, out)
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def score_all(options: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Score all data sets; returns the content of the result file, which is written after every data set."""
    generator: Any = load_generator(generator_file(options.generator))
    head = {
        "generator": {"name": options.generator, "digest": generator.digest_of(options.arch)},
        "arch": options.arch,
        "per_class": options.support_per_class,
        "tasks": options.tasks,
        "ways": options.ways,
        "seed": options.seed,
    }
    done = read_json(out) if out.is_file() else {}
    scores = done["data"] if all(done.get(key) == value for key, value in head.items()) else {}
    for name in options.data:
        load_data(name)  # a missing one fails before the first is scored
    for name in options.data:
        if name in scores:
            continue
        order = Order(
            generator=options.generator,
            architecture=options.arch,
            dataset=name,
            support_per_class=options.support_per_class,
            seed=options.seed,
        )
        scores[name] = compare_job(look_up(order), order, tasks=options.tasks, ways=options.ways)
        accuracy = scores[name]["accuracy"]
        print(
            f"{name}: " + ", ".join(f"{key} {100 * value:.1f}" for key, value in accuracy.items() if value is not None),
            file=sys.stderr,
        )
        write_json(out, {**head, "data": scores})
    return {**head, "data": scores}


if __name__ == "__main__":
    sys.exit(main())
