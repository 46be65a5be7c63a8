"""Mlp: fully connected networks, for images taken flat and for feature vectors."""

from itertools import pairwise

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn


class Mlp(nn.Module, PyTorchModelHubMixin):
    """Inputs (n, ...) of `in_features` numbers each to logits (n, num_classes): `depth` hidden layers of `width`."""

    INPUT = "any"

    def __init__(self, *, num_classes: int = 10, in_features: int = 784, width: int = 64, depth: int = 2) -> None:
        super().__init__()
        sizes = [in_features] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise(sizes))
        self.head = nn.Linear(sizes[-1], num_classes)

    @property
    def AXES(self) -> dict[str, str]:
        axes = {}
        for i in range(len(self.layers)):
            axes[f"layers.{i}.weight"] = f"h{i + 1} " + (f"h{i}" if i else "PIXELS")
            axes[f"layers.{i}.bias"] = f"h{i + 1}"
        return axes | {"head.weight": f"CLASSES h{len(self.layers)}", "head.bias": "CLASSES"}

    @property
    def SCALABLE(self) -> tuple[str, ...]:
        """Hidden words whose units may be scaled: only ReLU stands between those that make and read them."""
        return tuple(f"h{i + 1}" for i in range(len(self.layers)))

    def features(self, x: Tensor) -> Tensor:
        """What the head sees, (n, width)."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
