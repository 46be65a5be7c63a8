"""The nodes recorded so far in one pass, the value of every tensor of the pass, and the node that owns each parameter.

The value of a tensor is the result of a node, or parameters alone, as they are or reshaped. Arithmetic on parameters
alone adds no node; the operation that uses the result owns the parameters (weight norm, LoRA).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


class Call(NamedTuple):
    """One call of a torch function."""

    name: str
    func: Any
    args: Any
    kwargs: dict[str, Any]


@dataclass(slots=True, eq=False)
class Draft:
    """A node while it is being recorded."""

    op: str
    call: str
    """Name of the torch function."""
    sources: list[int]
    tensors: list[tuple[str, str, bool]] = field(default_factory=list)
    """(name, role, is_transposed)"""
    reads: list[str] = field(default_factory=list)
    is_used: bool = False
    has_offset: bool = False
    """Whether it is a norm that scales by one plus its weight; that weight has the role of a bias: it begins at 0."""

    def has_role(self, role: str) -> bool:
        return any(found == role for _, found, _ in self.tensors)


@dataclass(slots=True, eq=False)
class Value:
    """The value of one tensor of the pass. Views of the same memory share their value."""

    node: int
    """Number of the draft whose result it is; -1 for parameters alone."""
    params: tuple[str, ...] = ()
    is_routed: bool = False
    """Whether it is a part of the data that a gate chose, or the indices of that part."""
    is_offset: bool = False
    """Whether it is one plus a parameter."""


class DraftBook:
    """Drafts of one pass and the values of its tensors. `names`: id of a twin's tensor -> its name and the tensor."""

    def __init__(self, names: Mapping[int, tuple[str, Tensor]]) -> None:
        self.drafts = [Draft("input", "input", [])]
        self.owner: dict[str, int] = {}
        """Name of a tensor -> the draft that owns it."""
        self.shapes = {name: tensor.shape for name, tensor in names.values()}
        self._values = {key: Value(-1, (name,)) for key, (name, _) in names.items()}
        self._integers = {name for name, tensor in names.values() if not tensor.dtype.is_floating_point}
        self._alive: list[Tensor] = []  # an id is unique only while its tensor lives
        self._raw: dict[str, int] = {}
        self._nodes: dict[Any, int] = {}

    def value_of(self, tensor: object) -> Value | None:
        """The value of a tensor; None if it depends on neither the input nor a parameter, or is not a tensor."""
        return self._values.get(id(tensor))

    def values_in(self, arguments: Any) -> list[Value]:
        """Values of the tensors among arguments, in their order."""
        return [v for t in tensors_in(arguments) if (v := self._values.get(id(t))) is not None]

    def float_values(self, arguments: Any) -> list[Value]:
        """Values of the arguments that hold floats, not indices or masks; each value once."""
        found = (self._values.get(id(t)) for t in tensors_in(arguments) if has_numbers(t))
        unique = {(v.node, v.params): v for v in found if v is not None}
        return list(unique.values())

    def parameter(self, call: Call, slot: tuple[str, int]) -> tuple[Any, Value | None]:
        """The argument in a slot (keyword, place), and its value if it consists of parameters alone."""
        keyword, place = slot
        argument = call.kwargs.get(keyword, call.args[place] if place < len(call.args) else None)
        value = self.value_of(argument)
        return argument, value if value is not None and value.node < 0 else None

    def keep(self, tensor: Tensor, value: Value) -> None:
        """Store the value of a tensor, and keep the tensor alive as long as the book."""
        self._values[id(tensor)] = value
        self._alive.append(tensor)

    def record(self, op: str, call: str, values: Iterable[Value], *, params: Iterable[Value | None] = ()) -> Value:
        """The result of a new node. Equal calls on equal results and parameters share one node: a loop over the slices
        of stacked experts adds the nodes of one expert."""
        values = list(values)
        data = [v for v in values if v.node >= 0]
        sources = self.nodes_of(values)
        held = tuple(v.params for v in params if v is not None)
        # Several inputs share one node, and the weight of a norm by hand comes later.
        is_distinct = sources == [0] or (call == "norm" and not held)
        key = len(self.drafts) if is_distinct else (op, call, tuple(sources), held)
        node = self._nodes.setdefault(key, len(self.drafts))
        if node == len(self.drafts):
            self.drafts.append(Draft(op, call, sources))
        return Value(node, (), bool(data) and all(v.is_routed for v in data))

    def nodes_of(self, values: Iterable[Value]) -> list[int]:
        """Numbers of the nodes that made these values; parameters alone become nodes of their own."""
        nodes: dict[int, None] = {}
        for value in values:
            if value.node >= 0:
                nodes[value.node] = None
            else:
                nodes.update(dict.fromkeys(self._raw_nodes(value.params)))
        for node in nodes:
            self.drafts[node].is_used = True
        return list(nodes)

    def _raw_nodes(self, params: Iterable[str]) -> list[int]:
        found = []
        for name in params:
            if name not in self._raw:
                self.drafts.append(Draft("parameter", "parameter", []))
                self._raw[name] = len(self.drafts) - 1
                self._own(len(self.drafts) - 1, name, "raw")
            found.append(self._raw[name])
        return found

    def own(self, node: int, value: Value, role: str, *, is_transposed: bool = False) -> None:
        """Give a node the parameters of a value: the largest gets this role, the others the role raw."""
        main = max(value.params, key=lambda name: math.prod(self.shapes[name]))
        for name in value.params:
            is_main = name == main
            self._own(node, name, role if is_main else "raw", is_transposed=is_transposed and is_main)

    def _own(self, node: int, name: str, role: str, *, is_transposed: bool = False) -> None:
        draft = self.drafts[node]
        if name not in self.owner:
            self.owner[name] = node
            draft.tensors.append((name, "carried" if name in self._integers else role, is_transposed))
        elif self.owner[name] != node and name not in draft.reads:
            draft.reads.append(name)


def copy_value(values: list[Value]) -> Value:
    """The value of a copy: the first that is the result of a node, or else the first."""
    first = next((v for v in values if v.node >= 0), values[0])
    return Value(first.node, first.params, first.is_routed, first.is_offset)


def tensors_in(values: Any) -> Iterable[Tensor]:
    """The tensors among arguments or results, also inside lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple, dict)):
                yield from tensors_in(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from tensors_in(value)


def has_numbers(tensor: Tensor) -> bool:
    """Whether a tensor holds floating point numbers, not indices or a mask."""
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex
