"""A class-aware encoder of support sets: a prototype of every class, in class order, and a summary of them all.

After the set encoder of D2NWG (Soro et al. 2025, arXiv:2402.18153, section 3.3: a Set Transformer within classes, then
over classes), with a convolutional network instead of CLIP's features, and means within classes.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.layers.transformer import Block


class SupportSetEncoder(nn.Module):
    """Labelled images (n, 1 or 3, 28, 28) in [0, 1] to class prototypes (k, e) and a summary (e,).

    Another order of the examples changes nothing. Another order of the classes reorders the prototypes and keeps the
    summary: a trunk must not depend on how classes are numbered, but a class row must.
    """

    def __init__(self, *, width: int = 32, dim: int = 128, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(3, width, 5, 3), nn.Conv2d(width, 2 * width, 3, 2, 1), nn.Conv2d(2 * width, 2 * width, 3, 2, 1)]
        )
        self.embed = nn.Linear(2 * width * 4, dim)
        self.class_in = nn.Linear(2 * dim + 7, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.summary = nn.Linear(2 * dim, dim)

    def forward(
        self, images: Sequence[Tensor], labels: Sequence[Int[Tensor, " _"]], num_classes: Sequence[int]
    ) -> tuple[list[Float[Tensor, "_ e"]], Float[Tensor, "b e"]]:
        """Prototypes of each of b support sets, and their summaries."""
        embedded = self._embed(torch.cat([x.expand(-1, 3, -1, -1) for x in images])).split([len(x) for x in images])
        tokens = [
            self.class_in(describe_classes(e, x, y, k))
            for e, x, y, k in zip(embedded, images, labels, num_classes, strict=True)
        ]
        prototypes = relate_members(tokens, self.blocks, self.norm)
        return prototypes, self.summary(pool_members(prototypes))

    def _embed(self, images: Tensor) -> Tensor:
        x = images - 0.5
        for conv in self.convs:
            x = F.leaky_relu(conv(x))
        return self.embed(rearrange(x, "n c h w -> n (c h w)"))


def describe_classes(
    embedded: Float[Tensor, "n e"], images: Tensor, labels: Int[Tensor, " n"], num_classes: int
) -> Float[Tensor, "k d"]:
    """Mean and spread of each class's embeddings and colours, and its number of examples: (k, d), d = 2 e + 7."""
    counts = torch.bincount(labels, minlength=num_classes)[:, None].to(embedded)

    def average(values: Tensor) -> Tensor:
        return values.new_zeros(num_classes, values.shape[1]).index_add(0, labels, values) / counts

    means = average(embedded)
    spread = average((embedded - means[labels]).square())
    colour = images.expand(-1, 3, -1, -1).mean((2, 3))
    square = images.square().expand(-1, 3, -1, -1).mean((2, 3))
    deviation = (square - colour.square()).clamp_min(0).sqrt()
    return torch.cat([means, (spread + 1e-4).log(), average(colour), average(deviation), counts.log()], 1)


def relate_members(
    sets: Sequence[Float[Tensor, "_ e"]], blocks: Iterable[nn.Module], norm: nn.Module
) -> list[Float[Tensor, "_ e"]]:
    """The members (_, e) of every set after attention among themselves; reordered members give reordered results."""
    related: list[Tensor] = [torch.empty(0)] * len(sets)
    for size in {len(x) for x in sets}:  # sets of one size go through the transformer together
        chosen = [i for i, x in enumerate(sets) if len(x) == size]
        x = torch.stack([sets[i] for i in chosen])
        for block in blocks:
            x = block(x)
        for i, row in zip(chosen, norm(x), strict=True):
            related[i] = row
    return related


def pool_members(sets: Sequence[Float[Tensor, "_ e"]]) -> Float[Tensor, "b d"]:
    """Mean and variance of the members of each of b sets, d = 2 e."""
    return torch.stack([torch.cat([x.mean(0), x.var(0, correction=0)]) for x in sets])
