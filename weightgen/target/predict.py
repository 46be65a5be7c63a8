"""Logits and accuracy of a state, in batches."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weightgen.errors import BadData
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.side_by_side import can_run_side_by_side, run_each, run_halves

EVAL_BATCH = 512
"""Examples in a forward pass; bounds the memory of activations."""


def predict(target: Target, state: State, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
    """Logits (n, classes) of any number of inputs, in eval mode and batches, without gradients."""
    with torch.no_grad():
        if can_run_side_by_side(target.skeleton):
            return run_halves(target.skeleton, state, inputs)
        return torch.cat([target.run(state, batch) for batch in inputs.split(EVAL_BATCH)])


def predict_each(
    target: Target, states: Sequence[State], inputs: Float[Tensor, "n ..."]
) -> Float[Tensor, "states n classes"]:
    """Logits (b, n, classes) of several states for the same inputs; equal to `predict` up to rounding."""
    if not can_run_side_by_side(target.skeleton):
        return torch.stack([predict(target, state, inputs) for state in states])
    with torch.no_grad():
        return run_each(target.skeleton, states, inputs)


def accuracy(target: Target, state: State, inputs: Float[Tensor, "n ..."], labels: Int[Tensor, " m"]) -> float:
    """Fraction of inputs (n, *input_shape) whose highest logit is at their label (n,), in [0, 1]."""
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise BadData(f"{len(inputs)} inputs and {len(labels)} labels to score, expected equally many and at least one")
    return float((predict(target, state, inputs).argmax(1) == labels).double().mean())
