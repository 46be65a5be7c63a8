"""Small real objects for tests of what happens after generation: a learnable task, a zoo, a generator."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from weightgen.condition import Condition, SupportSet
from weightgen.generators.d2nwg.method import D2nwgOptions
from weightgen.labelled_data import LabelledData
from weightgen.method import Method
from weightgen.references.zoo import ReferenceZoo
from weightgen.request import GenerationRequest
from weightgen.solve.refit import refit
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.trunk import take_trunk, trunk_spec


def make_support(*, num_classes: int = 3, shots: int = 6, channels: int = 1, seed: int = 0) -> SupportSet:
    """Bright squares on noise, each class in another place: any network learns it in a few steps."""
    images, labels = _draw_squares(num_classes, shots, channels, seed)
    return SupportSet(images, labels, tuple(f"class {k}" for k in range(num_classes)))


def make_data(*, num_classes: int = 3, per_class: int = 12, channels: int = 1, name: str = "squares") -> LabelledData:
    train = _draw_squares(num_classes, per_class, channels, seed=1)
    test = _draw_squares(num_classes, per_class, channels, seed=2)
    return LabelledData(name, *train, *test, tuple(f"class {k}" for k in range(num_classes)))


def make_request(
    target: Target, support: SupportSet | None, *, num_samples: int = 1, seed: int = 0
) -> GenerationRequest:
    return GenerationRequest(target=target, condition=Condition(support=support), num_samples=num_samples, seed=seed)


def embed(support: SupportSet, *, arch: str = "") -> Tensor:
    """The mean image, coarse: unit norm, (49,)."""
    return F.normalize(F.adaptive_avg_pool2d(support.inputs.mean((0, 1))[None, None], 7).flatten(), dim=0)


def make_zoo(target: Target, *, num_trunks: int = 4, embedder: str = "stand-in") -> ReferenceZoo:
    """Default initialisations of seeds 100, 101, ... as trunks, embedded as tasks of `make_support`."""
    trunks = [take_trunk(target.init_state(100 + i), target.spec) for i in range(num_trunks)]
    return ReferenceZoo(
        arch=target.spec.arch,
        trunks={t.name: torch.stack([trunk[t.name] for trunk in trunks]) for t in trunk_spec(target.spec).tensors},
        embeddings=torch.stack([embed(make_support(num_classes=2 + i, seed=i)) for i in range(num_trunks)]),
        leave_one_out=torch.full((num_trunks,), 1.4),
        runs=tuple(
            {
                "run_id": f"run{i}",
                "dataset": "squares",
                "classes": [0, 1],
                "step": 9,
                "test_accuracy": 0.5,
                "sha256": "",
            }
            for i in range(num_trunks)
        ),
        embedder=embedder,
    )


class StandIn:
    """A generator: a trunk that depends on the support set a little, the head solved on it."""

    name = "stand-in"

    def __init__(self, *, conditioned: bool = True) -> None:
        self.conditioned = conditioned

    def check(self, request: GenerationRequest) -> None:
        pass

    def digest_of(self, arch: str) -> str:
        return "stand-in"

    def embed(self, support: SupportSet, *, arch: str) -> Tensor:
        return embed(support, arch=arch)

    def without_condition(self) -> "StandIn":
        return StandIn(conditioned=False)

    def generate(self, request: GenerationRequest) -> list[State]:
        support = request.condition.support
        assert support is not None
        shift = float(embed(support).mean()) if self.conditioned else 0.0
        trunk = take_trunk(request.target.init_state(7), request.target.spec)
        learnt = {name for name, _ in request.target.skeleton.named_parameters()}
        moved = {n: t + 0.01 * shift if n in learnt else t for n, t in trunk.items()}
        return [refit(request.target, moved, support) for _ in range(request.num_samples)]


class RegisteredStandIn(StandIn):
    """A stand-in generator that generator files can hold."""

    @property
    def method(self) -> Method:
        return STAND_IN

    @classmethod
    def load(cls, path: Path) -> "RegisteredStandIn":
        return cls()


STAND_IN = Method(
    name="stand-in",
    title="A stand-in.",
    code="tests.helpers.standins:RegisteredStandIn",
    options=D2nwgOptions,
    samples=True,
)


def _draw_squares(num_classes: int, per_class: int, channels: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    images = 0.25 * torch.rand(len(labels), channels, 28, 28, generator=rng)
    for image, label in zip(images, labels.tolist(), strict=True):
        row, col = 2 + 8 * (label // 3), 2 + 8 * (label % 3)
        image[:, row : row + 7, col : col + 7] += 0.7
    return images, labels
