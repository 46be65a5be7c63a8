"""Ratios as lines of text, and as a file that also names the machine."""

import os
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

from benchmarks.speed.measure import Ratio
from weightgen.files.storage import write_json


def render(ratio: Ratio) -> str:
    """The ratio and its aim, with the seconds of both sides on the next line."""
    aim = f" (aim {ratio.aim}: {'met' if ratio.is_met else 'missed'})" if ratio.aim else ""
    seconds = ", ".join(f"{side} {1000 * s:.3g} ms" for side, s in ratio.seconds.items())
    return f"{ratio.value:8.3f}  {ratio.name}{aim}" + (f"\n          {seconds}" if seconds else "")


def write_ratios(path: Path, ratios: Iterable[Ratio]) -> None:
    """Write the ratios by name, and the machine."""
    machine = {"cores": os.cpu_count(), "system": platform.platform(), "torch": torch.__version__}
    write_json(path, {"machine": machine, "ratios": {r.name: r.to_json() for r in ratios}})
