"""PcaCodec: from each token to a few standardised numbers and back, by principal components, without training.

It is the linear reference for learnt codecs: a codec of equal size that reconstructs held-out networks no better has
learnt nothing. Tokens of one kind share their components, and every token has its own mean:

    z[b, i] = C[g(i)] (x[b, i] - mean[i]) / deviation[i]        x[b, i] ~ mean[i] + C[g(i)]^T (deviation[i] z[b, i])

Shapes: b networks, n tokens, d = token_dim, g groups of tokens, r = rank.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from weightgen.errors import BadData, BadOption, SpecMismatch
from weightgen.weightspace.tokens import TokenLayout

FLAT_BELOW = 1e-6
"""A latent whose spread is less than this times the size of its token is not divided: the spread may be rounding."""
MAX_HALVINGS = 200
"""Most halvings of the interval of `bits_per_weight`'s water level; float64 reaches its precision long before."""


class PcaCodec(nn.Module):
    """Principal components of tokens, in buffers; made by `fit`, or made of zeros to load a state_dict into."""

    mask: Tensor
    mean: Tensor
    group_of: Tensor
    components: Tensor
    deviation: Tensor
    variance: Tensor

    def __init__(self, *, num_tokens: int, token_dim: int, num_groups: int, rank: int) -> None:
        super().__init__()
        self.register_buffer("mask", torch.zeros(num_tokens, token_dim, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(num_tokens, token_dim))
        self.register_buffer("group_of", torch.zeros(num_tokens, dtype=torch.long))
        self.register_buffer("components", torch.zeros(num_groups, rank, token_dim))
        self.register_buffer("deviation", torch.zeros(num_tokens, rank))
        self.register_buffer("variance", torch.zeros((), dtype=torch.float64))

    @classmethod
    def fit(
        cls, tokens: Float[Tensor, "b n d"], mask: Bool[Tensor, "n d"], groups: Sequence[Sequence[int]], *, rank: int
    ) -> "PcaCodec":
        """The codec for training networks' tokens, with `rank` components for every group of token indices.

        A group's components are those of all its tokens over all networks, each token minus its own mean. If the data
        have fewer than `rank` directions, the other latents are zero. Costs one float64 eigendecomposition for each
        group, of its covariance or its Gram matrix, whichever is smaller.
        """
        _check_fit(tokens, mask, groups, rank)
        num_tokens, token_dim = mask.shape
        codec = cls(num_tokens=num_tokens, token_dim=token_dim, num_groups=len(groups), rank=rank).to(tokens.device)
        wide = tokens.double() * mask
        mean = wide.mean(0)
        centred = wide - mean
        codec.mask.copy_(mask)
        codec.mean.copy_(mean)
        codec.variance.copy_(centred.square().sum() / len(tokens))
        for number, members in enumerate(groups):
            index = torch.tensor(members, device=tokens.device)
            axes = _principal_axes(centred[:, index].flatten(0, 1), rank)
            codec.group_of[index] = number
            codec.components[number, : len(axes)] = axes.to(codec.components.dtype)
            codec.deviation[index, : len(axes)] = (centred[:, index] @ axes.T).square().mean(0).sqrt().float()
        return codec

    @property
    def latent_shape(self) -> tuple[int, int]:
        """Number of tokens, and of latents of each: (n, r)."""
        return self.deviation.shape[0], self.deviation.shape[1]

    @property
    def explained(self) -> float:
        """Share of the fitted tokens' variance around their means that the latents keep."""
        total = float(self.variance)
        return float(self.deviation.double().square().sum()) / total if total > 0 else 1.0

    def encode(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n r"]:
        """Latents (b, n, r), of zero mean and unit variance over the fitting data."""
        self._check_shape("tokens", tokens, self.mask.shape)
        centred = tokens * self.mask - self.mean
        latents = centred.new_zeros(len(tokens), *self.latent_shape)
        for number, axes in enumerate(self.components):
            members = self.group_of == number
            latents[:, members] = centred[:, members] @ axes.T
        return latents / self._divisor()

    def decode(self, latents: Float[Tensor, "b n r"]) -> Float[Tensor, "b n d"]:
        """Tokens (b, n, d); padding is exactly zero."""
        self._check_shape("latents", latents, self.latent_shape)
        scaled = latents * self._divisor()
        tokens = scaled.new_zeros(len(latents), *self.mask.shape)
        for number, axes in enumerate(self.components):
            members = self.group_of == number
            tokens[:, members] = scaled[:, members] @ axes
        return torch.where(self.mask, tokens + self.mean, 0.0)

    def bits_per_weight(self, relative_error: float) -> float:
        """Bits per weight that Gaussian latents need for this root mean square error.

        `relative_error` is in units of the fitted tokens' standard deviation around their means; the part that the
        components cannot represent counts as error. This is the rate of parallel Gaussians by reverse water-filling:
        Cover and Thomas 2006, "Elements of Information Theory", theorem 10.3.3.
        """
        least = max(0.0, 1 - self.explained) ** 0.5
        if not least < relative_error <= 1:
            raise BadOption(
                f"relative_error is {relative_error}, expected more than {least:.4g}, what rank "
                f"{self.latent_shape[1]} leaves, and at most 1"
            )
        variances = self.deviation.double().square().flatten()
        allowed = (relative_error**2 - least**2) * float(self.variance)
        low, high = 0.0, float(variances.max())
        for _ in range(MAX_HALVINGS):
            level = (low + high) / 2
            low, high = (level, high) if float(variances.clamp_max(level).sum()) < allowed else (low, level)
        rate = 0.5 * (variances[variances > high] / high).log2().sum()
        return float(rate) / int(self.mask.sum())

    def _divisor(self) -> Tensor:
        """Divisors of the latents, (n, r): 1 for latents that hardly vary."""
        size = self.deviation.amax(1, keepdim=True) + self.mean.abs().amax(1, keepdim=True)
        return torch.where(self.deviation > FLAT_BELOW * size, self.deviation, 1.0)

    def _check_shape(self, what: str, values: Tensor, expected: tuple[int, ...]) -> None:
        if values.ndim != 3 or tuple(values.shape[1:]) != tuple(expected):
            raise SpecMismatch(f"{what} have shape {list(values.shape)}, expected (b, {expected[0]}, {expected[1]})")


def token_groups(layout: TokenLayout) -> list[list[int]]:
    """Token indices grouped by kind: the same chunk of all rows of one group of the layout."""
    return [
        list(range(group.first + chunk, group.first + group.num_tokens, group.num_chunks))
        for group in layout.groups
        for chunk in range(group.num_chunks)
    ]


def _check_fit(tokens: Tensor, mask: Tensor, groups: Sequence[Sequence[int]], rank: int) -> None:
    if tokens.ndim != 3 or tokens.shape[1:] != mask.shape:
        shapes = f"shape {list(tokens.shape)}, the mask {list(mask.shape)}"
        raise SpecMismatch(f"tokens have {shapes}; expected (b, n, d) and (n, d)")
    if len(tokens) < 2:
        raise BadOption(f"principal components of {len(tokens)} networks, expected 2 or more")
    if not 1 <= rank <= mask.shape[1]:
        raise BadOption(f"rank is {rank}, expected 1 to {mask.shape[1]}, the width of a token")
    if sorted(i for members in groups for i in members) != list(range(len(mask))):
        raise SpecMismatch(f"the groups do not hold each of the {len(mask)} tokens once")
    if not bool(tokens[:, mask].isfinite().all()):
        raise BadData("the tokens hold NaN or infinite numbers; principal components need finite ones")


def _principal_axes(rows: Tensor, rank: int) -> Tensor:
    """At most `rank` orthonormal directions (k, d) along which rows (m, d) vary most, largest first."""
    is_wide = rows.shape[0] < rows.shape[1]
    values, vectors = torch.linalg.eigh(rows @ rows.T if is_wide else rows.T @ rows)
    values, vectors = values.flip(0), vectors.flip(1)
    least = values[0].clamp_min(0) * torch.finfo(rows.dtype).eps * max(rows.shape)
    kept = min(rank, int((values > least).sum()))
    vectors = vectors[:, :kept]
    return (vectors.T @ rows) / values[:kept, None].sqrt() if is_wide else vectors.T
