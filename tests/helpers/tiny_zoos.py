"""Small real zoos of trained networks, and untrained networks that stand for published ones."""

from pathlib import Path

from model_zoo.published.cifar_resnets import KnownResNet, resnet_target
from model_zoo.zoo.builder import build_zoo
from model_zoo.zoo.config import ZooConfig
from tests.helpers.paths import shared_path
from weightgen.target.trunk import take_trunk


def build_tiny_zoo(folder: Path, *, num_runs: int, eval_examples: int = 100) -> Path:
    """A zoo of `cnn-tiny` on two data sets, in `folder`/part; skips the test without the shared data."""
    shared_path("images/bccd_cells.npz")
    config = ZooConfig(
        arch="cnn-tiny",
        data=("bccd_cells", "devnum"),
        num_runs=num_runs,
        steps=60,
        ways=3,
        in_channels=1,
        eval_examples=eval_examples,
    )
    build_zoo(config, folder / "part")
    return folder


def make_known(depth: int, seed: int, *, held_out: bool = False) -> KnownResNet:
    """An untrained ResNet that is said to have been trained."""
    target = resnet_target(depth)
    trunk = take_trunk(target.init_state(seed), target.spec)
    return KnownResNet(f"resnet{depth}", target, trunk, 0.1 * seed, held_out, "of the test")
