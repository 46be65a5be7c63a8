"""Vectors of places that differ like random vectors, for functions of place that are not smooth, such as weights."""

import math

from jaxtyping import Float
from torch import Tensor, nn


class PlaceEmbedding(nn.Module):
    """Maps places (b, k, p) of order 1 to vectors (b, k, dim), by one layer of sines.

    SIREN, Sitzmann et al. 2020 (arXiv:2006.09661). With a GELU all places would look alike: the mean of its features is
    larger than the differences between neighbours.
    """

    def __init__(self, place_dim: int, dim: int, *, gain: float = 4.0) -> None:
        """`gain` is about how far phases turn between places, in radians."""
        super().__init__()
        self.phase = nn.Linear(place_dim, 2 * dim)
        self.out = nn.Linear(2 * dim, dim)
        nn.init.normal_(self.phase.weight, std=gain * math.sqrt(2 / place_dim))
        nn.init.uniform_(self.phase.bias, -math.pi, math.pi)
        nn.init.normal_(self.out.weight, std=dim**-0.5)
        nn.init.zeros_(self.out.bias)

    def forward(self, places: Float[Tensor, "b k p"]) -> Float[Tensor, "b k dim"]:
        return self.out(self.phase(places).sin())
