"""Target: the network whose weights are made, with its spec and the code that runs a state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightgen.runtime.global_rng import borrowed_rng
from weightgen.spec import State, StateSpec


@dataclass(frozen=True, eq=False)
class Target:
    """An architecture at one configuration: how to build it, its spec, and the shape of its inputs."""

    spec: StateSpec
    make: Callable[[], nn.Module]
    """Builds the module, drawing its default initialisation from torch's global RNG (see `init_state`)."""
    input_shape: tuple[int, ...]
    """Shape of one example, without the batch axis: (c, h, w) for images, (d,) for features."""

    @classmethod
    def from_module(
        cls,
        make: Callable[[], nn.Module],
        axes: Mapping[str, str],
        *,
        arch: str,
        config: Mapping[str, Any],
        input_shape: tuple[int, ...],
    ) -> "Target":
        with borrowed_rng():
            spec = StateSpec.from_module(make(), axes, arch=arch, config=config)
        return cls(spec=spec, make=make, input_shape=input_shape)

    @cached_property
    def skeleton(self) -> nn.Module:
        """The module on the meta device, in eval mode: structure without numbers, for running states."""
        with torch.device("meta"):
            return self.make().eval()

    def init_state(self, seed: int) -> State:
        """A state at the architecture's default initialisation; the global RNG is left as it was."""
        with borrowed_rng(seed):
            return {name: tensor.detach() for name, tensor in self.make().state_dict().items()}

    def load(self, state: State) -> nn.Module:
        """A new module with `state`, loaded strictly, in eval mode."""
        with borrowed_rng():
            module = self.make()
        module.load_state_dict(state, strict=True)
        return module.eval()

    def run(self, state: State, inputs: Tensor) -> Tensor:
        """Logits (n, classes) of inputs (n, *input_shape) in eval mode; differentiable in the state."""
        return functional_call(self.skeleton, state, (inputs,))
