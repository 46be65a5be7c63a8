"""The token VAE: from a network's tokens to a few global latents and back (Kingma and Welling 2014, arXiv:1312.6114).

D2NWG's first stage (Soro et al. 2025, arXiv:2402.18153, section 3.2), without the faults that p-diff (arXiv:2402.13144)
has shown: the tokens come from canonical states, every token counts equally at any scale, the output has no squashing
function, and training adds noise to the latents.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightgen.errors import SpecMismatch
from weightgen.layers.transformer import Block


class TokenVae(nn.Module):
    """Maps tokens (b, n, d) of one layout to latents (b, k, c) and back; every token has its own place.

    Each group of tokens (the rows of one tensor) has its own linear layers for input and output. A transformer over the
    tokens and k latent tokens lies between. A token's output starts at the mean of the training networks, `mean`.
    """

    mask: Tensor
    mean: Tensor
    scale: Tensor
    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(
        self,
        *,
        mask: Bool[Tensor, "n d"],
        group_sizes: Sequence[int],
        num_latents: int = 16,
        latent_dim: int = 16,
        dim: int = 128,
        depth: int = 2,
        heads: int = 4,
    ) -> None:
        """`group_sizes` are the numbers of consecutive tokens of one kind; they add up to n."""
        super().__init__()
        if sum(group_sizes) != len(mask):
            raise SpecMismatch(f"groups of {sum(group_sizes)} tokens, the layout has {len(mask)}")
        self.group_sizes = list(group_sizes)
        self.latent_shape = (num_latents, latent_dim)
        self.register_buffer("mask", mask)
        self.register_buffer("mean", torch.zeros(mask.shape))
        self.register_buffer("scale", torch.ones(len(mask), 1))
        self.register_buffer("latent_scale", torch.ones(num_latents, latent_dim))
        self.register_buffer("latent_mean", torch.zeros(num_latents, latent_dim))
        width = mask.shape[1]
        self.into = nn.ModuleList(nn.Linear(width, dim) for _ in group_sizes)
        self.out_of = nn.ModuleList(nn.Linear(dim, width) for _ in group_sizes)
        self.places = nn.Parameter(0.2 * torch.randn(len(mask), dim))
        self.queries = nn.Parameter(0.2 * torch.randn(num_latents, dim))
        self.encoder = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.to_latents = nn.Linear(dim, 2 * latent_dim)
        self.from_latents = nn.Linear(latent_dim, dim)
        self.latent_places = nn.Parameter(0.2 * torch.randn(num_latents, dim))
        self.decoder = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        for layer in self.out_of:
            nn.init.normal_(layer.weight, std=0.2 / dim**0.5)  # pyright: ignore[reportArgumentType]
            nn.init.zeros_(layer.bias)  # pyright: ignore[reportArgumentType]

    def set_scaling(self, tokens: Float[Tensor, "b n d"]) -> None:
        """Set every token's mean and root mean square deviation from training networks."""
        self.mean = tokens.mean(0) * self.mask
        spread = ((tokens - self.mean) * self.mask).square().mean(0).sum(1) / self.mask.sum(1)
        self.scale = spread.sqrt().clamp_min(1e-4)[:, None]

    def set_latent_scaling(self, tokens: Float[Tensor, "b n d"]) -> None:
        """Standardise latents from now on, so that those of these networks have mean zero and unit variance."""
        self.latent_mean, self.latent_scale = torch.zeros_like(self.latent_mean), torch.ones_like(self.latent_scale)
        with torch.no_grad():
            latents = torch.cat([self.encode(part) for part in tokens.split(64)])
        self.latent_mean, self.latent_scale = latents.mean(0), latents.std(0).clamp_min(1e-3)

    def encode(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b k c"]:
        """The standardised means of the latents (b, k, c)."""
        return (self.encode_distribution(tokens)[0] - self.latent_mean) / self.latent_scale

    def encode_distribution(self, tokens: Float[Tensor, "b n d"]) -> tuple[Tensor, Tensor]:
        """Mean and log variance (b, k, c) of the latents, before standardisation."""
        if tokens.shape[1:] != self.mask.shape:
            raise SpecMismatch(f"tokens {list(tokens.shape[1:])}, this codec takes {list(self.mask.shape)}")
        x = ((tokens - self.mean) / self.scale * self.mask).split(self.group_sizes, 1)
        x = torch.cat([layer(part) for layer, part in zip(self.into, x, strict=True)], 1) + self.places
        x = torch.cat([self.queries.expand(len(x), -1, -1), x], 1)
        for block in self.encoder:
            x = block(x)
        mean, log_var = self.to_latents(x[:, : self.latent_shape[0]]).chunk(2, -1)
        return mean, log_var.clamp(-12, 4)

    def decode(self, latents: Float[Tensor, "b k c"]) -> Float[Tensor, "b n d"]:
        """Tokens (b, n, d) of standardised latents; padding is zero."""
        return self.decode_raw(latents * self.latent_scale + self.latent_mean)

    def decode_raw(self, latents: Float[Tensor, "b k c"]) -> Float[Tensor, "b n d"]:
        """Tokens (b, n, d) of latents from `encode_distribution`."""
        known = self.from_latents(latents) + self.latent_places
        x = torch.cat([known, self.places.expand(len(latents), -1, -1)], 1)
        for block in self.decoder:
            x = block(x)
        parts = self.norm(x[:, self.latent_shape[0] :]).split(self.group_sizes, 1)
        tokens = torch.cat([layer(part) for layer, part in zip(self.out_of, parts, strict=True)], 1)
        return (self.mean + self.scale * tokens) * self.mask

    def weight_loss(self, tokens: Float[Tensor, "b n d"], decoded: Float[Tensor, "b n d"]) -> Tensor:
        """Mean square error in units of each token's variance over the training networks, scalar; 1 for the mean."""
        error = ((tokens - decoded) / self.scale * self.mask).square().sum(2) / self.mask.sum(1)
        return error.mean()

    def describe(self) -> dict[str, Any]:
        """The arguments of `__init__` except the mask, as JSON values."""
        return {
            "group_sizes": self.group_sizes,
            "num_latents": self.latent_shape[0],
            "latent_dim": self.latent_shape[1],
            "dim": self.places.shape[1],
            "depth": len(self.encoder),
        }


def kl_divergence(mean: Float[Tensor, "b k c"], log_var: Float[Tensor, "b k c"]) -> Tensor:
    """KL divergence from the standard normal, in nats per latent number, scalar."""
    return 0.5 * (mean.square() + log_var.exp() - 1 - log_var).mean()
