"""The weight dataset: reading 64 random states, against np.memmap of one matrix with the same numbers."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from benchmarks.speed.measure import Ratio, median_ratio, medians, time_in_turn
from model_zoo.architectures import build_target
from weightgen.weight_dataset.dataset import build_weight_dataset

ARCH, NUM_STATES, NUM_FETCHED, NUM_FETCHES, AIM = "cnn-tiny", 4000, 64, 50, 2.0


def measure_fetch() -> list[Ratio]:
    spec = build_target(ARCH).spec
    rng = torch.Generator().manual_seed(0)
    stacked = {t.name: torch.randn((NUM_STATES, *t.shape), generator=rng) for t in spec.generated}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(stacked, folder / "zoo.safetensors")
        (folder / "zoo.json").write_text(f'{{"stacked": true, "stack_axis": 0, "n_models": {NUM_STATES}}}')
        dataset = build_weight_dataset(folder / "zoo.safetensors", folder / "dataset")
        matrix = np.concatenate([t.flatten(1).numpy() for t in stacked.values()], axis=1)
        matrix.tofile(folder / "matrix.bin")
        mapped = np.memmap(folder / "matrix.bin", np.float32, "r", shape=matrix.shape)
        picks = np.random.default_rng(0).integers(NUM_STATES, size=(NUM_FETCHES, NUM_FETCHED))
        digest = next(iter(dataset.specs))
        dataset.layout(digest)
        sides = {
            "np.memmap": lambda: [mapped[pick] for pick in picks],
            "stacked": lambda: [dataset.stacked(pick) for pick in picks],
            "list of states": lambda: [dataset.states(pick) for pick in picks],
            "tokens": lambda: [dataset.tokens(pick) for pick in picks],
        }
        seconds = time_in_turn(sides, num_rounds=11)
    ratios = []
    for side in ("stacked", "list of states", "tokens"):
        value = median_ratio(seconds, side, "np.memmap")
        found = {s: v / NUM_FETCHES for s, v in medians(seconds).items() if s in (side, "np.memmap")}
        aim = f"<= {AIM:g}" if side == "stacked" else ""
        label = f"dataset: random fetch of {NUM_FETCHED} states as {side} / np.memmap"
        ratios.append(Ratio(label, value, aim, value <= AIM if aim else None, found))
    return ratios
