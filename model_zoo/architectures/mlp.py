"""Mlp: fully connected networks, for flattened images and for feature vectors."""

from itertools import pairwise

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn


class Mlp(nn.Module, PyTorchModelHubMixin):
    """Maps inputs (n, ...) of `in_features` numbers to logits (n, num_classes): `depth` hidden layers of `width`."""

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
        """Hidden words whose units may be scaled: only ReLU lies between makers and readers."""
        return tuple(f"h{i + 1}" for i in range(len(self.layers)))

    def features(self, x: Tensor) -> Tensor:
        """Inputs of the head, (n, width)."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
