"""Published ResNets of CIFAR-10: ResNet-32, -44 and -56, as states of `ResNet`.

Yerlan Idelbayev's "Proper ResNet Implementation for CIFAR10/CIFAR100 in PyTorch" (akamaster/pytorch_resnet_cifar10,
BSD-2-Clause): the networks of He et al. 2016 (arXiv:1512.03385, section 4.2) with shortcuts of option A, which halve
the map and pad channels with zeros. Here such a shortcut is an equal projection with weights 0 and 1.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_zoo.architectures import IMAGE_SIZE
from model_zoo.architectures.resnet import ResNet
from model_zoo.data.shared import shared_folder
from weightgen.errors import BadOption, NotFound
from weightgen.files.checkpoint import load_state
from weightgen.files.storage import read_json
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.trunk import trunk_spec
from weightgen.weightspace.canonical import align, balance

PUBLISHED = (32, 44, 56)
"""Depths of the published networks."""
HELD_OUT_EVERY = 5
NUM_STAGES = 3
_DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def resnet_target(depth: int, *, image_size: int = IMAGE_SIZE) -> Target:
    """The ResNet of CIFAR-10 with 6n + 2 layers and 16 channels in its first stage, called `resnet20` and so on."""
    if depth < 8 or (depth - 2) % (2 * NUM_STAGES):
        raise BadOption(f"a ResNet of depth {depth}, expected 8, 14, 20 and so on: 6n + 2")
    config: dict[str, Any] = {"num_classes": 10, "in_channels": 3, "depth": depth, "width": 16}
    make = partial(ResNet, **config)
    with torch.device("meta"):
        axes = make().AXES
    shape = (3, image_size, image_size)
    return Target.from_module(make, axes, arch=f"resnet{depth}", config=config, input_shape=shape)


def load_published(depth: int) -> tuple[State, dict[str, Any]]:
    """The published network of this depth as a state of `resnet_target(depth)`, and its .json.

    It was trained on (images - mean) / deviation. Here the deviation is folded into the first layer, and the mean into
    the running mean of the BatchNorm behind it. This is exact except at the outermost pixels, where zeros are padded.
    """
    if depth not in PUBLISHED:
        raise BadOption(f"no ResNet-{depth} was published, only {', '.join(map(str, PUBLISHED))}")
    folder = shared_folder()
    path = folder / "checkpoints" / f"resnet{depth}_cifar10.safetensors" if folder else None
    if path is None or not path.is_file():
        raise NotFound(f"the published ResNet-{depth} is not there; set WEIGHTGEN_SHARED to the shared data folder")
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    return rename_published(load_state(path), resnet_target(depth)), about


def rename_published(published: Mapping[str, Tensor], target: Target) -> State:
    """The same network as a state of the target."""
    per_stage = count_blocks(int(target.spec.config["depth"]))
    state: State = {}
    for name, tensor in published.items():
        state[_rename(name, per_stage)] = tensor.clone()
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    state["conv.weight"] = state["conv.weight"] / _DEVIATION
    state["norm.running_mean"] = state["norm.running_mean"] + (state["conv.weight"] * mean).sum((1, 2, 3))
    for stage in range(1, NUM_STAGES):
        t = target.spec.by_name[f"blocks.{stage * per_stage}.shortcut.weight"]
        eye = torch.eye(t.shape[1])[:, :, None, None]
        around = torch.zeros(t.shape[1] // 2, t.shape[1], 1, 1)
        state[t.name] = torch.cat([around, eye, around])
    return {t.name: state.get(t.name, torch.tensor(0)) for t in target.spec.tensors}


def count_blocks(depth: int) -> int:
    """Number of residual blocks in each of the three stages."""
    return (depth - 2) // (2 * NUM_STAGES)


def restack(trunk: Mapping[str, Tensor], target: Target) -> State:
    """A ResNet's trunk changed to the depth of `target`: each block is the one at the same share of its stage.

    Blocks are left out or repeated; the first of each stage, which may halve the map, stays the first.
    """
    have = len({name.split(".")[1] for name in trunk if name.startswith("blocks.")}) // NUM_STAGES
    want = count_blocks(int(target.spec.config["depth"]))

    def source(name: str) -> str:
        found = re.match(r"blocks\.(\d+)\.(.*)", name)
        if found is None:
            return name
        stage, place = divmod(int(found[1]), want)
        nearest = 1 + round((place - 1) * (have - 2) / max(1, want - 2)) if place else 0
        return f"blocks.{stage * have + nearest}.{found[2]}"

    kept = trunk_spec(target.spec).tensors
    return {t.name: trunk[source(t.name)].clone() for t in kept}


def _rename(name: str, per_stage: int) -> str:
    found = re.match(r"layer(\d)\.(\d+)\.(.*)", name)
    if found is not None:
        block = (int(found[1]) - 1) * per_stage + int(found[2])
        return f"blocks.{block}.{found[3].replace('bn', 'norm')}"
    return re.sub(r"^linear", "head", re.sub(r"^bn1", "norm", re.sub(r"^conv1", "conv", name)))


@dataclass(frozen=True, eq=False)
class KnownResNet:
    """A trained ResNet's canonical trunk and its origin."""

    name: str
    target: Target
    trunk: State
    """Balanced, with units in the order that fits the mean of the ResNet-20s best; has BatchNorm's statistics."""
    accuracy: float
    """Accuracy on CIFAR-10's test images, as stated by its training run or its publisher."""
    held_out: bool
    licence: str


def load_resnets(zoo: Path) -> list[KnownResNet]:
    """The ResNet-20s of our own zoo at the end of their runs, and the published networks.

    Held out are the zoo's runs outside the train split, every HELD_OUT_EVERY-th run of the train split, and the
    published ResNet-56. Deeper networks are aligned to the mean ResNet-20 with its blocks repeated.
    """
    target = resnet_target(20)
    rows = [(path, read_json(path)) for path in sorted(zoo.glob("runs/*/run.json"))]
    rows = [(path, run) for path, run in rows if run["arch"] == "resnet20" and run["checkpoints"]]
    if not rows:
        raise NotFound(f"{zoo}: no run of a ResNet-20; build it with `model_zoo build`")
    trunks = [_canonical(load_state(path.parent / run["checkpoints"][-1]["file"]), target) for path, run in rows]
    spec = trunk_spec(target.spec)
    reference = trunks[0]
    for _ in range(2):
        trunks = [align(trunk, reference, spec) for trunk in trunks]
        reference = {name: torch.stack([trunk[name] for trunk in trunks]).mean(0) for name in reference}
    known, num_train = [], 0
    for (path, run), trunk in zip(rows, trunks, strict=True):
        num_train += run["split"] == "train"
        held_out = run["split"] != "train" or num_train % HELD_OUT_EVERY == 0
        reached = run["checkpoints"][-1]["test_accuracy"]
        known.append(
            KnownResNet(path.parent.name, target, trunk, reached, held_out, run["provenance"]["data"]["licence"])
        )
    for depth in PUBLISHED:
        deep = resnet_target(depth)
        state, about = load_published(depth)
        trunk = align(_canonical(state, deep), restack(reference, deep), trunk_spec(deep.spec))
        is_held_out = depth == max(PUBLISHED)
        known.append(KnownResNet(f"resnet{depth}", deep, trunk, about["test_accuracy"], is_held_out, about["licence"]))
    return known


def _canonical(state: Mapping[str, Tensor], target: Target) -> State:
    scalable: Any = target.skeleton.SCALABLE
    balanced = balance(state, target.spec, scalable=scalable)
    return {t.name: balanced[t.name] for t in trunk_spec(target.spec).tensors}
