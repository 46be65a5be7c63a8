"""The class head in closed form: ridge regression on the trunk's activations, calibrated for cross-entropy.

Bertinetto et al. 2019, "Meta-learning with differentiable closed-form solvers" (arXiv:1805.08136), section 3.2: with
features F (n, d) and one-hot targets Y (n, k), both centred, W = (F'F + lambda I)^-1 F'Y, or in the dual
F'(FF' + lambda I)^-1 Y when there are fewer examples than features. A least-squares head has the wrong scale for a
softmax: fine-tuning from it first destroys it. So its logits are multiplied by the scale that gives the least
cross-entropy on leave-one-out predictions, which ridge regression has in closed form too.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from weightgen.condition import SupportSet
from weightgen.errors import UnsupportedTask
from weightgen.spec import State
from weightgen.target.network import Target

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
    """A calibrated ridge head, and what it would say of every example had it not seen that one."""

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

    Classes count equally whatever their number of examples: squared errors are weighted by 1 / class size.
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
    leverage = hat.diagonal()[:, None] + 1 / n  # 1/n: the centring is refitted as well
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
    """The ridge head on features (n, d), moved towards that of least cross-entropy on them by `steps` (t,), all > 0.

    Least squares lets large classes hide those between them when there are few features; softmax regression does not.
    Every step is quasi-Newton, preconditioned by the matrix that ridge regression has inverted already (Boehning 1992,
    "Multinomial logistic regression algorithm": a fixed bound of the Hessian; a step of 2 never raises the loss) and
    carries half of the one before. Differentiable in features, head and steps.
    """
    num_classes = len(head.bias)
    root = root_weights(labels, num_classes).to(features)
    weights = root**2 / len(labels)
    mean = (weights * features).sum(0)
    onehot = F.one_hot(labels, num_classes).to(features.dtype)
    # The bias is the weight of one more feature, which is always 1.
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

    The closed form knows what it would say of an example left out; the steps after it count as they are.
    """
    moved = features @ (stepped.weight - ridge.weight).T + stepped.bias - ridge.bias
    return F.cross_entropy(ridge.left_out_logits + moved, labels)


def root_weights(labels: Tensor, num_classes: int) -> Tensor:
    """Square roots (n, 1) of the weights that let every class count equally, whatever its size; weights of mean 1."""
    counts = torch.bincount(labels, minlength=num_classes)
    return (len(labels) / (num_classes * counts[labels])).sqrt()[:, None]


def _calibrating_scale(left_out: Tensor, labels: Tensor) -> Tensor:
    """The factor on leave-one-out logits (n, k) with the least cross-entropy, scalar; a grid and a parabola."""
    scales = LOG_SCALES.to(left_out).exp()
    surprises = -(scales[:, None, None] * left_out).log_softmax(-1)
    losses = surprises[:, torch.arange(len(labels)), labels].mean(1)
    best = int(losses.argmin().clamp(1, len(scales) - 2))
    before, at, after = losses[best - 1 : best + 2].tolist()
    bend = before - 2 * at + after
    shift = 0.5 * (before - after) / bend if bend > 1e-12 else 0.0
    step = float(LOG_SCALES[1] - LOG_SCALES[0])
    return (LOG_SCALES[best] + step * max(-1.0, min(1.0, shift))).exp().to(left_out)


def head_names(target: Target) -> tuple[str, str]:
    """Names of the weight and bias of the class head."""
    names = target.spec.head
    if len(names) != 2 or not (names[0].endswith("weight") and names[1].endswith("bias")):
        raise UnsupportedTask(
            f"{target.spec.arch!r} has {list(names)} as its class head; expected one linear layer with weight and bias"
        )
    return names[0], names[1]


def trunk_features(target: Target, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """What the class head sees of inputs (n, *input_shape), (n, d)."""
    head = head_names(target)[0].removesuffix(".weight")
    return functional_call(_Features(target.skeleton, head), {f"module.{k}": v for k, v in state.items()}, (inputs,))


class _Features(nn.Module):
    """A module run up to its head: the head's input is the output."""

    def __init__(self, module: nn.Module, head: str) -> None:
        super().__init__()
        self.module = module
        self.head = head

    def forward(self, inputs: Tensor) -> Tensor:
        seen: list[Tensor] = []
        handle = self.module.get_submodule(self.head).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.module(inputs)
        finally:
            handle.remove()
        return seen[0]
