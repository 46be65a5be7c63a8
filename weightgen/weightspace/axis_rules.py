"""Leaves of axes, and a rule for every ATen operation that says which of its leaves may be reordered.

Used by `axes.py`. An axis of a value is a list of leaves, slowest first; a dimension of size 1 has none. A rule unites
the leaves that must move together (`unite`), holds those that must not move (`hold`) and returns the axes of the
result. It guarantees: if every argument is reordered along its leaves, the result is reordered along its own leaves and
does not change otherwise.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(eq=False)
class Leaf:
    """An axis, or a factor of one, whose units move together. Equal leaves form a union-find tree."""

    size: int
    is_outside: bool = False
    """Whether it is fixed from outside: an input, an output, a position."""
    reason: str = ""
    """Why it is held fixed without a proof; empty if it is not."""
    parent: "Leaf | None" = None
    parts: "tuple[Leaf, Leaf] | None" = None
    """The two leaves that it was split into, slowest first."""

    @property
    def root(self) -> "Leaf":
        leaf = self
        while leaf.parent is not None:
            leaf = leaf.parent
        return leaf

    @property
    def is_fixed(self) -> bool:
        return self.is_outside or self.reason != ""


Axis = list[Leaf]
Value = list[Axis]
"""One axis list per dimension; a dimension of size 1 has no leaves."""


class Unproven(Exception):
    """A rule cannot show that its operation commutes with reordering; the message says why."""


def resolve(axis: Iterable[Leaf]) -> Axis:
    """The current leaves of an axis, after all splits and unions."""
    leaves: Axis = []
    for leaf in axis:
        root = leaf.root
        leaves += resolve(root.parts) if root.parts else [root]
    return leaves


def _split(leaf: Leaf, first: int) -> None:
    parts = (first, leaf.size // first)
    leaf.parts = tuple(Leaf(n, leaf.is_outside, leaf.reason) for n in parts)  # pyright: ignore


def new_axis(size: int, *, is_outside: bool = False, reason: str = "") -> Axis:
    return [Leaf(size, is_outside, reason)] if size != 1 else []


def hold(axes: Iterable[Axis], reason: str = "") -> None:
    """Hold leaves fixed, for this reason, or from outside if there is no reason."""
    for axis in axes:
        for leaf in resolve(axis):
            leaf.is_outside |= not reason
            leaf.reason = leaf.reason or reason


def _is_outside(axis: Axis) -> bool:
    return all(leaf.is_outside for leaf in resolve(axis))


def unite(*axes: Axis) -> None:
    """Make axes of equal size move together, leaf by leaf; leaves that are cut differently are split."""
    for other in axes[1:]:
        left, right = axes[0], other
        while left and right:
            left, right = resolve(left), resolve(right)
            a, b = left[0], right[0]
            if a.size == b.size:
                if a is not b:
                    b.parent = a
                    a.is_outside |= b.is_outside
                    a.reason = a.reason or b.reason
                left, right = left[1:], right[1:]
            elif a.size % b.size == 0:
                _split(a, b.size)
            elif b.size % a.size == 0:
                _split(b, a.size)
            else:
                raise Unproven(f"groups of {a.size} meet groups of {b.size}")


def _regroup(axes: Iterable[Axis], sizes: Sequence[int]) -> Value:
    """The axes joined end to end and cut into these sizes, as in a reshape."""
    rest = [leaf for axis in axes for leaf in axis]
    value: Value = []
    for size in sizes:
        group: Axis = []
        while size > 1:
            rest = resolve(rest)
            leaf = rest[0]
            if size % leaf.size == 0:
                group.append(leaf)
                rest, size = rest[1:], size // leaf.size
            elif leaf.size % size == 0:
                _split(leaf, size)
            else:
                raise Unproven(f"a reshape cuts groups of {leaf.size} into pieces of {size}")
        value.append(group)
    return value


@dataclass(frozen=True, eq=False)
class Traced:
    """Wraps a value among plain arguments."""

    axes: Value


@dataclass(frozen=True, eq=False)
class Call:
    """One operation: its name, arguments by schema name, and the shape of its result (a list for several results)."""

    name: str
    args: Mapping[str, Any]
    shape: Any

    def value(self, key: str) -> Value:
        arg = self.args[key]
        if not isinstance(arg, Traced):
            raise Unproven(f"{self.name!r} is given no tensor as {key!r}")
        return arg.axes

    def optional(self, key: str) -> Value | None:
        arg = self.args.get(key)
        return arg.axes if isinstance(arg, Traced) else None

    @property
    def first(self) -> Value:
        return self.value(next(iter(self.args)))

    def dim(self, rank: int, key: str = "dim") -> int:
        return self.args[key] % rank


def values_in(args: Any) -> list[Value]:
    """The values among arguments, also in nested lists, in order."""
    if isinstance(args, Traced):
        return [args.axes]
    return [v for a in args for v in values_in(a)] if isinstance(args, (list, tuple)) else []


# One rule per operation: unites leaves that must move together, holds those that must not move, returns the axes.


def _broadcast(values: Sequence[Value], rank: int) -> Value:
    padded = [[[] for _ in range(rank - len(v))] + v for v in values]
    result: Value = []
    for axes in zip(*padded, strict=True):
        present = [axis for axis in axes if axis]
        unite(*present)
        result.append(present[0] if present else [])
    return result


def join_pointwise(call: Call) -> Value:
    if isinstance(call.shape, list):
        raise Unproven(f"no rule says what {call.name!r} does to its units")
    return _broadcast(values_in(list(call.args.values())), len(call.shape))


def _keep(call: Call) -> Value:
    return call.first


def _dropout(call: Call) -> Value:
    if call.args["train"]:
        raise Unproven("it meets dropout that stays on in evaluation mode")
    return call.first


def _reshape(call: Call) -> Value:
    return _regroup(call.first, call.shape)


def _permute(call: Call) -> Value:
    return [call.first[d] for d in call.args["dims"]]


def _transpose(call: Call) -> Value:
    value = list(call.first)
    a, b = (call.args["dim0"], call.args["dim1"]) if "dim0" in call.args else (-2, -1)
    if len(value) > 1:
        value[a], value[b] = value[b], value[a]
    return value


def _convolution(call: Call) -> Value:
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    num_space = len(weight) - 2
    channel, groups = len(x) - 1 - num_space, call.args["groups"]
    in_channels, first = (math.prod(leaf.size for leaf in resolve(axis)) for axis in (x[channel], weight[0]))
    hold(x[channel + 1 :], f"{call.name} joins neighbours along it")
    hold(weight[2:])
    # (group, in) -> (group, out): all groups share the order inside a group, because the weight has one axis for it.
    g, i = _regroup([x[channel]], [groups, in_channels // groups])
    g_of_weight, rest = _regroup([weight[0]], [groups, first // groups])
    is_transposed = call.args.get("transposed", "transpose" in call.name)
    o, its_i = (weight[1], rest) if is_transposed else (rest, weight[1])
    unite(g, g_of_weight)
    unite(i, its_i)
    out = [*g, *o]
    if bias is not None:
        unite(out, bias[0])
    return [*x[:channel], out, *(new_axis(n, is_outside=True) for n in call.shape[channel + 1 :])]


def _linear(call: Call) -> Value:
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    unite(x[-1], weight[1])
    if bias is not None:
        unite(weight[0], bias[0])
    return [*x[:-1], weight[0]]


def _product(x: Value, y: Value) -> Value:
    if len(x) < 2 or len(y) < 2:
        raise Unproven("a vector in a matrix product")
    unite(x[-1], y[-2])
    return [*_broadcast([x[:-2], y[:-2]], max(len(x), len(y)) - 2), x[-2], y[-1]]


def _matmul(call: Call) -> Value:
    x, y = (v for v in values_in(list(call.args.values())))
    return _product(x, y)


def _addmm(call: Call) -> Value:
    return _broadcast([_product(call.value("mat1"), call.value("mat2")), call.value("self")], len(call.shape))


def _einsum(call: Call) -> Value:
    equation = call.args["equation"].replace(" ", "")
    operands = values_in(call.args["tensors"])
    if not re.fullmatch(r"[A-Za-z,]+->[A-Za-z]*", equation):
        raise Unproven(f"an einsum of the form {equation!r}")
    left, right = equation.split("->")
    axes: dict[str, Axis] = {}
    for letters, value in zip(left.split(","), operands, strict=True):
        for letter, axis in zip(letters, value, strict=True):
            if axis:  # a size of 1 broadcasts
                unite(axes.setdefault(letter, axis), axis)
    return [axes.get(letter, []) for letter in right]


def _attention(call: Call) -> Value:
    q, k, v = (call.value(key) for key in ("query", "key", "value"))
    if call.args.get("enable_gqa"):
        raise Unproven("attention with grouped queries")
    unite(q[-1], k[-1])
    unite(k[-2], v[-2])
    if call.args["is_causal"]:
        hold([q[-2], k[-2]], "causal attention goes by position")
    batch = _broadcast([q[:-2], k[:-2], v[:-2]], len(q) - 2)
    mask = call.optional("attn_mask")
    if mask is not None:
        _broadcast([[*batch, q[-2], k[-2]], mask], len(q))
    return [*batch, q[-2], v[-1]]


def _channel_norm(call: Call) -> Any:
    """BatchNorm and instance norm: vectors have one number per channel; statistics run over the other axes only."""
    x = call.first
    for key in ("weight", "bias", "running_mean", "running_var"):
        vector = call.optional(key)
        if vector is not None:
            unite(x[1], vector[0])
    if not isinstance(call.shape, list):
        return x
    return [x, *([new_axis(n, reason="statistics") for n in shape] for shape in call.shape[1:])]


def _trailing_norm(call: Call) -> Value:
    """LayerNorm and RMSNorm: statistics over the trailing axes, which do not depend on the order of units."""
    x = call.value("input")
    for key in ("weight", "bias"):
        vector = call.optional(key)
        if vector is not None:
            for axis, its in zip(x[-len(vector) :], vector, strict=True):
                unite(axis, its)
    return x


def _group_norm(call: Call) -> Value:
    x, groups = call.value("input"), call.args["num_groups"]
    grouped = _regroup([x[1]], [groups, call.shape[1] // groups])
    for key in ("weight", "bias"):
        vector = call.optional(key)
        if vector is not None:
            unite([*grouped[0], *grouped[1]], vector[0])
    return x


def _prelu(call: Call) -> Value:
    x, weight = call.first, call.value("weight")
    if weight and weight[0] and len(x) > 1:
        unite(x[1], weight[0])
    return x


def _reduce(call: Call) -> Value:
    """Reductions that do not depend on order: mean, sum, largest, variance."""
    x = call.first
    dims = call.args.get("dim")
    dims = range(len(x)) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % len(x) for d in dims} if x else set()
    if call.args.get("keepdim"):
        return [[] if d in gone else axis for d, axis in enumerate(x)]
    return [axis for d, axis in enumerate(x) if d not in gone]


def _over_space(call: Call) -> Value:
    """Pooling and resizing over the last axes; the name gives their number."""
    found = re.search(r"([123])d", call.name)
    if found is None or isinstance(call.shape, list):
        raise Unproven(f"no rule says what {call.name!r} does to its units")
    num_space = int(found.group(1))
    x = call.first
    if call.shape[-num_space:] != (1,) * num_space or not call.name.startswith("adaptive"):
        hold(x[-num_space:], f"{call.name} joins neighbours along it")
    return [*x[:-num_space], *(new_axis(n, is_outside=True) for n in call.shape[-num_space:])]


def _cut_out(axis: Axis, size: int, reason: str) -> Axis:
    """A new axis of this size, made from parts of an axis, whose order is therefore held."""
    was_outside = _is_outside(axis)
    hold([axis], reason)
    return new_axis(size, is_outside=was_outside, reason="" if was_outside else reason)


def _pad(call: Call) -> Value:
    x, pad = list(call.first), call.args["pad"]
    for i in range(len(pad) // 2):
        d = len(x) - 1 - i
        if pad[2 * i] or pad[2 * i + 1]:
            x[d] = _cut_out(x[d], call.shape[d], "it is padded: the order of its units decides which meet the padding")
    return x


def _slice(call: Call) -> Value:
    x = list(call.first)
    d = call.dim(len(x))
    before = math.prod(leaf.size for leaf in resolve(x[d]))
    if call.shape[d] != before or call.args.get("step") not in (None, 1):
        x[d] = _cut_out(x[d], call.shape[d], "only some of its units are taken on, by number")
    return x


def _select(call: Call) -> Value:
    x = list(call.first)
    hold([x.pop(call.dim(len(x)))], "one of its units is taken out, by number")
    return x


def _unbind(call: Call) -> list[Value]:
    x = list(call.first)
    hold([x.pop(call.dim(len(x)))], "its units are taken apart, by number")
    return [x for _ in call.shape]


def _chunk(call: Call) -> list[Value]:
    x = list(call.first)
    d = call.dim(len(x))
    sizes = [shape[d] for shape in call.shape]
    if len(set(sizes)) == 1:
        which, inner = _regroup([x[d]], [len(sizes), sizes[0]])
        hold([which], "its parts are taken apart, by number")
        return [[*x[:d], inner, *x[d + 1 :]] for _ in sizes]
    reason = "it is cut into unequal parts"
    return [[*x[:d], _cut_out(x[d], n, reason), *x[d + 1 :]] for n in sizes]


def _glu(call: Call) -> Value:
    x = list(call.first)
    d = call.dim(len(x))
    which, x[d] = _regroup([x[d]], [2, call.shape[d]])
    hold([which], "its halves gate each other")
    return x


def _cat(call: Call) -> Value:
    values = values_in(call.args["tensors"])
    d = call.dim(len(call.shape))
    joined = [value[d] for value in values]
    is_outside = all(_is_outside(axis) for axis in joined)
    reason = "it is concatenated with others"
    hold(joined, reason)
    others = _broadcast([[*value[:d], [], *value[d + 1 :]] for value in values], len(call.shape))
    others[d] = new_axis(call.shape[d], is_outside=is_outside, reason="" if is_outside else reason)
    return others


def _stack(call: Call) -> Value:
    values = values_in(call.args["tensors"])
    stacked = _broadcast(values, len(call.shape) - 1)
    stacked.insert(call.dim(len(call.shape)), new_axis(len(values), reason="it is stacked from several"))
    return stacked


def _expand(call: Call) -> Value:
    x = call.first
    x = [[] for _ in range(len(call.shape) - len(x))] + x
    return [axis or new_axis(n) for axis, n in zip(x, call.shape, strict=True)]  # all copies equal: no order to keep


def _constant(call: Call) -> Value:
    return [new_axis(n) for n in call.shape]  # one number everywhere: no order to keep


def _embedding(call: Call) -> Value:
    weight = call.value("weight")
    hold([weight[0]])
    return [*call.value("indices"), weight[1]]


RULES: dict[str, Callable[[Call], Any]] = {
    **dict.fromkeys(["conv1d", "conv2d", "conv3d", "convolution"], _convolution),
    **dict.fromkeys(["conv_transpose1d", "conv_transpose2d", "conv_transpose3d"], _convolution),
    **dict.fromkeys(["batch_norm", "instance_norm", "_native_batch_norm_legit_no_training"], _channel_norm),
    **dict.fromkeys(["layer_norm", "rms_norm"], _trailing_norm),
    **dict.fromkeys(["matmul", "mm", "bmm"], _matmul),
    **dict.fromkeys(["view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"], _reshape),
    **dict.fromkeys(["transpose", "t", "mT"], _transpose),
    **dict.fromkeys(["mean", "sum", "amax", "amin", "var", "std", "logsumexp", "linalg_vector_norm"], _reduce),
    **dict.fromkeys([f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg") for d in (1, 2, 3)], _over_space),
    **dict.fromkeys(["upsample_nearest1d", "upsample_nearest2d", "upsample_bilinear2d"], _over_space),
    **dict.fromkeys(["pad", "constant_pad_nd"], _pad),
    **dict.fromkeys(["softmax", "_softmax", "log_softmax", "_log_softmax"], _keep),
    **dict.fromkeys(["dropout", "alpha_dropout", "feature_dropout"], _dropout),
    **dict.fromkeys(["relu6", "selu", "hardswish"], _keep),
    **dict.fromkeys(["contiguous", "clone", "detach", "alias", "to", "_to_copy", "lift_fresh", "float"], _keep),
    **dict.fromkeys(["split", "split_with_sizes", "chunk"], _chunk),
    **dict.fromkeys(["cat", "concat"], _cat),
    **dict.fromkeys(["expand", "expand_as", "broadcast_to"], _expand),
    **dict.fromkeys(["zeros", "ones", "full", "zeros_like", "ones_like", "full_like"], _constant),
    "linear": _linear,
    "addmm": _addmm,
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "group_norm": _group_norm,
    "prelu": _prelu,
    "permute": _permute,
    "slice": _slice,
    "select": _select,
    "unbind": _unbind,
    "glu": _glu,
    "stack": _stack,
    "embedding": _embedding,
}
