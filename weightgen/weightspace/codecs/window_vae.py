"""The window VAE: from the chunk tokens of any window of any network to as many latents and back (arXiv:1312.6114).

D2NWG's first stage in its layer-wise mode (Soro et al. 2025, arXiv:2402.18153, section 3.1). One codec serves all
windows of networks of any depth; it gets the place of each token and the kind of its layer
(`weightgen.weightspace.windows`). The tokens of each kind have linear maps to latents and back, which start as their
principal components. In both directions, a transformer over the window, which also reads the places, corrects the
linear map. So before training it is the linear codec that it has to beat.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from weightgen.errors import BadData, BadOption
from weightgen.layers.place_embedding import PlaceEmbedding
from weightgen.layers.transformer import Block
from weightgen.weightspace.windows import PLACE_DIM


class WindowVae(nn.Module):
    """Maps tokens (b, k, d) of windows to latents (b, k, c), one for each token, and back; any k."""

    latent_mean: Tensor
    latent_scale: Tensor

    def __init__(
        self,
        *,
        num_kinds: int,
        token_dim: int = 144,
        latent_dim: int = 72,
        dim: int = 96,
        depth: int = 2,
        heads: int = 4,
        base: float = 0.0,
    ) -> None:
        """`base` is the standard deviation, before training, of the part of tokens that depends on the place alone.

        With 1 it is that of weights drawn at random, from which networks can be trained. With few latents and a base of
        0, decoded networks can hardly be trained.
        """
        super().__init__()
        if not 1 <= latent_dim <= token_dim:
            raise BadOption(f"latent_dim is {latent_dim}, expected 1 to {token_dim}, the width of a token")
        self.token_dim, self.latent_dim = token_dim, latent_dim
        self.linear_in = nn.Parameter(torch.eye(token_dim, latent_dim).repeat(num_kinds, 1, 1))
        self.linear_out = nn.Parameter(torch.eye(latent_dim, token_dim).repeat(num_kinds, 1, 1))
        self.place = PlaceEmbedding(PLACE_DIM, dim)
        self.into = nn.Linear(token_dim, dim)
        self.encoder = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.to_latents = nn.Linear(dim, 2 * latent_dim)
        self.from_latents = nn.Linear(latent_dim, dim)
        self.decoder = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.out_of = nn.Linear(dim, token_dim)
        self.register_buffer("latent_mean", torch.zeros(num_kinds, latent_dim))
        self.register_buffer("latent_scale", torch.ones(num_kinds, latent_dim))
        nn.init.zeros_(self.to_latents.weight)
        nn.init.zeros_(self.to_latents.bias)
        nn.init.normal_(self.out_of.weight, std=base * dim**-0.5)
        nn.init.zeros_(self.out_of.bias)
        nn.init.constant_(self.to_latents.bias[latent_dim:], -6.0)

    def set_components(self, tokens: Float[Tensor, "n d"], kinds: Int[Tensor, " n"]) -> None:
        """Set the linear maps to the uncentred principal components of each kind's tokens; latents get variance 1."""
        with torch.no_grad():
            for kind, rows in _by_kind(kinds):
                if not bool(tokens[rows].isfinite().all()):
                    raise BadData("the tokens hold NaN or infinite numbers; principal components need finite ones")
                _, sizes, axes = torch.linalg.svd(tokens[rows].double(), full_matrices=False)
                count = min(self.latent_dim, len(sizes))
                deviation = (sizes[:count] / len(rows) ** 0.5).clamp_min(1e-3).float()
                self.linear_in[kind].zero_()
                self.linear_out[kind].zero_()
                self.linear_in[kind, :, :count] = axes[:count].T.float() / deviation
                self.linear_out[kind, :count] = axes[:count].float() * deviation[:, None]

    def set_latent_scaling(self, latents: Float[Tensor, "n c"], kinds: Int[Tensor, " n"]) -> None:
        """Standardise latents from now on; `latents` are those of the training networks by the present `encode`."""
        for kind, rows in _by_kind(kinds):
            raw = latents[rows] * self.latent_scale[kind] + self.latent_mean[kind]
            self.latent_mean[kind] = raw.mean(0)
            self.latent_scale[kind] = raw.std(0, correction=0).clamp_min(1e-2)

    def encode(
        self, tokens: Float[Tensor, "b k d"], kinds: Int[Tensor, "b k"], places: Float[Tensor, "b k p"]
    ) -> Float[Tensor, "b k c"]:
        """The standardised means of the latents (b, k, c)."""
        mean, _ = self.encode_distribution(tokens, kinds, places)
        return (mean - self.latent_mean[kinds]) / self.latent_scale[kinds]

    def encode_distribution(
        self, tokens: Float[Tensor, "b k d"], kinds: Int[Tensor, "b k"], places: Float[Tensor, "b k p"]
    ) -> tuple[Tensor, Tensor]:
        """Mean and log variance (b, k, c) of the latents, before standardisation."""
        x = self.into(tokens) + self.place(places)
        for block in self.encoder:
            x = block(x)
        mean, log_var = self.to_latents(x).chunk(2, -1)
        return mean + _linear(tokens, kinds, self.linear_in), log_var.clamp(-12, 4)

    def decode(
        self,
        latents: Float[Tensor, "b k c"],
        kinds: Int[Tensor, "b k"],
        places: Float[Tensor, "b k p"],
        mask: Bool[Tensor, "b k d"],
    ) -> Float[Tensor, "b k d"]:
        """Tokens (b, k, d) of standardised latents; padding is zero."""
        return self.decode_raw(latents * self.latent_scale[kinds] + self.latent_mean[kinds], kinds, places, mask)

    def decode_raw(
        self,
        latents: Float[Tensor, "b k c"],
        kinds: Int[Tensor, "b k"],
        places: Float[Tensor, "b k p"],
        mask: Bool[Tensor, "b k d"],
    ) -> Float[Tensor, "b k d"]:
        """Tokens (b, k, d) of latents from `encode_distribution`."""
        x = self.from_latents(latents) + self.place(places)
        for block in self.decoder:
            x = block(x)
        return (self.out_of(self.norm(x)) + _linear(latents, kinds, self.linear_out)) * mask


def _linear(x: Tensor, kinds: Tensor, maps: Tensor) -> Tensor:
    """Each row of x (b, k, i) times the map (i, o) of its kind, (b, k, o)."""
    out = x.new_zeros(*x.shape[:2], maps.shape[2])
    for kind, rows in _by_kind(kinds.flatten()):
        out.view(-1, maps.shape[2])[rows] = x.reshape(-1, x.shape[2])[rows] @ maps[kind]
    return out


def _by_kind(kinds: Tensor) -> Iterator[tuple[int, Tensor]]:
    for kind in kinds.unique().tolist():
        yield kind, (kinds == kind).nonzero()[:, 0]
