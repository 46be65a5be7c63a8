"""Sampling from a denoiser while it is trained: a few steps from noise, their number and sizes drawn at random."""

import math

import torch
from torch import Tensor


def draw_few_levels(*, rng: torch.Generator) -> Tensor:
    """Log signal-to-noise ratios (s,) of one to three random steps of the cosine schedule, from pure noise up."""
    steps = int(torch.randint(1, 4, (1,), generator=rng))
    times = torch.cat([torch.tensor([0.999]), torch.rand(steps - 1, generator=rng).sort(descending=True).values])
    return -2 * torch.tan(0.5 * math.pi * times.clamp(0.02, 0.999)).log()


def lower_noise(noisy: Tensor, clean: Tensor, level: Tensor, after: Tensor) -> Tensor:
    """Latents at the noise level `after`, from those at `level` and the clean ones that the denoiser finds in them.

    Song et al. 2021 (arXiv:2010.02502), eq. 12 with sigma = 0.
    """
    kept, now = torch.sigmoid(level), torch.sigmoid(after)
    noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
    return now.sqrt() * clean + (1 - now).sqrt() * noise
