"""Canonical form of a state: the same function with a fixed order and scale of its units.

`align` is weight matching, Ainsworth et al. 2022, "Git Re-Basin" (arXiv:2209.04836), algorithm 1: coordinate descent
over the hidden words of the spec, each step a linear assignment. `balance` equalises the norms before and behind every
ReLU unit, and normalises layers before a BatchNorm, whose scale has no effect.

Legend: n units of a hidden word; P their permutation; tensors are reshaped to one dimension per word of their axes.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from weightgen.errors import BadOption, SpecMismatch, UnknownName
from weightgen.spec import State, StateSpec, TensorSpec

MAX_SWEEPS = 1000
"""Limit of passes over all words; descent stops long before, when nothing improves."""


def canonicalize(
    state: Mapping[str, Tensor], spec: StateSpec, *, reference: Mapping[str, Tensor], scalable: Collection[str]
) -> State:
    """The same function after balancing, with its hidden units in the order that fits `reference` best.

    The reference should be balanced itself, for instance the balanced first network of a zoo.
    """
    return align(balance(state, spec, scalable=scalable), reference, spec)


def align(
    state: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    spec: StateSpec,
    *,
    compared: Collection[str] | None = None,
) -> State:
    """The same function with its hidden units reordered to fit `reference`; see `permutation_of`."""
    return spec.permute(state, permutation_of(state, reference, spec, compared=compared))


def permutation_of(
    state: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    spec: StateSpec,
    *,
    compared: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """The permutation of every hidden word, each (n,), that brings `state` closest to `reference`.

    Maximises the sum over tensors of <reference, permuted state>, each tensor at unit mean square, so that BatchNorm's
    variances or a layer with large weights do not decide alone. The result is a local optimum, the same one every
    time, and the true one if `state` is a reordered `reference`. With `compared`, only these tensors count, and the
    reference needs no others: networks with different heads are matched on their trunks.
    """
    spec.check(state)
    if compared is None:
        spec.check(reference)
    else:
        _check_compared(reference, spec, compared)
    terms = _matching_terms(state, reference, spec, compared)
    best = max((_descend(start, terms) for start in _starts(spec, terms)), key=lambda found: found[0])
    return {word: torch.from_numpy(order) for word, order in best[1].items()}


_Orders = dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class _Term:
    """One tensor's term of the sum: reference and state, one dimension per word, at unit mean square."""

    words: tuple[str, ...]
    """Name of each dimension's word; empty if the dimension is fixed."""
    reference: np.ndarray
    state: np.ndarray
    rows: dict[int, np.ndarray] = field(default_factory=dict)
    """Dimension -> the reference as (n, rest)."""

    def similarity(self, dim: int, orders: _Orders, *, sort: tuple[int, ...] = ()) -> np.ndarray:
        """<unit i of the reference, unit j of the state> (n, n), with the other dimensions in their orders.

        Dimensions in `sort` have no order yet: both sides are sorted along them, so that no order is needed.
        """
        state = self.state
        for i, word in enumerate(self.words):
            if word and i != dim and i not in sort:
                state = state.take(orders[word], axis=i)
        if sort:
            reference = self.reference
            for i in sort:
                state, reference = np.sort(state, axis=i), np.sort(reference, axis=i)
            return _rows(reference, dim) @ _rows(state, dim).T
        if dim not in self.rows:
            self.rows[dim] = _rows(self.reference, dim)
        return self.rows[dim] @ _rows(state, dim).T

    def agreement(self, orders: _Orders) -> float:
        """<reference, permuted state>."""
        state = self.state
        for i, word in enumerate(self.words):
            if word:
                state = state.take(orders[word], axis=i)
        return float(np.vdot(self.reference, state))


def _rows(array: np.ndarray, dim: int) -> np.ndarray:
    return np.moveaxis(array, dim, 0).reshape(array.shape[dim], -1)


def _matching_terms(
    state: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    spec: StateSpec,
    compared: Collection[str] | None,
) -> dict[str, list[tuple[_Term, int]]]:
    """Hidden word -> the terms it occurs in, each with the word's dimension; an empty list for a word in no term."""
    occurrences: dict[str, list[tuple[_Term, int]]] = {word: [] for word in spec.hidden}
    for t in spec.generated:
        words = tuple(w.name if w.is_hidden else "" for axis in t.axes for w in axis)
        if not any(words) or (compared is not None and t.name not in compared):
            continue
        term = _Term(words, _unit_mean_square(reference[t.name], t), _unit_mean_square(state[t.name], t))
        for dim, word in enumerate(words):
            if word:
                occurrences[word].append((term, dim))
    return occurrences


def _unit_mean_square(tensor: Tensor, t: TensorSpec) -> np.ndarray:
    values = _float64(tensor, t)
    if t.name.endswith("running_var"):
        values = np.sqrt(np.abs(values))  # variances span decades: one large channel would decide alone
    size = np.sqrt(np.mean(values**2))
    return values / size if size > 0 else values


def _float64(tensor: Tensor, t: TensorSpec) -> np.ndarray:
    """The tensor with one dimension per word."""
    values = tensor.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise SpecMismatch(f"{t.name!r} holds NaN or infinite values; expected finite numbers")
    return values.reshape([w.size for axis in t.axes for w in axis])


def _starts(spec: StateSpec, terms: Mapping[str, list[tuple[_Term, int]]]) -> Iterator[_Orders]:
    """Orders to start descent from: the given one, and one that is matched word by word.

    The second one matches a word only on tensors whose other words are matched already. From the given order alone,
    unmatched neighbours outweigh a small first layer, and descent stops at a poor optimum. A word without such a tensor
    (heads and their channels in attention, which share every tensor) is matched on sorted values.
    """
    identity = {word: np.arange(n) for word, n in spec.hidden.items()}
    yield identity
    orders = dict(identity)
    settled: set[str] = set()
    for word, n in spec.hidden.items():
        open_dims = [
            (term, dim, tuple(i for i, w in enumerate(term.words) if w and i != dim and w not in settled))
            for term, dim in terms[word]
        ]
        if any(not sort and term.state.size > n for term, _, sort in open_dims):
            open_dims = [entry for entry in open_dims if not entry[2]]
        similarity = sum((t.similarity(d, orders, sort=sort) for t, d, sort in open_dims), np.zeros((n, n)))
        orders[word] = linear_sum_assignment(similarity, maximize=True)[1]
        settled.add(word)
    yield orders


def _descend(orders: _Orders, terms: Mapping[str, list[tuple[_Term, int]]]) -> tuple[float, _Orders]:
    """Agreement and orders after coordinate descent; every step raises the agreement."""
    orders = dict(orders)
    stale = dict.fromkeys(terms)  # words whose neighbours have moved since their last step
    for _ in range(MAX_SWEEPS):
        for word in [w for w in terms if w in stale]:
            del stale[word]
            candidate = _improve(word, orders, terms[word])
            if candidate is not None:
                orders[word] = candidate
                stale |= {w: None for term, _ in terms[word] for w in term.words if w and w != word}
        if not stale:
            break
    votes = {id(term): term for occurrences in terms.values() for term, _ in occurrences}
    return sum(term.agreement(orders) for term in votes.values()), orders


def _improve(word: str, orders: _Orders, occurrences: list[tuple[_Term, int]]) -> np.ndarray | None:
    """A better order of one word, with all others fixed; None if there is none."""
    if not occurrences:
        return None
    similarity = sum(term.similarity(dim, orders) for term, dim in occurrences)
    candidate = linear_sum_assignment(similarity, maximize=True)[1]
    units = np.arange(len(candidate))
    gain = float(np.sum(similarity[units, candidate] - similarity[units, orders[word]]))  # pyright: ignore
    if any(term.words.count(word) > 1 for term, _ in occurrences):  # a square matrix: not linear in its own word
        votes = {id(term): term for term, _ in occurrences}.values()
        moved = orders | {word: candidate}
        gain = sum(term.agreement(moved) - term.agreement(orders) for term in votes)
    # A smaller gain is rounding: two equal orders would alternate for ever.
    return candidate if gain > 1e-9 * float(np.abs(similarity).sum()) / len(units) else None


def _check_compared(reference: Mapping[str, Tensor], spec: StateSpec, compared: Collection[str]) -> None:
    for name in compared:
        if name not in spec.by_name:
            raise UnknownName(f"tensor of {spec.arch!r}", name, spec.by_name)
        if name not in reference:
            raise SpecMismatch(f"the reference for {spec.arch!r} has no {name!r}, which was to be compared")
        if tuple(reference[name].shape) != spec.by_name[name].shape:
            raise SpecMismatch(
                f"{name!r} of the reference: expected shape {list(spec.by_name[name].shape)}, "
                f"got {list(reference[name].shape)}"
            )


def balance(
    state: Mapping[str, Tensor],
    spec: StateSpec,
    *,
    scalable: Collection[str],
    norm_eps: float = 1e-5,
    tolerance: float = 1e-6,
) -> State:
    """The same function at its canonical scale: for every unit of `scalable` words, the weights that make it and those
    that read it have equal norms; every row before a BatchNorm has norm 1.

    `scalable` names the hidden words whose units may be multiplied by any positive number that their readers undo:
    only ReLU, max or average pooling and sums lie between. A tensor makes a unit if the word is in its first axis, and
    reads it otherwise, as in nn.Linear and nn.Conv2d. A BatchNorm (of `norm_eps`) normalises only the nearest layer
    registered before it that makes the same word. The scales are the unique optimum of a convex problem (least squared
    norm; before a BatchNorm, least log norm), so states that differ only in scale become equal. Units that no tensor
    makes or no tensor reads keep their scale.
    """
    spec.check(state)
    unknown = [word for word in scalable if word not in spec.hidden]
    if unknown:
        raise UnknownName(f"hidden axis of {spec.arch!r}", unknown[0], spec.hidden)
    norms = [norm for norm in _find_norms(spec) if norm.word in scalable]
    free = [_FreeScale.of(word, spec, norms) for word in spec.hidden if word in scalable]
    values = {t.name: _float64(state[t.name], t) for t in spec.generated}
    tables = {t.name: _Table.of(t, values[t.name]) for t in spec.generated if any(_hidden_words(t))}
    for _ in range(MAX_SWEEPS):
        moved = [_normalise(norm, tables, norm_eps) for norm in norms] + [scale.equalise(tables) for scale in free]
        if max(moved, default=0.0) < tolerance:
            break
    balanced = {name: state[name] for name in spec.by_name}
    for name, table in tables.items():
        if any(np.any(factor != 1.0) for factor in table.factors):
            scaled = torch.from_numpy(table.apply(values[name]).reshape(spec.by_name[name].shape))
            balanced[name] = scaled.to(state[name].dtype).to(state[name].device)
    return spec.share_ties(balanced)


@dataclass(frozen=True, eq=False)
class _Table:
    """Squared norms of one tensor's entries over its hidden words, and the factors found so far for each word."""

    words: tuple[str, ...]
    squares: np.ndarray
    """One dimension per word; fixed words are summed out to size 1."""
    factors: tuple[np.ndarray, ...]
    """One vector per word."""

    @classmethod
    def of(cls, t: TensorSpec, values: np.ndarray) -> "_Table":
        words = _hidden_words(t)
        fixed = tuple(i for i, w in enumerate(words) if not w)
        squares = np.sum(values**2, axis=fixed, keepdims=True)
        return cls(words, squares, tuple(np.ones(n) for n in squares.shape))

    def norms(self, word: str) -> np.ndarray:
        """Squared norm of each unit, (n,)."""
        dim = self.words.index(word)
        return self.squares.sum(axis=tuple(i for i in range(self.squares.ndim) if i != dim))

    def scale(self, word: str, factor: np.ndarray) -> None:
        dim = self.words.index(word)
        shape = [-1 if i == dim else 1 for i in range(self.squares.ndim)]
        self.squares[...] *= (factor**2).reshape(shape)
        self.factors[dim][...] *= factor

    def apply(self, values: np.ndarray) -> np.ndarray:
        for dim, factor in enumerate(self.factors):
            values = values * factor.reshape([-1 if i == dim else 1 for i in range(values.ndim)])
        return values


@dataclass(frozen=True)
class _Norm:
    """A BatchNorm, and the tensors of the layer that it normalises."""

    name: str
    word: str
    layer: tuple[str, ...]
    """Weight, and bias if it has one."""


def _find_norms(spec: StateSpec) -> list[_Norm]:
    """BatchNorms with a weight, whose only axis is one hidden word, and the layers that they normalise."""
    norms = []
    makers: dict[str, str] = {}  # hidden word -> the last tensor of two axes or more that makes it
    for t in spec.generated:
        prefix, _, part = t.name.rpartition(".")
        parts = (f"{prefix}.weight", f"{prefix}.running_mean", f"{prefix}.running_var")
        if not t.axes or len(t.axes[0]) != 1 or not t.axes[0][0].is_hidden:
            continue
        word = t.axes[0][0].name
        if len(t.axes) > 1:
            makers[word] = t.name
        elif part == "weight" and word in makers and all(p in spec.by_name for p in parts):
            layer = makers.pop(word)
            bias = layer.removesuffix("weight") + "bias"
            has_bias = layer.endswith("weight") and bias in spec.by_name
            norms.append(_Norm(prefix, word, (layer, bias) if has_bias else (layer,)))
    return norms


def _normalise(norm: _Norm, tables: Mapping[str, _Table], eps: float) -> float:
    """Scale each row of the layer to norm 1; returns the largest |log factor|.

    The statistics are scaled too. The norm's weight corrects for eps, so that g / sqrt(v + eps) keeps its proportion.
    """
    rows = np.sqrt(tables[norm.layer[0]].norms(norm.word))
    factor = np.where(rows > 0, 1 / np.where(rows > 0, rows, 1), 1.0)
    variance_table = tables[f"{norm.name}.running_var"]
    variance = np.sqrt(np.abs(variance_table.norms(norm.word)))
    for name in (*norm.layer, f"{norm.name}.running_mean"):
        tables[name].scale(norm.word, factor)
    variance_table.scale(norm.word, factor**2)
    correction = np.sqrt((factor**2 * variance + eps) / (factor**2 * (variance + eps)))
    tables[f"{norm.name}.weight"].scale(norm.word, correction)
    return float(np.abs(np.log(factor)).max())


@dataclass(frozen=True)
class _FreeScale:
    """A hidden word whose units' scale is free: the tensors that make them and those that read them."""

    word: str
    makers: tuple[str, ...]
    readers: tuple[str, ...]

    @classmethod
    def of(cls, word: str, spec: StateSpec, norms: list[_Norm]) -> "_FreeScale":
        normalised = {name for norm in norms for name in norm.layer if norm.word == word}
        makers, readers = [], []
        for t in spec.generated:
            places = [dim for dim, axis in enumerate(t.axes) for w in axis if w.name == word]
            if not places or t.name in normalised or t.name.endswith((".running_mean", ".running_var")):
                continue
            if len(places) > 1:
                raise BadOption(
                    f"{word!r} of {spec.arch!r} cannot be scaled: {t.name!r} both makes and reads it; "
                    "leave it out of `scalable`"
                )
            (readers if places[0] else makers).append(t.name)
        return cls(word, tuple(makers), tuple(readers))

    def equalise(self, tables: Mapping[str, _Table]) -> float:
        """Scale both sides of each unit to equal norms; returns the largest |log factor|."""
        made = sum((tables[name].norms(self.word) for name in self.makers), np.zeros(1))
        read = sum((tables[name].norms(self.word) for name in self.readers), np.zeros(1))
        alive = (made > 0) & (read > 0)
        factor = np.where(alive, np.where(alive, read, 1) / np.where(alive, made, 1), 1.0) ** 0.25
        for name in self.makers:
            tables[name].scale(self.word, factor)
        for name in self.readers:
            tables[name].scale(self.word, 1 / factor)
        return float(np.abs(np.log(factor)).max())


def _hidden_words(t: TensorSpec) -> tuple[str, ...]:
    """Name of each word in order; empty if it is fixed."""
    return tuple(w.name if w.is_hidden else "" for axis in t.axes for w in axis)
