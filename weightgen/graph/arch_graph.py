"""ArchGraph: the computation of a network as a graph whose nodes own the tensors of its state.

A node is one operation of a forward pass in evaluation mode; an edge means that the result of one node is an input of
another. Reshaping, slicing, dropout, casts and arithmetic on masks or positions leave no node. The same computation
written in two ways (fused attention or not, a norm as one call or by hand) is meant to give the same nodes.

Knyazev et al. 2021 (arXiv:2110.13100) and 2023 (arXiv:2303.04143) define such graphs for hypernetworks; Zhou et al.
2024, LoGAH (arXiv:2405.16287) uses them. `weightgen.graph.trace` finds the nodes of a module.

Shapes: n nodes, m edges, t tensors of the spec.
"""

import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int16, Int64
from torch import Tensor, nn

from weightgen.errors import BadData
from weightgen.graph.drafts import Draft
from weightgen.graph.entries import make_spec, read_entries
from weightgen.graph.leftovers import own_rest
from weightgen.graph.passes import trace
from weightgen.graph.twin import structure_key
from weightgen.spec import StateSpec

OPS = (
    "input",
    "output",
    "linear",
    "conv",
    "grouped_conv",  # more than one group; depthwise means one channel in each group
    "transposed_conv",
    "batch_norm",
    "instance_norm",
    "group_norm",
    "layer_norm",
    "rms_norm",  # no mean is subtracted; also an L2 norm
    "embedding",
    "parameter",  # a tensor used as it is: positions, a class token, layer scale, a relative-position table
    "attention",  # softmax(q k^T) v, fused or not
    "activation",
    "pooling",  # any reduction over positions
    "sum",
    "product",  # of two results, by element or as matrices
    "concat",
    "recurrent",
    "expert",  # linear, on the rows that a gate chose
    "gate",  # linear; its largest outputs choose experts
    "other",
)
"""What a node does. The position in this list is the op's number in `ArchGraph.op_ids`; append new ones at the end."""

ROLES = (
    "weight",
    "bias",
    "norm weight",
    "norm bias",
    "in_proj",  # q, k and v stacked, of nn.MultiheadAttention
    "raw",
    "running mean",
    "running var",
    "carried",  # integers and booleans, which are never generated
)
"""The role of a tensor in the node that owns it. The weight of a norm that scales by 1 + weight is a norm bias: like a
bias it begins at 0."""


@dataclass(frozen=True, slots=True)
class OwnedTensor:
    """A tensor of the spec and its role in the node that owns it."""

    name: str
    role: str
    """One of ROLES."""
    is_transposed: bool = False
    """Whether a matrix is stored (in, out), as in x @ W, instead of (out, in)."""
    is_buffer: bool = False
    """Whether the module keeps it as a buffer (statistics, masks, frequencies) and not as a parameter that learns."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operation, and the tensors of the spec that belong to it."""

    op: str
    """One of OPS."""
    tensors: tuple[OwnedTensor, ...] = ()
    """In the order of the spec; a tied tensor belongs to the node of the tensor that it is tied to."""
    reads: tuple[str, ...] = ()
    """Names of tensors that it uses but an earlier node owns: tied weights, modules used twice."""


@dataclass(frozen=True, eq=False)
class ArchGraph:
    """The nodes of one module in topological order, and the tensors they own. Two graphs are equal by `digest`."""

    spec: StateSpec
    """The module's tensors, every axis anonymous; `spec.generated` are the ones to predict."""
    nodes: tuple[Node, ...]
    """Node 0 is the input. An edge goes from a lower number to a higher one."""
    edges: Int64[Tensor, "m 2"]
    """(source, target), each pair once, sorted by target, then source."""
    unreached: tuple[str, ...] = ()
    """Tensors of the spec that no traced operation reads. Their nodes follow the node of the tensor before them."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Entries of the module's state_dict that are not in the spec (quantised, lazy, not a tensor ...), and why."""
    notes: tuple[str, ...] = ()
    """Remarks for a report: values that had to be guessed, a forward pass that failed, empty tensors."""

    @cached_property
    def owner(self) -> dict[str, int]:
        """Name of every tensor of the spec -> number of the node that owns it."""
        return {tensor.name: i for i, node in enumerate(self.nodes) for tensor in node.tensors}

    @cached_property
    def owned(self) -> dict[str, OwnedTensor]:
        """Every tensor of the spec by its name, with its role."""
        return {tensor.name: tensor for node in self.nodes for tensor in node.tensors}

    @cached_property
    def op_ids(self) -> Int64[Tensor, " n"]:
        """Number of each node's op in OPS, (n,)."""
        numbers = {op: i for i, op in enumerate(OPS)}
        return torch.tensor([numbers[node.op] for node in self.nodes])

    @cached_property
    def in_degree(self) -> Int64[Tensor, " n"]:
        return torch.bincount(self.edges[:, 1], minlength=len(self.nodes))

    @cached_property
    def out_degree(self) -> Int64[Tensor, " n"]:
        return torch.bincount(self.edges[:, 0], minlength=len(self.nodes))

    @cached_property
    def depth(self) -> Int64[Tensor, " n"]:
        """Distance from the input: edges on the shortest path, (n,).

        A node that the input does not reach (a raw parameter, an embedding of positions) has one less than the depth of
        the first node that uses it, so that the layer scale of block 7 has the depth of block 7.
        """
        unknown = len(self.nodes) + 1
        depth = [unknown] * len(self.nodes)
        depth[0] = 0
        edges = self.edges.tolist()
        for source, target in edges:
            depth[target] = min(depth[target], depth[source] + 1)
        reached = [d < unknown for d in depth]
        for source, target in sorted(edges, reverse=True):
            if not reached[source] and depth[target] < unknown:
                depth[source] = min(depth[source], max(depth[target] - 1, 0))
        return torch.tensor([0 if d >= unknown else d for d in depth])

    def distances(self, max_distance: int = 50) -> Int16[Tensor, "n n"]:
        """Edges on the shortest path from node i to node j, (n, n): 0 to itself, -1 if there is no path.

        Longer paths count as `max_distance` (published: 50). Distances against the arrows are the transpose. The result
        is cached; it costs one vector operation of n numbers per edge.
        """
        if max_distance not in self._kept_distances:
            self._kept_distances[max_distance] = self._find_distances(max_distance)
        return self._kept_distances[max_distance]

    @cached_property
    def _kept_distances(self) -> dict[int, Tensor]:
        return {}

    def _find_distances(self, max_distance: int) -> Tensor:
        # Nodes are in topological order: the row of a target is final once the rows of its sources are.
        n = len(self.nodes)
        far = np.int16(32_000)
        to_node = np.full((n, n), far, dtype=np.int16)  # row j: from every i to j
        np.fill_diagonal(to_node, 0)
        for source, target in self.edges.tolist():
            np.minimum(to_node[target], np.minimum(to_node[source], far - 1) + 1, out=to_node[target])
        paths = to_node.T
        return torch.from_numpy(np.where(paths == far, np.int16(-1), np.minimum(paths, np.int16(max_distance))))

    @cached_property
    def shape_codes(self) -> Int64[Tensor, "t 4"]:
        """Every tensor's (out, in, kernel height, kernel width) in the order of the spec, (t, 4); 1 where it has none.

        As in GHN-3 and LoGAH. The size of a one-dimensional kernel is its height; the height of a three-dimensional one
        is depth x height. For a stack of matrices (experts) the kernel height is their number.
        """
        return torch.tensor([self.shape_code(t.name) for t in self.spec.tensors]).reshape(-1, 4)

    def shape_code(self, name: str) -> tuple[int, int, int, int]:
        """(out, in, kernel height, kernel width) of one tensor."""
        shape = list(self.spec.by_name[name].shape)
        owned, op = self.owned[name], self.nodes[self.owner[name]].op
        kernel: list[int] = []
        if op.endswith("conv") and owned.role == "weight":
            shape, kernel = shape[:2], shape[2:]
        else:
            while len(shape) > 2 and shape[0] == 1:  # positions (1, n, d)
                shape = shape[1:]
            kernel, shape = [math.prod(shape[:-2])], shape[-2:]
        shape += [1] * (2 - len(shape))
        out, into = reversed(shape) if owned.is_transposed else shape
        kernel = [*kernel, 1, 1]
        height, width = (kernel[0] * kernel[1], kernel[2]) if len(kernel) == 5 else (kernel[0], kernel[1])
        return out, into, height, width

    @cached_property
    def digest(self) -> str:
        """sha256 of nodes, edges and the spec's names, shapes and dtypes, hex; the same on every machine.

        Values of integer tensors are left out: the number of batches that a BatchNorm has seen is not architecture.
        """
        nodes = [[n.op, [[t.name, t.role, t.is_transposed] for t in n.tensors], list(n.reads)] for n in self.nodes]
        content = {
            "nodes": nodes,
            "edges": self.edges.tolist(),
            "tensors": [[t.name, list(t.shape), t.dtype, t.tied_to] for t in self.spec.tensors],
        }
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def build_graph(module: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None) -> ArchGraph:
    """The graph of any module, from one forward pass of its structure on the meta device.

    The module, its mode, buffers, hooks, gradients and every random number generator are not changed. Its tensors may
    be on any device, also on the meta device; they are not copied, and only integers are read. Without `example_inputs`
    the inputs are guessed from the first layers, or from the config of a Hugging Face model. If the pass fails, the
    parts that it has not reached are run one by one, each behind the one registered before it, and `notes` says why.
    The last 64 structures are cached. Raises BadData for a module without any tensor that can be served.
    """
    entries, left_out, notes = read_entries(module)
    if not entries:
        raise BadData("; ".join((f"{type(module).__name__} has no tensors to make", *notes)))
    spec = make_spec(module, entries)
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    ties = tuple((t.name, t.tied_to) for t in spec.tensors)
    key = (structure_key(module), ties, tuple(left_out), _describe_inputs(inputs))
    graph = _recall(key)
    if graph is None:
        drafts, pass_notes = trace(module, spec, entries, inputs)
        buffers = {name for name, t in entries.items() if not isinstance(t, nn.Parameter)}
        graph = _assemble(spec, drafts, module, buffers)
        graph = replace(graph, left_out=left_out, notes=(*notes, *pass_notes))
        _keep(key, graph)
    # Carried integers belong to this module, not to its structure.
    return graph if graph.spec == spec else replace(graph, spec=spec)


MAX_KEPT = 64
_KEPT: OrderedDict[Any, ArchGraph] = OrderedDict()
_LOCK = threading.Lock()


def forget_graphs() -> None:
    """Forget the graphs that `build_graph` keeps: the next call for each structure traces it again."""
    with _LOCK:
        _KEPT.clear()


def _recall(key: Any) -> ArchGraph | None:
    with _LOCK:
        if key in _KEPT:
            _KEPT.move_to_end(key)
        return _KEPT.get(key)


def _keep(key: Any, graph: ArchGraph) -> None:
    with _LOCK:
        _KEPT[key] = graph
        while len(_KEPT) > MAX_KEPT:
            _KEPT.popitem(last=False)


def _describe_inputs(inputs: tuple[Any, ...] | None) -> Any:
    if inputs is None:
        return None
    return tuple((tuple(x.shape), x.dtype) if isinstance(x, Tensor) else repr(x) for x in inputs)


def _assemble(spec: StateSpec, drafts: list[Draft], module: nn.Module, buffers: set[str]) -> ArchGraph:
    """The graph of the recorded drafts and of the tensors that none of them owns."""
    drafts = _drop_dead(drafts)
    output = drafts.pop() if drafts[-1].op == "output" else Draft("output", "output", [])
    unreached = own_rest(spec, drafts, module)
    if not output.sources:
        output.sources.append(len(drafts) - 1)
    drafts.append(output)
    position = {t.name: i for i, t in enumerate(spec.tensors)}
    nodes = []
    for draft in drafts:
        owned = (OwnedTensor(*t, is_buffer=t[0] in buffers) for t in draft.tensors)
        tensors = sorted(owned, key=lambda t: position[t.name])
        nodes.append(Node(draft.op, tuple(tensors), tuple(draft.reads)))
    pairs = sorted({(target, source) for target, draft in enumerate(drafts) for source in draft.sources})
    edges = torch.tensor([(source, target) for target, source in pairs], dtype=torch.long).reshape(-1, 2)
    return ArchGraph(spec, tuple(nodes), edges, tuple(unreached))


def _drop_dead(drafts: list[Draft]) -> list[Draft]:
    """The drafts in the same order, without those that lead neither to the output nor to a tensor."""
    alive = [bool(d.tensors or d.reads or d.op in ("input", "output")) for d in drafts]
    for i in range(len(drafts) - 1, -1, -1):
        if alive[i]:
            for source in drafts[i].sources:
                alive[source] = True
    kept = [i for i, is_alive in enumerate(alive) if is_alive]
    numbers = {old: i for i, old in enumerate(kept)}
    return [replace(drafts[i], sources=[numbers[s] for s in drafts[i].sources]) for i in kept]
