"""ViT: a small vision transformer, pre-norm, class token (Dosovitskiy et al. 2021, arXiv:2010.11929)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn


class Block(nn.Module):
    """Self-attention over tokens (n, t, width) and a two-layer MLP, each after a LayerNorm and with a shortcut."""

    def __init__(self, width: int, num_heads: int, *, mlp_ratio: int = 2, is_causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.is_causal = num_heads, is_causal
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, mlp_ratio * width)
        self.fc2 = nn.Linear(mlp_ratio * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm1(x)), "n t (p h k) -> p n h t k", p=3, h=self.num_heads)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        x = x + self.proj(rearrange(attended, "n h t k -> n t (h k)"))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module, PyTorchModelHubMixin):
    """Maps images (n, c, 28, 28) in [0, 1] to logits (n, num_classes); patches of 4x4."""

    SCALABLE = ()
    """No hidden word may be scaled: GELU, softmax and LayerNorm do not commute with scale."""
    INPUT = "image"

    def __init__(
        self, *, num_classes: int = 10, in_channels: int = 1, width: int = 48, depth: int = 4, num_heads: int = 4
    ) -> None:
        super().__init__()
        self.patch = nn.Conv2d(in_channels, width, 4, 4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, 50, width))
        self.blocks = nn.ModuleList(Block(width, num_heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    @property
    def AXES(self) -> dict[str, str]:
        axes = {
            "patch.weight": "d CHANNELS 4 4",
            "patch.bias": "d",
            "class_token": "1 1 d",
            "position": "1 50 d",
            "norm.weight": "d",
            "norm.bias": "d",
            "head.weight": "CLASSES d",
            "head.bias": "CLASSES",
        }
        for i, block in enumerate(self.blocks):
            # The same permutation of k moves q, k and v: q.k is unchanged and proj reads v in the same order.
            heads = f"h{i}={block.num_heads} k{i}"
            axes |= {
                f"blocks.{i}.norm1.weight": "d",
                f"blocks.{i}.norm1.bias": "d",
                f"blocks.{i}.qkv.weight": f"(3 {heads}) d",
                f"blocks.{i}.qkv.bias": f"(3 {heads})",
                f"blocks.{i}.proj.weight": f"d ({heads})",
                f"blocks.{i}.proj.bias": "d",
                f"blocks.{i}.norm2.weight": "d",
                f"blocks.{i}.norm2.bias": "d",
                f"blocks.{i}.fc1.weight": f"m{i} d",
                f"blocks.{i}.fc1.bias": f"m{i}",
                f"blocks.{i}.fc2.weight": f"d m{i}",
                f"blocks.{i}.fc2.bias": "d",
            }
        return axes

    def features(self, x: Tensor) -> Tensor:
        """Inputs of the head: the class token after the last norm, (n, width)."""
        tokens = rearrange(self.patch(x), "n d h w -> n (h w) d")
        x = torch.cat([self.class_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))
