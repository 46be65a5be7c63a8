"""A full state from a trunk: BatchNorm's statistics and the class head are solved on the support set."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from weightgen.condition import SupportSet
from weightgen.solve.head import DEFAULT_RIDGE, solve_head
from weightgen.solve.heads_together import solve_heads
from weightgen.solve.statistics import recalibrate_batchnorm
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.side_by_side import can_run_side_by_side, run_each
from weightgen.target.trunk import head_layer, head_names


def refit(target: Target, trunk: Mapping[str, Tensor], support: SupportSet) -> State:
    """A full state from a trunk: BatchNorm's statistics, then the class head, from the support set."""
    spec = target.spec
    head = {name: torch.zeros(spec.by_name[name].shape, dtype=spec.by_name[name].torch_dtype) for name in spec.head}
    state = recalibrate_batchnorm(target, spec.complete({**trunk, **head}), support.inputs)
    return spec.complete(solve_head(target, state, support))


def refit_each(target: Target, trunks: Sequence[Mapping[str, Tensor]], support: SupportSet) -> list[State]:
    """`refit` of several trunks on one support set, in one pass if the target can run side by side."""
    if not can_run_side_by_side(target.skeleton):
        return [refit(target, trunk, support) for trunk in trunks]
    weight_name, bias_name = head_names(target)
    with torch.no_grad():
        features = run_each(target.skeleton, trunks, support.inputs, without=head_layer(target))
        ridge, no_steps = torch.tensor(DEFAULT_RIDGE), torch.zeros(0)
        heads = solve_heads(features, support.labels, num_classes=support.num_classes, ridge=ridge, steps=no_steps)
    return [
        target.spec.complete({**trunk, weight_name: weight.contiguous(), bias_name: bias.contiguous()})
        for trunk, weight, bias in zip(trunks, heads.weight, heads.bias, strict=True)
    ]
