"""Speed, as ratios measured side by side in one run; takes two to three minutes.

python -m benchmarks                    all parts (make bench)
python -m benchmarks --only tokens zoo  some parts
python -m benchmarks --json bench.json  also write them to a file
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.speed.canonical import measure_canonical
from benchmarks.speed.fetch import measure_fetch
from benchmarks.speed.graph import measure_graphs
from benchmarks.speed.logah import measure_logah
from benchmarks.speed.measure import Ratio
from benchmarks.speed.ratios import render, write_ratios
from benchmarks.speed.tokens import measure_tokens
from benchmarks.speed.zoo import measure_zoo

PARTS: dict[str, Callable[[], list[Ratio]]] = {
    "tokens": measure_tokens,
    "zoo": measure_zoo,
    "fetch": measure_fetch,
    "canonical": measure_canonical,
    "graph": measure_graphs,
    "logah": measure_logah,
}
_ON_TRANSFORMERS = ("graph", "logah")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which parts to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the ratios to this file")
    options = parser.parse_args(argv)
    lacking = [] if importlib.util.find_spec("transformers") else [p for p in options.only if p in _ON_TRANSFORMERS]
    if lacking:
        parser.error(
            f"{' and '.join(lacking)} measure models of transformers, which is not installed; "
            "install it with pip install 'weightgen[clip]', or choose other parts with --only"
        )
    torch.set_num_threads(1)  # else a busy machine would be measured: threads wait for each other
    ratios: list[Ratio] = []
    for part in options.only:
        print(f"measuring {part}", file=sys.stderr, flush=True)
        for ratio in PARTS[part]():
            print(render(ratio), flush=True)
            ratios.append(ratio)
    if options.json:
        write_ratios(options.json, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
