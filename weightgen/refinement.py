"""Steps of a trunk along the gradient of what a support set says of it: a reading that no pooled encoding gives.

Every tensor moves along its own normalised gradient of a loss by a share of its own size, so that steps mean the same
whatever the magnitude of weights (after Ortiz et al. 2024, arXiv:2304.07645). The shares are learnt; the gradient is
taken as a constant, as in first-order MAML (Finn et al. 2017, arXiv:1703.03400, section 5.2).
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

SMALLEST_SIZE = 0.02
"""Root mean square below which a tensor counts as of this size: zeros could never move."""


def refine(
    trunk: Mapping[str, Tensor], loss_of: Callable[[Mapping[str, Tensor]], Tensor], rates: Tensor
) -> dict[str, Tensor]:
    """The trunk after one step down the loss, tensor by tensor in the order of `rates` (t,): shares of their sizes.

    Differentiable in trunk and rates, but not through the gradient. Tensors that the loss does not read stay.
    """
    with torch.enable_grad():
        leaves = {name: t.detach().requires_grad_() for name, t in trunk.items()}
        slopes = torch.autograd.grad(loss_of(leaves), list(leaves.values()), allow_unused=True)
    refined = {}
    for (name, tensor), slope, rate in zip(trunk.items(), slopes, rates, strict=True):
        if slope is not None:
            size = tensor.detach().square().mean().sqrt().clamp_min(SMALLEST_SIZE)
            tensor = tensor - rate * size * slope / (slope.square().mean().sqrt() + 1e-8)
        refined[name] = tensor
    return refined


def shots_scale(labels: Tensor, num_classes: int) -> float:
    """Log of the examples of a class, 0 at about twelve: what rates may lean on."""
    return math.log(len(labels) / num_classes) - 2.5
