"""The generator of method mip: one file for several architectures, each with its own hypernetwork."""

import copy
import hashlib
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightgen.condition import SupportSet
from weightgen.errors import CorruptFile, UnknownName, UnsupportedTask
from weightgen.files.checkpoint import encode_state, load_state, save_state
from weightgen.generators.file import FORMAT, read_generator_manifest
from weightgen.generators.mip.hypernet import ArchHypernet, MipConfig
from weightgen.generators.mip.method import MIP
from weightgen.request import GenerationRequest, check_request
from weightgen.spec import State, StateSpec
from weightgen.target.network import Target
from weightgen.target.side_by_side import (
    MIN_NETWORKS,
    can_run_side_by_side,
)

VERSION = 2
MAX_CLASSES, MAX_SHOTS = 64, 50
PASS_EXAMPLES = 800
"""Most examples of all networks that run side by side in one pass."""


class Mip(nn.Module):
    """A weight generator (see `weightgen.request`) for the architectures it was trained for; deterministic."""

    method = MIP
    name = MIP.name

    def __init__(self, archs: Mapping[str, ArchHypernet], *, training: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.hypernets = nn.ModuleDict(archs)
        self.training_record = dict(training or {})
        self.eval()

    @property
    def archs(self) -> tuple[str, ...]:
        return tuple(self.hypernets)

    def check(self, request: GenerationRequest) -> None:
        if request.target.spec.arch not in self.hypernets:
            raise UnsupportedTask(
                f"{self.name!r} makes weights for {', '.join(self.archs)}, not for {request.target.spec.arch!r}"
            )
        check_request(request, MIP, max_classes=MAX_CLASSES, max_shots=MAX_SHOTS)

    def generate(self, request: GenerationRequest) -> list[State]:
        return self.generate_many([request])[0]

    def group_of(self, request: GenerationRequest) -> Hashable:
        target, support = request.target, request.condition.support
        if support is None or not can_run_side_by_side(target.skeleton):
            return None
        return target.spec.digest(), tuple(support.labels.tolist())

    def generate_many(self, requests: Sequence[GenerationRequest]) -> list[list[State]]:
        for request in requests:
            self.check(request)
        if self.group_of(requests[0]) is None:
            return [[self._generate(request, conditioned=True)] for request in requests]
        supports = [request.condition.support for request in requests if request.condition.support is not None]
        target, first = requests[0].target, supports[0]
        at_once = max(MIN_NETWORKS, PASS_EXAMPLES // len(first.labels))  # more would not fit into the processor's cache
        states: list[State] = []
        for start in range(0, len(supports), at_once):
            images = [support.inputs for support in supports[start : start + at_once]]
            states += self._hypernet(target.spec.arch).generate_side_by_side(
                target.skeleton, images, first.labels, num_classes=first.num_classes
            )
        return [[_complete(target, state)] for state in states]

    def without_condition(self) -> "Unconditioned":
        """The same generator without the trunk's condition; the head is still solved on the support set."""
        return Unconditioned(self)

    def embed(self, support: SupportSet, *, arch: str) -> Tensor:
        """The unit-norm encoding (e,) of a support set, as the hypernetwork of `arch` reads it."""
        with torch.no_grad():
            return self._hypernet(arch).encode(support.inputs, support.labels, support.num_classes)

    def digest_of(self, arch: str) -> str:
        """sha256, hex, of the file content of the hypernetwork of `arch`, without the other hypernetworks."""
        hypernet = self._hypernet(arch)
        tensors = {name: t.half() for name, t in hypernet.state_dict().items()}
        return hashlib.sha256(encode_state(tensors, manifest=hypernet.describe())).hexdigest()

    def save(self, path: Path) -> None:
        """Write a self-contained generator file: configuration, specs and weights."""
        archs = {arch: self._hypernet(arch).describe() for arch in self.archs}
        manifest = {
            "format": FORMAT, "method": self.name, "version": VERSION, "archs": archs, "training": self.training_record
        }  # fmt: skip
        save_state(path, {k: v.half() for k, v in self.state_dict().items()}, manifest=manifest)

    @classmethod
    def load(cls, path: Path) -> "Mip":
        """Read a generator file; CorruptFile if it is not one, UnsupportedTask if it is of another version."""
        manifest = read_generator_manifest(path, method=cls.name, version=VERSION)
        tensors = load_state(path)
        try:
            archs = {}
            for arch, entry in manifest["archs"].items():
                spec = StateSpec.from_json(entry["spec"])
                blank = {t.name: torch.zeros(t.shape) for t in spec.tensors}
                archs[arch] = ArchHypernet(spec, dict(entry["layers"]), blank, MipConfig(**entry["config"]))
            generator = cls(archs, training=manifest["training"])
            generator.load_state_dict({k: v.float() for k, v in tensors.items()})
        except (KeyError, TypeError, RuntimeError) as error:
            raise CorruptFile(f"{path}: its tensors do not fit its own configuration") from error
        return generator.requires_grad_(False)

    def _hypernet(self, arch: str) -> ArchHypernet:
        if arch not in self.hypernets:
            raise UnknownName("architecture of this generator", arch, self.archs)
        hypernet = self.hypernets[arch]
        assert isinstance(hypernet, ArchHypernet)
        return hypernet

    def _generate(self, request: GenerationRequest, *, conditioned: bool) -> State:
        self.check(request)
        support = request.condition.support
        assert support is not None
        # Hooks are set on the skeleton while it runs; requests run in parallel, so each gets a copy.
        skeleton = copy.deepcopy(request.target.skeleton)
        hypernet = self._hypernet(request.target.spec.arch)
        with torch.no_grad():
            state = hypernet(
                skeleton, support.inputs, support.labels, num_classes=support.num_classes, conditioned=conditioned
            )
        return _complete(request.target, state)


class Unconditioned:
    """A Mip without its trunk's condition; follows the generator protocol."""

    name = "mip-unconditioned"

    def __init__(self, generator: Mip) -> None:
        self._generator = generator

    def check(self, request: GenerationRequest) -> None:
        self._generator.check(request)

    def generate(self, request: GenerationRequest) -> list[State]:
        return [self._generator._generate(request, conditioned=False)]


def _complete(target: Target, state: State) -> State:
    full = target.spec.complete({name: t.contiguous() for name, t in state.items()})
    target.spec.check(full)
    return full
