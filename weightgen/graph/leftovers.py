"""Tensors that no recorded operation owns: ties, counters, and parts of a module that the pass did not reach."""

from collections.abc import Sequence

from torch import nn

from weightgen.graph.drafts import Draft
from weightgen.spec import StateSpec

_ROLES = {"running_mean": "running mean", "running_var": "running var", "bias": "bias", "weight": "weight"}
_OPS_OF_TYPES = (
    ((nn.Linear, nn.Bilinear), "linear"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    (nn.modules.batchnorm._BatchNorm, "batch_norm"),
    (nn.modules.instancenorm._InstanceNorm, "instance_norm"),
    (nn.GroupNorm, "group_norm"),
    (nn.LayerNorm, "layer_norm"),
    (nn.RMSNorm, "rms_norm"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
    (nn.MultiheadAttention, "attention"),
    (nn.PReLU, "activation"),
)


def own_rest(spec: StateSpec, drafts: list[Draft], module: nn.Module) -> list[str]:
    """Give every tensor without an owner a node behind the tensor before it; returns those that no operation read."""
    owner = {name: i for i, draft in enumerate(drafts) for name, _, _ in draft.tensors}
    of_module: dict[str, int] = {}
    for name, node in owner.items():
        of_module.setdefault(name.rpartition(".")[0], node)
    kinds = _Kinds(module, drafts, owner)
    unreached = []
    previous, hung = 0, {}
    for t in spec.tensors:
        path, _, last = t.name.rpartition(".")
        if t.name in owner:
            previous = owner[t.name]
            continue
        if t.tied_to:
            node = owner[t.tied_to]
            _, role, is_transposed = next(found for found in drafts[node].tensors if found[0] == t.tied_to)
            drafts[node].tensors.append((t.name, role, is_transposed))
        elif t.carried is not None and path in of_module:
            drafts[of_module[path]].tensors.append((t.name, "carried", False))
        else:
            op, role, is_transposed = kinds.kind_of(path, last)
            node = hung.get(path) if op != "parameter" else None
            if node is None:
                drafts.append(Draft(op, "unreached", [previous]))
                node = hung[path] = len(drafts) - 1
            role = "carried" if t.carried is not None else role
            drafts[node].tensors.append((t.name, role, is_transposed))
            owner[t.name] = previous = node
            unreached.append(t.name)
        owner.setdefault(t.name, owner.get(t.tied_to or t.name, 0))
    return unreached


class _Kinds:
    """Ops and roles for tensors that no operation read: those of torch's own layers, or those of another module of the
    same type that the pass reached (the norm before a cross-attention, in a decoder that was run alone)."""

    def __init__(self, module: nn.Module, drafts: Sequence[Draft], owner: dict[str, int]) -> None:
        self._parts = dict(module.named_modules())
        self._drafts, self._owner = drafts, owner
        self._examples: dict[type, dict[str, tuple[str, str, bool]]] | None = None

    def kind_of(self, path: str, name: str) -> tuple[str, str, bool]:
        """(op, role, is_transposed) of a tensor, by the path of its module and its name in it."""
        part = self._parts.get(path)
        op = _op_of_type(part) if part is not None else ""
        if op:
            role = _ROLES.get(name, "raw")
            return op, f"norm {role}" if op.endswith("_norm") and role in ("weight", "bias") else role, False
        if self._examples is None:
            self._examples = self._find_examples()
        return self._examples.get(type(part), {}).get(name, ("parameter", "raw", False))

    def _find_examples(self) -> dict[type, dict[str, tuple[str, str, bool]]]:
        """Module type -> name -> (op, role, is_transposed), for types that the pass reached, with one node."""
        roles = {name: (role, flipped) for draft in self._drafts for name, role, flipped in draft.tensors}
        found: dict[type, dict[str, tuple[str, str, bool]]] = {}
        for path, part in self._parts.items():
            names = [name for name, _ in part.named_parameters(recurse=False)]
            whole = [f"{path}.{name}".lstrip(".") for name in names]
            nodes = {self._owner.get(name, -1) for name in whole}
            if type(part) not in found and len(nodes) == 1 and -1 not in nodes:
                op = self._drafts[nodes.pop()].op
                found[type(part)] = {last: (op, *roles[name]) for last, name in zip(names, whole, strict=True)}
        return found


def _op_of_type(module: nn.Module) -> str:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        return "transposed_conv"
    if isinstance(module, nn.modules.conv._ConvNd):
        return "grouped_conv" if module.groups > 1 else "conv"
    return next((op for kind, op in _OPS_OF_TYPES if isinstance(module, kind)), "")
