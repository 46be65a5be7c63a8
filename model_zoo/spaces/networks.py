"""Networks of variable size: plain CNNs and MLPs of any widths, vision and causal transformers.

ResNets are those of `model_zoo.architectures.resnet`. The class head of every one of them is called `head`.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from model_zoo.architectures.vit import Block

SMALLEST_MAP = 4
"""Maps of this height or less are not halved."""


class PlainCnn(nn.Module):
    """Maps images (n, c, h, w) to logits (n, num_classes): convolutions, up to three halvings, mean over the map."""

    def __init__(
        self,
        widths: Sequence[int],
        *,
        kernel: int = 3,
        batch_norm: bool = True,
        hidden: int | None = None,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        """`hidden` is the width of a linear layer before the head, if there is one."""
        super().__init__()
        channels = [in_channels, *widths]
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, kernel, padding=kernel // 2, bias=not batch_norm) for i, o in pairwise(channels)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) if batch_norm else nn.Identity() for o in widths)
        self.hidden = nn.Linear(channels[-1], hidden) if hidden else None
        self.head = nn.Linear(hidden or channels[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            x = norm(conv(x)).relu()
            if i < 3 and x.shape[2] > SMALLEST_MAP:
                x = F.max_pool2d(x, 2)
        x = reduce(x, "n c h w -> n c", "mean")
        return self.head(self.hidden(x).relu() if self.hidden is not None else x)


class PlainMlp(nn.Module):
    """Maps inputs (n, ...) of `in_features` numbers to logits (n, num_classes); hidden layers of any widths."""

    def __init__(
        self, widths: Sequence[int], *, batch_norm: bool = False, in_features: int = 784, num_classes: int = 10
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise([in_features, *widths]))
        self.norms = nn.ModuleList(nn.BatchNorm1d(o) if batch_norm else nn.Identity() for o in widths)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(layer(x)).relu()
        return self.head(x)


class VisionTransformer(nn.Module):
    """Maps images (n, c, s, s) to logits (n, num_classes); pre-norm, class token (Dosovitskiy et al. 2021)."""

    def __init__(
        self,
        width: int,
        depth: int,
        *,
        num_heads: int,
        patch: int = 4,
        mlp_ratio: int = 4,
        image_size: int = 28,
        in_channels: int = 1,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(in_channels, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (image_size // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio=mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = rearrange(self.patch(x), "n d h w -> n (h w) d")
        x = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class CausalTransformer(nn.Module):
    """Maps token ids (n, t) to logits (n, t, vocabulary), after GPT-2 (Radford et al. 2019); the head is tied."""

    def __init__(
        self, width: int, depth: int, *, num_heads: int, vocabulary: int = 256, context: int = 128, mlp_ratio: int = 4
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, num_heads, mlp_ratio=mlp_ratio, is_causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embedding(ids) + self.position(torch.arange(ids.shape[1], device=ids.device))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))
