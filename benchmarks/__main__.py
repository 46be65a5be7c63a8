"""Speed, as ratios measured side by side in one run, one to two minutes.

python -m benchmarks                    all of them (make bench)
python -m benchmarks --only tokens zoo  some of them
python -m benchmarks --json bench.json  also write them to a file
"""

import argparse
import os
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.canonical_speed import measure_canonical
from benchmarks.fetch_speed import measure_fetch
from benchmarks.measure import Ratio
from benchmarks.token_speed import measure_tokens
from benchmarks.zoo_speed import measure_zoo
from weightgen.storage import write_json

PARTS: dict[str, Callable[[], list[Ratio]]] = {
    "tokens": measure_tokens,
    "zoo": measure_zoo,
    "fetch": measure_fetch,
    "canonical": measure_canonical,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which parts to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the ratios to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)  # threads that wait for each other on a busy machine would be what is measured
    ratios: list[Ratio] = []
    for part in options.only:
        print(f"measuring {part}", file=sys.stderr, flush=True)
        for ratio in PARTS[part]():
            print(render(ratio), flush=True)
            ratios.append(ratio)
    if options.json:
        machine = {
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "torch": torch.__version__,
        }
        write_json(options.json, {"machine": machine, "ratios": {r.name: r.to_json() for r in ratios}})
    return 0


def render(ratio: Ratio) -> str:
    """One line: the ratio, its aim, and the seconds of both sides."""
    aim = f"(aim {ratio.aim}: {'met' if ratio.is_met else 'missed'})" if ratio.aim else ""
    seconds = ", ".join(f"{side} {1000 * s:.3g} ms" for side, s in ratio.seconds.items())
    return f"{ratio.value:8.3f}  {ratio.name} {aim}\n          {seconds}"


if __name__ == "__main__":
    sys.exit(main())
