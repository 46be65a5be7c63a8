"""Checkpoints: states of a spec, checkpoint files of other libraries, and files of many models.

Nothing is ever unpickled: `torch.load` appears once in this project, in `load_foreign`, with `weights_only=True`. Our
own file format is in `weightgen.files.state_file`; its public functions can be imported from here too.
"""

import contextlib
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from weightgen.errors import CorruptFile, SpecMismatch
from weightgen.files.state_file import (
    DTYPES,
    MAX_HEADER_BYTES,
    MAX_STATE_BYTES,
    StateReader,
    bytes_of,
    encode_state,
    is_name,
    load_state,
    read_manifest,
    refuse_nonfinite,
    save_state,
)
from weightgen.files.storage import open_to_read, read_json
from weightgen.spec import State, StateSpec

__all__ = [
    "StateReader",
    "encode_state",
    "load_for_spec",
    "load_foreign",
    "load_state",
    "read_manifest",
    "read_models",
    "save_for_spec",
    "save_state",
]


def save_for_spec(
    path: str | Path, state: Mapping[str, Tensor], spec: StateSpec, *, manifest: Mapping[str, Any] | None = None
) -> None:
    """Write a full state of `spec`; a tied tensor is written once, under the name it is tied to."""
    spec.check(state)
    for t in spec.tensors:
        if t.tied_to and not _same_bytes(state[t.name], state[t.tied_to]):
            raise SpecMismatch(f"{t.name!r} of {spec.arch!r} is tied to {t.tied_to!r}, but their values differ")
    save_state(path, {t.name: state[t.name] for t in spec.stored}, manifest=manifest)


def load_for_spec(path: str | Path, spec: StateSpec, *, allow_nonfinite: bool = False) -> State:
    """A full state in the spec's order, ties restored; SpecMismatch if the file does not fit the spec exactly."""
    state = spec.restore_ties(load_state(path, allow_nonfinite=allow_nonfinite))
    try:
        spec.check(state)
    except SpecMismatch as error:
        raise SpecMismatch(f"{path}: {error}") from error
    return {t.name: state[t.name] for t in spec.tensors}


def load_foreign(path: str | Path, *, allow_nonfinite: bool = False) -> State:
    """A state from any common checkpoint file: .safetensors, a shard index (.index.json), .pt, .pth, .th, .bin, .ckpt.

    Pickled files are read with `weights_only=True`. A training checkpoint may keep its state under `state_dict`,
    `model_state_dict`, `model` or `net`; only then are its other entries dropped. The prefixes of DataParallel
    (`module.`) and torch.compile (`_orig_mod.`) are removed.
    """
    name = Path(path).name
    if name.endswith(".index.json"):
        state = _load_shards(Path(path), allow_nonfinite)
    elif name.endswith(".safetensors"):
        state = load_state(path, allow_nonfinite=allow_nonfinite)
    elif name.endswith(_PICKLED_SUFFIXES):
        state = _load_pickled(str(path), allow_nonfinite)
    else:
        with open_to_read(path):  # a missing file or a folder raises first
            kinds = ", ".join((".safetensors", ".index.json", *_PICKLED_SUFFIXES))
            raise CorruptFile(f"{path}: not a checkpoint by its name; expected one that ends in {kinds}")
    if not state:
        raise CorruptFile(f"{path}: holds no tensors")
    return _strip_prefixes(state, str(path))


def read_models(path: str | Path, *, allow_nonfinite: bool = False) -> Iterator[tuple[str, State]]:
    """The models of a file that holds many, one (key, state) at a time, as the .json beside the file describes.

    `stacked` with `stack_axis` 0: every tensor is (n, ...), and the keys are "0" to n - 1, the places in its `rows`.
    `key_format` "<row key>/<name>": the keys are those of its `rows`. Otherwise, or without a .json, the file holds one
    model, and the key is the file's name without suffix.
    """
    path = Path(path)
    beside = path.with_suffix(".json")
    about = read_json(beside) if beside.exists() else {}
    if not isinstance(about, dict):
        raise CorruptFile(f"{beside}: expected a JSON object")
    if about.get("stacked"):
        return _read_stacked(path, beside, about, allow_nonfinite)
    if "key_format" in about:
        return _read_keyed(path, beside, about, allow_nonfinite)
    return iter([(path.stem, load_state(path, allow_nonfinite=allow_nonfinite))])


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of the same shape and dtype hold the same bits; NaN equals itself."""
    return np.array_equal(bytes_of(a.detach().cpu()), bytes_of(b.detach().cpu()))


# Reading the formats of other libraries.

_PICKLED_SUFFIXES = (".pt", ".pth", ".th", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
_MAX_VIEWS = 16
"""How many times the bytes of a pickled file may be counted by tensors that share storage (ties, slices)."""
_UNPICKLING_ERRORS = (
    # One changed byte can make torch's restricted unpickler fail in any of these ways.
    *(pickle.UnpicklingError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError),
    *(AssertionError, EOFError, ImportError, MemoryError, OSError, struct.error, zipfile.BadZipFile),
)


def _load_pickled(path: str, allow_nonfinite: bool) -> State:
    with open_to_read(path) as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if num_bytes > MAX_STATE_BYTES:
            raise CorruptFile(f"{path}: {num_bytes} bytes, expected at most {MAX_STATE_BYTES}")
        start = file.read(9)
        if not start:
            raise CorruptFile(f"{path}: is empty")
        if start[8:] == b"{":
            raise CorruptFile(f"{path}: looks like a safetensors file; rename it to end in .safetensors")
        if start.startswith(b"PK"):
            _refuse_zip_bomb(file, num_bytes, path)
        file.seek(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols, which the user cannot change
                value = torch.load(file, map_location="cpu", weights_only=True)
        except _UNPICKLING_ERRORS as error:
            raise CorruptFile(f"{path}: {_say_why(error)}") from error
    state = _find_state(value, path)
    total = 0
    for name, t in state.items():
        if t.layout != torch.strided or t.is_quantized or t.device.type != "cpu" or t.dtype not in DTYPES.values():
            raise CorruptFile(f"{path}: {name!r} is not a dense tensor of a common dtype")
        total += t.numel() * t.element_size()
        if total > _MAX_VIEWS * num_bytes:
            raise CorruptFile(f"{path}: its tensors claim more than {_MAX_VIEWS} times the {num_bytes} bytes it has")
    state = {name: t.detach().contiguous() for name, t in state.items()}
    if not allow_nonfinite:
        for name, t in state.items():
            refuse_nonfinite(path, name, t)
    return state


def _refuse_zip_bomb(file: BinaryIO, num_bytes: int, path: str) -> None:
    """Refuse compressed records: torch.save stores records as they are, so their sizes add up to less than the file."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, LookupError, NotImplementedError, struct.error) as error:
        raise CorruptFile(f"{path}: a damaged zip archive, or a truncated one") from error
    if any(r.compress_type != zipfile.ZIP_STORED for r in records) or sum(r.file_size for r in records) > num_bytes:
        raise CorruptFile(f"{path}: a zip archive with compressed or overlapping records, which torch.save never makes")
    if any(r.file_size > MAX_HEADER_BYTES for r in records if r.filename.endswith("data.pkl")):
        raise CorruptFile(f"{path}: its data.pkl is over {MAX_HEADER_BYTES} bytes")


def _say_why(error: BaseException) -> str:
    blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if blocked:
        return f"holds the Python object {blocked[1]}, which is never loaded; save the state_dict alone"
    if isinstance(error, MemoryError):
        return "claims more memory than there is"
    return "not a file of torch.save with tensors only, or a truncated one"


def _find_state(value: Any, path: str, *, depth: int = 0) -> State:
    """The dict of tensors in a pickled value: the value itself or what a wrapper's key holds."""
    if not isinstance(value, Mapping):
        raise CorruptFile(f"{path}: holds a {type(value).__name__}, expected a dict of tensors")
    found = [key for key in _WRAPPERS if key in value and _holds_state(value[key])]
    if len(found) > 1:
        raise CorruptFile(f"{path}: holds several states, {' and '.join(map(repr, found))}; save one alone")
    if found and depth < 3:
        return _find_state(value[found[0]], path, depth=depth + 1)
    others = [f"{_name_key(k)} ({type(v).__name__})" for k, v in value.items() if not _is_named_tensor(k, v)]
    if others:
        shown = ", ".join(others[:5]) + (f" and {len(others) - 5} more" if len(others) > 5 else "")
        raise CorruptFile(
            f"{path}: entries that are not tensors: {shown}; expected a state dict, alone or under one of "
            + ", ".join(map(repr, _WRAPPERS))
        )
    return dict(value)


def _holds_state(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        _is_named_tensor(k, v) or (k in _WRAPPERS and isinstance(v, Mapping)) for k, v in value.items()
    )


def _name_key(key: Any) -> str:
    return repr(key[:60]) if isinstance(key, str) else f"a key of type {type(key).__name__}"


def _is_named_tensor(key: Any, value: Any) -> bool:
    return isinstance(key, str) and is_name(key) and isinstance(value, Tensor)


def _load_shards(path: Path, allow_nonfinite: bool) -> State:
    index = read_json(path)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
        raise CorruptFile(f"{path}: not a shard index; expected an object with a weight_map of tensor to file names")
    state: State = {}
    for file in dict.fromkeys(weight_map.values()):
        if Path(file).name != file or "\\" in file or "\0" in file:
            raise CorruptFile(f"{path}: the shard {file[:200]!r} is not a file name in the same folder")
        if file.endswith(".safetensors"):
            shard = load_state(path.parent / file, allow_nonfinite=allow_nonfinite)
        elif file.endswith(_PICKLED_SUFFIXES):
            shard = _load_pickled(str(path.parent / file), allow_nonfinite)
        else:
            raise CorruptFile(f"{path}: the shard {file[:200]!r} is not a checkpoint by its name")
        named = {n for n, f in weight_map.items() if f == file}
        if shard.keys() != named:
            wrong = sorted(shard.keys() ^ named)
            raise CorruptFile(f"{path}: the index and the shard {file!r} disagree about {_name_some(wrong)}")
        state |= shard
    return {name: state[name] for name in weight_map}


def _strip_prefixes(state: State, path: str) -> State:
    names = [re.sub(r"(^|\.)_orig_mod\.", r"\1", name) for name in state]
    while all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    if len(set(names)) < len(names) or "" in names:
        raise CorruptFile(f"{path}: names clash once the prefixes 'module.' and '_orig_mod.' are taken off")
    return dict(zip(names, state.values(), strict=True))


def _name_some(names: Sequence[str]) -> str:
    return ", ".join(repr(n) for n in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


# Files of many models.


def _read_stacked(
    path: Path, beside: Path, about: Mapping[str, Any], allow_nonfinite: bool
) -> Iterator[tuple[str, State]]:
    num_models = about.get("n_models")
    if about.get("stack_axis") != 0 or type(num_models) is not int:
        raise CorruptFile(f"{beside}: a stacked file needs stack_axis 0 and n_models")
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(StateReader(path, allow_nonfinite=allow_nonfinite))
        wrong = [n for n, entry in reader.entries.items() if entry.shape[:1] != (num_models,)]
        if wrong:
            raise CorruptFile(f"{path}: expected {num_models} models on axis 0 of {_name_some(wrong)}")
        opened = stack.pop_all()

    def models() -> Iterator[tuple[str, State]]:
        with opened:
            for row in range(num_models):
                yield str(row), {name: reader.read_rows(name, [row])[0] for name in reader.entries}

    return models()


def _read_keyed(
    path: Path, beside: Path, about: Mapping[str, Any], allow_nonfinite: bool
) -> Iterator[tuple[str, State]]:
    rows = about.get("rows")
    rows = rows if isinstance(rows, list) else []
    keys = [row["key"] for row in rows if isinstance(row, dict) and isinstance(row.get("key"), str)]
    if not keys or len(set(keys)) < len(rows):
        raise CorruptFile(f"{beside}: expected rows, each with a key of its own")
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(StateReader(path, allow_nonfinite=allow_nonfinite))
        names = _group_names(reader.entries, keys, path)
        opened = stack.pop_all()

    def models() -> Iterator[tuple[str, State]]:
        with opened:
            for key, of_key in names.items():
                yield key, {name.removeprefix(f"{key}/"): reader.read(name) for name in of_key}

    return models()


def _group_names(names: Iterable[str], keys: Sequence[str], path: Path) -> dict[str, list[str]]:
    """Tensor names by the row key they begin with, in the order of the keys."""
    groups: dict[str, list[str]] = {key: [] for key in keys}
    for name in names:
        parts = name.split("/")
        key = next((k for i in range(len(parts) - 1, 0, -1) if (k := "/".join(parts[:i])) in groups), None)
        if key is None:
            raise CorruptFile(f"{path}: {name!r} belongs to none of the {len(keys)} rows")
        groups[key].append(name)
    empty = [key for key, of_key in groups.items() if not of_key]
    if empty:
        raise CorruptFile(f"{path}: no tensors for {_name_some(empty)}")
    return groups
