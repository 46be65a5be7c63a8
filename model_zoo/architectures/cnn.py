"""Cnn: a width/depth family of plain convolutional networks with BatchNorm, and a head on the flattened map."""

from itertools import pairwise

from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn


class ConvBlock(nn.Module):
    """3x3 convolution, BatchNorm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()


class Cnn(nn.Module, PyTorchModelHubMixin):
    """Maps images (n, c, 28, 28) in [0, 1] to logits (n, num_classes).

    `depth` blocks of 3x3 convolution, BatchNorm, ReLU; the first three also halve the map (28, 14, 7, 3). The first
    block has `width` channels, the others twice as many; the head reads the flattened last map.
    """

    INPUT = "image"

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, width: int = 32, depth: int = 4) -> None:
        super().__init__()
        channels = [in_channels, width] + [2 * width] * (depth - 1)
        self.blocks = nn.ModuleList(ConvBlock(i, o) for i, o in pairwise(channels))
        self.pool = nn.MaxPool2d(2)
        self.map_size = [28, 14, 7, 3][min(depth, 3)]
        self.head = nn.Linear(channels[-1] * self.map_size**2, num_classes)

    @property
    def AXES(self) -> dict[str, str]:
        axes = {}
        for i in range(len(self.blocks)):
            before = f"c{i}" if i else "CHANNELS"
            axes[f"blocks.{i}.conv.weight"] = f"c{i + 1} {before} 3 3"
            for part in ("weight", "bias", "running_mean", "running_var"):
                axes[f"blocks.{i}.norm.{part}"] = f"c{i + 1}"
            axes[f"blocks.{i}.norm.num_batches_tracked"] = ""
        size = self.map_size
        return axes | {"head.weight": f"CLASSES (c{len(self.blocks)} {size} {size})", "head.bias": "CLASSES"}

    @property
    def SCALABLE(self) -> tuple[str, ...]:
        """Hidden words whose units may be scaled: only ReLU and pooling lie between makers and readers."""
        return tuple(f"c{i + 1}" for i in range(len(self.blocks)))

    def features(self, x: Tensor) -> Tensor:
        """Inputs of the head, (n, channels * map_size^2)."""
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i < 3:
                x = self.pool(x)
        return rearrange(x, "n c h w -> n (c h w)")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
