"""The encoder and decoder of LoGAH as its authors published them, for comparison (Zhou et al. 2024, arXiv:2405.16287).

Sizes, degrees and distances are looked up in tables; factors of a weight are cut out of two matrices of 32,768 rows.
Rows that are cut off are not trained, and wider layers get no weights: prefer `graphormer` and `low_rank_decoder`. The
numbers of parameters are those of the published classes: 2,540,380 for T, 21,412,794 for S, 78,231,892 for B,
289,423,316 for L. Only the rows in use are computed.

Two things differ. The published graph has a node for every tensor, ours has one for every operation, so a tensor's
operation and shape are added to its node's result too. Positions (1, n, d) are not folded into squares.

Shapes: n nodes, t tensors, d node embedding, r rank, h heads, m rows and k columns of a weight.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.layers.graphormer import GraphInputs, GraphormerLayer
from weightgen.layers.low_rank_decoder import Factors, WeightShape, mean_square

PRIMITIVES = (
    *("max_pool", "avg_pool", "sep_conv", "dil_conv", "conv", "msa", "cse", "sum", "concat", "input", "bias", "bn"),
    *("ln", "pos_enc", "glob_avg"),
)
"""The operations that the published encoder distinguishes (Knyazev et al. 2021, arXiv:2110.13100, table 1)."""
MAX_ROWS = 2048 * 16
"""Most rows of a factor: 2,048 channels times kernels of 16."""
_CHANNELS = sorted({1, 3, 1000, *range(8, 64, 8), *range(64, 4096, 16), *range(4096, 8193, 32)})
_KERNELS = sorted({*range(1, 16, 2), 14, 16})
_MAX_DEGREE, _MAX_DEPTH, _MAX_EDGE = 100, 1000, 255


class PublishedEncoder(nn.Module):
    """Maps graphs to one token per tensor, (t, d). `ops` and `roles` of the graph are numbers in PRIMITIVES."""

    def __init__(self, *, dim: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.of_op = nn.Embedding(len(PRIMITIVES), dim)
        # The last row of each is for nodes without a tensor.
        self.of_channels = nn.Embedding(len(_CHANNELS) + 1, dim // 4)
        self.of_kernel = nn.Embedding(len(_KERNELS) + 1, dim // 4)
        self.of_in_degree, self.of_out_degree = (nn.Embedding(_MAX_DEGREE + 1, dim) for _ in range(2))
        self.of_depth = nn.Embedding(_MAX_DEPTH + 1, dim)
        self.of_edge = nn.Embedding(_MAX_EDGE + 2, dim)
        self.edge_bias = nn.Sequential(nn.Linear(2 * dim, dim), nn.ReLU(), nn.Linear(dim, num_heads))
        self.layers = nn.ModuleList(GraphormerLayer(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=module.embedding_dim**-0.5)

    def forward(self, graph: GraphInputs) -> Float[Tensor, "t d"]:
        shapes = self._embed_shapes(graph.shapes)
        without = torch.cat([self.of_channels.weight[[-1, -1]].flatten(), self.of_kernel.weight[[-1, -1]].flatten()])
        has_tensor = torch.zeros_like(graph.ops, dtype=torch.bool).index_fill(0, graph.owners, True)
        counts = torch.bincount(graph.owners, minlength=len(graph.ops)).clamp_min(1)[:, None]
        owned = torch.zeros(len(graph.ops), shapes.shape[1], device=shapes.device).index_add(0, graph.owners, shapes)
        degrees, depth = graph.degrees.clamp_max(_MAX_DEGREE), graph.depth.clamp_max(_MAX_DEPTH)
        nodes = self.of_op(graph.ops) + torch.where(has_tensor[:, None], owned / counts, without)
        nodes = nodes + self.of_in_degree(degrees[:, 0]) + self.of_out_degree(degrees[:, 1]) + self.of_depth(depth)
        bias = self._bias(graph.distances)
        for layer in self.layers:
            nodes = layer(nodes, bias)
        return self.norm(nodes)[graph.owners] + self.of_op(graph.roles) + shapes

    def _embed_shapes(self, shapes: Int[Tensor, "t 4"]) -> Float[Tensor, "t d"]:
        """The embedding of the nearest size in the tables, for each size."""
        channels = self.of_channels(_nearest(shapes[:, :2], _CHANNELS))
        kernels = self.of_kernel(_nearest(shapes[:, 2:], _KERNELS))
        return torch.cat([channels, kernels], 1).flatten(1)

    def _bias(self, distances: Int[Tensor, "n n"]) -> Float[Tensor, "h n n"]:
        """The published network of both distances, (h, n, n), run once for each pair of distances that occurs."""
        edges = distances.long().clamp(0, _MAX_EDGE - 2)  # no path counts as 0, like the distance of a node to itself
        pairs, cases = torch.unique(edges * _MAX_EDGE + edges.T, return_inverse=True)
        embedded = self.of_edge(torch.stack([pairs // _MAX_EDGE, pairs % _MAX_EDGE], 1) + 2)
        return self.edge_bias(embedded.flatten(1)).T[:, cases]


class PublishedDecoder(nn.Module):
    """Maps tokens (t, d) to factors of weights with at most MAX_ROWS rows and columns, and to vectors as long."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.trunk = nn.Sequential(
            *(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, 8 * dim), nn.ReLU()),
            nn.Linear(8 * dim, 2 * rank * rank),
        )
        self.square = nn.Linear(rank, rank)
        self.table = nn.Linear(rank, MAX_ROWS)
        self.unused = nn.Parameter(torch.zeros(4))
        """The published network has a decoder of vectors with four numbers that nothing reads."""

    def forward(self, tokens: Float[Tensor, "t d"], shapes: Sequence[WeightShape]) -> Iterator[Factors]:
        """The factors of every weight; its scale is `rms` of its shape times the network's output, not normalised."""
        for halves, shape in zip(self._halves(tokens), shapes, strict=True):
            left = self._cut(halves[: self.rank], math.prod(shape.rows)) * shape.rms
            right = self._cut(halves[self.rank :], math.prod(shape.columns)).T
            yield Factors(left, right, mean_square(left, right).sqrt())

    def vectors(self, tokens: Float[Tensor, "t d"], sizes: Sequence[int]) -> list[Tensor]:
        """A vector (size,) for every token, made as a weight with one column."""
        cuts = ((self._cut(h[: self.rank], size), h[self.rank :]) for h, size in zip(self._halves(tokens), sizes))  # noqa: B905
        return [(left @ self._cut(rest, 1).T)[:, 0] for left, rest in cuts]

    def _halves(self, tokens: Float[Tensor, "t d"]) -> Float[Tensor, "t rows r"]:
        return self.square(self.trunk(tokens).unflatten(1, (2 * self.rank, self.rank))).relu()

    def _cut(self, half: Float[Tensor, "r r"], num_rows: int) -> Float[Tensor, "m r"]:
        """The first rows of a factor: r rows of 32,768 numbers, read in order, r numbers for each row of the factor."""
        assert num_rows <= MAX_ROWS, "wider than the published tables"
        count = num_rows * self.rank
        if count <= MAX_ROWS:
            numbers = torch.addmm(self.table.bias[:count], half[:1], self.table.weight[:count].T)
        else:
            numbers = self.table(half[: math.ceil(count / MAX_ROWS)])
        return numbers.flatten()[:count].view(num_rows, self.rank)


def _nearest(sizes: Tensor, known: Sequence[int]) -> Tensor:
    """Index in `known` of the nearest size, for each size."""
    table = torch.tensor(known, device=sizes.device)
    above = torch.searchsorted(table, sizes.contiguous()).clamp(1, len(known) - 1)
    return above - (sizes - table[above - 1] <= table[above] - sizes).long()
