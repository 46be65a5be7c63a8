"""Transformer blocks that can be modulated by a vector: AdaLN-zero of DiT (Peebles and Xie 2023, arXiv:2212.09748)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


class Block(nn.Module):
    """Self-attention and an MLP over tokens (b, n, d), each with a residual; the identity at first if modulated."""

    def __init__(self, dim: int, heads: int, *, condition_dim: int | None = None, expansion: int = 4) -> None:
        """With `condition_dim`, shifts, scales and gates of both parts are made from a vector (b, condition_dim)."""
        super().__init__()
        self.heads = heads
        affine = condition_dim is None
        self.norm1, self.norm2 = (nn.LayerNorm(dim, elementwise_affine=affine) for _ in range(2))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, expansion * dim), nn.GELU(), nn.Linear(expansion * dim, dim))
        self.modulation = None
        if condition_dim is not None:
            self.modulation = nn.Linear(condition_dim, 6 * dim)
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Float[Tensor, "b n d"], condition: Float[Tensor, "b c"] | None = None) -> Tensor:
        if self.modulation is None:
            x = x + self._attend(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        assert condition is not None, "a modulated block needs its vector"
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, -1)
        x = x + gate1 * self._attend(self.norm1(x) * (1 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1 + scale2) + shift2)

    def _attend(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(x), "b n (p h d) -> p b h n d", p=3, h=self.heads)
        return self.out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)"))


def embed_scalar(values: Float[Tensor, " b"], dim: int, *, period: float = 10_000.0) -> Float[Tensor, "b dim"]:
    """Sines and cosines (b, dim) of numbers of order 1 to 10, with geometric wavelengths (Vaswani et al. 2017, 3.5)."""
    rates = torch.exp(-math.log(period) * torch.arange(dim // 2, device=values.device) / (dim // 2))
    angles = 100 * values[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)
