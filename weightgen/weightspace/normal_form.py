"""Normal form: a trunk without the scale of its training data; its pre-activations have unit variance on any data.

Batch normalisation (Ioffe and Szegedy 2015, arXiv:1502.03167) for networks that have none. `to_normal_form` measures
mean and standard deviation of every unit's pre-activation on the network's own data. It multiplies the weights that
read the unit by the deviation, keeps the direction of the unit's own weights, and stores mean / deviation as its bias.
`fit_to_data` measures both again on other data and folds them into weights and biases, which gives a network with the
same features there. On the network's own data the two are inverse, except for the scale of features and for units that
are nearly dead. BatchNorms are measured in the same way. Networks with LayerNorm keep their form, except the layer that
reads the images.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from weightgen.layers.blended_norm import EPS, blended_norm, scale_by_channel
from weightgen.spec import State, TensorSpec
from weightgen.target.interventions import filled, head_inputs, hooked, replaced_forwards
from weightgen.target.network import Target
from weightgen.target.trunk import head_layer, take_trunk

MAX_OFFSET = 5.0
"""Largest mean of a unit, in deviations: beyond it a ReLU is off, or on, for all examples, at any distance."""


def normalised_layers(target: Target) -> dict[str, str]:
    """Layers whose statistics are measured on data, in order: "batchnorm", or "folded" into weights and bias.

    These are the BatchNorms of the architecture. Without any norm they are all layers but the head; with LayerNorm only
    the first layer, which reads the images.
    """
    head = head_layer(target)
    modules = dict(target.skeleton.named_modules())
    norms = {name: "batchnorm" for name, m in modules.items() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))}
    plain = {
        name: "folded"
        for name, m in modules.items()
        if isinstance(m, (nn.Conv2d, nn.Linear)) and m.bias is not None and name != head
    }
    if any(isinstance(m, nn.LayerNorm) for m in modules.values()):
        return dict(list(plain.items())[:1])
    return norms or plain


def to_normal_form(target: Target, state: Mapping[str, Tensor], inputs: Tensor) -> State:
    """The trunk of a full state in normal form, measured on `inputs` (n, *input_shape) from its training data.

    Only networks whose normalised layers make units that may be scaled (`SCALABLE`) are changed.
    """
    spec = target.spec
    trunk = take_trunk(state, spec)
    folded = [layer for layer, kind in normalised_layers(target).items() if kind == "folded"]
    words = {layer: spec.by_name[f"{layer}.weight"].axes[0][0].name for layer in folded}
    if not set(words.values()) <= set(getattr(target.skeleton, "SCALABLE", ())):
        return trunk
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def measure(layer: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Tensor], z: Tensor) -> None:
            var, mean = torch.var_mean(z, [d for d in range(z.ndim) if d != 1], correction=0)
            seen[layer] = mean, (var + EPS).sqrt()

        return hook

    with torch.no_grad(), hooked(target.skeleton, {layer: measure(layer) for layer in folded}):
        functional_call(target.skeleton, dict(state), (inputs,))
    scales = {words[layer]: deviation for layer, (_, deviation) in seen.items()}
    for layer in folded:
        mean, deviation = seen[layer]
        t = spec.by_name[f"{layer}.weight"]
        weight = state[t.name] * _read_scales(t, scales)
        size = weight.square().mean(tuple(range(1, weight.ndim)), keepdim=True).sqrt()
        trunk[t.name] = weight / size.clamp_min(1e-12)
        trunk[f"{layer}.bias"] = (mean / deviation).clamp(-MAX_OFFSET, MAX_OFFSET)
    return trunk


Normalise = Callable[[int, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""(index of the layer, z (n, c, ...), gain (c,), bias (c,)) -> z normalised, scaled and shifted; mean; variance."""


def fit_to_data(target: Target, trunk: Mapping[str, Tensor], inputs: Tensor) -> tuple[State, Tensor]:
    """A trunk in normal form as a state for these `inputs` (n, *input_shape), and their activations (n, d) before the
    head; differentiable in the trunk. The state lacks the head."""
    unblended = torch.zeros(())

    def normalise(index: int, z: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return blended_norm(z, gain, bias, torch.zeros_like(bias), torch.ones_like(bias), unblended)

    head = target.spec.head[0]
    return fit_layers(target.skeleton, head, normalised_layers(target), trunk, inputs, normalise)


def fit_layers(
    skeleton: nn.Module,
    head: str,
    layers: Mapping[str, str],
    trunk: Mapping[str, Tensor],
    inputs: Tensor,
    normalise: Normalise,
) -> tuple[State, Tensor]:
    """A trunk's state with the statistics of `layers` (from `normalised_layers`) set layer by layer by `normalise`, and
    the activations (n, d) before the head; differentiable in the trunk.

    `head` is the name of the head's weight. A trunk may hold a "LAYER.gain" for a folded layer, which multiplies its
    units after normalisation; 1 otherwise.
    """
    state = {name: t for name, t in trunk.items() if not name.endswith(".gain")}
    seen: list[Tensor] = []

    def batchnorm(index: int, layer: str) -> Callable[[Tensor], Tensor]:
        def forward(z: Tensor) -> Tensor:
            z, mean, var = normalise(index, z, trunk[f"{layer}.weight"], trunk[f"{layer}.bias"])
            state[f"{layer}.running_mean"], state[f"{layer}.running_var"] = mean, var
            return z

        return forward

    def fold(index: int, layer: str) -> Callable[..., Tensor]:
        weight, bias = trunk[f"{layer}.weight"], trunk[f"{layer}.bias"]
        gain = trunk[f"{layer}.gain"] if f"{layer}.gain" in trunk else torch.ones_like(bias)
        state[f"{layer}.bias"] = torch.zeros_like(bias)  # the bias comes after normalisation

        def hook(_module: nn.Module, _args: tuple[Tensor], z: Tensor) -> Tensor:
            z, mean, var = normalise(index, z, gain, bias)
            factor = gain * (var + EPS).rsqrt()
            state[f"{layer}.weight"] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
            state[f"{layer}.bias"] = bias - mean * factor
            return z

        return hook

    places = list(enumerate(layers.items()))
    norms = {layer: batchnorm(i, layer) for i, (layer, kind) in places if kind == "batchnorm"}
    folds = {layer: fold(i, layer) for i, (layer, kind) in places if kind == "folded"}
    with replaced_forwards(skeleton, norms), hooked(skeleton, folds), head_inputs(skeleton, head, seen):
        functional_call(skeleton, filled(state, skeleton), (inputs,))
    return state, seen[0]


def fitted_features(target: Target, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Activations (n, d) before the head of a state from `fit_to_data`, on other inputs; differentiable in it."""
    seen: list[Tensor] = []
    with head_inputs(target.skeleton, target.spec.head[0], seen):
        run_fitted(target.skeleton, normalised_layers(target), state, inputs)
    return seen[0]


def run_fitted(skeleton: nn.Module, layers: Mapping[str, str], state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Outputs of the module for `inputs` with a state from `fit_layers`, differentiable in the whole state; torch's
    BatchNorm is not differentiable in its statistics."""

    def batchnorm(layer: str) -> Callable[[Tensor], Tensor]:
        weight, bias, mean, var = (
            state[f"{layer}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = weight * (var + EPS).rsqrt()
        return lambda z: scale_by_channel(z, factor, bias - mean * factor)

    norms = {layer: batchnorm(layer) for layer, kind in layers.items() if kind == "batchnorm"}
    with replaced_forwards(skeleton, norms):
        return functional_call(skeleton, filled(state, skeleton), (inputs,))


def _read_scales(t: TensorSpec, scales: Mapping[str, Tensor]) -> Tensor:
    """Factors for the inputs of a tensor, in a shape that multiplies the tensor."""
    factor = torch.ones(1)
    for axis in t.axes[1:]:
        along = torch.ones(1)
        for word in axis:
            along = torch.outer(along, scales.get(word.name, torch.ones(word.size))).flatten()
        factor = factor[..., None] * along
    return factor
