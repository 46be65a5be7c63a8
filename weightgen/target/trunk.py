"""Trunk and head of a target: their tensors, and the inputs of the head.

The head is the last linear layer, with one row per class. The trunk is everything before it that a generator makes.
"""

from collections.abc import Mapping

from torch import Tensor
from torch.func import functional_call

from weightgen.errors import UnsupportedTask
from weightgen.spec import State, StateSpec
from weightgen.target.interventions import head_inputs
from weightgen.target.network import Target

MEASURED = ("running_mean", "running_var")
"""Tensors that are measured on examples, not learnt: BatchNorm's statistics."""


def trunk_spec(spec: StateSpec) -> StateSpec:
    """The spec of the generated tensors before the class head."""
    return StateSpec(arch=spec.arch, tensors=tuple(t for t in spec.generated if t.name not in spec.head), config={})


def take_trunk(state: Mapping[str, Tensor], spec: StateSpec) -> State:
    """The tensors of a state before its class head."""
    return {t.name: state[t.name] for t in trunk_spec(spec).tensors}


def learnt_names(spec: StateSpec) -> list[str]:
    """Names of the trunk's tensors without BatchNorm's statistics."""
    return [t.name for t in trunk_spec(spec).tensors if not t.name.endswith(MEASURED)]


def num_classes_of(spec: StateSpec) -> int:
    """Number of rows of the class head; 0 if the spec has none."""
    return spec.by_name[spec.head[0]].shape[0] if spec.head else 0


def head_names(target: Target) -> tuple[str, str]:
    """Names of the weight and bias of the class head."""
    names = target.spec.head
    if len(names) != 2 or not (names[0].endswith("weight") and names[1].endswith("bias")):
        raise UnsupportedTask(
            f"{target.spec.arch!r} has {list(names)} as its class head; expected one linear layer with weight and bias"
        )
    return names[0], names[1]


def head_layer(target: Target) -> str:
    """Name of the module that is the class head."""
    return head_names(target)[0].removesuffix(".weight")


def trunk_features(target: Target, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Inputs (n, d) of the class head for inputs (n, *input_shape); the head runs too, and its output is dropped."""
    seen: list[Tensor] = []
    with head_inputs(target.skeleton, head_names(target)[0], seen):
        functional_call(target.skeleton, dict(state), (inputs,))
    return seen[0]
