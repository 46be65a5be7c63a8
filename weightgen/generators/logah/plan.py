"""The plan for every tensor of a graph: how it is unfolded and scaled if it is predicted, or why it is kept.

Weights of a layer get a root mean square of sqrt(beta / fan in). Beta is 2 for convolutions, which a ReLU mostly
follows, and 1 for the rest (GHN-3, Knyazev et al. 2023, arXiv:2303.04143, appendix A). Tables of embeddings and
positions have their own scale. From a prediction p, norm weights are 2 sigmoid(p / 2), added vectors tanh(p / 5).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from weightgen.graph.arch_graph import ROLES, ArchGraph
from weightgen.layers.graphormer import GraphInputs
from weightgen.layers.low_rank_decoder import WeightShape
from weightgen.spec import TensorSpec

_ADDED = frozenset(("sum", "concat"))
_SCALED = frozenset(("product", "activation"))
"""A parameter that multiplies as a matrix has no node of its own: it is the weight of a linear node."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """A tensor that is predicted."""

    tensor: TensorSpec
    kind: Literal["weight", "norm weight", "bias"]
    unfolded: WeightShape
    """How a weight is unfolded into a matrix; for the other kinds only the size matters."""

    @property
    def longest(self) -> int:
        """Number of rows or columns of its matrix, whichever is larger."""
        return max(math.prod(self.unfolded.rows), math.prod(self.unfolded.columns))

    @property
    def how(self) -> str:
        if self.kind != "weight":
            return self.kind
        m, n = (math.prod(sizes) for sizes in (self.unfolded.rows, self.unfolded.columns))
        return f"low rank {m} x {n}"


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor that keeps the module's own initialisation."""

    tensor: TensorSpec
    why: str


@dataclass(frozen=True, slots=True)
class WeightScale:
    """The scale of weights."""

    initializer_range: float | None = None
    """Root mean square of every weight and table, as in GPT-2 (0.02); None: by fan-in."""
    table: float = 0.02
    """Root mean square of embeddings and other raw matrices."""
    position: float = 0.3
    """Root mean square of raw matrices that are added or joined to activations, such as a ViT's positions and class
    token: of the order of those activations, or training steps would be too small to change the result."""
    is_published: bool = False
    """As published: beta 2 for all layers except depthwise and wide kernels, tables as the decoder makes them."""


def plan_weights(graph: ArchGraph, scale: WeightScale) -> tuple[Predicted | Kept, ...]:
    """The plan for every tensor of the spec that is not tied to another, in the spec's order."""
    return tuple(_plan(graph, tensor, scale) for tensor in graph.spec.stored)


def _plan(graph: ArchGraph, tensor: TensorSpec, scale: WeightScale) -> Predicted | Kept:
    owned, node = graph.owned[tensor.name], graph.owner[tensor.name]
    op = graph.nodes[node].op
    vector = WeightShape.of_table((tensor.numel,), rms=1.0)
    if tensor.carried is not None:
        return Kept(tensor, "integers are carried along")
    if tensor.numel == 0:
        return Kept(tensor, "it has no numbers")
    if owned.role.startswith("running"):
        return Kept(tensor, "a statistic of data, which no graph tells; calibrate it on a few batches")
    if owned.is_buffer:
        return Kept(tensor, "a buffer: training does not change it")
    if owned.role == "norm weight":
        return Predicted(tensor, "norm weight", vector)
    if owned.role in ("bias", "norm bias"):
        return Predicted(tensor, "bias", vector)
    readers = _find_readers(graph, node) if owned.role == "raw" and op == "parameter" else set()
    is_added = bool(readers) and readers <= _ADDED
    if sum(size > 1 for size in tensor.shape) < 2 and owned.role == "raw" and not is_added:
        return Kept(tensor, "a raw vector that scales something, or that may")
    if readers and readers <= _SCALED:
        return Kept(tensor, "a raw matrix that scales something element by element")
    if len(tensor.shape) < 2:
        return Predicted(tensor, "bias", vector)
    table = scale.position if is_added else scale.table
    unfolded = _unfold(tensor, op, owned.role, is_transposed=owned.is_transposed, scale=scale, table=table)
    return Predicted(tensor, "weight", unfolded)


def _find_readers(graph: ArchGraph, node: int) -> set[str]:
    """The operations of the nodes that read a node."""
    return {graph.nodes[target].op for source, target in graph.edges.tolist() if source == node}


def _unfold(
    tensor: TensorSpec, op: str, role: str, *, is_transposed: bool, scale: WeightScale, table: float
) -> WeightShape:
    shape: Sequence[int] = tensor.shape
    rank = len(shape)
    is_kernel = op.endswith("conv") and role == "weight" and rank > 2
    is_table = op == "embedding" or role == "raw"
    if is_kernel:
        # A transposed kernel is stored (in, out / groups, ...).
        fan_in = shape[0] * math.prod(shape[2:]) if op == "transposed_conv" else math.prod(shape[1:])
    else:
        fan_in = shape[-2] if is_transposed else shape[-1]
    beta = 2.0 if is_kernel else 1.0
    if scale.is_published:
        is_wide = is_kernel and (shape[1] == 1 or (rank == 4 and shape[2] < shape[3]))
        beta = 1.0 if is_wide else 2.0
    if scale.initializer_range is not None:
        rms = scale.initializer_range
    elif is_table:
        rms = 1.0 if scale.is_published else table
    else:
        rms = math.sqrt(beta / fan_in)
    if is_kernel:
        return WeightShape.of_kernel(tensor.shape, rms=rms)
    if is_transposed and rank == 2:
        return WeightShape.of_transposed_matrix(tensor.shape, rms=rms)
    return WeightShape.of_table(tensor.shape, rms=rms)


def graph_inputs(
    graph: ArchGraph, names: Iterable[str], *, max_distance: int, device: torch.device | None = None
) -> GraphInputs:
    """The encoder's inputs for a graph and these tensors."""
    index = {tensor.name: i for i, tensor in enumerate(graph.spec.tensors)}
    chosen = list(names)
    owners = torch.tensor([graph.owner[name] for name in chosen], dtype=torch.long)
    shapes = graph.shape_codes[torch.tensor([index[name] for name in chosen], dtype=torch.long)]
    inputs = GraphInputs(
        ops=graph.op_ids,
        degrees=torch.stack([graph.in_degree, graph.out_degree], 1),
        depth=graph.depth,
        distances=graph.distances(max_distance),
        twins=count_twins(graph),
        roles=torch.tensor([ROLES.index(graph.owned[name].role) for name in chosen], dtype=torch.long),
        shapes=shapes,
        siblings=_count_siblings(graph, chosen),
        owners=owners,
    )
    return GraphInputs(*(part.to(device) for part in inputs))


def count_twins(graph: ArchGraph) -> Tensor:
    """For every node, the number of earlier nodes with the same operation, tensor shapes and depth, (n,).

    Nodes that a symmetry of the graph exchanges agree in these three (query, key and value, parallel branches,
    experts). The count makes them different.
    """
    seen: dict[object, int] = {}
    counts = []
    shapes = {tensor.name: tensor.shape for tensor in graph.spec.tensors}
    for node, depth in zip(graph.nodes, graph.depth.tolist(), strict=True):
        key = (node.op, depth, tuple((shapes[t.name], t.role) for t in node.tensors))
        counts.append(seen.get(key, 0))
        seen[key] = counts[-1] + 1
    return torch.tensor(counts)


def _count_siblings(graph: ArchGraph, names: list[str]) -> Tensor:
    """For every tensor, the number of earlier tensors of its node with the same role and shape, (t,)."""
    counts = {}
    for node in graph.nodes:
        seen: dict[object, int] = {}
        for tensor in node.tensors:
            key = (tensor.role, tensor.is_transposed, graph.spec.by_name[tensor.name].shape)
            counts[tensor.name] = seen.get(key, 0)
            seen[key] = counts[tensor.name] + 1
    return torch.tensor([counts[name] for name in names], dtype=torch.long)
