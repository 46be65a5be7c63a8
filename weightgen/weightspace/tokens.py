"""TokenLayout: from states to token matrices and back, bit for bit.

Two layouts, one mechanism. A layout is a list of groups; a group is `num_rows` rows of numbers, each row cut into
tokens of `token_dim` and padded with zeros; columns of a group hold whole tensors (pieces).

neuron   One row per output unit: a row of a tensor flattened over its first axis. The vectors that describe the same
         units (bias, BatchNorm's four) are appended to the row. A vector goes to a matrix of the same module, else to
         the nearest matrix whose units have the same words. Other vectors and scalars have a row of their own.
chunk    One row: the whole state flattened in the spec's order.

Tokens follow the order of the spec, rows within a group, chunks within a row. Encoding and decoding only move
numbers, also NaN, with one strided copy per tensor. Carried integers and ties are not in the tokens; `decode`
restores them from the spec.

Shapes: n tokens, d = token_dim, b states.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from einops import repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weightgen.errors import BadOption, CorruptFile, SpecMismatch, UnknownName
from weightgen.spec import State, StateSpec, TensorSpec, describe_tensors

MAX_TOKEN_DIM = 2**20
KINDS = ("hidden row", "class row", "fixed row", "vector", "chunk")
"""Meaning of the last column of `TokenLayout.positions`: a row of a unit that may be permuted, of a class, or of a unit
that is fixed from outside; a vector or scalar without a row of a matrix; a part of the flattened state."""
_HIDDEN_ROW, _CLASS_ROW, _FIXED_ROW, _VECTOR, _CHUNK = range(len(KINDS))


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor in columns `start` .. `start + width` of a group."""

    tensor: TensorSpec
    index: int
    """Place of the tensor in the spec."""
    start: int
    width: int


@dataclass(frozen=True, slots=True)
class Group:
    """Rows of numbers with the pieces side by side; their tokens are consecutive."""

    pieces: tuple[Piece, ...]
    kind: int
    first: int
    """Index of the group's first token."""
    num_rows: int
    num_chunks: int
    """Tokens of one row."""

    @property
    def width(self) -> int:
        """Numbers in one row, without padding."""
        return self.pieces[-1].start + self.pieces[-1].width

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.num_chunks


@dataclass(frozen=True)
class TokenLayout:
    """The place of every number of a spec's generated tensors in a token matrix (n, d)."""

    spec: StateSpec
    name: str
    """Entry of LAYOUTS."""
    token_dim: int
    dtype: torch.dtype
    groups: tuple[Group, ...]

    @cached_property
    def num_tokens(self) -> int:
        return sum(g.num_tokens for g in self.groups)

    @cached_property
    def mask(self) -> Bool[Tensor, "n d"]:
        """True where a token holds a number, False where it is padding."""
        mask = torch.zeros(1, self.num_tokens, self.token_dim, dtype=torch.bool)
        for group in self.groups:
            self.rows(mask, group)[..., : group.width] = True
        return mask[0]

    @cached_property
    def positions(self) -> Int[Tensor, "n 4"]:
        """Per token: index in the spec of the (first) tensor it holds, row, chunk within the row, kind (see KINDS)."""
        return torch.cat([_group_positions(g, self.token_dim) for g in self.groups] or [torch.zeros(0, 4).long()])

    def encode(self, state: Mapping[str, Tensor], *, out: Tensor | None = None) -> Float[Tensor, "n d"]:
        """The tokens of a full state, (n, d), on its device; written into `out` if it is given.

        Give `out` in a loop over large states: allocating new memory takes longer than the copy.
        Raises SpecMismatch if the state does not fit the spec, or `out` the layout.
        """
        self.spec.check(state)
        stacked = {t.name: state[t.name][None] for t in self.spec.generated}
        return self._encode(stacked, 1, None if out is None else out[None])[0]

    def encode_batch(self, stacked: Mapping[str, Tensor], *, out: Tensor | None = None) -> Float[Tensor, "b n d"]:
        """The tokens (b, n, d) of a stacked state: every tensor, also a carried one, has a leading axis of b."""
        return self._encode(stacked, _check_stacked(self.spec, stacked), out)

    def decode(self, tokens: Float[Tensor, "n d"], *, carried: Mapping[str, Tensor] | None = None) -> State:
        """The full state of tokens (n, d), in new memory.

        Carried tensors have the spec's values, or those of the state `carried`: tokens do not hold BatchNorm's count of
        batches, which training changes.
        """
        self._check_tokens(tokens[None])
        generated = {name: tensor[0] for name, tensor in self._decode(tokens[None]).items()}
        state = self.spec.complete(generated)
        for t in self.spec.tensors:
            if t.carried is not None:
                state[t.name] = (carried[t.name].clone() if carried else state[t.name]).to(tokens.device)
        return state

    def decode_batch(self, tokens: Float[Tensor, "b n d"], *, carried: Mapping[str, Tensor] | None = None) -> State:
        """The stacked state of tokens (b, n, d): every tensor has a leading axis of b, also those in `carried`."""
        self._check_tokens(tokens)
        generated = self._decode(tokens)
        full = self.spec.complete(generated)
        for t in self.spec.tensors:
            if t.carried is not None:
                value = carried[t.name].clone() if carried else repeat(full[t.name], "... -> b ...", b=len(tokens))
                full[t.name] = value.contiguous().to(tokens.device)
        return full

    def rows(self, tokens: Tensor, group: Group) -> Tensor:
        """The rows (b, num_rows, num_chunks * d) of a group, padding included: a view of tokens (b, n, d)."""
        block = tokens.narrow(1, group.first, group.num_tokens)
        # `view`, not a reshape: a write to the rows must change the tokens.
        return block.view(len(tokens), group.num_rows, group.num_chunks * self.token_dim)

    def to_json(self) -> dict[str, Any]:
        """JSON values that `layout_from_json` reads back, given the spec."""
        return {"name": self.name, "token_dim": self.token_dim, "dtype": str(self.dtype).removeprefix("torch.")}

    def _encode(self, stacked: Mapping[str, Tensor], num_states: int, out: Tensor | None) -> Tensor:
        shape = (num_states, self.num_tokens, self.token_dim)
        if out is None:
            device = stacked[self.spec.generated[0].name].device if self.spec.generated else None
            out = torch.empty(shape, dtype=self.dtype, device=device)
        elif out.shape != shape or out.dtype != self.dtype or not out.is_contiguous():
            raise SpecMismatch(f"out is {_describe(out)}, expected contiguous {_name(self.dtype)} {list(shape)}")
        for group in self.groups:
            rows = self.rows(out, group)
            for piece in group.pieces:
                source = stacked[piece.tensor.name].reshape(num_states, group.num_rows, piece.width)
                rows.narrow(2, piece.start, piece.width).copy_(source)
            if rows.shape[2] > group.width:
                rows[..., group.width :].zero_()
        return out

    def _decode(self, tokens: Tensor) -> State:
        state = {
            t.name: torch.empty((len(tokens), *t.shape), dtype=t.torch_dtype, device=tokens.device)
            for t in self.spec.generated
            if t.numel == 0
        }
        for group in self.groups:
            rows = self.rows(tokens, group)
            for piece in group.pieces:
                values = rows.narrow(2, piece.start, piece.width).to(
                    piece.tensor.torch_dtype, copy=True, memory_format=torch.contiguous_format
                )
                state[piece.tensor.name] = values.view(len(tokens), *piece.tensor.shape)
        return state

    def _check_tokens(self, tokens: Tensor) -> None:
        expected = (self.num_tokens, self.token_dim)
        if tokens.ndim != 3 or tuple(tokens.shape[1:]) != expected or tokens.dtype != self.dtype:
            raise SpecMismatch(
                f"tokens of {self.spec.arch!r} are {_name(tokens.dtype)} {list(tokens.shape[1:])}, "
                f"expected {_name(self.dtype)} {list(expected)}"
            )


def neuron_layout(spec: StateSpec, token_dim: int, *, dtype: torch.dtype = torch.float32) -> TokenLayout:
    """A layout with one row per output unit, which ends with the vectors that belong to the unit.

    Raises SpecMismatch if `dtype` cannot hold every number of the spec exactly, BadOption for a bad `token_dim`.
    """
    indexed = [(i, t) for i, t in enumerate(spec.tensors) if t.is_generated and t.numel > 0]
    matrices = [(i, t) for i, t in indexed if len(t.shape) >= 2]
    riders: dict[int, list[tuple[int, TensorSpec]]] = {}
    alone = []
    for i, t in indexed:
        if len(t.shape) < 2:
            owner = _find_owner(i, t, matrices)
            alone.append((i, t)) if owner is None else riders.setdefault(owner, []).append((i, t))
    planned = [(i, [(i, t), *riders.get(i, [])], t.shape[0], _row_kind(t)) for i, t in matrices]
    planned += [(i, [(i, t)], 1, _VECTOR) for i, t in alone]
    planned.sort(key=lambda plan: plan[0])
    return _lay_out(spec, "neuron", token_dim, dtype, [plan[1:] for plan in planned])


def chunk_layout(spec: StateSpec, token_dim: int, *, dtype: torch.dtype = torch.float32) -> TokenLayout:
    """A layout of the whole state, flattened in the spec's order and cut into tokens; only the last one is padded.

    Raises SpecMismatch if `dtype` cannot hold every number of the spec exactly, BadOption for a bad `token_dim`.
    """
    indexed = [(i, t) for i, t in enumerate(spec.tensors) if t.is_generated and t.numel > 0]
    return _lay_out(spec, "chunk", token_dim, dtype, [(indexed, 1, _CHUNK)] if indexed else [])


LAYOUTS = {"neuron": neuron_layout, "chunk": chunk_layout}


def build_layout(name: str, spec: StateSpec, *, token_dim: int, dtype: torch.dtype = torch.float32) -> TokenLayout:
    """The layout that LAYOUTS has under `name`; raises UnknownName if there is none."""
    if name not in LAYOUTS:
        raise UnknownName("token layout", name, LAYOUTS)
    return LAYOUTS[name](spec, token_dim, dtype=dtype)


def layout_from_json(spec: StateSpec, data: Mapping[str, Any]) -> TokenLayout:
    """The layout that `TokenLayout.to_json` wrote for this spec."""
    dtype = getattr(torch, str(data.get("dtype")), None)
    if not isinstance(dtype, torch.dtype) or not isinstance(data.get("token_dim"), int):
        raise CorruptFile(f"a token layout needs name, token_dim and dtype; got {sorted(data)}")
    return build_layout(data["name"], spec, token_dim=data["token_dim"], dtype=dtype)


def bare_spec(state: Mapping[str, Tensor], arch: str) -> StateSpec:
    """The spec of a state without declared axes: every axis is fixed, tensors are in the state's own order.

    Tensors that share memory are tied; integers and booleans are carried with their values. Floating point tensors may
    be on the meta device.
    """
    for name, tensor in state.items():
        if tensor.is_complex():
            raise SpecMismatch(f"{name!r} is {_describe(tensor)}; complex tensors have no spec")
    return StateSpec(arch=arch, tensors=describe_tensors(state))


def stack_states(states: list[State]) -> State:
    """States of one spec stacked on a new leading axis; raises SpecMismatch if their tensors or shapes differ."""
    first = states[0]
    for state in states[1:]:
        if state.keys() != first.keys() or any(state[n].shape != t.shape for n, t in first.items()):
            raise SpecMismatch("the states to stack have different tensors; stack states of one spec only")
    return {name: torch.stack([state[name] for state in states]) for name in first}


def unstack_state(stacked: Mapping[str, Tensor]) -> list[State]:
    """The states of a stacked state: views along its leading axis."""
    names = list(stacked)
    return [dict(zip(names, row, strict=True)) for row in zip(*(stacked[n].unbind() for n in names), strict=True)]


def _lay_out(
    spec: StateSpec,
    name: str,
    token_dim: int,
    dtype: torch.dtype,
    planned: list[tuple[list[tuple[int, TensorSpec]], int, int]],
) -> TokenLayout:
    """A layout of planned groups: (tensors with their index in the spec, number of rows, kind)."""
    if not 1 <= token_dim <= MAX_TOKEN_DIM:
        raise BadOption(f"token_dim is {token_dim}, expected 1 to {MAX_TOKEN_DIM}")
    inexact = [t.name for t in spec.generated if not _is_exact(t.torch_dtype, dtype)]
    if inexact:
        first = spec.by_name[inexact[0]]
        raise SpecMismatch(
            f"{_name(dtype)} tokens cannot hold {first.dtype} numbers exactly ({first.name!r}"
            + (f" and {len(inexact) - 1} more tensors" if len(inexact) > 1 else "")
            + f"); ask for dtype=torch.{'float64' if first.dtype == 'float64' else 'float32'}"
        )
    groups: list[Group] = []
    first_token = 0
    for tensors, num_rows, kind in planned:
        pieces: list[Piece] = []
        start = 0
        for index, t in tensors:
            width = t.numel // num_rows
            pieces.append(Piece(t, index, start, width))
            start += width
        groups.append(Group(tuple(pieces), kind, first_token, num_rows, -(-start // token_dim)))
        first_token += groups[-1].num_tokens
    return TokenLayout(spec, name, token_dim, dtype, tuple(groups))


def _find_owner(index: int, vector: TensorSpec, matrices: list[tuple[int, TensorSpec]]) -> int | None:
    """Index of the matrix whose rows are the units that a vector describes."""
    if len(vector.shape) != 1:
        return None
    module = vector.name.rpartition(".")[0]
    same_units = [(i, t) for i, t in matrices if t.axes[0] == vector.axes[0]]
    near = [i for i, t in same_units if t.name.rpartition(".")[0] == module]
    if not near and any(word.name for word in vector.axes[0]):
        # Equal sizes without a name prove nothing: the 16 units of one layer are not those of another.
        near = [i for i, _ in same_units]
    return min(near, key=lambda i: (i > index, abs(i - index)), default=None)


def _row_kind(matrix: TensorSpec) -> int:
    if any(word.is_hidden for word in matrix.axes[0]):
        return _HIDDEN_ROW
    return _CLASS_ROW if any(word.name == "CLASSES" for word in matrix.axes[0]) else _FIXED_ROW


def _group_positions(group: Group, token_dim: int) -> Tensor:
    columns = torch.arange(group.num_chunks) * token_dim
    starts = torch.tensor([piece.start for piece in group.pieces])
    holder = torch.tensor([piece.index for piece in group.pieces])[torch.searchsorted(starts, columns, right=True) - 1]
    if group.kind != _CHUNK:
        holder = torch.full_like(holder, group.pieces[0].index)  # an appended vector belongs to its matrix's row
    return torch.stack(
        [
            repeat(holder, "c -> (r c)", r=group.num_rows),
            repeat(torch.arange(group.num_rows), "r -> (r c)", c=group.num_chunks),
            repeat(torch.arange(group.num_chunks), "c -> (r c)", r=group.num_rows),
            torch.full((group.num_tokens,), group.kind),
        ],
        dim=1,
    )


def _check_stacked(spec: StateSpec, stacked: Mapping[str, Tensor]) -> int:
    """The number of stacked states, which must be the same for every tensor."""
    sizes = {t.shape[0] if t.ndim else None for t in stacked.values()}
    if len(sizes) != 1 or None in sizes:
        shown = sorted("none" if size is None else str(size) for size in sizes)
        raise SpecMismatch(f"a stacked state of {spec.arch!r} needs one leading size, got {', '.join(shown) or 'none'}")
    spec.check({n: torch.empty(t.shape[1:], dtype=t.dtype, device="meta") for n, t in stacked.items()})
    return int(sizes.pop() or 0)


def _is_exact(source: torch.dtype, target: torch.dtype) -> bool:
    """Whether `target` can hold every number of the floating point type `source`."""
    if source == target:
        return True
    if not target.is_floating_point:
        return False
    s, t = torch.finfo(source), torch.finfo(target)
    return t.eps <= s.eps and t.max >= s.max and t.tiny <= s.tiny


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _describe(tensor: Tensor) -> str:
    return f"{_name(tensor.dtype)} {list(tensor.shape)}"
