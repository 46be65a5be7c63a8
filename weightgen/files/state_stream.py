"""Safetensors files written one tensor at a time, in any order: the whole state is never in memory.

The bytes are those that `save_state` writes for the same tensors. A larger state is split into shards with the names of
the Hugging Face Hub and an index that `load_foreign` reads: model-00001-of-00003.safetensors,
model.safetensors.index.json.
"""

import contextlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightgen.canonical_json import encode_json
from weightgen.errors import BadOption, SpecMismatch
from weightgen.files.state_file import DTYPES, MANIFEST_KEY, bytes_of
from weightgen.files.storage import new_file, write_json

_CODES = {dtype: code for code, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Slot:
    """Dtype and shape of a tensor that is written later."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class StreamedState:
    """An open file with a place for every tensor; made by `stream_state`."""

    def __init__(self, file: BufferedWriter, slots: Mapping[str, Slot], manifest: Mapping[str, Any] | None) -> None:
        header: dict[str, Any] = {}
        if manifest is not None:
            header["__metadata__"] = {MANIFEST_KEY: encode_json(dict(manifest), name="manifest").decode()}
        self._file, self._slots = file, dict(slots)
        self._begins: dict[str, int] = {}
        end = 0
        for name in sorted(slots, key=lambda n: (-slots[n].dtype.itemsize, n)):
            self._begins[name], begin, end = end, end, end + slots[name].num_bytes
            header[name] = {
                "dtype": _CODES[slots[name].dtype],
                "shape": list(slots[name].shape),
                "data_offsets": [begin, end],
            }
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        file.write(struct.pack("<Q", len(text)) + text)
        self._start = 8 + len(text)
        self._missing = set(slots)

    def write(self, name: str, tensor: Tensor) -> None:
        """Write a tensor to its place, once; its memory can be freed afterwards."""
        slot = self._slots[name]
        assert name in self._missing, f"{name!r} is written twice"
        if tensor.dtype != slot.dtype or tuple(tensor.shape) != slot.shape:
            raise SpecMismatch(
                f"{name!r} is {tensor.dtype} {list(tensor.shape)}, expected {slot.dtype} {list(slot.shape)}"
            )
        self._file.seek(self._start + self._begins[name])
        self._file.write(bytes_of(tensor.detach().cpu()).data)
        self._missing.discard(name)

    def finish(self) -> None:
        assert not self._missing, f"tensors that were never written: {sorted(self._missing)[:5]}"


@contextlib.contextmanager
def stream_state(
    path: str | Path, slots: Mapping[str, Slot], *, manifest: Mapping[str, Any] | None = None
) -> Iterator[StreamedState]:
    """A file to fill; it is moved to `path` when the block ends without error and every slot has been written."""
    with new_file(path) as file:
        state = StreamedState(file, slots, manifest)
        yield state
        state.finish()


def write_shards(
    folder: Path, slots: Mapping[str, Slot], tensors: Iterable[tuple[str, Tensor]], *, max_shard_bytes: int
) -> list[Path]:
    """Write the tensors of `slots`, in any order, to one file in `folder` or to shards; returns the files' paths.

    A shard holds at most `max_shard_bytes` of tensors, or a single tensor larger than that.
    """
    groups = split_slots(slots, max_shard_bytes)
    if len(groups) == 1:
        paths = [folder / "model.safetensors"]
    else:
        paths = [folder / f"model-{i + 1:05}-of-{len(groups):05}.safetensors" for i in range(len(groups))]
    with contextlib.ExitStack() as stack:
        place: dict[str, StreamedState] = {}
        for path, names in zip(paths, groups, strict=True):
            shard = stack.enter_context(stream_state(path, {name: slots[name] for name in names}))
            place |= dict.fromkeys(names, shard)
        for name, tensor in tensors:
            place[name].write(name, tensor)
    if len(groups) > 1:
        weight_map = {name: path.name for path, names in zip(paths, groups, strict=True) for name in names}
        total = sum(slot.num_bytes for slot in slots.values())
        index = folder / "model.safetensors.index.json"
        write_json(index, {"metadata": {"total_size": total}, "weight_map": weight_map})
        paths.append(index)
    return paths


def split_slots(slots: Mapping[str, Slot], max_bytes: int) -> list[list[str]]:
    """Names in order, split into runs of at most `max_bytes`, or of a single larger tensor."""
    if max_bytes < 1:
        raise BadOption(f"max_shard_bytes is {max_bytes}, expected at least 1")
    groups: list[list[str]] = [[]]
    filled = 0
    for name, slot in slots.items():
        if groups[-1] and filled + slot.num_bytes > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += slot.num_bytes
    return groups
