"""A class-aware encoder of support sets: a prototype of every class, in class order, and a summary of them all.

After the set encoder of D2NWG (Soro et al. 2025, arXiv:2402.18153, section 3.3: a Set Transformer within classes, then
over classes), with a convolutional network in the place of CLIP's features, and means within classes.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.layers.transformer import Block


class SupportSetEncoder(nn.Module):
    """Labelled images (n, 1 or 3, 28, 28) in [0, 1] to class prototypes (k, e) and a summary (e,).

    Another order of the examples changes nothing; another order of the classes reorders the prototypes, and leaves the
    summary as it is: a trunk may not depend on how classes are numbered, a class row has to.
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
        self, images: Sequence[Tensor], labels: Sequence[Int[Tensor, " n"]], num_classes: Sequence[int]
    ) -> tuple[list[Float[Tensor, "k e"]], Float[Tensor, "b e"]]:
        """Prototypes of each of b support sets, and their summaries."""
        embedded = self._embed(torch.cat([x.expand(-1, 3, -1, -1) for x in images])).split([len(x) for x in images])
        tokens = [
            self.class_in(self._describe_classes(e, x, y, k))
            for e, x, y, k in zip(embedded, images, labels, num_classes, strict=True)
        ]
        prototypes: list[Tensor] = [torch.empty(0)] * len(tokens)
        for count in set(num_classes):  # sets with as many classes go through the transformer together
            chosen = [i for i, k in enumerate(num_classes) if k == count]
            x = torch.stack([tokens[i] for i in chosen])
            for block in self.blocks:
                x = block(x)
            for i, row in zip(chosen, self.norm(x), strict=True):
                prototypes[i] = row
        pooled = torch.stack([torch.cat([p.mean(0), p.var(0, correction=0)]) for p in prototypes])
        return prototypes, self.summary(pooled)

    def _embed(self, images: Tensor) -> Tensor:
        x = images - 0.5
        for conv in self.convs:
            x = F.leaky_relu(conv(x))
        return self.embed(rearrange(x, "n c h w -> n (c h w)"))

    @staticmethod
    def _describe_classes(embedded: Tensor, images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        """Mean and spread of every class's embeddings, the mean and spread of its colours, and how many there are."""
        counts = torch.bincount(labels, minlength=num_classes)[:, None].to(embedded)

        def average(values: Tensor) -> Tensor:
            return values.new_zeros(num_classes, values.shape[1]).index_add(0, labels, values) / counts

        means = average(embedded)
        spread = average((embedded - means[labels]).square())
        colour = images.expand(-1, 3, -1, -1).mean((2, 3))
        square = images.square().expand(-1, 3, -1, -1).mean((2, 3))
        deviation = (square - colour.square()).clamp_min(0).sqrt()
        return torch.cat([means, (spread + 1e-4).log(), average(colour), average(deviation), counts.log()], 1)
