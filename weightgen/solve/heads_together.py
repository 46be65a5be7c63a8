"""Class heads of several networks solved together, as `weightgen.solve.head` solves them one by one.

Each head has the same bits, whichever heads are solved with it. For this there is a leading axis b for the networks,
and every matrix of a network starts at a multiple of 64 bytes, as it would alone: else products would round
differently. Examples are padded with examples of weight 0, and features with zeros; one padded feature holds the 1 for
the bias.

Shapes: b networks, n examples, d features, k classes; N and D after padding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from weightgen.solve.head import LOG_SCALES, root_weights

_ALIGNED = 16
"""Floats in 64 bytes."""


@dataclass(frozen=True, eq=False, slots=True)
class HeadsTogether:
    """The class heads of several networks."""

    weight: Tensor
    """(b, k, d)"""
    bias: Tensor
    """(b, k)"""
    left_out_loss: Tensor
    """(b,), `left_out_cross_entropy` of each network"""


def solve_heads(features: Tensor, labels: Tensor, *, num_classes: int, ridge: Tensor, steps: Tensor) -> HeadsTogether:
    """The heads on features (b, n, d) of examples that share their labels (n,): `ridge_head`, then `step_to_softmax`
    by `steps` (t,). Differentiable in features, ridge and steps."""
    b, n, d = features.shape
    rows = (0, 0, 0, _round_up(n) - n)
    x = F.pad(features, (0, _round_up(d + 1) - d, *rows[2:]))
    root = F.pad(root_weights(labels, num_classes).to(features), rows)
    onehot = F.pad(F.one_hot(labels, num_classes).to(features), rows)
    weights = root**2 / n
    mean = (weights * x).sum(1, keepdim=True)
    prior = (weights * onehot).sum(0)
    centred = x - mean
    weighted = root * centred
    solver = _solve(weighted, n, d, ridge)
    # Expanded, or the product would use one tall matrix instead of several.
    y = (root * (onehot - prior)).expand(b, -1, -1)
    ridge_coef = solver @ y
    leverage = (weighted * solver.mT).sum(2, keepdim=True) + 1 / n  # the diagonal of the hat matrix
    fitted = weighted @ ridge_coef
    left_out = (y - (y - fitted) / (1 - leverage).clamp_min(1e-3)) / root.masked_fill(root == 0, 1)
    scale = _calibrating_scale(left_out.detach()[:, :n], labels)[:, None, None]
    one = F.one_hot(torch.tensor(d), x.shape[2]).to(x)[:, None]  # (D, 1): the place of the bias
    start = scale * ridge_coef + one * (scale * prior)  # on centred features
    inputs, solver = centred + one.T, solver * root.T + one * weights.T
    coef, move = start, torch.zeros_like(start)
    for step in steps:
        error = (inputs @ coef).softmax(-1) - onehot
        move = 0.5 * move - step * (solver @ error)
        coef = coef + move
    moved = (inputs @ (coef - start))[:, :n]
    logits = scale * (left_out[:, :n] + prior) + moved
    loss = F.cross_entropy(logits.flatten(0, 1), labels.repeat(b), reduction="none").reshape(b, n).mean(1)
    weight = coef[:, :d].mT
    bias = coef[:, d] - (weight * mean[:, :, :d]).sum(2)
    return HeadsTogether(weight=weight, bias=bias, left_out_loss=loss)


def _solve(x: Tensor, n: int, d: int, ridge: Tensor) -> Tensor:
    """(X'X + lambda I)^-1 X' (b, D, N) of weighted, centred features X (b, N, D)."""
    penalty = (ridge * x.square().sum((1, 2)) / n + 1e-6)[:, None, None]
    is_dual = n <= d
    gram = x @ x.mT if is_dual else x.mT @ x
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram + penalty * torch.eye(gram.shape[1]).to(gram)))
    return x.mT @ inverse if is_dual else inverse @ x.mT


def _calibrating_scale(left_out: Tensor, labels: Tensor) -> Tensor:
    """The factor on leave-one-out logits (b, n, k) with the least cross-entropy, (b,); by a grid and a parabola."""
    scales = LOG_SCALES.to(left_out)
    surprises = -(scales.exp()[:, None, None] * left_out[:, None]).log_softmax(-1)
    losses = surprises[..., torch.arange(len(labels)), labels].mean(-1)
    best = losses.argmin(1, keepdim=True).clamp(1, len(scales) - 2)
    before, at, after = (losses.gather(1, best + i) for i in (-1, 0, 1))
    bend = before - 2 * at + after
    shift = torch.where(bend > 1e-12, 0.5 * (before - after) / bend, 0.0).clamp(-1.0, 1.0)
    return (scales[best] + (scales[1] - scales[0]) * shift)[:, 0].exp()


def _round_up(size: int) -> int:
    return size + -size % _ALIGNED
