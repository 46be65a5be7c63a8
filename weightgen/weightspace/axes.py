"""Axes of a module that declares none, found by tracing its forward pass.

The pass is traced once on fake tensors into ATen operations. Every axis of every value is a list of leaves, slowest
first. A rule for each operation (`axis_rules.py`) says which leaves must move together, so that the operation commutes
with reordering, and which must not move at all. Leaves that no rule proves are held fixed, with the reason.
"""

import copy
import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from weightgen.errors import BadData
from weightgen.spec import StateSpec
from weightgen.weightspace.axis_rules import (
    RULES,
    Axis,
    Call,
    Leaf,
    Traced,
    Unproven,
    Value,
    hold,
    join_pointwise,
    new_axis,
    resolve,
    values_in,
)


@dataclass(frozen=True)
class AxesReport:
    """The axes found for every tensor of a module, and those that could not be proven."""

    axes: dict[str, str]
    """Tensor name -> axes in the notation of `StateSpec`, for `StateSpec.from_module`."""
    held_fixed: dict[str, str]
    """Tensor name -> which of its axes are held fixed without a proof, and why. Axes that are fixed from outside
    (inputs, outputs, positions in an image or a kernel) are not listed."""


def trace_axes(module: nn.Module, example_input: Tensor | tuple[Tensor, ...]) -> AxesReport:
    """The axes of a module's tensors: hidden words `h1`, `h2`, ... where reordering units provably changes nothing.

    The proof holds for evaluation mode and the shapes of `example_input`. The last axis of outputs (n, k) is CLASSES.
    The module, its mode, its buffers and the global RNG are not changed. The result is also tried once on the example:
    if a random reordering changes the output, everything is held fixed. Raises BadData if the module does not run on
    the example.
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    try:
        twin = copy.deepcopy(module).eval()
    except _TRACE_ERRORS as fault:
        return _everything_fixed(module, f"the module cannot be copied to be traced: {_first_line(fault)}")
    state = _distinct_tensors(twin)
    expected = _run(twin, state, inputs)
    try:
        graph = _trace_graph(twin, state, inputs)
    except _TRACE_ERRORS as fault:
        return _everything_fixed(module, f"the forward pass could not be traced: {_first_line(fault)}")
    prover = _Prover()
    prover.follow(graph, state)
    report = prover.report(twin)
    if not _keeps_outputs(twin, report.axes, inputs, expected):
        return _everything_fixed(module, "reordering the traced axes changed the output: the trace misses something")
    return report


# Errors that a forward pass may raise because fake tensors have no numbers.
_TRACE_ERRORS = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError)


def _first_line(fault: Exception) -> str:
    return (str(fault).strip() or type(fault).__name__).splitlines()[0]


def _distinct_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The detached state with each tensor once, under its first name."""
    seen: dict[int, str] = {}
    tensors = module.state_dict(keep_vars=True)
    return {name: t.detach() for name, t in tensors.items() if seen.setdefault(id(t), name) == name}


def _run(module: nn.Module, state: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> Any:
    if any(t.is_meta for t in state.values()):
        raise BadData("axes are traced on a module with values; this one is on the meta device")
    state = {name: t.clone() for name, t in state.items()}
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            return functional_call(module, state, inputs)
    except _TRACE_ERRORS as fault:
        shapes = ", ".join(str(list(x.shape)) for x in inputs)
        raise BadData(f"the module does not run on the example input {shapes}: {fault}") from fault


def _trace_graph(module: nn.Module, state: Mapping[str, Tensor], inputs: tuple[Tensor, ...]) -> fx.Graph:
    """The forward pass as ATen operations on (state, inputs), placeholders in that order."""

    def forward(state: dict[str, Tensor], inputs: tuple[Tensor, ...]) -> Any:
        return functional_call(module, state, inputs)

    trace = make_fx(forward, tracing_mode="fake", pre_dispatch=True, _allow_non_fake_inputs=True)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return trace(dict(state), inputs).graph


def _everything_fixed(module: nn.Module, reason: str) -> AxesReport:
    tensors = module.state_dict()
    axes = {name: " ".join(str(n) for n in t.shape) for name, t in tensors.items()}
    return AxesReport(axes, {name: reason for name, t in tensors.items() if t.numel() > 1})


def _keeps_outputs(module: nn.Module, axes: dict[str, str], inputs: tuple[Tensor, ...], expected: Any) -> bool:
    """Whether one random reordering of every word keeps the outputs, up to rounding."""
    spec = StateSpec.from_module(module, axes, arch="traced")
    rng = torch.Generator().manual_seed(0)
    orders = {word: torch.randperm(n, generator=rng) for word, n in spec.hidden.items()}
    moved = spec.permute(module.state_dict(), orders)
    got = _run(module, {name: moved[name] for name in _distinct_tensors(module)}, inputs)
    pairs = list(zip(_tensors_in(got), _tensors_in(expected), strict=True))
    # Loose: only a gross error matters here; sums in another order may differ in the last digits.
    return all(
        a.dtype == torch.bool or (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-6 for a, b in pairs if a.numel()
    )


def _tensors_in(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    values = values.values() if isinstance(values, Mapping) else values if isinstance(values, (list, tuple)) else ()
    return [tensor for value in values for tensor in _tensors_in(value)]


@dataclass(eq=False)
class _Prover:
    """Follows a graph, one rule per operation, and keeps the axes of every value."""

    values: dict[fx.Node, Any] = field(default_factory=dict)
    tensors: dict[str, Value] = field(default_factory=dict)
    """The axes of each tensor of the state."""
    classes: Axis = field(default_factory=list)
    """The leaf of the last axis of outputs (n, k), if nothing else fixes it."""

    def follow(self, graph: fx.Graph, state: Mapping[str, Tensor]) -> None:
        names = iter(state)
        stored: dict[object, Value] = {}
        for node in graph.nodes:
            if node.op == "placeholder":
                name = next(names, None)
                if name is None:
                    self.values[node] = _fresh(node.meta["val"])
                else:
                    # Two tensors on one storage count as one: a write to one changes the other.
                    t = state[name]
                    key = (t.data_ptr(), tuple(t.shape), t.stride(), t.dtype) if t.numel() else name
                    value = stored.setdefault(key, [new_axis(n) for n in t.shape])
                    self.values[node] = self.tensors[name] = value
                    if not t.dtype.is_floating_point:
                        hold(value, "its integers are carried along, not generated")
                    elif not node.users:
                        hold(value, "the forward pass does not use it")
            elif node.op == "get_attr":
                self.values[node] = _fresh(node.meta.get("val"), "it is a constant that is not in the state_dict")
            elif node.op == "call_function":
                self.values[node] = self._apply(node)
            elif node.op == "output":
                self._finish(node)

    def _apply(self, node: fx.Node) -> Any:
        """The axes of an operation's result: a value, or a list of them."""
        if node.target is operator.getitem:
            return self.values[node.args[0]][node.args[1]]  # pyright: ignore
        call = self._call(node)
        tags = getattr(node.target, "tags", ())
        rule = RULES.get(call.name, join_pointwise if torch.Tag.pointwise in tags else None)
        values = values_in(list(call.args.values()))
        if rule is None and not values:  # made without inputs: positions, noise
            return _fresh(node.meta.get("val"))
        try:
            if rule is None or (torch.Tag.nondeterministic_seeded in tags and call.name not in RULES):
                raise Unproven(f"no rule says what {call.name!r} does to its units")
            if any(leaf.size == 0 for value in values for axis in value for leaf in axis):
                raise Unproven("it meets a tensor without elements")
            return rule(call)
        except Unproven as why:
            hold([axis for value in values for axis in value], str(why))
            return _fresh(node.meta.get("val"), str(why))

    def _call(self, node: fx.Node) -> Call:
        schema = getattr(node.target, "_schema", None)
        if schema is None:  # a higher-order operation such as cond, for which there is no rule
            args = dict(enumerate(node.args)) | node.kwargs
            name = str(node.target)
        else:
            args = {a.name: node.kwargs.get(a.name, a.default_value) for a in schema.arguments}
            args |= dict(zip(args, node.args, strict=False))
            name = schema.name.rpartition("::")[2].removesuffix("_")
        traced = {str(key): self._mark(arg) for key, arg in args.items()}
        return Call(name, traced, _shape_of(node.meta.get("val")))

    def _mark(self, arg: Any) -> Any:
        """The argument with graph nodes, also those in lists, replaced by their values."""
        if isinstance(arg, (list, tuple)):
            return [self._mark(a) for a in arg]
        return Traced(self.values[arg]) if isinstance(arg, fx.Node) else arg

    def _finish(self, node: fx.Node) -> None:
        outputs = [self.values[n] for n in node.all_input_nodes]
        if len(outputs) == 1 and len(outputs[0]) == 2:
            last = resolve(outputs[0][1])
            self.classes = last if len(last) == 1 and not last[0].is_fixed else []
        for value in outputs:
            hold(value)

    def report(self, module: nn.Module) -> AxesReport:
        """The axes in notation; hidden words are numbered in the order of the state_dict."""
        tensors = module.state_dict(keep_vars=True)
        first_names = {id(t): name for name, t in reversed(tensors.items())}
        values = {n: [resolve(axis) for axis in self.tensors[first_names[id(t)]]] for n, t in tensors.items()}
        axes_in_order = [axis for value in values.values() for axis in value]
        hidden = dict.fromkeys(leaf for axis in axes_in_order for leaf in axis if not leaf.is_fixed)
        words = {leaf: f"h{i}" for i, leaf in enumerate(hidden, start=1)} | dict.fromkeys(self.classes, "CLASSES")
        sized = {axis[0] for axis in axes_in_order if len(axis) == 1}
        return AxesReport(
            axes={name: " ".join(_write(axis, words, sized) for axis in value) for name, value in values.items()},
            held_fixed={name: reasons for name, value in values.items() if (reasons := _reasons(value))},
        )


def _write(axis: Axis, words: Mapping[Leaf, str], sized: set[Leaf]) -> str:
    """An axis in notation; a word gets its size unless it is a whole axis somewhere."""
    if not any(leaf in words for leaf in axis):
        return str(math.prod(leaf.size for leaf in axis))
    written = [
        str(leaf.size) if leaf not in words else words[leaf] if leaf in sized else f"{words[leaf]}={leaf.size}"
        for leaf in axis
    ]
    return written[0] if len(written) == 1 else f"({' '.join(written)})"


def _reasons(value: Value) -> str:
    reasons: dict[str, None] = {}
    for dim, axis in enumerate(value):
        extent = math.prod(leaf.size for leaf in axis)
        for leaf in axis:
            if leaf.reason and not leaf.is_outside:
                part = str(extent) if leaf.size == extent else f"factor {leaf.size} of {extent}"
                reasons[f"axis {dim} ({part}): {leaf.reason}"] = None
    return "; ".join(reasons)


def _fresh(val: Any, reason: str = "") -> Any:
    """New axes for a value, fixed for this reason, or fixed from outside if there is no reason."""
    if isinstance(val, (tuple, list)):
        return [_fresh(v, reason) for v in val]
    shape = val.shape if isinstance(val, Tensor) else ()
    return [new_axis(n, is_outside=not reason, reason=reason) for n in shape]


def _shape_of(val: Any) -> Any:
    if isinstance(val, (tuple, list)):
        return [_shape_of(v) for v in val]
    return tuple(val.shape) if isinstance(val, Tensor) else ()
