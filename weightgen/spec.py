"""StateSpec: the tensors of a target network, in order, and the meaning of each of their axes.

Axes are written beside the module that they describe, in einops-like words:

    AXES = {
        "conv2.weight": "c2 c1 3 3",       # lowercase: hidden; units may be permuted, together in all its places
        "conv1.weight": "c1 RGB 3 3",      # UPPERCASE or a number: fixed from outside
        "fc.weight": "CLASSES (c2 4 4)",   # (..): flattened into one axis, first word slowest
        "qkv.weight": "(3 h=4 k) d",       # name=size if no tensor alone gives the size
        "bn.num_batches_tracked": "",      # a scalar
    }

A state is a plain dict[str, Tensor]; it is valid if `spec.check(state)` passes. Its order is the spec's, never the
caller's.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from weightgen.errors import SpecMismatch, UnknownName

State = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Word:
    """One factor of an axis. An anonymous number has an empty name."""

    name: str
    size: int

    @property
    def is_hidden(self) -> bool:
        return self.name != "" and self.name == self.name.lower()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape, dtype and axes of one tensor of a state."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    axes: tuple[tuple[Word, ...], ...]
    tied_to: str | None = None
    """Name of the earlier tensor this one shares its storage with."""
    carried: tuple[int, ...] | None = None
    """Flattened values of an integer or boolean tensor, which are carried along and never generated."""

    @property
    def is_generated(self) -> bool:
        return self.tied_to is None and self.carried is None

    @property
    def numel(self) -> int:
        return torch.Size(self.shape).numel()

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)


@dataclass(frozen=True)
class StateSpec:
    """The tensors of one architecture at one configuration, in order."""

    arch: str
    tensors: tuple[TensorSpec, ...]
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """Keyword arguments that build the architecture, JSON values only."""

    @classmethod
    def from_module(
        cls, module: nn.Module, axes: Mapping[str, str], *, arch: str, config: Mapping[str, Any] | None = None
    ) -> "StateSpec":
        """The spec of a module's state_dict. Tensors that `axes` does not name are fixed on every axis.

        Raises SpecMismatch if `axes` names tensors that do not exist, or does not fit a shape.
        """
        tensors = module.state_dict(keep_vars=True)
        unknown = sorted(axes.keys() - tensors.keys())
        if unknown:
            raise SpecMismatch(f"AXES of {arch!r} name tensors the module does not have: {', '.join(unknown)}")
        parsed = {name: _parse_axes(name, axes.get(name), tuple(t.shape)) for name, t in tensors.items()}
        sizes = _infer_sizes(parsed, {name: tuple(t.shape) for name, t in tensors.items()})
        axes_of = {
            name: tuple(tuple(Word(w, sizes[w] if w else n) for w, n in axis) for axis in parsed[name])
            for name in tensors
        }
        return cls(arch=arch, tensors=describe_tensors(tensors, axes_of), config=dict(config or {}))

    @cached_property
    def by_name(self) -> dict[str, TensorSpec]:
        return {t.name: t for t in self.tensors}

    @cached_property
    def generated(self) -> tuple[TensorSpec, ...]:
        """The tensors a generator has to make: neither tied to another nor carried."""
        return tuple(t for t in self.tensors if t.is_generated)

    @cached_property
    def stored(self) -> tuple[TensorSpec, ...]:
        """The tensors that a file has to hold: those that are not tied to another."""
        return tuple(t for t in self.tensors if t.tied_to is None)

    @cached_property
    def hidden(self) -> dict[str, int]:
        """Hidden axis word -> size, in order of appearance."""
        words = (w for t in self.tensors for axis in t.axes for w in axis if w.is_hidden)
        return {w.name: w.size for w in words}

    @cached_property
    def head(self) -> tuple[str, ...]:
        """Names of the generated tensors with a CLASSES axis, in order: the class head."""
        return tuple(t.name for t in self.generated if any(w.name == "CLASSES" for a in t.axes for w in a))

    @property
    def num_parameters(self) -> int:
        """Number of values that a generator has to make."""
        return sum(t.numel for t in self.generated)

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Raise SpecMismatch, one sentence for all faults, unless `state` has just these tensors, shapes and dtypes."""
        faults = []
        missing = [t.name for t in self.tensors if t.name not in state]
        unexpected = [name for name in state if name not in self.by_name]
        if missing:
            faults.append(f"missing {_name_some(missing)}")
        if unexpected:
            faults.append(f"unexpected {_name_some(unexpected)}")
        wrong = [
            f"{t.name!r} is {_describe(state[t.name])}, expected {t.dtype} {list(t.shape)}"
            for t in self.tensors
            if t.name in state and (tuple(state[t.name].shape) != t.shape or state[t.name].dtype != t.torch_dtype)
        ]
        faults += wrong[:3] + ([f"and {len(wrong) - 3} more wrong tensors"] if len(wrong) > 3 else [])
        if faults:
            raise SpecMismatch(f"the state does not fit {self.arch!r}: " + "; ".join(faults))

    def complete(self, state: Mapping[str, Tensor]) -> State:
        """A full state in the spec's order, from the generated tensors: ties and carried tensors are restored."""
        missing = [t.name for t in self.generated if t.name not in state]
        if missing:
            raise SpecMismatch(f"the state does not fit {self.arch!r}: missing {_name_some(missing)}")
        full: State = {}
        for t in self.tensors:
            if t.carried is not None:
                full[t.name] = torch.tensor(t.carried, dtype=t.torch_dtype).reshape(t.shape)
            else:
                full[t.name] = full[t.tied_to] if t.tied_to else state[t.name]
        return full

    def share_ties(self, state: Mapping[str, Tensor]) -> State:
        """A full state in the spec's order, from the stored tensors; a tied tensor is the same object as its owner."""
        return {t.name: state[t.tied_to or t.name] for t in self.tensors}

    def restore_ties(self, state: Mapping[str, Tensor]) -> State:
        """The state plus every tied tensor that it lacks."""
        ties = {t.name: state[t.tied_to] for t in self.tensors if t.tied_to is not None and t.tied_to in state}
        return {**ties, **state}

    def permute(self, state: Mapping[str, Tensor], permutations: Mapping[str, Tensor]) -> State:
        """The same function with hidden units reordered: new unit i of a word is its old unit permutations[word][i]."""
        sizes = {w.name: w.size for t in self.tensors for axis in t.axes for w in axis if w.name}
        for word, order in permutations.items():
            if word not in sizes:
                raise UnknownName(f"axis of {self.arch!r}", word, sizes)
            if not torch.equal(order.sort().values.cpu(), torch.arange(sizes[word])):
                raise SpecMismatch(f"the permutation of {word!r} is not an order of its {sizes[word]} units")
        permuted: State = {}
        for t in self.tensors:
            # A tied tensor stays the same object as its owner: torch refuses two values for one parameter.
            permuted[t.name] = permuted[t.tied_to] if t.tied_to else _permute_tensor(state[t.name], t, permutations)
        return permuted

    def to_json(self) -> dict[str, Any]:
        """JSON values that `from_json` reads back; axes are written in their own notation."""
        return {
            "arch": self.arch,
            "config": dict(self.config),
            "tensors": [
                {
                    "name": t.name,
                    "shape": list(t.shape),
                    "dtype": t.dtype,
                    "axes": format_axes(t.axes),
                    **({"tied_to": t.tied_to} if t.tied_to else {}),
                    **({"carried": list(t.carried)} if t.carried is not None else {}),
                }
                for t in self.tensors
            ],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "StateSpec":
        parsed = [_parse_axes(t["name"], t["axes"], tuple(t["shape"])) for t in data["tensors"]]
        return cls(
            arch=data["arch"],
            config=dict(data["config"]),
            tensors=tuple(
                TensorSpec(
                    name=t["name"],
                    shape=tuple(t["shape"]),
                    dtype=t["dtype"],
                    axes=tuple(tuple(Word(w, n) for w, n in axis) for axis in axes),
                    tied_to=t.get("tied_to"),
                    carried=tuple(t["carried"]) if "carried" in t else None,
                )
                for t, axes in zip(data["tensors"], parsed, strict=True)
            ),
        )

    def digest(self) -> str:
        """sha256 of the canonical JSON, hex."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def format_axes(axes: tuple[tuple[Word, ...], ...]) -> str:
    """The notation of parsed axes, with every named size written out, so that it can be read alone."""

    def word(w: Word) -> str:
        return f"{w.name}={w.size}" if w.name else str(w.size)

    return " ".join(word(a[0]) if len(a) == 1 else "(" + " ".join(map(word, a)) + ")" for a in axes)


_TOKEN = re.compile(r"\(([^()]*)\)|([^\s()]+)")
_WORD = re.compile(r"(\d+)|([A-Za-z_][A-Za-z0-9_.]*)(?:=(\d+))?")
_Parsed = list[list[tuple[str, int]]]  # per axis, per word: (name, size or -1 when not known yet)


def _parse_axes(name: str, notation: str | None, shape: tuple[int, ...]) -> _Parsed:
    if notation is None:
        return [[("", n)] for n in shape]
    axes: _Parsed = []
    if _TOKEN.sub("", notation).strip():
        raise SpecMismatch(f"axes of {name!r}: the parentheses of {notation!r} do not match, or are nested")
    for group, single in _TOKEN.findall(notation):
        axis = []
        for text in (group or single).split():
            match = _WORD.fullmatch(text)
            if match is None:
                raise SpecMismatch(f"axes of {name!r}: cannot read the word {text!r} in {notation!r}")
            number, word, size = match.groups()
            axis.append(("", int(number)) if number else (word, int(size) if size else -1))
        axes.append(axis)
    if len(axes) != len(shape):
        raise SpecMismatch(f"axes of {name!r}: {notation!r} has {len(axes)} axes, the tensor has shape {list(shape)}")
    return axes


def _infer_sizes(parsed: dict[str, _Parsed], shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Size of every named word; if one word of an axis is unknown, its size follows by division."""
    sizes: dict[str, int] = {w: n for axes in parsed.values() for axis in axes for w, n in axis if w and n >= 0}
    pending = [(t, axis, n) for t, axes in parsed.items() for axis, n in zip(axes, shapes[t], strict=True)]
    while pending:
        waiting = []
        for tensor, axis, extent in pending:
            unknown = {w for w, n in axis if w and w not in sizes}
            known = 1
            for w, n in axis:
                known *= n if not w else sizes.get(w, 1)
            if len(unknown) > 1 or (unknown and sum(w in unknown for w, _ in axis) > 1):
                waiting.append((tensor, axis, extent))
            elif unknown and known and extent % known == 0:
                sizes[unknown.pop()] = extent // known
            elif unknown or known != extent:
                words = " ".join(w or str(n) for w, n in axis)
                raise SpecMismatch(f"axes of {tensor!r}: '{words}' stands for {known}, the axis has {extent}")
        if len(waiting) == len(pending):
            tensor, axis, _ = waiting[0]
            raise SpecMismatch(f"axes of {tensor!r}: write a size (name=size) for one of {[w for w, _ in axis if w]}")
        pending = waiting
    return sizes


def describe_tensors(
    tensors: Mapping[str, Tensor], axes: Mapping[str, tuple[tuple[Word, ...], ...]] | None = None
) -> tuple[TensorSpec, ...]:
    """The spec entries of tensors, in their order; without `axes`, every axis is fixed.

    This function decides ties and carried values. A tensor with the same memory, shape and strides as an earlier one is
    tied to it; on the meta device, only if it is the same object. Integers and booleans are carried with their values.
    """
    described: list[TensorSpec] = []
    first_with: dict[object, str] = {}
    for name, tensor in tensors.items():
        owner = first_with.setdefault(_storage_key(tensor), name)
        described.append(
            TensorSpec(
                name=name,
                shape=tuple(tensor.shape),
                dtype=str(tensor.dtype).removeprefix("torch."),
                axes=axes[name] if axes is not None else tuple((Word("", size),) for size in tensor.shape),
                tied_to=owner if owner != name else None,
                carried=None if tensor.dtype.is_floating_point else _carried_values(name, tensor),
            )
        )
    return tuple(described)


def _storage_key(tensor: Tensor) -> object:
    """Equal for tensors that share storage, shape and strides; on the meta device, for the same tensor object."""
    if tensor.device.type == "meta" or tensor.numel() == 0:
        return id(tensor)
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)


def _carried_values(name: str, tensor: Tensor) -> tuple[int, ...]:
    if tensor.is_complex() or (tensor.device.type == "meta" and tensor.numel() > 1):
        raise SpecMismatch(f"{name!r} is {_describe(tensor)} on {tensor.device}: its values cannot be carried; "
                           "expected an integer or boolean tensor on a real device")  # fmt: skip
    if tensor.device.type == "meta":
        return (0,) * tensor.numel()  # BatchNorm's num_batches_tracked, which starts at 0
    return tuple(int(v) for v in tensor.flatten().tolist())


def _permute_tensor(tensor: Tensor, spec: TensorSpec, permutations: Mapping[str, Tensor]) -> Tensor:
    for dim, axis in enumerate(spec.axes):
        moved = [(i, permutations[w.name]) for i, w in enumerate(axis) if w.name in permutations]
        if moved:
            index = torch.arange(spec.shape[dim]).reshape([w.size for w in axis])
            for i, permutation in moved:
                index = index.index_select(i, permutation)
            tensor = tensor.index_select(dim, index.flatten().to(tensor.device))
    return tensor


def _name_some(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _describe(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
