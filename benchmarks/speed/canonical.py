"""Canonicalisation of a network, against training it for 10 steps."""

import torch
import torch.nn.functional as F

from benchmarks.speed.measure import Ratio, median_ratio, medians, time_in_turn
from model_zoo.architectures import build_target
from weightgen.weightspace.canonical import canonicalize

NUM_STEPS, BATCH_SIZE = 10, 32


def measure_canonical() -> list[Ratio]:
    ratios = []
    for arch, num_rounds in (("cnn-tiny", 7), ("resnet8", 5)):
        target = build_target(arch)
        reference, state = target.init_state(0), target.init_state(1)
        sides = {
            "canonicalize": lambda t=target, r=reference, s=state: canonicalize(s, t.spec, reference=r, scalable=()),
            "training": lambda t=target, s=state: _train(t.load(s).train()),
        }
        seconds = time_in_turn(sides, num_rounds=num_rounds)
        value = median_ratio(seconds, "canonicalize", "training")
        label = f"canonical: one {arch} / {NUM_STEPS} training steps of it"
        ratios.append(Ratio(label, value, "", None, medians(seconds)))
    return ratios


def _train(module: torch.nn.Module) -> None:
    rng = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(module.parameters())
    for _ in range(NUM_STEPS):
        x, y = torch.rand(BATCH_SIZE, 1, 28, 28, generator=rng), torch.randint(10, (BATCH_SIZE,), generator=rng)
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
