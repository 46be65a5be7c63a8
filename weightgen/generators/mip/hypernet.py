"""mip: a hypernetwork conditioned on a support set; trunk first, then the class head in closed form.

Ortiz, Guttag, Dalca 2024, "Magnitude Invariant Parametrizations Improve Hypernetwork Learning" (arXiv:2304.07645):
the encoding of the condition has unit norm, and weights are theta = theta0 + delta with delta zero at the start. Here

    encoding = SupportEncoder(support)                                    class means in an embedding space
    trunk    = theta0 + left diag(C encoding) right                       low-rank, tensor by tensor
    trunk    = trunk - rate * |trunk| * g / |g|,  a few times             g: gradient of the leave-one-out loss
    stats    = those of the support set, blended with learnt ones         every normalised layer, in closed form
    head     = calibrated ridge regression on the trunk's activations     weightgen.solve.head, in closed form
    head     = head - step * (X'X + ridge)^-1 X'(softmax - labels), often  weightgen.solve.head, steps learnt

The third line finds the direction in which each tensor should move for these classes; a pooled encoding cannot give
it. Steps are relative to the tensor's own size, with learnt rates, so that they too are invariant
to magnitude. Training runs through all five lines, with g taken as a constant.

One generator serves several architectures, with one input channel or three. The first layer is learnt for three. For
one channel it is summed over its input channels, which gives the same function on grey images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor, nn

from weightgen.layers.blended_norm import blended_norm, sum_channels
from weightgen.runtime.global_rng import borrowed_rng
from weightgen.solve.head import LinearHead, RidgeHead, left_out_cross_entropy, ridge_head, step_to_softmax
from weightgen.solve.heads_together import HeadsTogether, solve_heads
from weightgen.solve.refinement import refine, shots_scale
from weightgen.spec import State, StateSpec
from weightgen.target import side_by_side
from weightgen.target.network import Target
from weightgen.target.side_by_side import (
    MIN_NETWORKS,
    join_inputs,
    join_states,
    split_features,
    split_state,
    widen,
)
from weightgen.target.trunk import learnt_names
from weightgen.weightspace.normal_form import fit_layers, normalised_layers, run_fitted


@dataclass(frozen=True)
class MipConfig:
    """Sizes of the hypernetwork of one architecture."""

    encoding_dim: int = 128
    encoder_width: int = 32
    rank: int = 16
    """Rank of the change that the encoding makes to each tensor."""
    refinements: int = 2
    """Steps along the gradient of the leave-one-out loss."""
    head_steps: int = 12
    """Steps of the class head from ridge regression towards softmax regression."""


class SupportEncoder(nn.Module):
    """Maps labelled images (n, 3, 28, 28) to a unit-norm encoding (e,); example and class order have no effect.

    A network embeds the images; the encoding is made from the mean and spread of class means and the spread in classes.
    """

    def __init__(self, config: MipConfig) -> None:
        super().__init__()
        w, e = config.encoder_width, config.encoding_dim
        self.convs = nn.ModuleList(
            [nn.Conv2d(3, w, 5, 3), nn.Conv2d(w, 2 * w, 3, 2, 1), nn.Conv2d(2 * w, 2 * w, 3, 2, 1)]
        )
        self.embed = nn.Linear(2 * w * 4, e)
        self.mix = nn.Sequential(nn.Linear(3 * e + 6, 2 * e), nn.LeakyReLU(), nn.Linear(2 * e, e))

    def forward(self, images: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        x = images - 0.5
        for conv in self.convs:
            x = F.leaky_relu(conv(x))
        x = self.embed(rearrange(x, "n c h w -> n (c h w)"))
        counts = torch.bincount(labels, minlength=num_classes)[:, None]
        means = x.new_zeros(num_classes, x.shape[1]).index_add(0, labels, x) / counts
        within = (x - means[labels]).square().mean(0)
        between = (means - means.mean(0)).square().mean(0)
        mean, square = (reduce(part, "n c h w -> c", "mean") for part in (images, images.square()))
        colour = torch.cat([mean, (square - mean.square()).clamp_min(0).sqrt()])
        summary = torch.cat([means.mean(0), (between + 1e-4).log(), (within + 1e-4).log(), colour])
        return F.normalize(self.mix(summary), dim=0)


class ArchHypernet(nn.Module):
    """Makes states of one architecture; `spec` is that of the three-channel target with any number of classes."""

    def __init__(self, spec: StateSpec, layers: Mapping[str, str], initial: State, config: MipConfig) -> None:
        """`layers` maps each normalised layer to "batchnorm" or "folded"; `initial` holds theta0's first values."""
        super().__init__()
        self.spec, self.layers, self.config = spec, dict(layers), config
        tensors = {name: initial[name] for name in learnt_names(spec)}
        for layer, kind in layers.items():
            if kind == "folded":
                tensors[f"{layer}.gain"] = torch.ones(len(initial[f"{layer}.bias"]))
        self.names = list(tensors)
        self.encoder = SupportEncoder(config)
        self.theta0 = nn.ParameterList(t.detach().clone() for t in tensors.values())
        self.coefficients = nn.Linear(config.encoding_dim, config.rank * len(tensors), bias=False)
        nn.init.zeros_(self.coefficients.weight)
        self.left, self.right = nn.ParameterList(), nn.ParameterList()
        for t in tensors.values():
            matrix = _as_matrix(t)
            scale = (matrix.std(correction=0).clamp_min(0.05) if t.ndim > 1 else 0.2) / math.sqrt(config.rank)
            self.left.append(torch.randn(len(matrix), config.rank))
            self.right.append(scale * torch.randn(config.rank, matrix.shape[1]))
        self.rates = nn.Parameter(torch.full((config.refinements, len(tensors)), 0.1))
        self.rates_by_shots = nn.Parameter(torch.zeros(config.refinements, len(tensors)))
        widths = {layer: len(initial[f"{layer}.bias"]) for layer in layers}
        self.prior_mean = nn.ParameterList(torch.zeros(w) for w in widths.values())
        self.prior_log_var = nn.ParameterList(torch.zeros(w) for w in widths.values())
        self.log_prior_count = nn.Parameter(torch.tensor(0.0))
        self.log_ridge = nn.Parameter(torch.tensor(math.log(0.1)))
        self.log_heat = nn.Parameter(torch.tensor(0.0))
        self.log_head_steps = nn.Parameter(torch.full((config.head_steps,), math.log(2.0)))
        self.log_head_steps_by_shots = nn.Parameter(torch.zeros(config.head_steps))

    def describe(self) -> dict[str, Any]:
        """Its spec, layers and config, without its weights, as JSON values."""
        return {"spec": self.spec.to_json(), "layers": list(self.layers.items()), "config": asdict(self.config)}

    def encode(self, support: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        """The encoding (e,) of images with one or three channels."""
        images = support.expand(-1, 3, -1, -1)
        return self.encoder(images, labels, num_classes)

    def forward(
        self,
        skeleton: nn.Module,
        support: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        conditioned: bool = True,
    ) -> State:
        """The generated tensors of a state; if not `conditioned`, the trunk is the same for every support set.

        `skeleton` is the target's module on the meta device; nothing else may use it during this call.
        """
        trunk = self.make_trunk(support, labels, num_classes, conditioned=conditioned)
        if conditioned:
            for step in range(self.config.refinements):
                trunk = self._refine(trunk, step, skeleton, support, labels, num_classes)
        state, features = self._normalise(trunk, skeleton, support, conditioned=conditioned)
        _, head = self._solve(features, labels, num_classes)
        # Refinement has seen every label, so the leave-one-out loss is too good: the heat of the softmax is learnt.
        heat = self.log_heat.exp() if conditioned else 1.0
        weight_name, bias_name = self.spec.head
        return {**state, weight_name: heat * head.weight, bias_name: heat * head.bias}

    @torch.no_grad()
    def generate_side_by_side(
        self, skeleton: nn.Module, supports: Sequence[Tensor], labels: Tensor, *, num_classes: int
    ) -> list[State]:
        """The generated tensors for each of several support sets with the same labels.

        They equal those of `forward` up to rounding; the other support sets do not change a single bit. `skeleton` is
        that of a target which can run side by side.
        """
        trunks = [self.make_trunk(support, labels, num_classes, conditioned=True) for support in supports]
        padding = max(0, MIN_NETWORKS - len(supports))
        number = len(supports) + padding
        wide = widen(skeleton, number)
        inputs = join_inputs([*supports, *[supports[0]] * padding])
        trunk = join_states([*trunks, *trunks[:1] * padding])
        scale = shots_scale(labels, num_classes)
        steps = (self.log_head_steps + scale * self.log_head_steps_by_shots).exp()

        def solve(leaves: Mapping[str, Tensor]) -> tuple[State, HeadsTogether]:
            state, features = self._normalise(leaves, wide, inputs, conditioned=True, number=number)
            features = split_features(features, number)
            return state, solve_heads(
                features, labels, num_classes=num_classes, ridge=self.log_ridge.exp(), steps=steps
            )

        for rates, by_shots in zip(self.rates, self.rates_by_shots, strict=True):
            trunk = refine(
                trunk, lambda leaves: solve(leaves)[1].left_out_loss.sum(), 0.1 * (rates + scale * by_shots),
                number=number,
            )  # fmt: skip
        state, heads = solve(trunk)
        heat = self.log_heat.exp()
        weight_name, bias_name = self.spec.head
        return [
            {**each, weight_name: heat * heads.weight[i], bias_name: heat * heads.bias[i]}
            for i, each in enumerate(split_state(state, number)[: len(supports)])
        ]

    def _solve(self, features: Tensor, labels: Tensor, num_classes: int) -> tuple[RidgeHead, LinearHead]:
        """The class head on features (n, d), in closed form and after its steps towards softmax regression."""
        ridge = ridge_head(features, labels, num_classes=num_classes, ridge=self.log_ridge.exp())
        steps = (self.log_head_steps + shots_scale(labels, num_classes) * self.log_head_steps_by_shots).exp()
        return ridge, step_to_softmax(ridge, features, labels, steps=steps)

    def make_trunk(self, support: Tensor, labels: Tensor, num_classes: int, *, conditioned: bool) -> dict[str, Tensor]:
        """The trunk before refinement: theta0 and, if `conditioned`, what the support set adds to it."""
        trunk = dict(zip(self.names, self.theta0, strict=True))
        if conditioned:
            encoding = self.encode(support, labels, num_classes)
            # The encoding has norm 1; times sqrt(e) its entries are of order 1, as the linear layer expects.
            coefs = rearrange(self.coefficients(encoding * math.sqrt(len(encoding))), "(t r) -> t r", t=len(trunk))
            for i, (name, base) in enumerate(trunk.items()):
                trunk[name] = base + ((self.left[i] * coefs[i]) @ self.right[i]).reshape(base.shape)
        return _for_channels(trunk, self.spec) if support.shape[1] == 1 else trunk

    def _refine(
        self,
        trunk: dict[str, Tensor],
        step: int,
        skeleton: nn.Module,
        support: Tensor,
        labels: Tensor,
        num_classes: int,
    ) -> dict[str, Tensor]:
        """One step of every tensor along its normalised gradient of the leave-one-out cross-entropy."""

        def left_out(leaves: Mapping[str, Tensor]) -> Tensor:
            _, features = self._normalise(leaves, skeleton, support, conditioned=True)
            ridge, head = self._solve(features, labels, num_classes)
            return left_out_cross_entropy(ridge, head, features, labels)

        by_shots = shots_scale(labels, num_classes) * self.rates_by_shots[step]
        return refine(trunk, left_out, 0.1 * (self.rates[step] + by_shots))

    def _normalise(
        self,
        trunk: Mapping[str, Tensor],
        skeleton: nn.Module,
        support: Tensor,
        *,
        conditioned: bool,
        number: int = 1,
    ) -> tuple[State, Tensor]:
        """The state, with the statistics of every normalised layer set layer by layer, and the head's inputs (n, d).

        `number` is the number of networks that run side by side.
        """
        trunk = {name: _laid_out(t) for name, t in trunk.items()}
        count = self.log_prior_count.exp()
        blend = count / (count + len(support)) if conditioned else torch.ones_like(count)
        sums = sum_channels if number == 1 else side_by_side.sum_channels
        priors = list(zip(self.prior_mean, self.prior_log_var, strict=True))

        def normalise(index: int, z: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            mean, log_var = priors[index]
            if number > 1:
                mean, log_var = mean.repeat(number), log_var.repeat(number)
            return blended_norm(z, gain, bias, mean, log_var.exp(), blend, sums=sums)

        return fit_layers(skeleton, self.spec.head[0], self.layers, trunk, support, normalise)

    def run(self, skeleton: nn.Module, state: State, inputs: Tensor) -> Tensor:
        """Logits of a generated state, differentiable in all its tensors."""
        return run_fitted(skeleton, self.layers, state, inputs)


def new_hypernet(target: Target, config: MipConfig, *, seed: int) -> ArchHypernet:
    """An untrained hypernetwork for the three-channel `target`, with theta0 at the target's default initialisation.

    Normalised layers are those with BatchNorm. In an architecture without any norm they are all layers but the head; in
    one with LayerNorm only the first layer, which reads the images.
    """
    with borrowed_rng(seed):
        return ArchHypernet(target.spec, normalised_layers(target), target.init_state(seed), config)


def _laid_out(t: Tensor) -> Tensor:
    """A convolution's weights in the layout that is faster on a CPU; its outputs get the same layout.

    Channels last is a third faster with enough channels to fill a vector, and slower with fewer.
    """
    is_wide = t.ndim == 4 and len(t) >= 16
    return t.contiguous(memory_format=torch.channels_last) if is_wide else t


def _for_channels(trunk: dict[str, Tensor], spec: StateSpec) -> dict[str, Tensor]:
    """The trunk for one-channel images: layers that read three channels are summed over them."""
    folded = dict(trunk)
    for t in spec.tensors:
        for dim, axis in enumerate(t.axes):
            if [w.name for w in axis] == ["CHANNELS"]:
                folded[t.name] = trunk[t.name].sum(dim, keepdim=True)
    return folded


def _as_matrix(t: Tensor) -> Tensor:
    """A tensor as a matrix (units, everything else); a vector becomes one column."""
    return t.reshape(len(t), -1) if t.ndim != 3 else rearrange(t, "one t d -> t (one d)")
