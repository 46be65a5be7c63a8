"""Steps of a trunk down the gradient of its loss on a support set, which a pooled encoding cannot replace.

Every tensor moves along its own normalised gradient by a share of its own size, so that steps mean the same for weights
of any magnitude (after Ortiz et al. 2024, arXiv:2304.07645). The shares are learnt. The gradient is taken as a
constant, as in first-order MAML (Finn et al. 2017, arXiv:1703.03400, section 5.2).
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from weightgen.condition import SupportSet
from weightgen.layers.augment import augment_images
from weightgen.solve.head import ridge_head
from weightgen.spec import State
from weightgen.target.interventions import head_inputs, normalise_by_batch
from weightgen.target.network import Target

SMALLEST_SIZE = 0.02
"""Least root mean square that a tensor counts as: otherwise zeros could never move."""


def refine(
    trunk: Mapping[str, Tensor],
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
    rates: Tensor,
    *,
    number: int | None = None,
) -> dict[str, Tensor]:
    """The trunk after one step down the loss; `rates` (t,) has each tensor's step as a share of its size, in order.

    Differentiable in trunk and rates, but not through the gradient. Tensors that the loss does not read stay. With
    `number`, the trunk holds that many networks side by side, and each has its own sizes.
    """

    def size_of(tensor: Tensor) -> Tensor:
        if number is None:
            return tensor.square().mean().sqrt()
        each = tensor.reshape(number, -1).square().mean(1).sqrt().repeat_interleave(len(tensor) // number)
        return each.reshape(-1, *[1] * (tensor.ndim - 1))

    with torch.enable_grad():
        leaves = {name: t.detach().requires_grad_() for name, t in trunk.items()}
        slopes = torch.autograd.grad(loss_of(leaves), list(leaves.values()), allow_unused=True)
    refined = {}
    for (name, tensor), slope, rate in zip(trunk.items(), slopes, rates, strict=True):
        if slope is not None:
            size = size_of(tensor.detach()).clamp_min(SMALLEST_SIZE)
            tensor = tensor - rate * size * slope / (size_of(slope) + 1e-8)
        refined[name] = tensor
    return refined


def refine_trunk(
    target: Target,
    state: State,
    support: SupportSet,
    *,
    rates: Sequence[float],
    rng: torch.Generator | None = None,
) -> State:
    """A full state of any classifier after one step of its trunk for each of `rates`; a rate holds for all tensors.

    The loss is the cross-entropy of a ridge head's leave-one-out predictions on the whole support set. With an `rng`,
    the images are shifted, turned and scaled a little, differently for every step. BatchNorms use the statistics of the
    batch during the steps. Statistics and class head are not changed: solve them again afterwards.
    """
    # Hooks are set on the skeleton while it runs; requests run in parallel, so each gets a copy.
    skeleton = normalise_by_batch(copy.deepcopy(target.skeleton))
    learnt = {name for name, _ in skeleton.named_parameters()} - set(target.spec.head)
    trunk = {t.name: state[t.name] for t in target.spec.generated if t.name in learnt}

    def left_out(leaves: Mapping[str, Tensor]) -> Tensor:
        seen: list[Tensor] = []
        inputs = support.inputs if rng is None else augment_images(support.inputs, rng=rng)
        with head_inputs(skeleton, target.spec.head[0], seen):
            functional_call(skeleton, {**state, **leaves}, (inputs,))
        head = ridge_head(seen[0], support.labels, num_classes=support.num_classes)
        return F.cross_entropy(head.left_out_logits, support.labels)

    for rate in rates:
        trunk = refine(trunk, left_out, torch.full((len(trunk),), rate))
    return target.spec.complete({**state, **{name: t.detach() for name, t in trunk.items()}})


def shots_scale(labels: Tensor, num_classes: int) -> float:
    """Log of the mean number of examples of a class, shifted to 0 at about twelve; learnt rates may depend on it."""
    return math.log(len(labels) / num_classes) - 2.5
