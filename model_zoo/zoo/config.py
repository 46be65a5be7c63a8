"""The config of a zoo: its networks, data sets and hyperparameters; presets are functions."""

from dataclasses import dataclass

from model_zoo.data.shared import TRAIN_SETS
from weightgen.errors import BadOption

MAX_RUNS, MAX_STEPS = 1_000_000, 1_000_000


@dataclass(frozen=True)
class ZooConfig:
    """A zoo of `num_runs` networks. Runs do not depend on `num_runs`: a higher number only adds runs."""

    arch: str
    data: tuple[str, ...]
    """Names or paths of data sets; run i trains on number i modulo their count."""
    num_runs: int = 32
    steps: int = 500
    """AdamW steps of each run."""
    seed: int = 0
    ways: int | None = None
    """Number of classes of each task, drawn at random, or all of a smaller set. None: all classes, in order."""
    in_channels: int | None = None
    """1 or 3, to which images are converted; None keeps those of the data."""
    batch_size: int = 32
    learning_rate: tuple[float, float] = (5e-4, 5e-3)
    """Smallest and largest; each run draws its own, log-uniformly."""
    weight_decay: tuple[float, float] = (1e-4, 1e-1)
    """Smallest and largest; each run draws its own, log-uniformly."""
    augmented: float = 0.5
    """Share of runs whose images are shifted, turned and scaled at random; features are never changed."""
    checkpoints: tuple[float, ...] = (0.1, 0.25, 0.5, 1.0)
    """When states are kept, as shares of `steps`."""
    eval_examples: int = 2000
    """Most examples of the train and of the test part that a checkpoint is scored on."""

    def __post_init__(self) -> None:
        limits = {
            "num_runs": (self.num_runs, 1, MAX_RUNS),
            "steps": (self.steps, 1, MAX_STEPS),
            "seed": (self.seed, 0, 2**63 - 1),
            "batch_size": (self.batch_size, 2, 65536),
            "eval_examples": (self.eval_examples, 1, 10**9),
            "augmented": (self.augmented, 0, 1),
        }
        for name, (value, low, high) in limits.items():
            if not low <= value <= high:
                raise BadOption(f"{name} is {value}, expected {low} to {high}")
        if not self.data:
            raise BadOption("a zoo needs at least one data set")
        if len(set(self.data)) < len(self.data):
            raise BadOption(f"a data set is named twice: {', '.join(self.data[:20])}")
        if self.ways is not None and self.ways < 2:
            raise BadOption(f"ways is {self.ways}, expected at least 2 classes")
        if self.in_channels not in (None, 1, 3):
            raise BadOption(f"in_channels is {self.in_channels}, expected 1 or 3")
        for name, (low, high) in (("learning_rate", self.learning_rate), ("weight_decay", self.weight_decay)):
            if not 0 < low <= high <= 10:
                raise BadOption(f"{name} is {low:g} to {high:g}, expected above 0, at most 10, the smaller first")
        if not self.checkpoints or not all(0 < c <= 1 for c in self.checkpoints):
            raise BadOption(
                f"checkpoints are {list(self.checkpoints)}, expected shares of the steps, above 0, at most 1"
            )

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        return tuple(sorted({max(1, round(share * self.steps)) for share in self.checkpoints}))


def demo_zoo(arch: str = "mlp", in_channels: int | None = None) -> ZooConfig:
    """A few small networks on scikit-learn's wine; takes seconds."""
    return ZooConfig(arch=arch, data=("wine",), num_runs=16, steps=100, in_channels=in_channels)


def published_tiny_zoo(arch: str = "cnn-tiny", in_channels: int | None = 1) -> ZooConfig:
    """1000 tiny CNNs on MNIST, after the published model zoos (arXiv:2209.14764); takes about an hour."""
    return ZooConfig(
        arch=arch,
        data=("mnist",),
        num_runs=1000,
        steps=2000,
        in_channels=in_channels,
        learning_rate=(1e-3, 1e-3),
        augmented=0,
    )


def reference_zoo(arch: str = "cnn-tiny", in_channels: int | None = 1) -> ZooConfig:
    """The zoo for references: 42 networks, three on each train set, on 10-class tasks; minutes for the tiny CNN."""
    return ZooConfig(
        arch=arch,
        data=TRAIN_SETS,
        num_runs=3 * len(TRAIN_SETS),
        steps=1500,
        ways=10,
        in_channels=in_channels,
        learning_rate=(1e-3, 4e-3),
        checkpoints=(0.25, 0.5, 1.0),
    )


PRESETS = {"demo": demo_zoo, "published-tiny": published_tiny_zoo, "reference": reference_zoo}
"""Name -> function (arch, in_channels) that returns the config."""
