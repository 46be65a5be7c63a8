"""Records the forward pass of a module's meta twin: which operation reads which tensor, and what goes where.

Torch hands every call of its functions to the recorder (a TorchFunctionMode), at the level at which people write
them: one linear layer is one call. A value is what a tensor of the pass stands for: the result of a node, or
parameters alone, as they are or reshaped. Arithmetic on parameters alone leaves no node; the operation that uses the
result owns them (weight norm, LoRA). Values that depend on neither the input nor a parameter (masks, positions) are
not followed.
"""

import math
import random
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from weightgen import graph_rules as rules
from weightgen.graph_guesses import GUESSES, Guesser
from weightgen.graph_patterns import Draft, find_activation, find_norm, find_scores

MAX_CALLS = 1_000_000
"""A pass that calls more functions than this does not end, or not soon."""

# What a forward pass may raise when it meets tensors without numbers.
TRACE_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    ImportError,
    OSError,
)


@dataclass(slots=True, eq=False)
class Value:
    """What one tensor of the pass stands for. Views of one memory share their value."""

    node: int
    """Number of the draft whose result it is; -1 for parameters alone."""
    params: tuple[str, ...] = ()
    is_routed: bool = False
    """Whether it is a part of the data that a gate chose, or says which."""


class Recorder(TorchFunctionMode):
    """Drafts of the nodes of one pass. `names` maps id of a twin's tensor -> its name; `twins` maps id of the module's
    own tensors -> twins, for code that holds them in a closure."""

    def __init__(self, names: Mapping[int, tuple[str, Tensor]], twins: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.drafts = [Draft("input", "input", [])]
        self.owner: dict[str, int] = {}
        self.guesser = Guesser()
        self._values = {key: Value(-1, (name,)) for key, (name, _) in names.items()}
        self._shapes = {name: tensor.shape for name, tensor in names.values()}
        self._integers = {name for name, tensor in names.values() if not tensor.dtype.is_floating_point}
        self._twins = twins
        self._alive: list[Any] = []  # an id names a tensor only while that tensor lives
        self._raw: dict[str, int] = {}
        self._nodes: dict[Any, int] = {}
        self._calls = 0

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Record the pass; the last draft is the output."""
        for tensor in _tensors_in((args, kwargs)):
            self._set(tensor, Value(0))
        numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002
        try:
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore")
                with self:
                    result = module(*args, **kwargs)
        finally:
            np.random.set_state(numpy_state)  # noqa: NPY002
            random.setstate(python_state)
        found = (self._values.get(id(tensor)) for tensor in _tensors_in(result))
        self.drafts.append(Draft("output", "output", self._nodes_of([v for v in found if v])))

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__
        if name == "__get__":
            name = func.__self__.__name__  # pyright: ignore
        if name in rules.QUIET or name == "__set__":
            return func(*args, **(kwargs or {}))
        if name in rules.DROPOUTS:
            return args[0]
        kwargs = kwargs or {}
        self._calls += 1
        if self._calls > MAX_CALLS:
            raise RuntimeError(f"the forward pass makes more than {MAX_CALLS:,} calls")
        name = name.partition(".")[0]
        if name in rules.FACTORIES or name in rules.FACTORIES_LIKE:
            return self._make(name, func, args, kwargs)
        tensors = list(_tensors_in(args))
        if kwargs:
            tensors.extend(_tensors_in(kwargs))
        if any(not t.is_meta for t in tensors):
            args, kwargs = self._on_meta(args), {k: self._on_meta(v) for k, v in kwargs.items()}
            tensors = list(_tensors_in((args, kwargs)))
        guess = GUESSES.get(name)
        if guess is not None:
            result = guess(self.guesser, args, kwargs)
            if result is not NotImplemented:
                if isinstance(result, (Tensor, tuple)):
                    self._follow(name, func, args, kwargs, tensors, result)
                return result
        result = self._compute(name, func, args, kwargs)
        self._follow(name, func, args, kwargs, tensors, result)
        return result

    def _make(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        if name in ("as_tensor", "asarray") and isinstance(args[0], Tensor):
            return args[0]
        if name in ("tensor", "new_tensor", "as_tensor") and (found := list(_tensors_in(args[-1:]))):
            result = torch.empty((len(found),), dtype=found[0].dtype, device="meta")
            self._follow("stack", func, args, {}, found, result)
            return result
        first = args[:1] if name in rules.FACTORIES_LIKE else ()
        args = (*first, *self._as_numbers(args[len(first) :]))
        if name in ("complex", "polar", "from_numpy", "normal", "sparse_coo_tensor"):
            return self._on_meta(func(*self._on_meta(args), **kwargs))
        return func(*self._on_meta(args), **{k: v for k, v in kwargs.items() if k != "pin_memory"} | {"device": "meta"})

    def _as_numbers(self, values: Any) -> Any:
        """Sizes and bounds that are tensors, guessed."""
        if isinstance(values, Tensor):
            return self.guesser.guess_number((values,), {}) if values.dim() == 0 else values
        return type(values)(map(self._as_numbers, values)) if type(values) in (list, tuple) else values

    def _on_meta(self, values: Any) -> Any:
        if isinstance(values, Tensor):
            if values.is_meta:
                return values
            twin = self._twins.get(id(values))
            if twin is None and values.dim() == 0 and values.device.type == "cpu":
                return values  # a number, which torch mixes with any device
            if twin is None:  # a constant that the forward pass holds outside of the module
                twin = torch.empty_like(values, device="meta")
                self._alive.append(twin)
            return twin
        if type(values) in (list, tuple):
            return type(values)(map(self._on_meta, values))
        return {k: self._on_meta(v) for k, v in values.items()} if type(values) is dict else values

    def _compute(self, name: str, func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
        """The result on the meta device, without the work where only its shape matters."""
        if name in _MOVES:
            dtype = next((a.dtype if isinstance(a, Tensor) else a for a in (*args[1:], *kwargs.values())
                          if isinstance(a, (torch.dtype, Tensor))), args[0].dtype)  # fmt: skip
            return args[0] if name != "to" or dtype == args[0].dtype else torch.empty_like(args[0], dtype=dtype)
        if name == "__setitem__":
            return None
        if _is_in_place(name) and name not in rules.VIEWS:
            return args[0]
        shortcut = rules.SHORTCUTS.get(name)
        if shortcut is not None:
            result = shortcut(args, kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)

    # What becomes of a call: no node, a node, or parameters for the node that owns them.

    def _follow(
        self, name: str, func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], result: Any
    ) -> None:
        values = [v for t in tensors if (v := self._values.get(id(t))) is not None]
        if not values:
            return
        if name in rules.VIEWS:
            for tensor in _tensors_in(result):
                self._set(tensor, values[0])
            return
        in_place = _is_in_place(name)
        base = name[:-1] if in_place and not name.startswith("__") else name
        results = [args[0]] if name == "__setitem__" else list(_tensors_in(result))
        value = self._value_of(base, func, args, kwargs, values, results)
        if value is None:
            return
        for tensor in results:
            known = self._values.get(id(tensor))
            if known is not None and (in_place or name == "__setitem__") and known.node >= 0 and value.node >= 0:
                known.node, known.is_routed = value.node, value.is_routed  # seen through every view of this memory
            else:
                self._set(tensor, value)

    def _value_of(
        self, name: str, func: Any, args: Any, kwargs: dict[str, Any], values: list[Value], results: list[Tensor]
    ) -> Value | None:
        if name == "multi_head_attention_forward":
            return self._record_multi_head(args, kwargs)
        if name in rules.RECURRENT:
            return self._record_recurrent(values)
        if name in ("embedding", "embedding_bag"):
            return self._record_embedding(name, args, kwargs)
        if name in rules.OWNERS:
            found = self._record_owner(name, func, args, kwargs)
            if found is not None:
                return found
        if all(v.node < 0 for v in values):
            params = dict.fromkeys(p for v in values for p in v.params)
            return Value(-1, tuple(params), any(v.is_routed for v in values))
        if name == "__getitem__":
            return self._index(args)
        if name == "topk":
            return self._choose(values[0])
        if name in rules.COPIES or (results and not any(_has_numbers(t) for t in results)):
            return self._copy(values)
        if name in rules.MATMULS:
            return self._record_matmul(name, args, kwargs)
        values = self._float_values(args, kwargs) or values
        merged = self._merge(name, values)
        if merged is not None:
            return merged
        if len(values) == 1 and name in _JOINS:
            return self._copy(values)
        return self._record(_op_of(name), name, values)

    def _copy(self, values: list[Value]) -> Value:
        first = next((v for v in values if v.node >= 0), values[0])
        return Value(first.node, first.params, first.is_routed)

    def _set(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._alive.append(tensor)

    def _float_values(self, args: Any, kwargs: dict[str, Any]) -> list[Value]:
        """Values of the arguments that are not indices or masks, each once."""
        found = (self._values.get(id(t)) for t in _tensors_in((args, kwargs)) if _has_numbers(t))
        unique = {(v.node, v.params): v for v in found if v is not None}
        return list(unique.values())

    def _record(self, op: str, call: str, values: Iterable[Value], *, params: Iterable[Value | None] = ()) -> Value:
        """The result of a new node. The same call of the same results, with the same parameters, is the same node: a
        loop over the slices of stacked experts leaves the nodes of one."""
        values = list(values)
        data = [v for v in values if v.node >= 0]
        sources = self._nodes_of(values)
        held = tuple(v.params for v in params if v is not None)
        # Several inputs are one node, and a norm by hand is yet to meet its weight.
        is_distinct = sources == [0] or (call == "norm" and not held)
        key = len(self.drafts) if is_distinct else (op, call, tuple(sources), held)
        node = self._nodes.setdefault(key, len(self.drafts))
        if node == len(self.drafts):
            self.drafts.append(Draft(op, call, sources))
        return Value(node, (), bool(data) and all(v.is_routed for v in data))

    def _nodes_of(self, values: Iterable[Value]) -> list[int]:
        """Numbers of the nodes whose results these are; parameters alone become nodes of their own."""
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

    def _own(self, node: int, name: str, role: str, *, is_transposed: bool = False) -> None:
        draft = self.drafts[node]
        if name not in self.owner:
            self.owner[name] = node
            draft.tensors.append((name, "carried" if name in self._integers else role, is_transposed))
        elif self.owner[name] != node and name not in draft.reads:
            draft.reads.append(name)

    def _own_all(self, node: int, value: Value, role: str, *, is_transposed: bool = False) -> None:
        """Give a node the parameters of a value: the largest in this role, the others as they are."""
        main = max(value.params, key=lambda name: math.prod(self._shapes[name]))
        for name in value.params:
            is_main = name == main
            self._own(node, name, role if is_main else "raw", is_transposed=is_transposed and is_main)

    def _param(self, args: Any, kwargs: dict[str, Any], slot: tuple[str, int]) -> tuple[Any, Value | None]:
        """The argument in a slot, and its value if it is parameters alone."""
        keyword, place = slot
        argument = kwargs.get(keyword, args[place] if place < len(args) else None)
        value = self._values.get(id(argument)) if isinstance(argument, Tensor) else None
        return argument, value if value is not None and value.node < 0 else None

    # Operations that own tensors.

    def _record_owner(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Value | None:
        op, slots = rules.OWNERS[name]
        if func is torch.batch_norm:
            slots = rules.RAW_BATCH_NORM
        held = {role: self._param(args, kwargs, slot) for role, slot in slots.items()}
        data = args[0] if args else kwargs.get("input")
        value = self._values.get(id(data))
        is_parameter = value is None or value.node < 0
        if is_parameter and (name in ("batch_norm", "instance_norm") or not any(v for _, v in held.values())):
            return None  # a weight made normal before it is used
        others = [
            v
            for argument, held_value in held.values()
            if held_value is None and isinstance(argument, Tensor) and (v := self._values.get(id(argument)))
        ]
        if name == "bilinear":
            others += [v for v in [self._values.get(id(args[1]))] if v]
        if op == "linear" and value is not None and value.is_routed:
            op = "expert"
        if op == "conv":
            groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
            op = "grouped_conv" if groups > 1 else "conv"
        result = self._record(op, name, [v for v in (value, *others) if v], params=[v for _, v in held.values()])
        for role, (argument, param) in held.items():
            if param is not None:
                flipped = role == "weight" and (_is_flipped(argument) != (op == "transposed_conv"))
                self._own_all(result.node, param, role, is_transposed=flipped)
        return result

    def _record_matmul(self, name: str, args: Any, kwargs: dict[str, Any]) -> Value | None:
        tensors = [t for t in _tensors_in((args, kwargs)) if id(t) in self._values]
        operands = [(t, self._values[id(t)]) for t in tensors]
        addend = None
        if name in ("addmm", "baddbmm", "addbmm", "addmv"):
            addend = self._values.get(id(args[0]))
            operands = [(t, v) for t, v in operands if t is not args[0]]
        params = [(t, v) for t, v in operands if v.node < 0 and v.params and t.dim() > 1]
        data = [v for _, v in operands if v.node >= 0]
        if len(params) == 1 and data:
            weight, value = params[0]
            op = "expert" if data[0].is_routed or value.is_routed else "linear"
            result = self._record(op, name, data, params=[value])
            flipped = _is_flipped(weight)
            if name == "einsum":
                is_transposed = _contracts_first(args, weight)
            else:
                is_transposed = flipped if operands[0][0] is weight else not flipped
            self._own_all(result.node, value, "weight", is_transposed=is_transposed)
            if addend is not None and addend.node < 0:
                self._own_all(result.node, addend, "bias")
            elif addend is not None:
                return self._record("sum", "add", [addend, result])
            return result
        values = [v for _, v in operands]
        result = self._attend_by_hand(values) or self._record("product", "matmul", values)
        return self._record("sum", "add", [addend, result]) if addend is not None else result

    def _record_embedding(self, name: str, args: Any, kwargs: dict[str, Any]) -> Value | None:
        ids, weight = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"]
        if name == "embedding_bag" and ids.dtype.is_floating_point:
            ids, weight = weight, ids  # torch.embedding_bag has the weight first
        value, table = self._values.get(id(ids)), self._values.get(id(weight))
        if table is None or table.node >= 0:
            return self._copy([v for v in (table, value) if v])
        data = [value] if value is not None and value.node >= 0 else []
        result = self._record("embedding", name, data, params=[table])
        self._own_all(result.node, table, "weight")
        if value is not None and value.node < 0:
            self._own_all(result.node, value, "raw")
        return result

    def _record_recurrent(self, values: list[Value]) -> Value:
        data = {id(v): v for v in values if v.node >= 0}.values()
        result = self._record("recurrent", "recurrent", data, params=[v for v in values if v.node < 0])
        for value in values:
            if value.node < 0:
                role = "weight" if max(len(self._shapes[name]) for name in value.params) > 1 else "bias"
                self._own_all(result.node, value, role)
        return result

    def _record_multi_head(self, args: Any, kwargs: dict[str, Any]) -> Value:
        """q, k and v from one linear node (or three), attention, and the projection behind it."""
        given = dict(zip(_MULTI_HEAD, args, strict=False)) | kwargs
        value = {name: self._values.get(id(t)) for name, t in given.items() if isinstance(t, Tensor)}
        data = [value.get(name) for name in ("query", "key", "value")]
        if given.get("use_separate_proj_weight"):
            parts = []
            for name, source in zip("qkv", data, strict=True):
                weight = value.get(f"{name}_proj_weight")
                part = self._record("linear", "linear", [source] if source else [], params=[weight])
                if weight:
                    self._own_all(part.node, weight, "weight")
                parts.append(part)
        else:
            weight = value.get("in_proj_weight")
            parts = [self._record("linear", "linear", {id(v): v for v in data if v}.values(), params=[weight])]
            if weight:
                self._own_all(parts[0].node, weight, "in_proj")
        if bias := value.get("in_proj_bias"):
            self._own_all(parts[0].node, bias, "bias")
        more = [v for name in ("bias_k", "bias_v") if (v := value.get(name))]
        result = self._record("attention", "attention", [*parts, *more])
        result = self._record("linear", "linear", [result], params=[value.get("out_proj_weight")])
        for name, role in (("out_proj_weight", "weight"), ("out_proj_bias", "bias")):
            if param := value.get(name):
                self._own_all(result.node, param, role)
        return result

    def _index(self, args: Any) -> Value | None:
        """A part of a tensor: of a table by the input's ids (an embedding), or of the data by what a gate chose."""
        value = self._values.get(id(args[0]))
        chosen = [v for t in _tensors_in(args[1:]) if (v := self._values.get(id(t)))]
        is_routed = any(v.is_routed for v in chosen)
        if value is None:
            return None if is_routed else Value(chosen[0].node, chosen[0].params)
        if value.node < 0 and not is_routed:
            result = self._record("embedding", "__getitem__", [v for v in chosen if v.node >= 0], params=[value])
            self._own_all(result.node, value, "weight")
            return result
        return Value(value.node, value.params, is_routed or value.is_routed)

    def _choose(self, value: Value) -> Value:
        """The largest few: a linear layer whose outputs are chosen from is a gate."""
        node = value.node
        while self.drafts[node].op in ("activation", "sum") and self.drafts[node].sources:
            node = self.drafts[node].sources[0]
        if self.drafts[node].op == "linear":
            self.drafts[node].op = "gate"
        return Value(value.node, (), is_routed=True)

    # One computation written in several ways.

    def _merge(self, name: str, values: list[Value]) -> Value | None:
        """A bias behind a layer, the weight of a norm, or a norm by hand; None where it is none of these."""
        is_sum, is_product = name in rules.SUMS, name in rules.PRODUCTS
        if len(values) != 2 or not (is_sum or is_product):
            return None
        data, param = sorted(values, key=lambda v: v.node < 0)
        if param.node >= 0:
            return (self._norm_by_hand(values) if is_product else None) or self._activation_by_hand(values)
        draft = self.drafts[data.node]
        if any(name in param.params for name, role, _ in draft.tensors if role in ("bias", "norm weight", "norm bias")):
            return self._copy([data])  # the same layer, run again by a loop
        is_norm = draft.op.endswith("_norm")
        shape = self._shapes[param.params[0]]
        size = math.prod(shape)
        if len(param.params) > 1 or draft.is_used or size < 2:
            return None
        if is_norm and size == max(shape):
            role = "norm weight" if is_product else "norm bias"
        elif is_sum and draft.has_role("weight") and size == self._num_outputs(draft):
            role = "bias"
        else:
            return None
        if draft.has_role(role) or (role == "norm weight" and draft.has_role("norm bias")):
            return None
        self._own_all(data.node, param, role)
        return Value(data.node, (), data.is_routed)

    def _num_outputs(self, draft: Draft) -> int:
        """Number of outputs of a layer, of all its experts together."""
        name, _, is_transposed = next(t for t in draft.tensors if t[1] == "weight")
        shape = self._shapes[name]
        if draft.op.endswith("conv"):
            return shape[1 if is_transposed else 0]
        return math.prod(shape) // shape[-2 if is_transposed else -1] if len(shape) > 1 and 0 not in shape else -1

    def _norm_by_hand(self, values: list[Value]) -> Value | None:
        found = find_norm(self.drafts, [v.node for v in values])
        if found is None:
            return None
        op, node = found
        source = Value(node) if op == "layer_norm" else next(v for v in values if v.node == node)
        return self._record(op, "norm", [source])

    def _activation_by_hand(self, values: list[Value]) -> Value | None:
        node = find_activation(self.drafts, [v.node for v in values])
        if node is None:
            return None
        return self._record("activation", "activation", [next(v for v in values if v.node == node)])

    def _attend_by_hand(self, values: list[Value]) -> Value | None:
        """softmax(q k^T) v as one node: its sources are those of the products, masks and scales before."""
        for value in values:
            sources = find_scores(self.drafts, value.node)
            if sources is not None:
                rest = [v for v in values if v is not value]
                return self._record("attention", "attention", [*map(Value, sources), *rest])
        return None


_JOINS = rules.SUMS | rules.PRODUCTS | rules.ASSEMBLIES | rules.CONCATS
"""Of one value alone (rotary positions turn a part against another) they leave no node."""
_MOVES = frozenset(("to", "cuda", "cpu", "pin_memory"))
_MULTI_HEAD = (
    *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v"),
    *("add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias"),
)


def _op_of(name: str) -> str:
    for names, op in (
        (rules.ACTIVATIONS, "activation"),
        (rules.POOLINGS, "pooling"),
        (rules.SUMS, "sum"),
        (rules.PRODUCTS, "product"),
        (rules.CONCATS | rules.ASSEMBLIES, "concat"),
        (rules.ATTENTIONS, "attention"),
    ):
        if name in names:
            return op
    return "other"


def _is_in_place(name: str) -> bool:
    return name in ("__iadd__", "__isub__", "__imul__", "__itruediv__") or (name[-1] == "_" and name[-2:] != "__")


def _has_numbers(tensor: Tensor) -> bool:
    return tensor.dtype.is_floating_point or tensor.dtype.is_complex


def _is_flipped(weight: Tensor) -> bool:
    """Whether a matrix is a transposed view of the tensor that is stored."""
    return weight.dim() >= 2 and weight.stride(-2) == 1 and weight.stride(-1) > 1


def _contracts_first(args: Any, weight: Tensor) -> bool:
    """Whether einsum sums over the first axis of a weight and not over its last: stored (in, out)."""
    equation = args[0] if isinstance(args[0], str) else ""
    terms, _, result = equation.replace(" ", "").partition("->")
    place = next((i for i, t in enumerate(_tensors_in(args)) if t is weight), 0)
    letters = terms.split(",")[place] if place < terms.count(",") + 1 else ""
    return bool(letters) and letters[-1] in result and any(letter not in result for letter in letters)


def _tensors_in(values: Any) -> Iterable[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            if isinstance(value, Tensor):
                yield value
            elif isinstance(value, (list, tuple, dict)):
                yield from _tensors_in(value)
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors_in(value)
