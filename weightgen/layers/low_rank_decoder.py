"""Weights of any shape as products of two thin factors: W = A B (LoGAH, Zhou et al. 2024, arXiv:2405.16287, section 3).

A row of A is a function of its place on the axis (`axis_features`) and its kernel position, weighted by the tensor's
token, and so is a column of B. An r x r core, made from the token, connects them. So every parameter trains at every
width, no row is a copy of another, and factors have exactly the size asked for. There are twice as many features as
ranks, so that two tensors of the same width can use different directions. One factor is scaled so that W has the root
mean square asked for, times a learnt gain. It is computed from the factors without the product, in O((m + n) r^2).

Shapes: t tensors, d token, r rank, h features; a weight has m rows (unit, kernel height) and n columns (unit, width).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from weightgen.layers.axis_features import AxisFeatures

_CORES_AT_ONCE = 32
"""Tensors whose cores are made together: enough for an efficient matrix product, in little memory."""
_MAX_TERMS = 128
"""Up to this many terms of a sum, a wider product is faster than a narrow one whose numbers are moved afterwards."""
_MAX_BLOCK = 2**18
"""Numbers of a product in one block if it cannot be made in place: a block stays in the cache."""


class Factors(NamedTuple):
    """W = left @ right, and the root mean square of W's entries, a scalar."""

    left: Float[Tensor, "m r"]
    right: Float[Tensor, "r n"]
    rms: Float[Tensor, ""]


@dataclass(frozen=True, slots=True)
class WeightShape:
    """How a weight is unfolded into a matrix, and the root mean square its entries should have."""

    shape: tuple[int, ...]
    rows: tuple[int, int]
    """(units, kernel heights)"""
    columns: tuple[int, int]
    """(units, kernel widths)"""
    rms: float
    is_transposed: bool = False
    """Whether the weight is stored as the transpose of its matrix (rows, columns)."""

    @classmethod
    def of_kernel(cls, shape: tuple[int, ...], *, rms: float) -> "WeightShape":
        """A matrix (out, in) or a kernel (out, in, ..., width): the width goes to the columns, the rest to the rows."""
        kernel = shape[2:]
        return cls(shape, (shape[0], math.prod(kernel[:-1])), (shape[1], kernel[-1] if kernel else 1), rms)

    @classmethod
    def of_table(cls, shape: tuple[int, ...], *, rms: float) -> "WeightShape":
        """Any other tensor (..., width): embeddings, positions, stacks of matrices, scalars."""
        return cls(shape, (math.prod(shape[:-1]), 1), (shape[-1] if shape else 1, 1), rms)

    @classmethod
    def of_transposed_matrix(cls, shape: tuple[int, ...], *, rms: float) -> "WeightShape":
        """A matrix stored (in, out)."""
        return cls(shape, (shape[1], 1), (shape[0], 1), rms, is_transposed=True)


class LowRankDecoder(nn.Module):
    """Maps tokens (t, d) to the factors of weights of any shape, and to vectors of any length."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.num_features = h = max(32, 2 * rank)
        self.trunk = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, 8 * dim), nn.ReLU())
        self.core = nn.Linear(8 * dim, rank * rank)
        self.gates = nn.Linear(8 * dim, 2 * h)
        self.log_gain = nn.Linear(8 * dim, 1)
        self.row_features, self.column_features = AxisFeatures(h), AxisFeatures(h)
        self.vector_features = AxisFeatures(h, has_kernel=False)
        self.row_mix, self.column_mix = (nn.Linear(h, rank, bias=False) for _ in range(2))
        self.vector_trunk = nn.Sequential(nn.Linear(dim, 4 * dim), nn.ReLU())
        self.vector_core = nn.Linear(4 * dim, h)
        for module in (*self.trunk, self.core, *self.vector_trunk):
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)
        for mix in (self.row_mix, self.column_mix):
            nn.init.orthogonal_(mix.weight)
        # Gates mostly near 1 or -1, so that no direction dominates; gains near 1 and vectors near 0.
        nn.init.normal_(self.gates.weight, std=2 * (8 * dim) ** -0.5)
        nn.init.normal_(self.log_gain.weight, std=0.1 * (8 * dim) ** -0.5)
        nn.init.zeros_(self.log_gain.bias)
        nn.init.normal_(self.vector_core.weight, std=0.1 * (4 * dim) ** -0.5)
        nn.init.zeros_(self.vector_core.bias)

    def forward(self, tokens: Float[Tensor, "t d"], shapes: Sequence[WeightShape]) -> Iterator[Factors]:
        """The factors of every weight, in order; each is made when it is asked for."""
        row_axes, column_axes = _Kept(self.row_features), _Kept(self.column_features)
        for start in range(0, len(shapes), _CORES_AT_ONCE):
            hidden = self.trunk(tokens[start : start + _CORES_AT_ONCE])
            cores = rearrange(self.core(hidden), "t (r s) -> t r s", r=self.rank)
            row_gates, column_gates = rearrange(self.gates(hidden).tanh(), "t (p h) -> p t 1 h", p=2)
            row_mixes = row_gates * self.row_mix.weight
            column_mixes = cores @ (column_gates * self.column_mix.weight)
            rms = torch.tensor([s.rms for s in shapes[start : start + _CORES_AT_ONCE]]).to(hidden)
            rms = rms * self.log_gain(hidden)[:, 0].exp()
            for i, shape in enumerate(shapes[start : start + _CORES_AT_ONCE]):
                rows, columns = row_axes(shape.rows), column_axes(shape.columns)
                left, right = rows.features @ row_mixes[i].T, column_mixes[i] @ columns.features.T
                square = (rows.gram(row_mixes[i], left.T) * columns.gram(column_mixes[i], right)).sum()
                scale = rms[i] * (square / (left.shape[0] * right.shape[1])).clamp_min(1e-20).rsqrt()
                is_taller = len(left) > right.shape[1]  # the smaller factor is scaled
                yield Factors(left, right * scale, rms[i]) if is_taller else Factors(left * scale, right, rms[i])

    def vectors(self, tokens: Float[Tensor, "t d"], sizes: Sequence[int]) -> list[Tensor]:
        """A vector (size,) for every token, of order 0.1 before training; one product for all vectors of a size."""
        cores = self.vector_core(self.vector_trunk(tokens))
        found: dict[int, Tensor] = {}
        for size in set(sizes):
            places = [i for i, s in enumerate(sizes) if s == size]
            values = cores[places] @ self.vector_features(size).T
            found |= dict(zip(places, values / math.sqrt(self.num_features / 2), strict=True))
        return [found[i] for i in range(len(sizes))]


def mean_square(left: Float[Tensor, "m r"], right: Float[Tensor, "r n"]) -> Float[Tensor, ""]:
    """Mean square of the entries of left @ right: tr(A'A BB') / mn, in O((m + n) r^2), without making the product."""
    return ((left.T @ left) * (right @ right.T)).sum() / (left.shape[0] * right.shape[1])


def multiply(factors: Factors, shape: WeightShape) -> Tensor:
    """The weight from its factors; differentiable."""
    matrix = factors.left @ factors.right
    return (matrix.T if shape.is_transposed else _unfold(matrix, shape)).reshape(shape.shape)


def multiply_into(target: Tensor, factors: Factors, shape: WeightShape) -> None:
    """Write the weight from its factors into `target` of any dtype, layout and device; without gradient.

    If possible, this is one matrix product with the target as its output; else blocks of rows, each rounded to the
    target's dtype once.
    """
    target = target.detach()
    left, right = (f.detach().to(target.device) for f in (factors.left, factors.right))
    if shape.is_transposed:
        left, right = right.T.contiguous(), left.T  # twice as fast for a long left factor: it is read along its rows
    heights = shape.rows[1]
    is_plain = heights == 1
    if target.dtype == left.dtype and target.is_contiguous():
        if not is_plain and left.shape[1] * heights <= _MAX_TERMS:
            left, right = left.reshape(shape.rows[0], -1), _spread(right, shape)
            is_plain = True
        if is_plain:
            torch.mm(left, right, out=target.view(len(left), -1))
            return
    whole = target if target.is_contiguous() else torch.empty_like(target, memory_format=torch.contiguous_format)
    by_unit = whole.view(-1, right.shape[1]) if is_plain else whole.view(shape.rows[0], shape.columns[0], heights, -1)
    units = max(1, _MAX_BLOCK // (heights * right.shape[1]))
    for start in range(0, len(by_unit), units):
        block = left[start * heights : (start + units) * heights] @ right
        by_unit[start : start + units] = block if is_plain else _unfold(block, shape)
    if whole is not target:
        target.copy_(whole)


def _unfold(block: Tensor, shape: WeightShape) -> Tensor:
    return rearrange(block, "(o y) (i x) -> o i y x", y=shape.rows[1], x=shape.columns[1])


def _spread(right: Float[Tensor, "r n"], shape: WeightShape) -> Float[Tensor, "yr iyx"]:
    """The right factor once for every kernel height, 0 elsewhere, for a product (o, y r) @ (y r, i y x) -> (o, i y x).

    The product has its numbers in the right order, so that they need not be moved in runs of a kernel's width.
    """
    (_, heights), (units, widths) = shape.rows, shape.columns
    spread = right.new_zeros(heights, len(right), units, heights, widths)
    spread.diagonal(dim1=0, dim2=3).copy_(right.view(len(right), units, widths)[..., None])
    return spread.view(heights * len(right), -1)


class _Axis:
    """The features (n, h) of one axis."""

    def __init__(self, features: Tensor, *, is_shared: bool) -> None:
        self.features, self._is_shared = features, is_shared
        self._products: Tensor | None = None

    def gram(self, mix: Float[Tensor, "r h"], factor: Float[Tensor, "r n"]) -> Float[Tensor, "r r"]:
        """factor @ factor.T for factor = mix @ features.T; for long axes from products that all tensors share."""
        if not self._is_shared or len(self.features) < 6 * len(mix):
            return factor @ factor.T
        if self._products is None:
            self._products = self.features.T @ self.features
        return mix @ self._products @ mix.T


class _Kept:
    """Cache of axes by their sizes, for all tensors that have them; very long ones are not kept."""

    def __init__(self, features: AxisFeatures, *, max_rows: int = 8192) -> None:
        self._features, self._max_rows = features, max_rows
        self._found: dict[tuple[int, int], _Axis] = {}

    def __call__(self, sizes: tuple[int, int]) -> _Axis:
        if sizes in self._found:
            return self._found[sizes]
        is_kept = math.prod(sizes) <= self._max_rows
        axis = _Axis(self._features(*sizes), is_shared=is_kept)
        if is_kept:
            self._found[sizes] = axis
        return axis
