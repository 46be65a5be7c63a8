"""ResNet: the CIFAR ResNets of He et al. 2016 (arXiv:1512.03385, section 4.2), depth 6n + 2, projection shortcuts."""

from einops import reduce
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the shortcut is a 1x1 convolution if the map halves."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.conv1(x)).relu()
        return (self.shortcut(x) + self.norm2(self.conv2(y))).relu()


class ResNet(nn.Module, PyTorchModelHubMixin):
    """Maps images (n, c, 28, 28) in [0, 1] to logits (n, num_classes); 3 stages of width, 2 width, 4 width."""

    INPUT = "image"

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1, depth: int = 8, width: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList()
        channels = width
        for stage in range(3):
            for block in range((depth - 2) // 6):
                out = width * 2**stage
                self.blocks.append(ResidualBlock(channels, out, stride=2 if stage and not block else 1))
                channels = out
        self.head = nn.Linear(channels, num_classes)

    @property
    def AXES(self) -> dict[str, str]:
        axes = {"conv.weight": "r1 CHANNELS 3 3"} | _norm_axes("norm", "r1")
        stage = 1
        for i, block in enumerate(self.blocks):
            before = f"r{stage}"
            if not isinstance(block.shortcut, nn.Identity):
                stage += 1
                axes[f"blocks.{i}.shortcut.weight"] = f"r{stage} {before} 1 1"
            axes[f"blocks.{i}.conv1.weight"] = f"b{i} {before} 3 3"
            axes[f"blocks.{i}.conv2.weight"] = f"r{stage} b{i} 3 3"
            axes |= _norm_axes(f"blocks.{i}.norm1", f"b{i}") | _norm_axes(f"blocks.{i}.norm2", f"r{stage}")
        return axes | {"head.weight": f"CLASSES r{stage}", "head.bias": "CLASSES"}

    @property
    def SCALABLE(self) -> tuple[str, ...]:
        """Hidden words whose units may be scaled: only ReLU, sums and pooling lie between makers and readers."""
        return ("r1", "r2", "r3", *(f"b{i}" for i in range(len(self.blocks))))

    def features(self, x: Tensor) -> Tensor:
        """Inputs of the head, (n, 4 * width)."""
        x = self.norm(self.conv(x)).relu()
        for block in self.blocks:
            x = block(x)
        return reduce(x, "n c h w -> n c", "mean")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _norm_axes(name: str, word: str) -> dict[str, str]:
    parts = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{part}": word for part in parts} | {f"{name}.num_batches_tracked": ""}
