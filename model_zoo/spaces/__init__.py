"""Spaces of architectures, for training graph hypernetworks and for testing predictors of accuracy.

A member of a space is a frozen config that builds its module; equal configs build equal architectures. The ranges of
`vits` and `gpts` are those of LoGAH's ViTs-1K and GPTs-1K (Zhou et al. 2024, arXiv:2405.16287, section 4.1). Smaller
ones that a CPU can train are `small_vits` and `small_gpts`, and half of `vits`. `cnns`, `mlps` and `resnets` have sizes
for images of 28 x 28. `registered` are those of `model_zoo.architectures`, in many sizes. `HELD_OUT` are the
architectures that no recipe may learn from; tables of results use them.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import nn

from model_zoo.architectures import IMAGE_SIZE, make_meta, make_module
from model_zoo.architectures.resnet import ResNet
from model_zoo.spaces.networks import CausalTransformer, PlainCnn, PlainMlp, VisionTransformer
from weightgen.errors import BadOption, UnknownName
from weightgen.target.network import Target

MAX_VIT = 10_000_000
"""Most parameters of a vision transformer."""


class Member(Protocol):
    """One architecture of a space."""

    def build(self) -> nn.Module:
        """The module, with its own initial weights."""
        ...


@dataclass(frozen=True, slots=True)
class CnnMember:
    widths: tuple[int, ...]
    kernel: int = 3
    batch_norm: bool = True
    hidden: int | None = None
    in_channels: int = 1
    num_classes: int = 10

    def build(self) -> nn.Module:
        return PlainCnn(
            self.widths,
            kernel=self.kernel,
            batch_norm=self.batch_norm,
            hidden=self.hidden,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
        )


@dataclass(frozen=True, slots=True)
class MlpMember:
    widths: tuple[int, ...]
    batch_norm: bool = False
    in_features: int = 784
    num_classes: int = 10

    def build(self) -> nn.Module:
        return PlainMlp(
            self.widths, batch_norm=self.batch_norm, in_features=self.in_features, num_classes=self.num_classes
        )


@dataclass(frozen=True, slots=True)
class ResNetMember:
    depth: int
    width: int
    in_channels: int = 1
    num_classes: int = 10

    def build(self) -> nn.Module:
        return ResNet(num_classes=self.num_classes, in_channels=self.in_channels, depth=self.depth, width=self.width)


@dataclass(frozen=True, slots=True)
class ViTMember:
    width: int
    depth: int
    num_heads: int
    patch: int = 4
    mlp_ratio: int = 4
    image_size: int = 28
    in_channels: int = 1
    num_classes: int = 10

    def build(self) -> nn.Module:
        return VisionTransformer(
            self.width,
            self.depth,
            num_heads=self.num_heads,
            patch=self.patch,
            mlp_ratio=self.mlp_ratio,
            image_size=self.image_size,
            in_channels=self.in_channels,
            num_classes=self.num_classes,
        )


@dataclass(frozen=True, slots=True)
class GptMember:
    width: int
    depth: int
    num_heads: int
    vocabulary: int = 256
    context: int = 128
    mlp_ratio: int = 4

    def build(self) -> nn.Module:
        return CausalTransformer(
            self.width,
            self.depth,
            num_heads=self.num_heads,
            vocabulary=self.vocabulary,
            context=self.context,
            mlp_ratio=self.mlp_ratio,
        )


@dataclass(frozen=True, slots=True)
class RegisteredMember:
    arch: str
    """A name in `model_zoo.architectures`."""
    in_channels: int = 1
    num_classes: int = 10

    def build(self) -> nn.Module:
        return make_module(self.arch, num_classes=self.num_classes, in_channels=self.in_channels)()


def target_of(member: Any, *, num_classes: int | None = None, in_channels: int | None = None) -> Target:
    """The target network of a classifier, for another number of classes or channels if given.

    Raises BadOption for a language model.
    """
    if not hasattr(member, "num_classes"):
        raise BadOption(f"{member} has no class head")
    if num_classes is not None:
        member = replace(member, num_classes=num_classes)
    if in_channels is not None:
        member = replace(member, in_channels=in_channels)
    module: Any = make_meta(member.build)
    axes = {"head.weight": f"CLASSES {module.head.in_features}", "head.bias": "CLASSES"}
    config = asdict(member)
    channels = config.get("in_channels", config.get("in_features", 0) // IMAGE_SIZE**2)
    shape = (channels, IMAGE_SIZE, IMAGE_SIZE)
    return Target.from_module(member.build, axes, arch=type(member).__name__, config=config, input_shape=shape)


def draw_cnn(rng: torch.Generator) -> CnnMember:
    """1 to 5 convolutions of 8 to 64 channels, mostly wider towards the end."""
    depth = _draw_int(1, 5, rng)
    widths = sorted(_draw_size(8, 64, 4, rng) for _ in range(depth))
    if _chance(0.3, rng):
        widths = [widths[i] for i in torch.randperm(depth, generator=rng).tolist()]
    return CnnMember(
        widths=tuple(widths),
        kernel=_pick((3, 3, 3, 5), rng),
        batch_norm=_chance(0.7, rng),
        hidden=_draw_size(16, 64, 8, rng) if _chance(0.3, rng) else None,
    )


def draw_narrow_cnn(rng: torch.Generator) -> CnnMember:
    """2 to 5 convolutions of 3 x 3 and 16 to 64 channels, never fewer than in the layer before."""
    widths = sorted(_draw_size(16, 64, 4, rng) for _ in range(_draw_int(2, 5, rng)))
    return _draw_above(widths, rng, batch_norm=0.75, hidden=(32, 64, 8))


def draw_wide_cnn(rng: torch.Generator) -> CnnMember:
    """2 to 4 convolutions of 3 x 3 and 48 to 128 channels, never fewer than in the layer before."""
    widths = sorted(_draw_size(48, 128, 8, rng) for _ in range(_draw_int(2, 4, rng)))
    return _draw_above(widths, rng, batch_norm=0.7, hidden=(32, 128, 16))


def _draw_above(
    widths: list[int], rng: torch.Generator, *, batch_norm: float, hidden: tuple[int, int, int]
) -> CnnMember:
    """Convolutions of these widths, with BatchNorm at a given probability, and a hidden layer in a quarter of cases."""
    return CnnMember(
        widths=tuple(widths),
        batch_norm=_chance(batch_norm, rng),
        hidden=_draw_size(*hidden, rng) if _chance(0.25, rng) else None,
    )


def draw_mlp(rng: torch.Generator) -> MlpMember:
    """1 to 4 hidden layers of 16 to 256 units."""
    widths = sorted((_draw_size(16, 256, 8, rng) for _ in range(_draw_int(1, 4, rng))), reverse=True)
    return MlpMember(widths=tuple(widths), batch_norm=_chance(0.3, rng))


def draw_resnet(rng: torch.Generator) -> ResNetMember:
    """Depth 8, 14 or 20, first width 8 to 24."""
    return ResNetMember(depth=_pick((8, 8, 14, 20), rng), width=_draw_size(8, 24, 4, rng))


def draw_vit(rng: torch.Generator) -> ViTMember:
    """Half as in ViTs-1K (3 to 9 layers of width 128 to 512, up to 10M parameters), half as `draw_small_vit`."""
    if _chance(0.5, rng):
        return draw_small_vit(rng)
    num_heads = _pick((4, 8), rng)
    width, depth, patch = _draw_size(128, 512, 16, rng), _draw_int(3, 9, rng), _pick((4, 7), rng)
    mlp_ratio = _pick((2, 4), rng)
    if depth * (4 + 2 * mlp_ratio) * width**2 > 0.97 * MAX_VIT:  # the rest is embeddings, norms and the head
        return draw_vit(rng)
    return ViTMember(width=width, depth=depth, num_heads=num_heads, patch=patch, mlp_ratio=mlp_ratio)


def draw_small_vit(rng: torch.Generator) -> ViTMember:
    """1 to 4 layers of width 32 to 96."""
    width, depth = 8 * _draw_int(4, 12, rng), _draw_int(1, 4, rng)
    heads, patch, mlp_ratio = _pick((2, 4), rng), _pick((4, 4, 7), rng), _pick((2, 4), rng)
    return ViTMember(width=width, depth=depth, num_heads=heads, patch=patch, mlp_ratio=mlp_ratio)


def draw_gpt(rng: torch.Generator) -> GptMember:
    """3 to 9 layers of width 72 to 256, as in GPTs-1K, on bytes."""
    num_heads = _pick((4, 6, 8), rng)
    return GptMember(
        width=num_heads * _draw_int(math.ceil(72 / num_heads), 256 // num_heads, rng),
        depth=_draw_int(3, 9, rng),
        num_heads=num_heads,
    )


def draw_small_gpt(rng: torch.Generator) -> GptMember:
    """1 to 4 layers of width 48 to 128, with contexts of 64 bytes."""
    num_heads = _pick((2, 4, 6), rng)
    return GptMember(
        width=num_heads * _draw_int(math.ceil(48 / num_heads), 128 // num_heads, rng),
        depth=_draw_int(1, 4, rng),
        num_heads=num_heads,
        context=64,
    )


def draw_registered(rng: torch.Generator) -> RegisteredMember:
    """Half of them `cnn`, of width 8 to 48 and depth 2 to 4; else `mlp`, `cnn-tiny`, `vit-tiny` or `resnet8`."""
    if _chance(0.5, rng):
        return RegisteredMember(f"cnn-w{_draw_size(8, 48, 4, rng)}-d{_draw_int(2, 4, rng)}")
    if _chance(0.3, rng):
        return RegisteredMember(f"mlp-w{_draw_size(16, 128, 8, rng)}-d{_draw_int(1, 4, rng)}")
    return RegisteredMember(("cnn-tiny", "cnn-tiny", "vit-tiny", "resnet8")[_draw_int(0, 3, rng)])


SPACES: dict[str, Callable[[torch.Generator], Member]] = {
    "cnns": draw_cnn,
    "narrow_cnns": draw_narrow_cnn,
    "wide_cnns": draw_wide_cnn,
    "mlps": draw_mlp,
    "resnets": draw_resnet,
    "vits": draw_vit,
    "small_vits": draw_small_vit,
    "gpts": draw_gpt,
    "small_gpts": draw_small_gpt,
    "registered": draw_registered,
}

HELD_OUT: dict[str, Member] = {
    "cnn 32-32-32": CnnMember((32, 32, 32)),
    "cnn 64-96-96-96 fc64": CnnMember((64, 96, 96, 96), hidden=64),
    "cnn 32-48x5": CnnMember((32, 48, 48, 48, 48, 48)),
    "cnn 24-48-40 no norm fc32": CnnMember((24, 48, 40), batch_norm=False, hidden=32),
    "vit 48 x 2": ViTMember(48, 2, 4, mlp_ratio=2),
    "cnn 96-128-128": CnnMember((96, 128, 128)),
    "cnn 24-32x3-48x4": CnnMember((24, 32, 32, 32, 48, 48, 48, 48)),
    "cnn 24-32-48 kernel 7": CnnMember((24, 32, 48), kernel=7),
    "cnn 64-80-96 no norm": CnnMember((64, 80, 96), batch_norm=False),
    "vit 64 x 6": ViTMember(64, 6, 4, mlp_ratio=2),
    "vit 128 x 2": ViTMember(128, 2, 4, mlp_ratio=2),
    "resnet8 16": ResNetMember(8, 16),
}
"""Name -> architecture: five from the small-scale comparison in LoGAH's code, then wider, deeper and other ones."""


def draw_member(space: str, rng: torch.Generator) -> Member:
    """A random architecture of a space; UnknownName if there is none of this name."""
    if space not in SPACES:
        raise UnknownName("space", space, SPACES)
    return SPACES[space](rng)


def _draw_int(low: int, high: int, rng: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (1,), generator=rng))


def _draw_size(low: int, high: int, step: int, rng: torch.Generator) -> int:
    """A multiple of `step`; its logarithm is drawn evenly."""
    value = low * (high / low) ** float(torch.rand(1, generator=rng))
    return max(low, min(high, step * round(value / step)))


def _pick(options: tuple[int, ...], rng: torch.Generator) -> int:
    return options[_draw_int(0, len(options) - 1, rng)]


def _chance(probability: float, rng: torch.Generator) -> bool:
    return float(torch.rand(1, generator=rng)) < probability
