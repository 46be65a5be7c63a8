"""The class head in closed form: ridge regression on the trunk's activations, calibrated for cross-entropy.

Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers" (arXiv:1805.08136), section 3.2: with
features F (n, d) and one-hot targets Y (n, k), both centred, W = (F'F + lambda I)^-1 F'Y, or in the dual
F'(FF' + lambda I)^-1 Y when there are fewer examples than features. A least-squares head has the wrong scale for a
softmax, and fine-tuning from it would first destroy it. So its logits are multiplied by the scale with the least
cross-entropy on leave-one-out predictions, which ridge regression also gives in closed form.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightgen.condition import SupportSet
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.trunk import head_names, trunk_features

DEFAULT_RIDGE = 0.1
"""Penalty in units of the mean squared norm of a centred feature vector."""
LOG_SCALES = torch.linspace(0.0, 4.5, 19)


def solve_head(target: Target, state: State, support: SupportSet, *, ridge: float = DEFAULT_RIDGE) -> State:
    """The same state with its class head solved on the trunk's activations over the support set.

    Raises UnsupportedTask if the target has no single linear layer as its class head.
    """
    weight_name, bias_name = head_names(target)
    with torch.no_grad():
        features = trunk_features(target, state, support.inputs)
        head = ridge_head(features, support.labels, num_classes=support.num_classes, ridge=ridge)
    return {**state, weight_name: head.weight, bias_name: head.bias}


@dataclass(frozen=True, eq=False, slots=True)
class RidgeHead:
    """A calibrated ridge head, and its logits for every example as if that example had been left out."""

    weight: Tensor
    """(k, d)"""
    bias: Tensor
    """(k,)"""
    left_out_logits: Tensor
    """(n, k)"""
    preconditioned: Tensor
    """(d, n), (X'X + lambda I)^-1 X' of the weighted, centred features X"""


def ridge_head(
    features: Tensor, labels: Tensor, *, num_classes: int, ridge: Tensor | float = DEFAULT_RIDGE
) -> RidgeHead:
    """The calibrated ridge head on features (n, d); differentiable in the features and the penalty.

    Classes count equally, with any number of examples: squared errors are weighted by 1 / class size.
    """
    n, d = features.shape
    root = root_weights(labels, num_classes).to(features)
    weights = root**2 / n
    mean = (weights * features).sum(0)
    onehot = F.one_hot(labels, num_classes).to(features.dtype)
    prior = (weights * onehot).sum(0)
    x = root * (features - mean)
    y = root * (onehot - prior)
    penalty = ridge * x.square().sum() / n + 1e-6
    if n <= d:
        gram = x @ x.T
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + penalty * torch.eye(n).to(gram)))
        hat = gram @ inverse
        solver = x.T @ inverse
    else:
        gram = x.T @ x
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + penalty * torch.eye(d).to(gram)))
        solver = inverse @ x.T
        hat = x @ solver
    fitted = hat @ y
    leverage = hat.diagonal()[:, None] + 1 / n  # 1/n, because the centring is refitted too
    left_out = (y - (y - fitted) / (1 - leverage).clamp_min(1e-3)) / root
    scale = _calibrating_scale(left_out.detach(), labels)
    weight = scale * (solver @ y).T
    return RidgeHead(
        weight=weight,
        bias=scale * prior - weight @ mean,
        left_out_logits=scale * (left_out + prior),
        preconditioned=solver,
    )


@dataclass(frozen=True, eq=False, slots=True)
class LinearHead:
    """A class head: logits = features @ weight.T + bias."""

    weight: Tensor
    """(k, d)"""
    bias: Tensor
    """(k,)"""


def step_to_softmax(head: RidgeHead, features: Tensor, labels: Tensor, *, steps: Tensor) -> LinearHead:
    """The ridge head on features (n, d), moved by `steps` (t,), all > 0, towards the least cross-entropy on them.

    With few features, least squares can hide a class that lies between two others; softmax regression does not. Every
    step is quasi-Newton: it is preconditioned by the matrix that ridge regression has already inverted (Boehning 1992,
    "Multinomial logistic regression algorithm": a fixed bound of the Hessian; a step of 2 never raises the loss), plus
    half of the step before. Differentiable in features, head and steps.
    """
    num_classes = len(head.bias)
    root = root_weights(labels, num_classes).to(features)
    weights = root**2 / len(labels)
    mean = (weights * features).sum(0)
    onehot = F.one_hot(labels, num_classes).to(features.dtype)
    # The bias is the weight of an extra feature that is always 1.
    inputs = torch.cat([features - mean, torch.ones_like(root)], 1)
    solver = torch.cat([head.preconditioned * root.T, weights.T])
    coef = torch.cat([head.weight.T, (head.bias + head.weight @ mean)[None]])
    move = torch.zeros_like(coef)
    for step in steps:
        error = (inputs @ coef).softmax(-1) - onehot
        move = 0.5 * move - step * (solver @ error)
        coef = coef + move
    return LinearHead(weight=coef[:-1].T, bias=coef[-1] - mean @ coef[:-1])


def left_out_cross_entropy(ridge: RidgeHead, stepped: LinearHead, features: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the examples (n, d) that a head was solved on, as if each had been left out, scalar.

    The ridge head's leave-one-out logits are exact; the steps after it are added as they are.
    """
    moved = features @ (stepped.weight - ridge.weight).T + stepped.bias - ridge.bias
    return F.cross_entropy(ridge.left_out_logits + moved, labels)


def root_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Square roots (n, 1) of weights with mean 1 that make all classes count equally, for any class sizes."""
    counts = torch.bincount(labels, minlength=num_classes)
    return (len(labels) / (num_classes * counts[labels])).sqrt()[:, None]


def _calibrating_scale(left_out: Tensor, labels: Tensor) -> Tensor:
    """The factor on leave-one-out logits (n, k) with the least cross-entropy, scalar; by a grid and a parabola."""
    scales = LOG_SCALES.to(left_out).exp()
    surprises = -(scales[:, None, None] * left_out).log_softmax(-1)
    losses = surprises[:, torch.arange(len(labels)), labels].mean(1)
    best = int(losses.argmin().clamp(1, len(scales) - 2))
    before, at, after = losses[best - 1 : best + 2].tolist()
    bend = before - 2 * at + after
    shift = 0.5 * (before - after) / bend if bend > 1e-12 else 0.0
    step = float(LOG_SCALES[1] - LOG_SCALES[0])
    return (LOG_SCALES[best] + step * max(-1.0, min(1.0, shift))).exp().to(left_out)
