"""CnnTiny: the tiny CNN of the published model zoos.

Schürholt et al. 2022, "Model Zoos: A Dataset of Diverse Populations of Neural Network Models" (arXiv:2209.14764):
conv 8x5, 6x5, 4x2, fully connected 36-20-10; 2,464 parameters with one input channel, 2,864 with three.
"""

import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn


class CnnTiny(nn.Module, PyTorchModelHubMixin):
    """Maps images (n, c, 28, 28) in [0, 1] to logits (n, num_classes)."""

    AXES = {
        "conv1.weight": "c1 CHANNELS 5 5",
        "conv1.bias": "c1",
        "conv2.weight": "c2 c1 5 5",
        "conv2.bias": "c2",
        "conv3.weight": "c3 c2 2 2",
        "conv3.bias": "c3",
        "fc.weight": "f (c3 3 3)",
        "fc.bias": "f",
        "head.weight": "CLASSES f",
        "head.bias": "CLASSES",
    }
    SCALABLE = ("c1", "c2", "c3", "f")
    """Hidden words whose units may be scaled: only ReLU and pooling lie between makers and readers."""
    SIDE_BY_SIDE = True
    """Several can run as one wide network: no step between the layers mixes channels."""
    INPUT = "image"

    def __init__(self, *, num_classes: int = 10, in_channels: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 8, 5)
        self.conv2 = nn.Conv2d(8, 6, 5)
        self.conv3 = nn.Conv2d(6, 4, 2)
        self.fc = nn.Linear(36, 20)
        self.head = nn.Linear(20, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Inputs of the head, (n, 20)."""
        x = F.max_pool2d(self.conv1(x), 2).relu()
        x = F.max_pool2d(self.conv2(x), 2).relu()
        x = self.conv3(x).relu()
        return self.fc(rearrange(x, "n c h w -> n (c h w)")).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
