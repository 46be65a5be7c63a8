"""Features of the units of an axis of any length, as functions of the unit's place instead of rows of a table.

A hypernetwork that looks its rows up in a table learns only the rows that its training widths reach. Here a row is a
function of the unit's number and of its share of the axis, with parameters that every width trains. Fast sines and
cosines, at rates spread over (0, 1/2) turns a unit, make neighbours differ; slow ones make far units differ (Vaswani et
al. 2017, arXiv:1706.03762, 3.5).

Shapes: n units of an axis, k kernel positions of each, h features.
"""

import math
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

_NUM_FAST, _NUM_SLOW, _NUM_SHARES = 16, 8, 4
_GOLDEN = (math.sqrt(5) - 1) / 2
_BLOCK = 256
NUM_WAVES = 2 * (_NUM_FAST + _NUM_SLOW + _NUM_SHARES)


def wave_features(size: int, device: torch.device | None = None) -> Float[Tensor, "n waves"]:
    """Pairs of cosine and sine of the places 0 .. size - 1 of an axis, float32, no two rows equal, (n, waves).

    Angles are exact for any place. A place is 256 a + b; the turns of a and of b are counted in float64. The wave of
    the sum is the product of two complex numbers, which costs a hundredth of a sine.
    """
    count = partial(torch.arange, dtype=torch.float64, device=device)
    # Multiples of the golden ratio fill the interval evenly, and no two units are equal in all of them.
    fast = (count(1, _NUM_FAST + 1) * _GOLDEN).frac() / 2
    slow = _GOLDEN * 2.0 ** -count(2, 2 * _NUM_SLOW + 2, 2)
    share = 2.0 ** count(-1, _NUM_SHARES - 1) / size
    rates = torch.cat([fast, slow, share])
    starts = torch.cat([torch.zeros_like(fast), torch.zeros_like(slow), share / 2])
    coarse = _wave(count(math.ceil(size / _BLOCK))[:, None] * _BLOCK * rates + starts)
    fine = _wave(count(min(_BLOCK, size))[:, None] * rates)
    waves = math.sqrt(2) * coarse[:, None] * fine
    return torch.view_as_real(waves).flatten(0, 1)[:size].flatten(1)


def _wave(turns: Tensor) -> Tensor:
    """Complex numbers of length 1, complex64, at angles given in turns, float64."""
    angles = (turns.frac() * (2 * math.pi)).float()
    return torch.polar(torch.ones_like(angles), angles)


def number_features(numbers: Tensor) -> Float[Tensor, "... 16"]:
    """Sines and cosines of the logarithms of numbers >= 0 (...), float32: sizes, degrees and depths without a limit."""
    rates = 2.0 ** torch.arange(-3, 5, device=numbers.device)
    angles = torch.log1p(numbers.float())[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


class AxisFeatures(nn.Module):
    """Features of the units of an axis and of each unit's kernel positions: sines of learnt mixtures of waves.

    Sines as in SIREN (Sitzmann et al. 2020, arXiv:2006.09661). A ReLU would cut features off below zero: they would
    share so large a mean that their products start with two directions instead of r.
    """

    def __init__(self, num_features: int, *, has_kernel: bool = True) -> None:
        super().__init__()
        self.of_unit = nn.Linear(NUM_WAVES, num_features)
        nn.init.normal_(self.of_unit.weight, std=2 * _NUM_FAST**-0.5)
        self.of_kernel = None
        if has_kernel:
            self.of_kernel = nn.Linear(NUM_WAVES, num_features, bias=False)
            nn.init.normal_(self.of_kernel.weight, std=_NUM_FAST**-0.5)
        nn.init.uniform_(self.of_unit.bias, -math.pi, math.pi)
        with torch.no_grad():
            # Slow waves get small weights at first: otherwise the rows of a weight start as copies of each other.
            self.of_unit.weight[:, 2 * _NUM_FAST :] *= 0.1

    def forward(self, num_units: int, num_positions: int = 1) -> Float[Tensor, "rows h"]:
        """Features of all units and positions, (n k, h); positions change fastest."""
        angles = self.of_unit(wave_features(num_units, self.of_unit.weight.device))
        if num_positions > 1:
            assert self.of_kernel is not None
            positions = wave_features(num_positions, angles.device)
            # Centred, so that a kernel of one position adds nothing.
            angles = (angles[:, None] + self.of_kernel(positions - positions.mean(0))).flatten(0, 1)
        return angles.sin() if angles.requires_grad else angles.sin_()
