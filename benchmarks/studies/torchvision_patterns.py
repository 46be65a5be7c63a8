"""Networks built like torchvision's ConvNeXt and Swin: layer scale after permutations, rolled windows, bias tables.

They are small stand-ins, to build graphs without torchvision; the names of their tensors are torchvision's.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Permute(nn.Module):
    """Permutes axes."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.permute(x, self.dims)


class ConvNextBlock(nn.Module):
    """A depthwise convolution and two layers over channels, scaled by channel, plus the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            Permute(0, 2, 3, 1),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute(0, 3, 1, 2),
        )
        self.layer_scale = nn.Parameter(torch.full((width, 1, 1), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer_scale * self.block(x) + x


class ChannelNorm(nn.LayerNorm):
    """Layer norm over channels of images (b, c, h, w)."""

    def forward(self, input: Tensor) -> Tensor:
        x = F.layer_norm(input.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def make_convnext(*, width: int = 16, num_classes: int = 10) -> nn.Module:
    """A network of a stem, two stages of two blocks and a head."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 4, stride=4), ChannelNorm(width)),
        nn.Sequential(ConvNextBlock(width), ConvNextBlock(width)),
        nn.Sequential(ChannelNorm(width), nn.Conv2d(width, 2 * width, 2, stride=2)),
        nn.Sequential(ConvNextBlock(2 * width), ConvNextBlock(2 * width)),
        nn.AdaptiveAvgPool2d(1),
        nn.Sequential(ChannelNorm(2 * width), nn.Flatten(1), nn.Linear(2 * width, num_classes)),
    )


class WindowAttention(nn.Module):
    """Attention inside windows, moved by `shift` pixels, with a learnt bias for every offset of two pixels."""

    relative_position_index: Tensor

    def __init__(self, width: int, *, window: int, shift: int, num_heads: int) -> None:
        super().__init__()
        self.window, self.shift, self.num_heads = window, shift, num_heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, num_heads))
        places = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        offsets = places[:, :, None] - places[:, None] + window - 1
        self.register_buffer("relative_position_index", (offsets[0] * (2 * window - 1) + offsets[1]).flatten())

    def forward(self, x: Tensor) -> Tensor:
        b, height, width, _ = x.shape
        x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        x = rearrange(x, "b (h p) (w q) c -> (b h w) (p q) c", p=self.window, q=self.window)
        q, k, v = rearrange(self.qkv(x), "b n (three heads c) -> three b heads n c", three=3, heads=self.num_heads)
        bias = self.relative_position_bias_table[self.relative_position_index]
        bias = rearrange(bias, "(n m) heads -> 1 heads n m", n=self.window**2)
        scores = q * q.shape[-1] ** -0.5 @ rearrange(k, "b heads n c -> b heads c n") + bias
        x = self.proj(rearrange(scores.softmax(-1) @ v, "b heads n c -> b n (heads c)"))
        sizes = {"b": b, "h": height // self.window, "w": width // self.window}
        x = rearrange(x, "(b h w) (p q) c -> b (h p) (w q) c", p=self.window, q=self.window, **sizes)
        return torch.roll(x, (self.shift, self.shift), (1, 2))


class SwinBlock(nn.Module):
    """Attention in windows and two layers, each after a norm and plus the identity."""

    def __init__(self, width: int, *, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = WindowAttention(width, window=4, shift=shift, num_heads=2)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    """Merges four neighbours into one of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.reduction, self.norm = nn.Linear(4 * width, 2 * width, bias=False), nn.LayerNorm(4 * width)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduction(self.norm(torch.cat(parts, -1)))


def make_swin(*, width: int = 16, num_classes: int = 10) -> nn.Module:
    """A network of patches, two stages of two blocks (the second with moved windows), and a head."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 4, stride=4), Permute(0, 2, 3, 1), nn.LayerNorm(width)),
        nn.Sequential(SwinBlock(width, shift=0), SwinBlock(width, shift=2)),
        PatchMerging(width),
        nn.Sequential(SwinBlock(2 * width, shift=0), SwinBlock(2 * width, shift=2)),
        nn.Sequential(nn.LayerNorm(2 * width), Permute(0, 3, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
        nn.Linear(2 * width, num_classes),
    )
