"""Sources of a weight dataset's states: a zoo folder, or any checkpoint files.

A source is planned first, from run.json files and headers. Then it is read one tensor at a time, in the plan's order. A
plan is small; a state is held as a whole only if its file format (a pickle, a stack) requires it.
"""

import contextlib
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightgen.errors import BadData, BadOption, CorruptFile, NotFound, SpecMismatch
from weightgen.files.checkpoint import StateReader, load_foreign, read_models
from weightgen.files.storage import read_json, sha256_file
from weightgen.spec import StateSpec
from weightgen.weightspace.tokens import bare_spec

SPLITS = ("train", "val", "test")
CHECKPOINT_SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin", ".ckpt")
METRICS = ("train_accuracy", "test_accuracy", "test_loss")


@dataclass(frozen=True, slots=True)
class PlannedState:
    """One state of a file: its key in the file (None if it is the only one), its spec's digest, its index row."""

    key: str | None
    spec: str
    row: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to read, and the states expected in it, in order."""

    path: Path
    sha256: str
    states: tuple[PlannedState, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """All states of a source."""

    specs: dict[str, StateSpec]
    """Digest -> spec."""
    files: tuple[PlannedFile, ...]

    @property
    def states(self) -> Iterator[PlannedState]:
        return (state for file in self.files for state in file.states)


@dataclass(frozen=True, slots=True)
class StoredState:
    """A state in an open file: dtypes and shapes of its tensors, and a function that reads one."""

    key: str | None
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    read: Callable[[str], Tensor]
    about: Mapping[str, Any] | None = None
    """The entry for this state in the .json beside the file."""
    ties: Mapping[str, Tensor] = field(default_factory=dict)
    """The tensors, if they are already in memory and may share it."""


def plan_source(source: str | Path, *, spec: StateSpec | None = None) -> Plan:
    """The plan of a zoo folder, of a checkpoint file, or of a folder with checkpoint files at any depth.

    `spec` describes the tensors of checkpoint files; without it every axis is fixed. Raises SpecMismatch for a
    checkpoint that does not fit it. A zoo has its own specs.
    """
    source = Path(source)
    if (source / "zoo.json").is_file():
        if spec is not None:
            raise BadOption(f"{source}: a zoo has its own specs; a module is for checkpoint files")
        return _plan_zoo(source)
    if not source.exists():
        raise NotFound(f"{source}: no such zoo folder, checkpoint file or folder of checkpoint files")
    return _plan_checkpoints(source, spec)


def split_of(run_id: str) -> str:
    """The split of a training run without an assigned one: 8 in 10 train, 1 val, 1 test, by the hash of its name."""
    digit = int(hashlib.sha256(run_id.encode()).hexdigest()[:8], 16) % 10
    return {0: "test", 1: "val"}.get(digit, "train")


def read_planned(file: PlannedFile, specs: Mapping[str, StateSpec]) -> Iterator[tuple[PlannedState, StoredState]]:
    """Pairs of planned and stored state of a file; CorruptFile if the file is not the one that was planned."""
    if _hash(file.path) != file.sha256:
        raise CorruptFile(f"{file.path}: its sha256 is not the recorded {file.sha256[:12]}…; the file was changed")
    for planned, stored in zip(file.states, _read_file(file.path), strict=True):
        spec = specs[planned.spec]
        try:
            spec.check(_describe(stored, spec))
        except SpecMismatch as error:
            raise CorruptFile(f"{file.path}: {error}") from error
        yield planned, stored


def _describe(stored: StoredState, spec: StateSpec) -> dict[str, Tensor]:
    """The stored tensors without their numbers; ties that the file leaves out are added."""
    entries = stored.entries.items()
    return spec.restore_ties({n: torch.empty(shape, dtype=dtype, device="meta") for n, (dtype, shape) in entries})


# Zoo folders.


def _plan_zoo(folder: Path) -> Plan:
    specs = _read_specs(folder / "zoo.json")
    files: list[PlannedFile] = []
    for run_file in sorted(folder.glob("runs/*/run.json")):  # a run without run.json is not complete
        if run_file.parent.name.startswith("."):
            continue  # being written, or left by a killed build
        run = read_json(run_file)
        try:
            files += _plan_run(run, run_file, specs)
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(f"{run_file}: not a run of a zoo: {type(error).__name__} {error}") from error
    if not files:
        raise BadData(f"{folder}: the zoo has no complete run")
    used = {state.spec for file in files for state in file.states}
    return Plan({digest: spec for digest, spec in specs.items() if digest in used}, tuple(files))


def _read_specs(path: Path) -> dict[str, StateSpec]:
    zoo = read_json(path)
    if not isinstance(zoo, dict) or zoo.get("format") != "weightgen.zoo" or not isinstance(zoo.get("specs"), dict):
        raise CorruptFile(f"{path}: not a weightgen zoo")
    if zoo.get("version") != 1:
        raise CorruptFile(f"{path}: version {zoo.get('version')} of the zoo format, expected 1")
    specs = {}
    for digest, data in zoo["specs"].items():
        try:
            specs[digest] = StateSpec.from_json(data)
        except (KeyError, TypeError, ValueError, SpecMismatch) as error:
            raise CorruptFile(f"{path}: the spec {digest[:12]}… cannot be read: {error}") from error
        if specs[digest].digest() != digest:
            raise CorruptFile(f"{path}: the spec {digest[:12]}… does not have the hash it is filed under")
    return specs


def _plan_run(run: dict[str, Any], run_file: Path, specs: Mapping[str, StateSpec]) -> Iterator[PlannedFile]:
    folder = run_file.parent
    if run["run_id"] != folder.name:
        raise CorruptFile(f"{run_file}: run_id is {run['run_id']!r}, expected the folder's name {folder.name!r}")
    if run["split"] not in SPLITS:
        raise CorruptFile(f"{run_file}: split is {run['split']!r}, expected one of {', '.join(SPLITS)}")
    if run["spec"] not in specs:
        raise CorruptFile(f"{run_file}: its spec {str(run['spec'])[:12]}… is not in zoo.json")
    for checkpoint in run["checkpoints"]:
        path = folder / checkpoint["file"]
        if path.parent != folder:
            raise CorruptFile(f"{run_file}: the checkpoint {checkpoint['file']!r} is not a file of the run's folder")
        row = {
            **{key: run.get(key) for key in ("run_id", "arch", "spec", "split", "task", "seed", "hyper")},
            **{key: checkpoint.get(key) for key in ("step", *METRICS)},
            "source": f"{folder.name}/{checkpoint['file']}",
            "source_sha256": checkpoint["sha256"],
        }
        yield PlannedFile(path, checkpoint["sha256"], (PlannedState(None, run["spec"], row),))


# Checkpoint files.


def _plan_checkpoints(source: Path, given: StateSpec | None) -> Plan:
    files, folder = ([source], source.parent) if source.is_file() else (_find_checkpoints(source), source)
    specs: dict[str, StateSpec] = {}
    digests: dict[object, str] = {}  # the kind of a state's tensors -> digest of the first such state's spec
    planned: list[PlannedFile] = []
    for path in files:
        relative = path.relative_to(folder).as_posix()
        sha256, states = _hash(path), []
        for stored in _read_file(path):
            kind = _kind_of(stored)
            if kind not in digests:
                spec = _spec_of(stored, arch=_stem(path.name)) if given is None else _check_fit(stored, given, path)
                digests[kind] = spec.digest()
                specs[spec.digest()] = spec
            states.append(_plan_stored(stored, specs[digests[kind]], relative, sha256))
        planned.append(PlannedFile(path, sha256, tuple(states)))
    return Plan(specs, tuple(planned))


def _find_checkpoints(folder: Path) -> list[Path]:
    indices = sorted(folder.rglob("*.index.json"))
    shards = {index.parent / shard for index in indices for shard in _weight_map(index).values()}
    single = [p for p in folder.rglob("*") if p.name.endswith(CHECKPOINT_SUFFIXES) and p.is_file() and p not in shards]
    if not indices and not single:
        raise BadData(f"{folder}: no zoo.json and no checkpoint file ({', '.join(CHECKPOINT_SUFFIXES)})")
    return sorted([*indices, *single])


def _plan_stored(stored: StoredState, spec: StateSpec, relative: str, sha256: str) -> PlannedState:
    run_id, step = parse_run(_stem(relative)) if stored.key is None else (f"{relative}#{stored.key}", 0)
    row = {
        **{"run_id": run_id, "arch": spec.arch, "spec": spec.digest(), "split": split_of(run_id)},
        **{"task": None, "seed": None, "hyper": None, "step": step},
        **dict.fromkeys(METRICS),
        **{"source": relative, "source_sha256": sha256},
        **({"key": stored.key} if stored.key is not None else {}),
        **({"about": dict(stored.about)} if stored.about else {}),
    }
    return PlannedState(stored.key, spec.digest(), row)


_STEP = re.compile(r"(?:^|[._-])(?:step|epoch|iter|iteration|checkpoint|ckpt)[_=-]?(\d+)$", re.IGNORECASE)


def parse_run(stem: str) -> tuple[str, int]:
    """Training run and step that a path names: "a/epoch=3-step=50" and "a/checkpoint-50" are step 50 of run "a".

    If in doubt, runs are merged. One run in two splits would leak test data; two runs taken for one only make a split
    uneven.
    """
    steps: list[int] = []
    parts = []
    *folders, name = stem.split("/")
    if name.isdecimal():
        steps, name = [int(name)], ""
    for part in (name, *reversed(folders)):
        while match := _STEP.search(part):
            steps.append(int(match[1]))
            part = part[: match.start()]
        parts.append(part)
    return "/".join(part for part in reversed(parts) if part) or ".", steps[0] if steps else 0


def _stem(name: str) -> str:
    for suffix in (".safetensors.index.json", ".bin.index.json", ".index.json", *CHECKPOINT_SUFFIXES):
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return name


def _kind_of(stored: StoredState) -> object:
    """A key, equal for states that can be stacked, for any order in the file and any integer values."""
    owners: dict[int, str] = {}
    ties = {n: owners.setdefault(t.data_ptr(), n) for n, t in stored.ties.items() if t.numel()}
    return frozenset((n, dtype, shape, ties.get(n, n)) for n, (dtype, shape) in stored.entries.items())


def _check_fit(stored: StoredState, spec: StateSpec, path: Path) -> StateSpec:
    """The spec, if the state has its tensors."""
    try:
        spec.check(_describe(stored, spec))
    except SpecMismatch as error:
        raise SpecMismatch(f"{path}: {error}") from error
    return spec


def _spec_of(stored: StoredState, arch: str) -> StateSpec:
    state = {
        name: torch.empty(shape, dtype=dtype, device="meta") if dtype.is_floating_point else stored.read(name)
        for name, (dtype, shape) in stored.entries.items()
    }
    return bare_spec({**state, **stored.ties}, arch)


def _read_file(path: Path) -> Iterator[StoredState]:
    """The states of a checkpoint file; read each one before you ask for the next."""
    if path.name.endswith(".index.json"):
        yield from _read_shards(path)
    elif path.suffix != ".safetensors":
        state = load_foreign(path)
        yield StoredState(None, _entries_of(state), state.__getitem__, ties=state)
    elif not (about := _read_about(path)):
        with StateReader(path) as reader:
            entries = {name: (entry.dtype, entry.shape) for name, entry in reader.entries.items()}
            yield StoredState(None, entries, reader.read)
    else:
        for place, (key, state) in enumerate(read_models(path)):
            rows = about.get("rows")
            rows = rows if isinstance(rows, list) else []
            named = [row for row in rows if isinstance(row, dict) and row.get("key") == key]
            found = named[0] if named else rows[place] if about.get("stacked") and place < len(rows) else None
            yield StoredState(key, _entries_of(state), state.__getitem__, found if isinstance(found, dict) else None)


def _read_about(path: Path) -> Mapping[str, Any]:
    """The .json beside a file that holds many models; empty for a file of one model."""
    beside = path.with_suffix(".json")
    about = read_json(beside) if beside.is_file() else {}
    return about if isinstance(about, dict) and (about.get("stacked") or "key_format" in about) else {}


def _read_shards(index: Path) -> Iterator[StoredState]:
    """A checkpoint in several files; safetensors are mapped, not loaded."""
    weight_map = _weight_map(index)
    if not all(file.endswith(".safetensors") for file in weight_map.values()):
        state = load_foreign(index)
        yield StoredState(None, _entries_of(state), state.__getitem__, ties=state)
        return
    with contextlib.ExitStack() as stack:
        readers = {f: stack.enter_context(StateReader(index.parent / f)) for f in dict.fromkeys(weight_map.values())}
        found = {name: file for file, reader in readers.items() for name in reader.entries}
        if found != weight_map:
            wrong = sorted(name for name in found.keys() | weight_map.keys() if found.get(name) != weight_map.get(name))
            raise CorruptFile(f"{index}: the index and its shards disagree about {wrong[0]!r}")
        entries = {n: (readers[f].entries[n].dtype, readers[f].entries[n].shape) for n, f in weight_map.items()}
        yield StoredState(None, entries, lambda name: readers[weight_map[name]].read(name))


def _weight_map(index: Path) -> dict[str, str]:
    data = read_json(index)
    weight_map = data.get("weight_map") if isinstance(data, dict) else None
    if not isinstance(weight_map, dict) or not all(
        isinstance(f, str) and Path(f).name == f for f in weight_map.values()
    ):
        raise CorruptFile(f"{index}: not a shard index; expected a weight_map of tensor names to files beside it")
    return weight_map


def _hash(path: Path) -> str:
    """sha256 of a file; of a shard index, over the hashes of the index and its shards."""
    if not path.name.endswith(".index.json"):
        return sha256_file(path)
    shards = sorted(set(_weight_map(path).values()))
    return hashlib.sha256(
        "".join(sha256_file(p) for p in [path, *(path.parent / s for s in shards)]).encode()
    ).hexdigest()


def _entries_of(state: Mapping[str, Tensor]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    return {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in state.items()}
