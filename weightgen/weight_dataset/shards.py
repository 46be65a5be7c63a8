"""A shard: states of one spec stacked in one safetensors file, written in any order, mapped for reading.

It has one matrix `rows.<dtype>` (states, numbers) per dtype: a state's tensors of that dtype, with carried ones and
without tied ones, flattened side by side in the spec's order. Reading many states is one gather per dtype.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from weightgen.canonical_json import encode_json
from weightgen.errors import CorruptFile
from weightgen.files.checkpoint import StateReader
from weightgen.files.state_file import DTYPES, MANIFEST_KEY, bytes_of
from weightgen.spec import State, StateSpec, TensorSpec

_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Column:
    """The place of one tensor in a row: numbers `start` .. `start + width`."""

    tensor: TensorSpec
    start: int
    width: int


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How a state of a spec is laid out in a shard's matrices."""

    spec: StateSpec
    columns: Mapping[str, tuple[Column, ...]]
    """Dtype -> columns, in the file's order: largest element size first."""

    @classmethod
    def of(cls, spec: StateSpec) -> "RowLayout":
        stored = spec.stored
        columns: dict[str, tuple[Column, ...]] = {}
        for dtype in sorted({t.dtype for t in stored}, key=lambda d: (-getattr(torch, d).itemsize, d)):
            start, of_dtype = 0, []
            for t in stored:
                if t.dtype == dtype:
                    of_dtype.append(Column(t, start, t.numel))
                    start += t.numel
            columns[dtype] = tuple(of_dtype)
        return cls(spec, columns)

    def width(self, dtype: str) -> int:
        """How many numbers of one dtype a state has."""
        last = self.columns[dtype][-1]
        return last.start + last.width

    def row_bytes(self, dtype: str) -> int:
        return self.width(dtype) * getattr(torch, dtype).itemsize

    @property
    def state_bytes(self) -> int:
        return sum(self.row_bytes(dtype) for dtype in self.columns)

    def to_stacked(self, rows: Mapping[str, Tensor]) -> State:
        """The stacked state in rows (b, numbers) by dtype: views of the rows, with ties restored."""
        found: State = {}
        for dtype, columns in self.columns.items():
            parts = rows[dtype].split([c.width for c in columns], dim=1)
            for c, part in zip(columns, parts, strict=True):
                found[c.tensor.name] = part.view(len(part), *c.tensor.shape)
        return self.spec.share_ties(found)


class ShardWriter:
    """Makes a file of the right size, then writes states into it one at a time, each tensor as it is read."""

    def __init__(self, path: Path, layout: RowLayout, num_states: int) -> None:
        self.path, self.layout = path, layout
        manifest = encode_json({"spec": layout.spec.digest()}, name=str(path)).decode()
        header: dict[str, object] = {"__metadata__": {MANIFEST_KEY: manifest}}
        end, self._begins = 0, {}
        for dtype in layout.columns:
            begin, end = end, end + layout.row_bytes(dtype) * num_states
            header[f"rows.{dtype}"] = {
                "dtype": _CODES[getattr(torch, dtype)],
                "shape": [num_states, layout.width(dtype)],
                "data_offsets": [begin, end],
            }
            self._begins[dtype] = begin
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._begins = {dtype: 8 + len(text) + begin for dtype, begin in self._begins.items()}
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.flush()
            if end and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 8 + len(text), end)  # a full disk fails now, not after an hour
            else:
                file.truncate(8 + len(text) + end)

    def write(self, position: int, read: Callable[[str], Tensor]) -> None:
        """Write a state to its place; `read` returns one of its tensors by name, and is called once for each."""
        with open(self.path, "r+b") as file:
            for dtype, columns in self.layout.columns.items():
                file.seek(self._begins[dtype] + position * self.layout.row_bytes(dtype))
                for column in columns:
                    file.write(bytes_of(read(column.tensor.name).detach().cpu()).data)


def map_shard(path: Path, layout: RowLayout, num_states: int) -> dict[str, np.ndarray]:
    """The mapped matrices of a shard by dtype, as integers of the same size because numpy has no bfloat16."""
    expected = {f"rows.{dtype}": (getattr(torch, dtype), (num_states, layout.width(dtype))) for dtype in layout.columns}
    with StateReader(path, allow_nonfinite=True) as reader:
        if {name: (entry.dtype, entry.shape) for name, entry in reader.entries.items()} != expected:
            raise CorruptFile(f"{path}: its matrices are not those of {num_states} states of {layout.spec.arch!r}")
        entries = dict(reader.entries)
    matrices = {}
    for name, entry in entries.items():
        dtype = np.dtype(f"i{entry.dtype.itemsize}")
        if entry.end == entry.begin:
            matrices[name.removeprefix("rows.")] = np.empty(entry.shape, dtype)  # an empty range cannot be mapped
        else:
            # As a plain array: memmap's own indexing takes twice as long.
            mapped = np.asarray(np.memmap(path, dtype, "r", entry.begin, entry.shape))
            matrices[name.removeprefix("rows.")] = mapped
    return matrices
