"""The denoiser of windows: it also reads the places of the latents and the tail of the window before.

D2NWG generates large networks chunk by chunk (Soro et al. 2025, arXiv:2402.18153, section 3.1). To make chunks agree,
the denoiser reads the last latents of the window before, its tail, without noise, in front of the window.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weightgen.generators.d2nwg.denoiser import MAX_LOG_SNR, mix_with_noisy
from weightgen.layers.place_embedding import PlaceEmbedding
from weightgen.layers.transformer import Block, embed_scalar


class WindowDenoiser(nn.Module):
    """Maps noisy latents (b, k, c) of a window, of unit variance, to latents without noise; any k, any tail."""

    def __init__(
        self, *, latent_dim: int, place_dim: int, condition_dim: int, dim: int = 128, depth: int = 4, heads: int = 4
    ) -> None:
        super().__init__()
        self.dim = dim
        self.embed = nn.Linear(latent_dim, dim)
        self.embed_tail = nn.Linear(latent_dim, dim)
        self.place = PlaceEmbedding(place_dim, dim)
        self.no_tail = nn.Parameter(0.2 * torch.randn(dim))
        self.level = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.condition = nn.Linear(condition_dim, dim)
        self.blocks = nn.ModuleList(Block(dim, heads, condition_dim=dim) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, latent_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        noisy: Float[Tensor, "b k c"],
        log_snr: Float[Tensor, " b"],
        condition: Float[Tensor, "b e"],
        *,
        places: Float[Tensor, "b k p"],
        tail: Float[Tensor, "b t c"],
        tail_places: Float[Tensor, "b t p"],
        has_tail: Float[Tensor, " b"],
    ) -> Float[Tensor, "b k c"]:
        """The latents without noise (b, k, c); where `has_tail` is 0 instead of 1, the tail is ignored."""
        level = log_snr.clamp(-MAX_LOG_SNR, MAX_LOG_SNR)
        vector = self.level(embed_scalar(level / MAX_LOG_SNR, self.dim)) + self.condition(condition)
        known = torch.where(has_tail[:, None, None] > 0, self.embed_tail(tail) + self.place(tail_places), self.no_tail)
        x = torch.cat([known, self.embed(noisy) + self.place(places)], 1)
        for block in self.blocks:
            x = block(x, vector)
        return mix_with_noisy(noisy, self.out(self.norm(x[:, tail.shape[1] :])), log_snr)
