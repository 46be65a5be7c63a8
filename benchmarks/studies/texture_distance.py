"""Distance of two textures, by their responses to random filters.

Ustyuzhaninov, Brendel, Gatys, Bethge 2016, "Texture Synthesis Using Shallow Convolutional Networks with Random Filters"
(arXiv:1606.00021): images whose rectified responses to random filters have the same Gram matrix look like one texture.
"""

import math

import torch
import torch.nn.functional as F
from einops import einsum
from jaxtyping import Float
from torch import Tensor

NUM_FILTERS, WIDTH = 48, 7
SHRUNK = (1, 2, 4)
"""The filters are applied to the image shrunk by these factors."""


def make_filters(*, rng: torch.Generator) -> Float[Tensor, "f 3 s s"]:
    """Random filters (f, 3, s, s) of norm 1 on average."""
    return torch.randn(NUM_FILTERS, 3, WIDTH, WIDTH, generator=rng) / math.sqrt(3 * WIDTH**2)


def describe_texture(rgb: Float[Tensor, "b 3 h w"], filters: Float[Tensor, "f 3 s s"]) -> Float[Tensor, " k"]:
    """Gram matrices of the rectified responses at all scales, mean over the images of one texture, (k,)."""
    grams = []
    for factor in SHRUNK:
        image = F.avg_pool2d(2 * rgb - 1, factor)
        margin = WIDTH // 2
        seen = F.conv2d(F.pad(image, (margin,) * 4, mode="circular"), filters).relu()
        grams.append(einsum(seen, seen, "b f h w, b g h w -> f g") / (len(seen) * seen[0, 0].numel()))
    return torch.stack(grams).flatten()


def typical_distance(descriptions: Float[Tensor, "n k"]) -> float:
    """Median distance between two different textures, used as the unit of distances."""
    return float(torch.pdist(descriptions).median())
