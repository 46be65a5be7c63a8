"""Run a module with some of its parts changed, and read its activations; all changes are undone afterwards."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def filled(state: Mapping[str, Tensor], skeleton: nn.Module) -> dict[str, Tensor]:
    """`state` plus zeros for other tensors of the skeleton, which it never reads: nothing stays on the meta device."""
    return {name: state[name] if name in state else torch.zeros(t.shape) for name, t in skeleton.state_dict().items()}


@contextmanager
def replaced_forwards(module: nn.Module, forwards: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Inside the block, submodules compute these functions instead of their own."""
    layers = {name: module.get_submodule(name) for name in forwards}
    for name, layer in layers.items():
        layer.forward = forwards[name]
    try:
        yield
    finally:
        for layer in layers.values():
            del layer.forward


def normalise_by_batch(module: nn.Module) -> nn.Module:
    """The module in eval mode, except its BatchNorms, which use the statistics of the batch and store none."""
    module.eval()
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.train().track_running_stats = False
    return module


@contextmanager
def hooked(module: nn.Module, hooks: Mapping[str, Callable[..., Tensor | None]]) -> Iterator[None]:
    handles = [module.get_submodule(name).register_forward_hook(hook) for name, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def head_inputs(module: nn.Module, weight_name: str, seen: list[Tensor]) -> Iterator[None]:
    head = module.get_submodule(weight_name.removesuffix(".weight"))
    handle = head.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    try:
        yield
    finally:
        handle.remove()
