"""Networks of one architecture run side by side as one wide network, whose layers have one group for each network.

Small networks on a CPU spend their time on calls, and have too few channels to fill a vector. Side by side they share
the calls and fill the vectors. Tensors of a wide network are those of its networks, joined along their first axis, the
units. Images and activations are joined along their channels, features along their features.

The numbers of a network are the same to the bit, whatever the other networks are and how many there are, as long as
there are at least two: libraries use another kernel for a single group. So a single network runs together with a copy
of itself (`MIN_NETWORKS`).
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

from weightgen.errors import UnsupportedTask

MIN_NETWORKS = 2
_BATCH = 128
"""Inputs of each network in a forward pass without gradients, so that activations stay in the processor's cache."""


def can_run_side_by_side(module: nn.Module | Callable[..., nn.Module]) -> bool:
    """Whether the module, or this class of modules, declares SIDE_BY_SIDE.

    It is for narrow networks of convolutions and linear layers, each with a bias, that mix channels nowhere else.
    Wide networks would gain nothing.
    """
    return getattr(module, "SIDE_BY_SIDE", False)


def widen(module: nn.Module, number: int) -> nn.Module:
    """A wide module on the meta device for `number` networks side by side: structure without numbers.

    Raises UnsupportedTask if the module's class does not declare SIDE_BY_SIDE.
    """
    if not can_run_side_by_side(module):
        raise UnsupportedTask(f"{type(module).__name__} does not say that it can run side by side with others")
    return _widen(module, number)


def _widen(layer: nn.Module, number: int) -> nn.Module:
    if isinstance(layer, nn.Conv2d):
        return _GroupedConv(number, layer)
    if isinstance(layer, nn.Linear):
        return _GroupedLinear(number, layer)
    assert not list(layer.parameters(recurse=False)), f"{type(layer).__name__} is no convolution or linear layer"
    wide = copy.copy(layer)  # a deep copy takes as long as a pass through a small network
    wide._modules = {name: part and _widen(part, number) for name, part in layer._modules.items()}
    return wide


def join_inputs(inputs: Sequence[Tensor]) -> Tensor:
    """Inputs of the wide network (n, b c, h, w), channels last in memory, from those of every network (n, c, h, w)."""
    n, c, h, w = inputs[0].shape
    c *= len(inputs)
    joined = torch.empty_strided((n, c, h, w), (c * h * w, 1, w * c, c))  # memory_format cannot give it to one channel
    return torch.cat(list(inputs), 1, out=joined)


def join_states(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of the wide network from those of every network."""
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def split_state(state: Mapping[str, Tensor], number: int) -> list[dict[str, Tensor]]:
    """The tensors of each of `number` networks, as views of the wide network's."""
    parts = {name: t.chunk(number) for name, t in state.items()}
    return [{name: chunks[i] for name, chunks in parts.items()} for i in range(number)]


def sum_channels(z: Tensor) -> Tensor:
    """Sums (c,) of z (n, c, ...) that do not depend on the number of channels; the order in which `Tensor.sum` adds
    does."""
    if z.ndim == 4:  # pooling adds the pixels one after the other
        z = F.avg_pool2d(z, (z.shape[2], z.shape[3]), divisor_override=1).flatten(1)
    return z.T.contiguous().sum(1)


def split_features(features: Tensor, number: int) -> Tensor:
    """Features by network (b, n, d) from those of a wide network (n, b d)."""
    return rearrange(features, "n (b d) -> b n d", b=number).contiguous()


def run_halves(module: nn.Module, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Outputs (n, d) of one network for inputs (n, c, h, w), half of which go through a copy beside it."""
    half = (len(inputs) + 1) // 2
    wide, doubled = widen(module, 2), join_states([state, state])
    made = []
    for low, high in zip(inputs[:half].split(_BATCH), inputs[-half:].split(_BATCH), strict=True):
        made.append(functional_call(wide, doubled, (join_inputs([low, high]),)))
    first, second = torch.cat(made).chunk(2, 1)
    return torch.cat([first, second[2 * half - len(inputs) :]])


def run_each(
    module: nn.Module, states: Sequence[Mapping[str, Tensor]], inputs: Tensor, *, without: str | None = None
) -> Tensor:
    """Outputs (b, n, d) of several networks for the same inputs (n, c, h, w).

    `without` names a last layer that is left out.
    """
    number = max(MIN_NETWORKS, len(states))
    wide = widen(module, number)
    if without is not None:
        wide.set_submodule(without, nn.Identity())
    names = list(wide.state_dict())
    each = [{name: state[name] for name in names} for state in states]
    joined = join_states([*each, *[each[0]] * (number - len(each))])
    batches = inputs.split(2 * _BATCH // number)
    made = torch.cat([functional_call(wide, joined, (join_inputs([batch] * number),)) for batch in batches])
    return split_features(made, number)[: len(states)]


class _GroupedConv(nn.Module):
    """Convolutions side by side; maps images (n, b c, h, w) to (n, b o, h, w)."""

    def __init__(self, number: int, layer: nn.Conv2d) -> None:
        super().__init__()
        assert layer.groups == 1 and layer.bias is not None and layer.padding_mode == "zeros"
        self.number, self.stride, self.padding, self.dilation = number, layer.stride, layer.padding, layer.dilation
        self.weight, self.bias = _repeat_blank(layer.weight, number), _repeat_blank(layer.bias, number)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, groups=self.number)


class _GroupedLinear(nn.Module):
    """Linear layers side by side; maps features (n, b in) to (n, b out)."""

    def __init__(self, number: int, layer: nn.Linear) -> None:
        super().__init__()
        assert layer.bias is not None
        self.number = number
        self.weight, self.bias = _repeat_blank(layer.weight, number), _repeat_blank(layer.bias, number)

    def forward(self, x: Tensor) -> Tensor:
        weight = rearrange(self.weight, "(b o) i -> b i o", b=self.number)
        bias = rearrange(self.bias, "(b o) -> b 1 o", b=self.number)
        made = torch.baddbmm(bias, split_features(x, self.number), weight)
        return rearrange(made, "b n o -> n (b o)")


def _repeat_blank(t: Tensor, number: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(number * len(t), *t.shape[1:], device="meta"))
