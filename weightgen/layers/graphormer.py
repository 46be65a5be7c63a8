"""A transformer over the nodes of a graph, whose attention depends on the distances between nodes.

Graphormer (Ying et al. 2021, arXiv:2106.05234, section 3.1) as GHN-3 uses it (Knyazev et al. 2023, arXiv:2303.04143):
a node's embedding is made from its operation, its tensors, its degrees and its distance from the input. Every head adds
a bias to its attention, from a table of distances along and against the arrows, which all layers share. Numbers (sizes,
degrees, distances) are embedded by functions, not looked up: every example trains all parameters.

Shapes: n nodes, t tensors, each owned by a node, d node embedding, h heads.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.layers.axis_features import number_features

_NUM_NUMBER_FEATURES = 16


class GraphInputs(NamedTuple):
    """The encoder's inputs for a graph; all integers."""

    ops: Int[Tensor, " n"]
    degrees: Int[Tensor, "n 2"]
    """In-degree and out-degree."""
    depth: Int[Tensor, " n"]
    """Distance from the input."""
    distances: Int[Tensor, "n n"]
    """From row to column along the arrows, capped; 0 to itself, -1 if there is no path."""
    twins: Int[Tensor, " n"]
    """Number of equal nodes before each: query, key and value of one attention are 0, 1 and 2. Without it they would
    get the same weights."""
    roles: Int[Tensor, " t"]
    shapes: Int[Tensor, "t 4"]
    """(out, in, kernel height, kernel width)"""
    siblings: Int[Tensor, " t"]
    """Number of equal tensors before each in its node: an LSTM is one node with the matrices of all its layers."""
    owners: Int[Tensor, " t"]
    """The node that each tensor belongs to."""


class GraphEncoder(nn.Module):
    """Maps graphs to one token per tensor, (t, d): its node after all layers, plus its own role and shape."""

    def __init__(
        self, *, num_ops: int, num_roles: int, dim: int, num_layers: int, num_heads: int, max_distance: int
    ) -> None:
        super().__init__()
        self.of_op = nn.Embedding(num_ops, dim)
        self.of_role = nn.Embedding(num_roles, dim)
        self.of_shape = nn.Linear(5 * _NUM_NUMBER_FEATURES, dim)
        self.of_place = nn.Linear(4 * _NUM_NUMBER_FEATURES, dim)
        for embedding in (self.of_op, self.of_role):
            nn.init.normal_(embedding.weight, std=0.5)
        self.bias = DistanceBias(num_heads, max_distance=max_distance)
        self.layers = nn.ModuleList(GraphormerLayer(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)

    def forward(self, graph: GraphInputs, shift: Float[Tensor, " d"] | None = None) -> Float[Tensor, "t d"]:
        """Tokens (t, d); `shift`, which holds other knowledge, is added to every node before the first layer."""
        sizes = number_features(torch.cat([graph.shapes, graph.siblings[:, None]], 1))
        tensors = self.of_role(graph.roles) + self.of_shape(rearrange(sizes, "t s f -> t (s f)"))
        place = torch.cat([graph.degrees, graph.depth[:, None], graph.twins[:, None]], 1)
        nodes = self.of_op(graph.ops) + self.of_place(rearrange(number_features(place), "n p f -> n (p f)"))
        nodes = nodes.index_add(0, graph.owners, tensors)
        if shift is not None:
            nodes = nodes + shift
        bias = self.bias(graph.distances)
        for layer in self.layers:
            nodes = layer(nodes, bias)
        return self.norm(nodes)[graph.owners] + tensors


class GraphormerLayer(nn.Module):
    """Self-attention of nodes (n, d) with a bias (h, n, n), then an MLP, each with a norm before and a residual."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, nodes: Float[Tensor, "n d"], bias: Float[Tensor, "h n n"]) -> Float[Tensor, "n d"]:
        q, k, v = rearrange(self.qkv(self.norm1(nodes)), "n (p h d) -> p 1 h n d", p=3, h=self.num_heads)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        nodes = nodes + self.out(rearrange(attended, "1 h n d -> n (h d)"))
        return nodes + self.mlp(self.norm2(nodes))


class DistanceBias(nn.Module):
    """Maps distances (n, n), as in GraphInputs, to a bias (h, n, n) by a small network of distance and direction.

    Graphs have no cycles, so every pair has one distance and a direction, or none. The network runs on
    2 x max_distance + 2 cases, not on n x n pairs.
    """

    def __init__(self, num_heads: int, *, max_distance: int, hidden: int = 32) -> None:
        super().__init__()
        self.max_distance = max_distance
        self.table = nn.Sequential(
            nn.Linear(2 * _NUM_NUMBER_FEATURES + 2, hidden), nn.GELU(), nn.Linear(hidden, num_heads)
        )

    def forward(self, distances: Int[Tensor, "n n"]) -> Float[Tensor, "h n n"]:
        along = distances.long()
        cases = torch.where(along >= 0, along, torch.where(along.T > 0, along.T + self.max_distance, -1))
        steps = torch.arange(self.max_distance + 1, device=distances.device)
        features = number_features(steps) - number_features(steps[:1])  # 0 for a node itself
        is_self = (steps == 0).float()[:, None]
        nothing = torch.zeros_like(features)
        forth = torch.cat([features, nothing, is_self, torch.zeros_like(is_self)], 1)
        back = torch.cat([nothing, features, is_self, torch.zeros_like(is_self)], 1)[1:]
        apart = forth.new_zeros(1, forth.shape[1])
        apart[:, -1] = 1
        # The last case, -1, is for no path in either direction.
        return self.table(torch.cat([forth, back, apart])).T[:, cases]
