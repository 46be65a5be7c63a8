"""Windows: a trunk of any depth, layer by layer, as chunk tokens that are read and written a few at a time.

D2NWG's layer-wise vectorisation (Soro et al. 2025, arXiv:2402.18153, section 3.1): every layer is flattened and cut
into chunks of one width. A layer is the tensors of one module; its last token is padded. A window is a run of
consecutive tokens, read from a state or written into one while the others are not in memory. Besides its numbers, a
token has a place, with the same meaning for networks of any depth: the depth of its layer, the row and column at which
it starts, and the layer's shape.

Shapes: n tokens of a network, k of a window, d = token_dim, p = PLACE_DIM.
"""

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weightgen.errors import BadOption, UnsupportedTask
from weightgen.layers.transformer import embed_scalar
from weightgen.spec import State, StateSpec, TensorSpec
from weightgen.target.trunk import learnt_names

PLACE_DIM = 128
_DEPTH_DIM, _ROW_DIM, _COLUMN_DIM = 48, 48, 24
_LENGTH = 64
"""Unit in which rows and columns are counted."""

Statistics = Mapping[str, Sequence[tuple[float, float]]]
"""Kind of layer -> mean and standard deviation of each of its tensors."""


@dataclass(frozen=True, slots=True)
class Layer:
    """The tensors of one module and their tokens."""

    tensors: tuple[TensorSpec, ...]
    first: int
    """Index of its first token."""
    num_tokens: int
    depth: float
    """0 for the first layer of the trunk, 1 for the last."""
    joins: tuple[float, float]
    """Whether several layers make its units, and the units that it reads: 1 or 0 each."""

    @property
    def kind(self) -> str:
        """Its tensors' shapes: `16x16x3x3`, or `16+16` for the weights and biases of a norm."""
        return kind_of(self.tensors)

    @property
    def numel(self) -> int:
        return sum(t.numel for t in self.tensors)


@dataclass(frozen=True, slots=True)
class Windows:
    """The tokens of the trunks of one spec, by index."""

    layers: tuple[Layer, ...]
    kinds: tuple[str, ...]
    """All kinds of layers that have statistics, in order."""
    statistics: Statistics
    token_dim: int

    @property
    def num_tokens(self) -> int:
        return self.layers[-1].first + self.layers[-1].num_tokens

    def cut(self, context: int) -> Iterator[range]:
        """All tokens in order, `context` at a time; the last window may be shorter."""
        for first in range(0, self.num_tokens, context):
            yield range(first, min(first + context, self.num_tokens))

    def read(self, trunk: Mapping[str, Tensor], window: range) -> Float[Tensor, "k d"]:
        """The tokens (k, d) of a window of a trunk; every tensor minus its kind's mean, over its kind's deviation."""
        tokens = torch.zeros(len(window), self.token_dim)
        for layer, first, stop in self._parts(window):
            row = tokens[first - window.start : stop - window.start].view(-1)
            for t, source, target, (mean, deviation) in self._pieces(layer, first, stop):
                row[target] = (trunk[t.name].detach().reshape(-1)[source] - mean) / deviation
        return tokens

    def write(self, tokens: Float[Tensor, "k d"], window: range, *, out: State) -> None:
        """Write the tokens of a window to their places in a trunk's tensors."""
        for layer, first, stop in self._parts(window):
            row = tokens[first - window.start : stop - window.start].reshape(-1)
            for t, source, target, (mean, deviation) in self._pieces(layer, first, stop):
                out[t.name].view(-1)[source] = row[target] * deviation + mean

    def allocate(self) -> State:
        """A trunk of zeros to write into."""
        return {t.name: torch.zeros(t.shape) for layer in self.layers for t in layer.tensors}

    def assemble(self, tokens: Float[Tensor, "n d"]) -> State:
        """The trunk from all its tokens (n, d); differentiable."""
        trunk: State = {}
        for layer in self.layers:
            row = tokens[layer.first : layer.first + layer.num_tokens].flatten()
            parts = row[: layer.numel].split([t.numel for t in layer.tensors])
            for t, part, (mean, deviation) in zip(layer.tensors, parts, self.statistics[layer.kind], strict=True):
                trunk[t.name] = part.view(t.shape) * deviation + mean
        return trunk

    def mask(self, window: range) -> Bool[Tensor, "k d"]:
        """True where a token holds a number, False where it is padding."""
        mask = torch.zeros(len(window), self.token_dim, dtype=torch.bool)
        for layer, first, stop in self._parts(window):
            held = layer.numel - (first - layer.first) * self.token_dim
            mask[first - window.start : stop - window.start].view(-1)[:held] = True
        return mask

    def kind_indices(self, window: range) -> Int[Tensor, " k"]:
        """Index in `kinds` of the layer of each token, (k,)."""
        found = [self.kinds.index(layer.kind) for layer, a, b in self._parts(window) for _ in range(a, b)]
        return torch.tensor(found)

    def places(self, window: range) -> Float[Tensor, "k p"]:
        """The place of each token of a window, as numbers of order 1, (k, p)."""
        rows: list[tuple[float, ...]] = []
        for layer, first, stop in self._parts(window):
            shape = list(layer.tensors[0].shape)
            kernel = math.prod(shape[2:])
            width = math.prod(shape[1:]) if len(shape) > 1 else layer.numel
            inputs = shape[1] if len(shape) > 1 else 0
            sizes = (math.log2(shape[0]) / 8, math.log2(1 + inputs) / 8, kernel / 9, float(len(shape) == 1))
            for token in range(first, stop):
                row, column = divmod((token - layer.first) * self.token_dim, width)
                rows.append((layer.depth, row / _LENGTH, column / kernel / _LENGTH, *layer.joins, *sizes))
        table = torch.tensor(rows)
        waves = [
            embed_scalar(table[:, i], dim, period=100.0) for i, dim in enumerate((_DEPTH_DIM, _ROW_DIM, _COLUMN_DIM))
        ]
        return torch.cat([*waves, table[:, 1:2], table[:, 3:], table[:, :1]], 1)

    def _parts(self, window: range) -> Iterator[tuple[Layer, int, int]]:
        """The layers of a window, each with its tokens in the window: the first, and one past the last."""
        place = bisect_right(self.layers, window.start, key=lambda layer: layer.first) - 1
        while place < len(self.layers) and self.layers[place].first < window.stop:
            layer = self.layers[place]
            yield layer, max(layer.first, window.start), min(layer.first + layer.num_tokens, window.stop)
            place += 1

    def _pieces(
        self, layer: Layer, first: int, stop: int
    ) -> Iterator[tuple[TensorSpec, slice, slice, tuple[float, float]]]:
        """Tensors in tokens `first` .. `stop` of a layer: tensor, slice of it, slice of the tokens, statistics."""
        begin, end = (first - layer.first) * self.token_dim, (stop - layer.first) * self.token_dim
        offset = 0
        for t, statistics in zip(layer.tensors, self.statistics[layer.kind], strict=True):
            a, b = max(begin, offset), min(end, offset + t.numel)
            if a < b:
                yield t, slice(a - offset, b - offset), slice(a - begin, b - begin), (statistics[0], statistics[1])
            offset += t.numel


def split_windows(spec: StateSpec, statistics: Statistics, *, token_dim: int) -> Windows:
    """The windows of the trunks of a spec; UnsupportedTask for a kind of layer without statistics."""
    if token_dim < 1:
        raise BadOption(f"token_dim is {token_dim}, expected 1 or more")
    modules = list_layers(spec)
    unknown = sorted({kind_of(tensors) for tensors in modules} - set(statistics))
    if unknown or not modules:
        raise UnsupportedTask(
            f"{spec.arch!r} has layers of {', '.join(unknown) or 'no kind'}; known are {', '.join(statistics)}"
        )
    makers = [t.axes[0] for tensors in modules for t in tensors if len(t.shape) > 1]
    layers: list[Layer] = []
    first = 0
    for i, tensors in enumerate(modules):
        count = -(-sum(t.numel for t in tensors) // token_dim)
        axes = tensors[0].axes[:2]
        joins = [float(makers.count(axis) > 1) for axis in axes] + [0.0] * (2 - len(axes))
        layers.append(Layer(tensors, first, count, i / max(1, len(modules) - 1), (joins[0], joins[1])))
        first += count
    return Windows(tuple(layers), tuple(statistics), statistics, token_dim)


def measure_statistics(
    trunks: Sequence[tuple[StateSpec, Mapping[str, Tensor]]],
) -> dict[str, list[tuple[float, float]]]:
    """Mean and standard deviation of every tensor of every kind of layer, over networks that may differ in depth."""
    found: dict[str, list[list[Tensor]]] = {}
    for spec, trunk in trunks:
        for tensors in list_layers(spec):
            values = found.setdefault(kind_of(tensors), [[] for _ in tensors])
            for t, seen in zip(tensors, values, strict=True):
                seen.append(trunk[t.name].flatten())
    statistics: dict[str, list[tuple[float, float]]] = {}
    for kind, values in found.items():
        flat = [torch.cat(seen) for seen in values]
        # The mean of weights is taken as zero; that of norms is not.
        means = [float(v.mean()) if len(flat) > 1 else 0.0 for v in flat]
        statistics[kind] = [
            (m, max(1e-4, float((v - m).square().mean().sqrt()))) for m, v in zip(means, flat, strict=True)
        ]
    return statistics


def list_layers(spec: StateSpec) -> list[tuple[TensorSpec, ...]]:
    """The generated tensors of the trunk, module by module."""
    kept = [spec.by_name[name] for name in learnt_names(spec)]
    return [tuple(group) for _, group in groupby(kept, key=lambda t: t.name.rpartition(".")[0])]


def kind_of(tensors: Sequence[TensorSpec]) -> str:
    return "+".join("x".join(map(str, t.shape)) for t in tensors)
