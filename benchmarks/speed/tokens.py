"""Tokens: bandwidth of encode and decode against torch.clone of the same state of 100M parameters.

encode + decode move the state twice, so 0.5 would be the speed of two clones. There are two cases: into a token buffer
that is used again (`out=`), as in a loop over states, and into new memory, where allocating 400 MB takes longer than
the copy. torch.clone allocates new memory in both.
"""

import torch

from benchmarks.speed.measure import Ratio, median_ratio, medians, time_in_turn
from weightgen.spec import State
from weightgen.weightspace.tokens import LAYOUTS, bare_spec, build_layout

TOKEN_DIM, AIM = 64, 0.4


def measure_tokens() -> list[Ratio]:
    state = transformer_state()
    spec = bare_spec(state, "transformer-100m")
    ratios = []
    for name in LAYOUTS:
        layout = build_layout(name, spec, token_dim=TOKEN_DIM)
        buffer = layout.encode(state)
        sides = {
            "clone": lambda: {n: t.clone() for n, t in state.items()},
            "reused buffer": lambda layout=layout, buffer=buffer: layout.decode(layout.encode(state, out=buffer)),
            "fresh memory": lambda layout=layout: layout.decode(layout.encode(state)),
        }
        seconds = time_in_turn(sides, num_rounds=7)
        for side, aim in (("reused buffer", f">= {AIM}"), ("fresh memory", "")):
            value = 1 / median_ratio(seconds, side, "clone")
            found = {s: v for s, v in medians(seconds).items() if s in (side, "clone")}
            is_met = value >= AIM if aim else None
            label = f"tokens: {name} encode+decode bandwidth / torch.clone, {side}"
            ratios.append(Ratio(label, value, aim, is_met, found))
    return ratios


def transformer_state() -> State:
    """100M random numbers in the shapes of a 12-layer transformer."""
    width, shapes = 768, {"embed.weight": (19_400, 768)}
    for i in range(12):
        shapes |= {
            f"blocks.{i}.norm1.weight": (width,),
            f"blocks.{i}.norm1.bias": (width,),
            f"blocks.{i}.qkv.weight": (3 * width, width),
            f"blocks.{i}.qkv.bias": (3 * width,),
            f"blocks.{i}.proj.weight": (width, width),
            f"blocks.{i}.proj.bias": (width,),
            f"blocks.{i}.norm2.weight": (width,),
            f"blocks.{i}.norm2.bias": (width,),
            f"blocks.{i}.fc1.weight": (4 * width, width),
            f"blocks.{i}.fc1.bias": (4 * width,),
            f"blocks.{i}.fc2.weight": (width, 4 * width),
            f"blocks.{i}.fc2.bias": (width,),
        }
    rng = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
