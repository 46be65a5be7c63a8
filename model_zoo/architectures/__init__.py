"""The registered architectures. A new one is a file here with its AXES, and an entry in ARCHITECTURES.

A name is a registry entry, optionally followed by its width and depth: `cnn`, `cnn-w16`, `mlp-w128-d3`.
"""

import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from model_zoo.architectures.cnn import Cnn
from model_zoo.architectures.cnn_tiny import CnnTiny
from model_zoo.architectures.mlp import Mlp
from model_zoo.architectures.resnet import ResNet
from model_zoo.architectures.vit import ViT
from weightgen.errors import BadOption, UnknownName, UnsupportedTask
from weightgen.target.network import Target

IMAGE_SIZE = 28
"""Height and width, in pixels, of the images that every architecture here takes."""
MAX_CLASSES, MAX_WIDTH, MAX_DEPTH = 4096, 4096, 64


def _vit_hf(**config: Any) -> nn.Module:
    try:
        from model_zoo.architectures.vit_hf import ViTHf
    except ImportError as error:
        raise UnsupportedTask(
            "architecture 'vit-hf-tiny' needs transformers; install it with: pip install 'weightgen[transformers]'"
        ) from error
    return ViTHf(**config)


ARCHITECTURES: dict[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = {
    "cnn-tiny": (CnnTiny, {}),
    "cnn": (Cnn, {"width": 32, "depth": 4}),
    "mlp": (Mlp, {"width": 64, "depth": 2}),
    "resnet8": (ResNet, {"depth": 8, "width": 16}),
    "resnet20": (ResNet, {"depth": 20, "width": 16}),
    "vit-hf-tiny": (_vit_hf, {"width": 48, "depth": 4}),
    "vit-tiny": (ViT, {"width": 48, "depth": 4}),
}
FAMILIES = ("cnn", "mlp")
"""Entries whose width and depth may be given in the name."""


def build_target(arch: str, *, num_classes: int = 10, in_channels: int = 1, in_features: int | None = None) -> Target:
    """The target network that `arch` names, for images of `in_channels`, or for examples of `in_features` numbers.

    Raises UnknownName for an unknown architecture, BadOption for an option out of its range.
    """
    make = make_module(arch, num_classes=num_classes, in_channels=in_channels, in_features=in_features)
    module: Any = make_meta(make)
    shape = (in_features,) if in_features is not None else (in_channels, IMAGE_SIZE, IMAGE_SIZE)
    return Target.from_module(make, module.AXES, arch=arch, config=make.keywords, input_shape=shape)


def make_module(
    arch: str, *, num_classes: int = 10, in_channels: int = 1, in_features: int | None = None
) -> partial[nn.Module]:
    """The function that builds the module of `build_target`; raises the same errors."""
    module_class, options = _parse_name(arch)
    if not 2 <= num_classes <= MAX_CLASSES:
        raise BadOption(f"num_classes is {num_classes}, expected 2 to {MAX_CLASSES}")
    if in_channels not in (1, 3):
        raise BadOption(f"in_channels is {in_channels}, expected 1 or 3")
    config = {"num_classes": num_classes, **options}
    if in_features is not None and module_class is not Mlp:
        raise BadOption(f"architecture {arch!r} takes images, the data are vectors of {in_features}; use 'mlp'")
    if module_class is Mlp:
        config["in_features"] = in_features or in_channels * IMAGE_SIZE**2
    else:
        config["in_channels"] = in_channels
    return partial(module_class, **config)


def make_meta(make: Callable[[], nn.Module]) -> nn.Module:
    """The module on the meta device: structure without numbers, without random draws."""
    import torch

    with torch.device("meta"):
        return make()


def _parse_name(arch: str) -> tuple[Callable[..., nn.Module], dict[str, Any]]:
    if arch in ARCHITECTURES:
        module_class, options = ARCHITECTURES[arch]
        return module_class, dict(options)
    match = re.fullmatch(rf"({'|'.join(FAMILIES)})(?:-w(\d+))?(?:-d(\d+))?", arch)
    if match is None:
        raise UnknownName("architecture", arch, ARCHITECTURES)
    family, *sizes = match.groups()
    module_class, options = ARCHITECTURES[family]
    chosen = {k: int(v) for k, v in zip(("width", "depth"), sizes, strict=True) if v}
    for key, limit in (("width", MAX_WIDTH), ("depth", MAX_DEPTH)):
        if not 1 <= chosen.get(key, 1) <= limit:
            raise BadOption(f"{key} of {arch!r} is {chosen[key]}, expected 1 to {limit}")
    return module_class, {**options, **chosen}
