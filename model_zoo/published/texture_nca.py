"""TextureNca: cellular automata that paint a texture from an empty grid, and the 133 published ones.

Niklasson, Mordvintsev, Randazzo, Levin 2021, "Self-Organising Textures" (Distill, 10.23915/distill.00027.003). The
published weights are those of google-research/self-organising-systems (Apache-2.0), eight bits per weight. Most names
end in "-mondrian": their training continued from the automaton of that name.

Shapes: b grids of h x w cells with c channels, the first three of them red, green and blue.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model_zoo.data.shared import shared_folder
from weightgen.errors import NotFound
from weightgen.files.checkpoint import read_models
from weightgen.spec import State, StateSpec

BOUND = 2.0
"""A cell's inputs, update and state are clipped to -BOUND .. BOUND; without this, published automata explode."""
UPDATED = 0.5
"""Share of cells that are updated in a step, drawn at random."""
NAME = "texture_nca_133"


class TextureNca(nn.Module):
    """One step of an automaton: every cell reads its neighbourhood by four filters, and an MLP gives its change.

    The published training code also clips hidden units at 2. That hardly ever has an effect. It is left out here, so
    that the scale of hidden units is free.
    """

    AXES = {
        "layers.0.weight": "h (4 CHANNELS)",
        "layers.0.bias": "h",
        "layers.1.weight": "CHANNELS h",
        "layers.1.bias": "CHANNELS",
    }
    SCALABLE = ("h",)

    filters: Tensor

    def __init__(self, *, channels: int = 12, hidden: int = 96) -> None:
        super().__init__()
        self.channels = channels
        self.layers = nn.ModuleList([nn.Linear(4 * channels, hidden), nn.Linear(hidden, channels)])
        self.register_buffer("filters", _make_filters(), persistent=False)

    def perceive(self, grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4*c h w"]:
        """Cell, horizontal and vertical slope, Laplacian of every channel; the grid is a torus.

        All channels of one filter are consecutive, as in the published weights.
        """
        around = rearrange(F.pad(grid, (1, 1, 1, 1), mode="circular"), "b c h w -> (b c) 1 h w")
        return rearrange(F.conv2d(around, self.filters), "(b c) f h w -> b (f c) h w", c=self.channels)

    def forward(self, grid: Float[Tensor, "b c h w"], updated: Bool[Tensor, "b h w"]) -> Float[Tensor, "b c h w"]:
        """The grid after one step, in which only the cells of `updated` change."""
        seen = self.perceive(grid).clamp(-BOUND, BOUND)
        change = _dense(self.layers[1], _dense(self.layers[0], seen).relu()).clamp(-BOUND, BOUND)
        return (grid + change * updated[:, None]).clamp(-BOUND, BOUND)


@dataclass(frozen=True, slots=True)
class TextureZoo:
    """The published automata: their spec, and name and state of each, in the order of the file."""

    spec: StateSpec
    names: tuple[str, ...]
    states: tuple[State, ...]


def load_texture_zoo() -> TextureZoo:
    """The 133 automata of the shared data folder; raises NotFound if they are missing."""
    folder = shared_folder()
    path = folder / "checkpoints" / f"{NAME}.safetensors" if folder else None
    if path is None or not path.is_file():
        raise NotFound(f"{NAME} is not there; set WEIGHTGEN_SHARED to the shared data folder")
    names = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["model_names"]
    spec = StateSpec.from_module(TextureNca(), TextureNca.AXES, arch="texture-nca")
    states = tuple({t.name: state[t.name] for t in spec.tensors} for _, state in read_models(path))
    for state in states:
        spec.check(state)
    return TextureZoo(spec, tuple(names), states)


@torch.no_grad()
def grow(
    state: Mapping[str, Tensor], *, steps: int, size: int, rng: torch.Generator, num_grids: int = 1
) -> Float[Tensor, "b c h w"]:
    """Grids (b, c, size, size) that an automaton has made from empty ones; `rng` draws the cells that update."""
    hidden, channels = state["layers.0.weight"].shape[0], state["layers.1.weight"].shape[0]
    automaton = TextureNca(channels=channels, hidden=hidden)
    automaton.load_state_dict(dict(state))
    grid = torch.zeros(num_grids, channels, size, size)
    draw = partial(torch.rand, num_grids, size, size, generator=rng)
    for _ in range(steps):
        grid = automaton(grid, draw() < UPDATED)
    return grid


def to_rgb(grid: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 h w"]:
    """Colours of grids, in [0, 1], (b, 3, h, w)."""
    return (grid[:, :3] / BOUND + 0.5).clamp(0, 1)


def _make_filters() -> Tensor:
    """The filters: identity, Sobel along x, Sobel along y, Laplacian, (4, 1, 3, 3)."""
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0])
    identity = torch.outer(torch.tensor([0.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0]))
    across = torch.outer(smooth, slope) / 8
    laplacian = torch.outer(smooth, smooth) / 8 - 2 * identity
    return torch.stack([identity, across, across.T, laplacian])[:, None]


def _dense(layer: nn.Module, x: Tensor) -> Tensor:
    assert isinstance(layer, nn.Linear)
    return F.conv2d(x, layer.weight[:, :, None, None], layer.bias)
