"""Nodes for operations that own tensors: layers and norms, products with a weight, tables, recurrence, attention.

Each function takes the arguments of one torch call and returns the value of its result.
"""

from typing import Any

import torch
from torch import Tensor

from weightgen.graph import rules
from weightgen.graph.drafts import Call, DraftBook, Value, copy_value, tensors_in
from weightgen.graph.patterns import find_scores

_MULTI_HEAD = (
    *("query", "key", "value", "embed_dim_to_check", "num_heads", "in_proj_weight", "in_proj_bias", "bias_k", "bias_v"),
    *("add_zero_attn", "dropout_p", "out_proj_weight", "out_proj_bias"),
)


def record_layer(book: DraftBook, call: Call) -> Value | None:
    """The result of a function with parameters in known places; None if it works on parameters alone."""
    name, func, args, kwargs = call
    op, slots = rules.OWNERS[name]
    if func is torch.batch_norm:
        slots = rules.RAW_BATCH_NORM
    held = {role: book.parameter(call, slot) for role, slot in slots.items()}
    data = args[0] if args else kwargs.get("input")
    value = book.value_of(data)
    is_parameter = value is None or value.node < 0
    if is_parameter and (name in ("batch_norm", "instance_norm") or not any(v for _, v in held.values())):
        return None  # a weight that is normalised before it is used
    others = [
        v
        for argument, held_value in held.values()
        if held_value is None and isinstance(argument, Tensor) and (v := book.value_of(argument))
    ]
    if name == "bilinear":
        others += [v for v in [book.value_of(args[1])] if v]
    if op == "linear" and value is not None and value.is_routed:
        op = "expert"
    if op == "conv":
        groups = kwargs.get("groups", args[6] if len(args) > 6 else 1)
        op = "grouped_conv" if groups > 1 else "conv"
    result = book.record(op, name, [v for v in (value, *others) if v], params=[v for _, v in held.values()])
    for role, (argument, param) in held.items():
        if param is not None:
            if role == "norm weight" and param.is_offset:
                role, book.drafts[result.node].has_offset = "norm bias", True
            flipped = role == "weight" and (_is_flipped(argument) != (op == "transposed_conv"))
            book.own(result.node, param, role, is_transposed=flipped)
    return result


def record_matmul(book: DraftBook, call: Call) -> Value | None:
    """The result of a matrix product; it is a linear layer if one of the matrices is a parameter."""
    name, _, args, kwargs = call
    operands = [(t, v) for t in tensors_in((args, kwargs)) if (v := book.value_of(t)) is not None]
    addend = None
    if name in ("addmm", "baddbmm", "addbmm", "addmv"):
        addend = book.value_of(args[0])
        operands = [(t, v) for t, v in operands if t is not args[0]]
    params = [(t, v) for t, v in operands if v.node < 0 and v.params and t.dim() > 1]
    data = [v for _, v in operands if v.node >= 0]
    if len(params) == 1 and data:
        weight, value = params[0]
        op = "expert" if data[0].is_routed or value.is_routed else "linear"
        result = book.record(op, name, data, params=[value])
        flipped = _is_flipped(weight)
        if name == "einsum":
            is_transposed = _contracts_first(args, weight)
        else:
            is_transposed = flipped if operands[0][0] is weight else not flipped
        book.own(result.node, value, "weight", is_transposed=is_transposed)
        if addend is not None and addend.node < 0:
            book.own(result.node, addend, "bias")
        elif addend is not None:
            return book.record("sum", "add", [addend, result])
        return result
    values = [v for _, v in operands]
    result = _attend_by_hand(book, values) or book.record("product", "matmul", values)
    return book.record("sum", "add", [addend, result]) if addend is not None else result


def record_embedding(book: DraftBook, call: Call) -> Value | None:
    """The value of rows of a table; if the table was computed, its own value."""
    name, _, args, kwargs = call
    ids, weight = args[0] if args else kwargs["input"], args[1] if len(args) > 1 else kwargs["weight"]
    if name == "embedding_bag" and ids.dtype.is_floating_point:
        ids, weight = weight, ids  # torch.embedding_bag has the weight first
    value, table = book.value_of(ids), book.value_of(weight)
    if table is None or table.node >= 0:
        return copy_value([v for v in (table, value) if v])
    data = [value] if value is not None and value.node >= 0 else []
    result = book.record("embedding", name, data, params=[table])
    book.own(result.node, table, "weight")
    if value is not None and value.node < 0:
        book.own(result.node, value, "raw")
    return result


def record_recurrent(book: DraftBook, values: list[Value]) -> Value:
    """All layers and directions of an LSTM, a GRU or an RNN as one node, from the values of its arguments."""
    data = {id(v): v for v in values if v.node >= 0}.values()
    result = book.record("recurrent", "recurrent", data, params=[v for v in values if v.node < 0])
    for value in values:
        if value.node < 0:
            role = "weight" if max(len(book.shapes[name]) for name in value.params) > 1 else "bias"
            book.own(result.node, value, role)
    return result


def record_multi_head(book: DraftBook, call: Call) -> Value:
    """q, k and v from one linear node (or three), attention, and the projection behind it."""
    given = dict(zip(_MULTI_HEAD, call.args, strict=False)) | call.kwargs
    value = {name: book.value_of(t) for name, t in given.items() if isinstance(t, Tensor)}
    data = [value.get(name) for name in ("query", "key", "value")]
    if given.get("use_separate_proj_weight"):
        parts = []
        for name, source in zip("qkv", data, strict=True):
            weight = value.get(f"{name}_proj_weight")
            part = book.record("linear", "linear", [source] if source else [], params=[weight])
            if weight:
                book.own(part.node, weight, "weight")
            parts.append(part)
    else:
        weight = value.get("in_proj_weight")
        parts = [book.record("linear", "linear", {id(v): v for v in data if v}.values(), params=[weight])]
        if weight:
            book.own(parts[0].node, weight, "in_proj")
    if bias := value.get("in_proj_bias"):
        book.own(parts[0].node, bias, "bias")
    more = [v for name in ("bias_k", "bias_v") if (v := value.get(name))]
    result = book.record("attention", "attention", [*parts, *more])
    result = book.record("linear", "linear", [result], params=[value.get("out_proj_weight")])
    for name, role in (("out_proj_weight", "weight"), ("out_proj_bias", "bias")):
        if param := value.get(name):
            book.own(result.node, param, role)
    return result


def _attend_by_hand(book: DraftBook, values: list[Value]) -> Value | None:
    """softmax(q k^T) v as one node, whose sources are those of the products, masks and scales before it."""
    for value in values:
        sources = find_scores(book.drafts, value.node)
        if sources is not None:
            rest = [v for v in values if v is not value]
            return book.record("attention", "attention", [*map(Value, sources), *rest])
    return None


def _is_flipped(weight: Tensor) -> bool:
    """Whether a matrix is a transposed view of the tensor that is stored."""
    return weight.dim() >= 2 and weight.stride(-2) == 1 and weight.stride(-1) > 1


def _contracts_first(args: Any, weight: Tensor) -> bool:
    """Whether einsum sums over the first axis of a weight, not the last: it is stored (in, out)."""
    equation = args[0] if isinstance(args[0], str) else ""
    terms, _, result = equation.replace(" ", "").partition("->")
    place = next((i for i, t in enumerate(tensors_in(args)) if t is weight), 0)
    letters = terms.split(",")[place] if place < terms.count(",") + 1 else ""
    return bool(letters) and letters[-1] in result and any(letter not in result for letter in letters)
