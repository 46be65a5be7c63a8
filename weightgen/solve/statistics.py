"""BatchNorm's running statistics, measured on examples in closed form: one pass, no momentum."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import EVAL_BATCH


def recalibrate_batchnorm(target: Target, state: State, inputs: Float[Tensor, "n ..."]) -> State:
    """The same state with BatchNorm's running statistics measured on inputs (n, *input_shape).

    Deterministic: one pass over all inputs in equal chunks, the plain mean of the chunks' statistics. The rest of the
    network stays in eval mode.
    """
    if not _batch_norms(target.skeleton):
        return state
    module = target.load(state)
    _measure_batchnorm(module, inputs)
    measured = module.state_dict()
    return {t.name: state[t.name] if t.carried is not None else measured[t.name] for t in target.spec.tensors}


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _measure_batchnorm(module: nn.Module, inputs: Tensor) -> None:
    norms = _batch_norms(module.eval())
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean instead of a moving one
        norm.train()
    with torch.no_grad():
        for chunk in inputs.tensor_split(math.ceil(len(inputs) / EVAL_BATCH)):
            module(chunk)
    module.eval()
