"""A small real recipe for tests of the training loop; `python -m tests.helpers.toy_recipe FOLDER STEPS` trains it."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.loop import Group, LoopSettings, Losses, Recipe, Span, train


def make_recipe(*, width: int = 8, settings: dict[str, Any] | None = None, **options: Any) -> Recipe:
    """Two linear layers, a group each, that learn to give back what they see."""
    torch.manual_seed(0)
    first, second = nn.Linear(width, width), nn.Linear(width, width)
    module = nn.Sequential(first, nn.Tanh(), second)

    def losses(_steps: int, _progress: float, rng: torch.Generator) -> Losses:
        x = torch.randn(16, width, generator=rng)
        return Losses({"error": (module(x) - x).square().mean(), "size": 1e-3 * first.weight.square().mean()})

    groups = [Group(list(first.parameters()), 1e-2), Group(list(second.parameters()), 3e-3)]
    return Recipe("toy", module, groups, losses, settings or {"width": width}, **options)


def make_settings(steps: int = 8, **options: Any) -> LoopSettings:
    return LoopSettings(**{"budget": Span(steps=steps), "warmup": 3, "average": 0.9, **options})


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(make_recipe(width=128), make_settings(int(sys.argv[2]), save_every=Span(steps=1)), Path(sys.argv[1]))
