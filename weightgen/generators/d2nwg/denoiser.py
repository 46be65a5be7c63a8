"""The network that removes noise from latents: a transformer, modulated by noise level and condition."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightgen.layers.transformer import Block, embed_scalar

MAX_LOG_SNR = 10.0


class Denoiser(nn.Module):
    """Maps noisy latents (b, k, c) of unit variance to latents without noise, at any noise level, for any schedule.

    Variance-preserving diffusion and flow matching differ only in units: divided by its standard deviation, a noisy
    latent is described by its log signal-to-noise ratio alone (Kingma and Gao 2023, arXiv:2303.00848).
    """

    def __init__(
        self, *, num_latents: int, latent_dim: int, condition_dim: int, dim: int = 192, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(latent_dim, dim)
        self.places = nn.Parameter(0.02 * torch.randn(num_latents, dim))
        self.dim = dim
        self.level = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.condition = nn.Linear(condition_dim, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, condition_dim=dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, latent_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self, noisy: Float[Tensor, "b k c"], log_snr: Float[Tensor, " b"], condition: Float[Tensor, "b e"]
    ) -> Float[Tensor, "b k c"]:
        """The latents without noise (b, k, c)."""
        level = log_snr.clamp(-MAX_LOG_SNR, MAX_LOG_SNR)
        vector = self.level(embed_scalar(level / MAX_LOG_SNR, self.dim)) + self.condition(condition)
        x = self.embed(noisy) + self.places
        for block in self.blocks:
            x = block(x, vector)
        return mix_with_noisy(noisy, self.out(self.norm(x)), log_snr)


def mix_with_noisy(
    noisy: Float[Tensor, "b k c"], found: Float[Tensor, "b k c"], log_snr: Float[Tensor, " b"]
) -> Float[Tensor, "b k c"]:
    """Latents (b, k, c): the network's output `found` plus the noisy latents' share of the posterior mean for Gaussian
    latents; exact without noise and with only noise."""
    share = torch.sigmoid(log_snr).sqrt()[:, None, None]
    return share * noisy + (1 - share**2).sqrt() * found
