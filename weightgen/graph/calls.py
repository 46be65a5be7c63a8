"""From a torch call to the graph: the call adds no node, a node, or parameters to the node that owns them.

One computation may be written in several ways: a bias added behind a layer, a norm and its weight, or an activation by
hand give the same nodes as the single call. Values that depend on neither the input nor a parameter (masks, positions)
are not followed.
"""

import math
from typing import Any

from torch import Tensor

from weightgen.graph import rules
from weightgen.graph.drafts import Call, Draft, DraftBook, Value, copy_value, has_numbers, tensors_in
from weightgen.graph.layers import record_embedding, record_layer, record_matmul, record_multi_head, record_recurrent
from weightgen.graph.patterns import find_activation, find_norm

_JOINS = rules.SUMS | rules.PRODUCTS | rules.ASSEMBLIES | rules.CONCATS
"""These calls leave no node if they join one value with itself, as rotary positions do."""


def follow_call(book: DraftBook, call: Call, result: Any) -> None:
    """Record the value of every tensor in a call's result, and the node that the call adds, if any."""
    name = call.name
    values = book.values_in((call.args, call.kwargs))
    if not values:
        return
    if name in rules.VIEWS:
        for tensor in tensors_in(result):
            book.keep(tensor, values[0])
        return
    in_place = rules.is_in_place(name)
    base = name[:-1] if in_place and not name.startswith("__") else name
    results = [call.args[0]] if name == "__setitem__" else list(tensors_in(result))
    value = _value_of(book, call._replace(name=base), values, results)
    if value is None:
        return
    for tensor in results:
        known = book.value_of(tensor)
        if known is not None and (in_place or name == "__setitem__") and known.node >= 0 and value.node >= 0:
            known.node, known.is_routed = value.node, value.is_routed  # seen through every view of this memory
        else:
            book.keep(tensor, value)


def _value_of(book: DraftBook, call: Call, values: list[Value], results: list[Tensor]) -> Value | None:
    name = call.name
    if name == "multi_head_attention_forward":
        return record_multi_head(book, call)
    if name in rules.RECURRENT:
        return record_recurrent(book, values)
    if name in ("embedding", "embedding_bag"):
        return record_embedding(book, call)
    if name in rules.OWNERS:
        found = record_layer(book, call)
        if found is not None:
            return found
    if all(v.node < 0 for v in values):
        params = dict.fromkeys(p for v in values for p in v.params)
        is_offset = len(params) == 1 and (_adds_one(call) or (name in rules.COPIES and values[0].is_offset))
        return Value(-1, tuple(params), any(v.is_routed for v in values), is_offset)
    if name == "__getitem__":
        return _index(book, call.args)
    if name == "topk":
        return _choose(book, values[0])
    if name in rules.COPIES or (results and not any(has_numbers(t) for t in results)):
        return copy_value(values)
    if name in rules.MATMULS:
        return record_matmul(book, call)
    values = book.float_values((call.args, call.kwargs)) or values
    merged = _merge(book, name, values)
    if merged is not None:
        return merged
    if len(values) == 1 and name in _JOINS:
        return copy_value(values)
    return book.record(_op_of(name), name, values)


def _adds_one(call: Call) -> bool:
    has_one = any(type(a) in (int, float) and a == 1 for a in call.args)
    return has_one and not call.kwargs and call.name in ("add", "__add__", "__radd__")


def _index(book: DraftBook, args: Any) -> Value | None:
    """The value of a part of a tensor: rows of a table by the input's ids (an embedding), or data that a gate chose."""
    value = book.value_of(args[0])
    chosen = book.values_in(args[1:])
    is_routed = any(v.is_routed for v in chosen)
    if value is None:
        return None if is_routed else Value(chosen[0].node, chosen[0].params)
    if value.node < 0 and not is_routed:
        result = book.record("embedding", "__getitem__", [v for v in chosen if v.node >= 0], params=[value])
        book.own(result.node, value, "weight")
        return result
    return Value(value.node, value.params, is_routed or value.is_routed)


def _choose(book: DraftBook, value: Value) -> Value:
    """The value of the largest few of `value`; a linear layer whose outputs are chosen from becomes a gate."""
    node = value.node
    while book.drafts[node].op in ("activation", "sum") and book.drafts[node].sources:
        node = book.drafts[node].sources[0]
    if book.drafts[node].op == "linear":
        book.drafts[node].op = "gate"
    return Value(value.node, (), is_routed=True)


def _merge(book: DraftBook, name: str, values: list[Value]) -> Value | None:
    """The value of a bias behind a layer, the weight of a norm, or a norm by hand; None if it is none of these."""
    is_sum, is_product = name in rules.SUMS, name in rules.PRODUCTS
    if len(values) != 2 or not (is_sum or is_product):
        return None
    data, param = sorted(values, key=lambda v: v.node < 0)
    if param.node >= 0:
        return (_norm_by_hand(book, values) if is_product else None) or _activation_by_hand(book, values)
    draft = book.drafts[data.node]
    if any(name in param.params for name, role, _ in draft.tensors if role in ("bias", "norm weight", "norm bias")):
        return copy_value([data])  # the same layer, run again by a loop
    is_norm = draft.op.endswith("_norm")
    shape = book.shapes[param.params[0]]
    size = math.prod(shape)
    if len(param.params) > 1 or draft.is_used or size < 2:
        return None
    if is_norm and size == max(shape):
        role = "norm bias" if is_sum or param.is_offset else "norm weight"
        num_biases = sum(found == "norm bias" for _, found, _ in draft.tensors) - draft.has_offset
        is_taken = num_biases > 0 or (is_product and (draft.has_role("norm weight") or draft.has_offset))
    elif is_sum and draft.has_role("weight") and size == _num_outputs(book, draft):
        role, is_taken = "bias", draft.has_role("bias")
    else:
        return None
    if is_taken:
        return None
    draft.has_offset |= is_product and param.is_offset
    book.own(data.node, param, role)
    return Value(data.node, (), data.is_routed)


def _num_outputs(book: DraftBook, draft: Draft) -> int:
    """Number of outputs of a layer, summed over its experts."""
    name, _, is_transposed = next(t for t in draft.tensors if t[1] == "weight")
    shape = book.shapes[name]
    if draft.op.endswith("conv"):
        return shape[1 if is_transposed else 0]
    return math.prod(shape) // shape[-2 if is_transposed else -1] if len(shape) > 1 and 0 not in shape else -1


def _norm_by_hand(book: DraftBook, values: list[Value]) -> Value | None:
    found = find_norm(book.drafts, [v.node for v in values])
    if found is None:
        return None
    op, node = found
    source = Value(node) if op == "layer_norm" else next(v for v in values if v.node == node)
    return book.record(op, "norm", [source])


def _activation_by_hand(book: DraftBook, values: list[Value]) -> Value | None:
    node = find_activation(book.drafts, [v.node for v in values])
    if node is None:
        return None
    return book.record("activation", "activation", [next(v for v in values if v.node == node)])


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
