"""The entries of a module's state_dict that a graph can serve, with their spec, and why the others are left out."""

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from weightgen.spec import StateSpec, describe_tensors

MAX_CARRIED = 2**20
"""Most integers of one tensor that a spec carries; quantised weights have more."""


def read_entries(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """The tensors of the state_dict that a spec can hold, the reason for each other entry, and notes."""
    notes = []
    cycle = _find_cycle(module)
    if cycle:
        notes.append(f"{cycle}; its tensors are listed once, and state_dict() of this module never ends")
        found = dict((*module.named_parameters(), *module.named_buffers()))
    else:
        found = module.state_dict(keep_vars=True)
    left_out = {name: reason for name, t in found.items() if (reason := _why_left_out(t))}
    entries = {name: t for name, t in found.items() if name not in left_out}
    empty = [name for name, t in entries.items() if t.numel() == 0]
    if empty:
        notes.append(f"{_name_some(empty)} {'has' if len(empty) == 1 else 'have'} no elements")
    for reason in dict.fromkeys(left_out.values()):
        names = [name for name, found in left_out.items() if found == reason]
        notes.append(f"left out: {_name_some(names)}, because {reason}")
    return entries, left_out, notes


def _find_cycle(module: nn.Module) -> str | None:
    """A phrase that names the submodule which contains itself; None if there is none."""
    above: dict[int, str] = {}
    finished: set[int] = set()

    def visit(part: nn.Module, path: str) -> str | None:
        above[id(part)] = path
        for name, child in part._modules.items():
            if child is None or id(child) in finished:
                continue
            if id(child) in above:
                return f"{above[id(child)] or 'the module'!r} contains itself as {f'{path}.{name}'.lstrip('.')!r}"
            found = visit(child, f"{path}.{name}".lstrip("."))
            if found:
                return found
        del above[id(part)]
        finished.add(id(part))
        return None

    return visit(module, "")


def _why_left_out(tensor: object) -> str:
    if not isinstance(tensor, Tensor):
        return f"it is not a tensor but {type(tensor).__name__}"
    if is_lazy(tensor):
        return "it is lazy, its shape is not known yet; run one batch through the module first"
    dtype = str(tensor.dtype).removeprefix("torch.")
    if tensor.is_quantized or "Params4bit" in type(tensor).__name__ or "Int8Params" in type(tensor).__name__:
        return f"it is quantised ({dtype}); dequantise the module first"
    if tensor.is_complex():
        return f"it is complex ({dtype}); specs hold real numbers"
    if not tensor.dtype.is_floating_point:
        if tensor.numel() > MAX_CARRIED:
            return (
                f"it holds {tensor.numel():,} integers ({dtype}), as quantised weights do; dequantise the module first"
            )
        if tensor.is_meta and tensor.numel() > 1:
            return f"its {tensor.numel()} integers are not known on the meta device"
    return ""


def make_spec(module: nn.Module, entries: Mapping[str, Tensor]) -> StateSpec:
    return StateSpec(arch=type(module).__name__, tensors=describe_tensors(entries))


def _name_some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:4])) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
