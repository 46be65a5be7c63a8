"""Normalisation by the statistics of a batch, blended with given statistics.

The formulas are those of batch normalisation (Ioffe, Szegedy 2015, arXiv:1502.03167) with

    mean = blend * prior_mean + (1 - blend) * batch_mean
    var  = blend * prior_var  + (1 - blend) * batch_var

so that a batch of few examples is not the only source. It has its own backward pass, which reads activations four times
instead of twelve; refinement of small networks spends most of its time there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

SumChannels = Callable[[Tensor], Tensor]
"""z (n, c, ...) -> sums (c,)"""

EPS = 1e-5
"""Added to variances, as torch's BatchNorm does."""


def sum_channels(z: Tensor) -> Tensor:
    """Sums (c,) of z (n, c, ...)."""
    return z.sum([0, *range(2, z.ndim)])


def blended_norm(
    z: Tensor,
    gain: Tensor,
    bias: Tensor,
    prior_mean: Tensor,
    prior_var: Tensor,
    blend: Tensor,
    *,
    sums: SumChannels = sum_channels,
) -> tuple[Tensor, Tensor, Tensor]:
    """z (n, c, ...) normalised, scaled and shifted by channel, and the mean (c,) and variance (c,) that were used.

    `blend` is a scalar in [0, 1]. Differentiable once, in all tensors.
    """
    return _BlendedNorm.apply(z, gain, bias, prior_mean, prior_var, blend, sums)  # pyright: ignore


def scale_by_channel(z: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """factor * z + shift for z (n, c, ...) and factor and shift (c,)."""
    return torch.addcmul(_by_channel(shift, z), z, _by_channel(factor, z))


class _BlendedNorm(Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        gain: Tensor,
        bias: Tensor,
        prior_mean: Tensor,
        prior_var: Tensor,
        blend: Tensor,
        sums: SumChannels,
    ) -> tuple[Tensor, Tensor, Tensor]:
        count = z.numel() // z.shape[1]
        batch_mean = sums(z) / count
        batch_var = (sums(z.square()) / count - batch_mean.square()).clamp_min(0)  # var_mean is ten times slower
        mean = torch.lerp(batch_mean, prior_mean, blend)
        var = torch.lerp(batch_var, prior_var, blend)
        scale = (var + EPS).rsqrt()
        factor = gain * scale
        ctx.sums = sums
        ctx.save_for_backward(z, batch_mean, batch_var, prior_mean, prior_var, blend, mean, scale, gain)
        return scale_by_channel(z, factor, bias - mean * factor), mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        z, batch_mean, batch_var, prior_mean, prior_var, blend, mean, scale, gain = ctx.saved_tensors
        of_y, of_mean, of_var = slopes
        total = ctx.sums(of_y)
        lever = ctx.sums(of_y * z) - mean * total
        of_mean = of_mean - gain * scale * total
        of_var = of_var - 0.5 * gain * scale**3 * lever
        of_blend = (of_mean * (prior_mean - batch_mean) + of_var * (prior_var - batch_var)).sum()
        of_z = None
        if ctx.needs_input_grad[0]:
            count = z.numel() // z.shape[1]
            of_square = (1 - blend) * of_var / count
            of_first = (1 - blend) * of_mean / count - 2 * batch_mean * of_square
            of_z = scale_by_channel(z, 2 * of_square, of_first)
            of_z.addcmul_(of_y, _by_channel(gain * scale, z))
        return of_z, scale * lever, total, blend * of_mean, blend * of_var, of_blend, None


def _by_channel(vector: Tensor, like: Tensor) -> Tensor:
    return vector.reshape(-1, *[1] * (like.ndim - 2))
