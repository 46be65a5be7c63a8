"""The file format of a state: a canonical safetensors writer, and a reader that trusts nothing.

A file that we write is the same bytes for the same tensors, whatever their order in the dict, the process or the
machine: 8 bytes of header length (little endian), a JSON header padded with spaces to a multiple of 8, then the
tensors without gaps, sorted by (element size, largest first; name). The only metadata key is `weightgen.manifest`,
canonical JSON. The safetensors library reads it, and we read what that library writes.

The reader checks the header against the file's size before it allocates anything.
"""

import io
import itertools
import json
import math
import mmap
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from weightgen.canonical_json import encode_json, parse_json
from weightgen.errors import CorruptFile, NotFound, SpecMismatch, StorageFailed
from weightgen.files.storage import new_file, open_to_read
from weightgen.spec import State

MANIFEST_KEY = "weightgen.manifest"
MAX_HEADER_BYTES = 25_000_000
MAX_NAME_LENGTH = 1000
MAX_STATE_BYTES = 64 * 2**30
"""Larger files are read with `StateReader`, tensor by tensor."""

_DTYPE_NAMES = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32"},
    **{"I32": "int32", "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32"},
    **{"F64": "float64", "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
    **{"F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz", "F8_E8M0": "float8_e8m0fnu"},
}
DTYPES: dict[str, torch.dtype] = {
    code: getattr(torch, name) for code, name in _DTYPE_NAMES.items() if hasattr(torch, name)
}
"""Code in the header -> dtype, for every dtype that this torch has."""
_CODES = {dtype: code for code, dtype in DTYPES.items()}


def save_state(path: str | Path, state: Mapping[str, Tensor], *, manifest: Mapping[str, Any] | None = None) -> None:
    """Replace the file at `path` by the canonical bytes of a state.

    Raises SpecMismatch for two entries that share storage (save those with `save_for_spec`, which drops ties) and
    for tensors the format cannot hold. NaN is written as it is; `load_state` refuses it.
    """
    with new_file(path) as file:
        _write(file, state, manifest, name=str(path))


def encode_state(state: Mapping[str, Tensor], manifest: Mapping[str, Any] | None = None) -> bytes:
    """The bytes that `save_state` writes."""
    buffer = io.BytesIO()
    _write(buffer, state, manifest, name="the state")
    return buffer.getvalue()


def load_state(path: str | Path, *, allow_nonfinite: bool = False) -> State:
    """The tensors of a safetensors file, in the file's order, each owning its memory."""
    with StateReader(path, allow_nonfinite=allow_nonfinite) as reader:
        if reader.num_bytes > MAX_STATE_BYTES:
            raise CorruptFile(f"{path}: {reader.num_bytes} bytes, expected at most {MAX_STATE_BYTES}")
        return {name: reader.read(name) for name in reader.entries}


def read_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest of a file that `save_state` wrote; CorruptFile if it has none."""
    with StateReader(path) as reader:
        if reader.manifest is None:
            raise CorruptFile(f"{path}: has no weightgen manifest; it was not written by weightgen")
        return reader.manifest


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Dtype, shape and place of one tensor in a file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the file."""
    end: int


class StateReader:
    """A safetensors file opened for reading one tensor, or some rows of one, at a time; use as a context manager.

    The file is mapped, not read: only the tensors that are asked for take memory. Every tensor returned is a copy.
    """

    def __init__(self, path: str | Path, *, allow_nonfinite: bool = False) -> None:
        self.path = str(path)
        self.allow_nonfinite = allow_nonfinite
        with open_to_read(path) as file:
            self.num_bytes = os.fstat(file.fileno()).st_size
            self.entries, self.metadata = _read_header(file, self.num_bytes, self.path)
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        manifest = self.metadata.get(MANIFEST_KEY)
        self.manifest: dict[str, Any] | None = None
        if manifest is not None:
            self.manifest = parse_json(manifest.encode(errors="surrogatepass"), name=f"{self.path}: manifest")
            if not isinstance(self.manifest, dict):
                raise CorruptFile(f"{self.path}: the manifest is not a JSON object")

    def __enter__(self) -> "StateReader":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._map.close()

    def read(self, name: str) -> Tensor:
        """One whole tensor."""
        entry = self._entry(name)
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        if tensor.numel():
            bytes_of(tensor)[:] = self._stored(entry)
        return self._checked(name, tensor)

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """The given rows of a tensor (n, ...), in the order of `rows`."""
        entry = self._entry(name)
        num_rows = entry.shape[0] if entry.shape else 0
        wrong = next((row for row in rows if not 0 <= row < num_rows), None)
        if wrong is not None:
            raise NotFound(f"{self.path}: {name!r} has {num_rows} rows, row {wrong} was asked for")
        tensor = torch.empty((len(rows), *entry.shape[1:]), dtype=entry.dtype)
        if tensor.numel():
            out = rearrange(bytes_of(tensor), "(n b) -> n b", n=len(rows))
            np.take(rearrange(self._stored(entry), "(n b) -> n b", n=num_rows), rows, axis=0, out=out)
        return self._checked(name, tensor)

    def _entry(self, name: str) -> TensorEntry:
        if name not in self.entries:
            raise NotFound(f"{self.path}: holds no tensor {name!r}")
        return self.entries[name]

    def _stored(self, entry: TensorEntry) -> np.ndarray:
        """The mapped bytes of a tensor; use them within one expression, or the map cannot be closed."""
        return np.frombuffer(self._map, np.uint8, entry.end - entry.begin, entry.begin)

    def _checked(self, name: str, tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool and tensor.view(torch.uint8).gt(1).any():
            raise CorruptFile(f"{self.path}: {name!r} is boolean and holds bytes other than 0 and 1")
        if not self.allow_nonfinite:
            refuse_nonfinite(self.path, name, tensor)
        return tensor


def _write(file: io.BufferedIOBase, state: Mapping[str, Tensor], manifest: Mapping[str, Any] | None, name: str) -> None:
    _refuse_unwritable(state)
    order = sorted(state, key=lambda n: (-state[n].element_size(), n))
    header: dict[str, Any] = {}
    if manifest is not None:
        header["__metadata__"] = {MANIFEST_KEY: encode_json(dict(manifest), name=f"{name}: manifest").decode()}
    end = 0
    for n in order:
        begin, end = end, end + state[n].nbytes
        header[n] = {"dtype": _CODES[state[n].dtype], "shape": list(state[n].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER_BYTES:
        raise StorageFailed(f"{name}: a header of {len(text)} bytes, expected at most {MAX_HEADER_BYTES}")
    file.write(struct.pack("<Q", len(text)) + text)
    for n in order:
        file.write(bytes_of(state[n].detach().cpu()).data)


def _refuse_unwritable(state: Mapping[str, Tensor]) -> None:
    spans = []
    for name, t in state.items():
        if name == "__metadata__" or not is_name(name):
            raise SpecMismatch(f"a tensor cannot be called {name[:80]!r} in a safetensors file")
        if t.layout != torch.strided or t.device.type == "meta" or t.dtype not in _CODES:
            what = f"{str(t.dtype).removeprefix('torch.')}, {str(t.layout).removeprefix('torch.')}, on {t.device}"
            raise SpecMismatch(f"{name!r} ({what}) cannot be written; expected a dense tensor of a common dtype")
        if t.numel():
            spans.append((str(t.device), t.data_ptr(), t.data_ptr() + (t.nbytes if t.is_contiguous() else 1), name))
    spans.sort()
    for (device, _, end, first), (other_device, begin, _, second) in itertools.pairwise(spans):
        if device == other_device and begin < end:
            first, second = sorted((first, second), key=list(state).index)
            raise SpecMismatch(
                f"{first!r} and {second!r} share storage; save tied tensors with save_for_spec, whose spec names "
                "the tie, or clone one of them"
            )


def is_name(name: str) -> bool:
    """Whether a tensor can have this name: not too long, and valid UTF-8 (JSON can hold half a surrogate pair)."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return len(name) <= MAX_NAME_LENGTH


def bytes_of(tensor: Tensor) -> np.ndarray:
    """The values of a tensor as bytes (n,), row by row; shares the tensor's memory if it is contiguous."""
    return tensor.resolve_conj().contiguous().flatten().view(torch.uint8).numpy()


def _read_header(file: BinaryIO, num_bytes: int, name: str) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    if num_bytes < 10:
        raise CorruptFile(f"{name}: {num_bytes} bytes are too few for a safetensors file")
    (length,) = struct.unpack("<Q", file.read(8))
    if length > MAX_HEADER_BYTES:
        raise CorruptFile(f"{name}: not a safetensors file; it claims a header of {length} bytes")
    if 8 + length > num_bytes:
        raise CorruptFile(f"{name}: truncated; its header of {length} bytes reaches past its {num_bytes} bytes")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise CorruptFile(f"{name}: not a safetensors file; its header is not a JSON object")
    header = parse_json(text, name=f"{name}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CorruptFile(f"{name}: __metadata__ is not an object of strings")
    entries = {n: _read_entry(n, value, 8 + length, name) for n, value in header.items()}
    entries = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    end = 8 + length
    for n, entry in entries.items():
        if entry.begin != end:
            raise CorruptFile(f"{name}: the bytes of {n!r} begin at {entry.begin}, expected {end}")
        end = entry.end
    if end != num_bytes:
        what = "truncated" if end > num_bytes else "followed by other bytes"
        raise CorruptFile(f"{name}: {what}; its tensors end at {end}, the file at {num_bytes}")
    return entries, metadata


def _read_entry(tensor: str, value: Any, data_begin: int, name: str) -> TensorEntry:
    if not is_name(tensor):
        raise CorruptFile(f"{name}: the tensor name {tensor[:80]!r} is not Unicode text of at most {MAX_NAME_LENGTH}")
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise CorruptFile(f"{name}: {tensor!r} needs exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise CorruptFile(f"{name}: {tensor!r} has the unknown dtype {str(dtype)[:40]!r}")
    if not _are_counts(shape) or len(shape) > 64 or math.prod(max(n, 1) for n in shape) >= 2**60:
        raise CorruptFile(f"{name}: the shape of {tensor!r} is not a short list of reasonable numbers")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise CorruptFile(f"{name}: the data_offsets of {tensor!r} are not two numbers")
    num_bytes = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != num_bytes:
        got = offsets[1] - offsets[0]
        raise CorruptFile(f"{name}: {tensor!r} is {dtype} {shape}: expected {num_bytes} bytes, its offsets span {got}")
    return TensorEntry(DTYPES[dtype], tuple(shape), data_begin + offsets[0], data_begin + offsets[1])


def _are_counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def refuse_nonfinite(path: str, name: str, tensor: Tensor) -> None:
    """Raise CorruptFile, naming the file and the tensor, for NaN or infinite values."""
    if not (tensor.is_floating_point() or tensor.is_complex()) or not tensor.numel():
        return
    real = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    numbers = real.float() if real.element_size() == 1 else real  # 8-bit floats cannot be compared
    lowest, highest = torch.aminmax(numbers)  # NaN wins in both; thirty times faster than isfinite().all()
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        raise CorruptFile(f"{path}: {name!r} holds NaN or infinite values; pass allow_nonfinite=True to read it anyway")
