"""Steps of a trunk along the gradient of what a support set says of it: a reading that no pooled encoding gives.

Every tensor moves along its own normalised gradient of a loss by a share of its own size, so that steps mean the same
whatever the magnitude of weights (after Ortiz et al. 2024, arXiv:2304.07645). The shares are learnt; the gradient is
taken as a constant, as in first-order MAML (Finn et al. 2017, arXiv:1703.03400, section 5.2).
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
"""Root mean square below which a tensor counts as of this size: zeros could never move."""


def refine(
    trunk: Mapping[str, Tensor],
    loss_of: Callable[[Mapping[str, Tensor]], Tensor],
    rates: Tensor,
    *,
    number: int | None = None,
) -> dict[str, Tensor]:
    """The trunk after one step down the loss, tensor by tensor in the order of `rates` (t,): shares of their sizes.

    Differentiable in trunk and rates, but not through the gradient. Tensors that the loss does not read stay. With a
    `number`, the trunk is that of so many networks side by side, and each has its own sizes.
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
    """A full state of any classifier, its trunk's parameters moved by a step for each of `rates`, all tensors alike.

    The loss is the cross-entropy of a ridge head's leave-one-out predictions on the whole support set, whose images are
    shifted, turned and scaled a little anew for every step where an `rng` is given; BatchNorms use the statistics of
    the batch meanwhile. Statistics and class head come back as they were: they are to be solved again.
    """
    # Hooks are set on the skeleton while it runs: a copy, so that requests may run side by side.
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
    """Log of the examples of a class, 0 at about twelve: what rates may lean on."""
    return math.log(len(labels) / num_classes) - 2.5
