"""Augmentation of images: small random shifts, turns and scalings."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def augment_images(
    images: Float[Tensor, "n c h w"],
    *,
    rng: torch.Generator,
    max_shift: float = 3.0,
    max_degrees: float = 10.0,
    max_scaling: float = 0.1,
) -> Float[Tensor, "n c h w"]:
    """Images shifted (by pixels), turned and scaled at random in one resampling, edges repeated, (n, c, h, w)."""
    n, _, height, width = images.shape
    draw = 2 * torch.rand(4, n, generator=rng, device=rng.device).to(images) - 1
    angle = math.radians(max_degrees) * draw[0]
    factor = 1 + max_scaling * draw[1]
    cos, sin = factor * angle.cos(), factor * angle.sin()
    # affine_grid works in [-1, 1] across the image: one pixel is 2 / size.
    rows = (cos, -sin, 2 * max_shift / width * draw[2], sin, cos, 2 * max_shift / height * draw[3])
    maps = torch.stack(rows, 1).reshape(n, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
