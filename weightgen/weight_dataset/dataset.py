"""WeightDataset: many states in stacked shards, with random access to any of them; and its builder.

    DIR/index.json              format, specs, shards (with sha256), statistics of the training split, and the rows:
                                run_id, step, split, task, accuracies, ..., shard, position
    DIR/<spec>-00000.safetensors  states of one spec: per dtype one matrix `rows.<dtype>` (states, numbers), a state's
                                tensors of that dtype flattened side by side in the spec's order
    DIR/SHA256SUMS              hashes of all of the above, for `sha256sum -c` and `verify_weight_dataset`

Rows hold the states themselves, with carried integers, so that states are read back bit for bit. Tokens of any layout
are made from them on reading. Ties are stored once. Splits are by training run, never by checkpoint.

Building needs memory for one tensor, not for one state: the size of every shard is known in advance, and tensors are
written to their places as they are read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weightgen.canonical_json import encode_json
from weightgen.errors import BadData, BadOption, CorruptFile, NotFound, SpecMismatch, UnknownName, UnsupportedTask
from weightgen.files.storage import MAX_JSON_BYTES, new_folder, open_to_read, read_json, sha256_file, write_file
from weightgen.spec import State, StateSpec
from weightgen.weight_dataset.shards import Column, RowLayout, ShardWriter, map_shard
from weightgen.weight_dataset.sources import SPLITS, Plan, PlannedState, StoredState, plan_source, read_planned
from weightgen.weightspace.canonical import canonicalize
from weightgen.weightspace.scaling import MomentsByTensor, TokenScaling
from weightgen.weightspace.tokens import TokenLayout, build_layout, unstack_state

FORMAT, VERSION = "weightgen.weight_dataset", 1
DEFAULT_SHARD_BYTES = 256 * 2**20
_STATISTICS_NUMBERS = 2**21
"""Most numbers that the statistics read at once."""


class WeightDataset:
    """A weight dataset open for reading; a shard is mapped when it is first needed."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "index.json").is_file():
            raise NotFound(f"{path}: no weight dataset (a folder with an index.json)")
        hashes = _read_hashes(self.path)
        if sha256_file(self.path / "index.json") != hashes.get("index.json"):
            raise CorruptFile(f"{self.path / 'index.json'}: its sha256 is not the one in SHA256SUMS")
        index = read_json(self.path / "index.json")
        if not isinstance(index, dict) or index.get("format") != FORMAT:
            raise CorruptFile(f"{self.path / 'index.json'}: not the index of a weight dataset")
        if index.get("version") != VERSION:
            raise UnsupportedTask(
                f"{path}: version {index.get('version')} of the format, this weightgen reads {VERSION}"
            )
        try:
            self._read_index(index)
        except (KeyError, TypeError, ValueError, AttributeError, SpecMismatch) as error:
            reason = f"{type(error).__name__} {error}"
            raise CorruptFile(f"{self.path / 'index.json'}: damaged: {reason}") from error

    def _read_index(self, index: Mapping[str, Any]) -> None:
        self.specs = {digest: StateSpec.from_json(data) for digest, data in index["specs"].items()}
        """Digest -> spec."""
        self.index: list[dict[str, Any]] = index["rows"]
        """One dict for each state: run_id, step, split, arch, spec, task, accuracies, source, shard, position."""
        self.shards: list[dict[str, Any]] = index["shards"]
        self.reference: dict[str, dict[str, Any]] = index["reference"]
        """Spec -> run_id and step of the state that the others were aligned to; empty without alignment."""
        self._statistics = index["statistics"]
        places = {shard["file"]: i for i, shard in enumerate(self.shards)}
        self._shard_of = np.array([places[row["shard"]] for row in self.index], dtype=np.int64)
        numbers = {digest: i for i, digest in enumerate(self.specs)}
        self._spec_of = np.array([numbers[row["spec"]] for row in self.index], dtype=np.int64)
        self._position_of = np.array([row["position"] for row in self.index], dtype=np.int64)
        sizes = np.array([shard["num_states"] for shard in self.shards], dtype=np.int64)
        if any(not {"run_id", "split", "spec"} <= row.keys() for row in self.index):
            raise ValueError("a row lacks run_id, split or spec")
        if any(Path(file).name != file for file in places) or any(s["spec"] not in self.specs for s in self.shards):
            raise ValueError("a shard is not a file beside it, or of no known spec")
        if len(self.index) and not (self._position_of.min() >= 0 and np.all(self._position_of < sizes[self._shard_of])):
            raise ValueError("a row stands outside its shard")
        self._rows = {digest: RowLayout.of(spec) for digest, spec in self.specs.items()}
        self._layouts: dict[tuple[str, str, int], TokenLayout] = {}
        self._opened: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.index)

    def __reduce__(self) -> tuple[type["WeightDataset"], tuple[Path]]:
        return WeightDataset, (self.path,)  # a worker process maps the shards itself instead of receiving them

    def select(self, *, split: str | None = None, spec: str | None = None) -> list[int]:
        """Indices of the states of a split and of a spec (by its digest); of all if neither is given."""
        if split is not None and split not in SPLITS:
            raise UnknownName("split", split, SPLITS)
        if spec is not None and spec not in self.specs:
            raise UnknownName("spec", spec, self.specs)
        return [i for i, row in enumerate(self.index) if split in (None, row["split"]) and spec in (None, row["spec"])]

    def stacked(self, indices: Sequence[int]) -> State:
        """States of one spec stacked on a leading axis, (b, ...) each, in new memory; with ties and integers."""
        places = self._places(indices)
        specs = self._spec_of[places]
        if not _are_equal(specs):
            number = len(np.unique(specs))
            raise BadOption(f"states of {number} specs were asked for at once, expected one; use select(spec=...)")
        return self._rows[self.index[places[0]]["spec"]].to_stacked(self._gather(places))

    def states(self, indices: Sequence[int]) -> list[State]:
        """Full states, each in its spec's order; states of one spec share a block of memory."""
        places = self._places(indices)
        states: list[State] = [{} for _ in places]
        for spec in np.unique(self._spec_of[places]):
            of_spec = np.flatnonzero(self._spec_of[places] == spec)
            for i, state in zip(of_spec, unstack_state(self.stacked(places[of_spec].tolist())), strict=True):
                states[i] = state
        return states

    def tokens(self, indices: Sequence[int], *, layout: str = "neuron", token_dim: int = 64) -> Float[Tensor, "b n d"]:
        """Tokens (b, n, d) of states of one spec, in float32, or in float64 if the spec has float64 tensors."""
        stacked = self.stacked(indices)
        return self.layout(self.index[int(indices[0])]["spec"], name=layout, token_dim=token_dim).encode_batch(stacked)

    def layout(self, spec: str, *, name: str = "neuron", token_dim: int = 64) -> TokenLayout:
        """The token layout that `tokens` uses for a spec, given by its digest."""
        if (spec, name, token_dim) not in self._layouts:
            wide = any(t.dtype == "float64" for t in self.specs[spec].generated)
            dtype = torch.float64 if wide else torch.float32
            self._layouts[spec, name, token_dim] = build_layout(
                name, self.specs[spec], token_dim=token_dim, dtype=dtype
            )
        return self._layouts[spec, name, token_dim]

    def scaling(self, spec: str) -> TokenScaling:
        """Statistics of the training states of a spec; BadData if it has none."""
        if spec not in self.specs:
            raise UnknownName("spec", spec, self.specs)
        if self._statistics.get(spec) is None:
            raise BadData(f"{self.path}: no training state of {self.specs[spec].arch!r} to take statistics from")
        return TokenScaling.from_json(self.specs[spec], self._statistics[spec])

    def _places(self, indices: Sequence[int]) -> np.ndarray:
        places = np.asarray(indices)
        if places.ndim != 1 or not len(places) or places.dtype.kind not in "iu":
            raise BadOption("expected a list of one or more state numbers")
        if places.min() < 0 or places.max() >= len(self):
            wrong = next(int(i) for i in places if not 0 <= i < len(self))
            raise BadOption(f"state {wrong} was asked for, the dataset has 0 to {len(self) - 1}")
        return places.astype(np.int64)

    def _gather(self, places: np.ndarray) -> dict[str, Tensor]:
        """The rows (b, numbers) of states of one spec, by dtype."""
        shards, positions = self._shard_of[places], self._position_of[places]
        found: dict[str, np.ndarray] = {}
        if _are_equal(shards):
            found = {dtype: matrix.take(positions, axis=0) for dtype, matrix in self._open(int(shards[0])).items()}
        else:
            for shard in np.unique(shards).tolist():
                wanted = np.flatnonzero(shards == shard)
                for dtype, matrix in self._open(shard).items():
                    rows = found.setdefault(dtype, np.empty((len(places), matrix.shape[1]), matrix.dtype))
                    rows[wanted] = matrix[positions[wanted]]
        return {dtype: torch.from_numpy(rows).view(getattr(torch, dtype)) for dtype, rows in found.items()}

    def _open(self, shard: int) -> dict[str, np.ndarray]:
        if shard not in self._opened:
            about = self.shards[shard]
            self._opened[shard] = map_shard(self.path / about["file"], self._rows[about["spec"]], about["num_states"])
        return self._opened[shard]


def _are_equal(numbers: np.ndarray) -> bool:
    return bool((numbers == numbers[0]).all())


def build_weight_dataset(
    source: str | Path,
    out_dir: str | Path,
    *,
    canonical: bool = False,
    spec: StateSpec | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    progress: Callable[[int, int], None] | None = None,
) -> WeightDataset:
    """Write all states of a zoo folder, or of checkpoint files, as a weight dataset, and open it.

    A zoo's splits are kept; checkpoint files are split by training run, which is read from their names. `spec` gives
    the axes of checkpoint files (`weightgen.weightspace.axes` finds them); without it none of their units may move.
    With `canonical`, hidden units are put in the order that fits one training state of the spec best (the most
    accurate); the function stays the same. A shard has at most `max_shard_bytes`, or one state. `progress` is called
    with the number of states done and of all states. After an error nothing is left at `out_dir`; a folder that is not
    empty is refused.
    """
    if max_shard_bytes < 1:
        raise BadOption(f"max_shard_bytes is {max_shard_bytes}, expected 1 or more")
    if Path(out_dir).resolve() == Path(source).resolve():
        raise BadOption(f"{out_dir}: is the source; name another folder")
    with new_folder(out_dir) as folder:
        plan = plan_source(source, spec=spec)
        _refuse_split_runs(plan)
        references = _find_references(plan) if canonical else {}
        layouts = {digest: RowLayout.of(spec) for digest, spec in plan.specs.items()}
        shards, rows = _place_states(plan, layouts, max_shard_bytes)
        writers = {s.file: ShardWriter(folder / s.file, layouts[s.spec], s.num_states) for s in shards}
        done = 0
        for file in plan.files:
            for planned, stored in read_planned(file, plan.specs):
                row, read = rows[id(planned)], stored.read
                if planned.spec in references:
                    read = _align(stored, plan.specs[planned.spec], references[planned.spec][1]).__getitem__
                writers[row["shard"]].write(row["position"], read)
                done += 1
                if progress:
                    progress(done, len(rows))
        index = {
            "format": FORMAT,
            "version": VERSION,
            "specs": {digest: spec.to_json() for digest, spec in plan.specs.items()},
            "shards": [shard.to_json(folder) for shard in shards],
            "rows": list(rows.values()),
            "statistics": _take_statistics(folder, layouts, shards, list(rows.values())),
            "reference": {digest: found for digest, (found, _) in references.items()},
        }
        _write_index(folder, index)
    return WeightDataset(out_dir)


def verify_weight_dataset(path: str | Path) -> dict[str, Any]:
    """Hash and read every file of a weight dataset; returns a summary, or raises CorruptFile for the first bad file."""
    dataset = WeightDataset(path)
    hashes = _read_hashes(dataset.path)
    if hashes.keys() != {"index.json", *(shard["file"] for shard in dataset.shards)}:
        raise CorruptFile(f"{dataset.path / 'SHA256SUMS'}: does not list the files that index.json lists")
    for i, shard in enumerate(dataset.shards):
        file = dataset.path / shard["file"]
        if not hashes[shard["file"]] == shard["sha256"] == sha256_file(file):
            raise CorruptFile(f"{file}: its sha256 is not the recorded {shard['sha256'][:12]}…; the file was changed")
        dataset._open(i)
    run_splits: dict[str, str] = {}
    for row in dataset.index:
        if run_splits.setdefault(row["run_id"], row["split"]) != row["split"]:
            raise CorruptFile(f"{dataset.path / 'index.json'}: the run {row['run_id']!r} is in two splits")
    return {
        "states": len(dataset),
        "runs": len(run_splits),
        "splits": {split: len(dataset.select(split=split)) for split in SPLITS},
        "architectures": sorted({spec.arch for spec in dataset.specs.values()}),
        "shards": len(dataset.shards),
        "bytes": sum(shard["bytes"] for shard in dataset.shards),
        "canonical": bool(dataset.reference),
    }


# Building.


@dataclass(frozen=True, slots=True)
class _Shard:
    file: str
    spec: str
    num_states: int

    def to_json(self, folder: Path) -> dict[str, Any]:
        path = folder / self.file
        return {
            "file": self.file,
            "spec": self.spec,
            "num_states": self.num_states,
            "bytes": path.stat().st_size,
            "sha256": sha256_file(path),
        }


def _refuse_split_runs(plan: Plan) -> None:
    split_of_run: dict[str, str] = {}
    for state in plan.states:
        run_id, split = state.row["run_id"], state.row["split"]
        if split_of_run.setdefault(run_id, split) != split:
            raise BadData(f"the run {run_id!r} is in the splits {split_of_run[run_id]!r} and {split!r}, expected one")


def _place_states(
    plan: Plan, layouts: Mapping[str, RowLayout], max_shard_bytes: int
) -> tuple[list[_Shard], dict[int, dict[str, Any]]]:
    """The shards, and id of every planned state -> its row with shard and position, in the index's order."""
    by_spec: dict[str, list[PlannedState]] = {digest: [] for digest in plan.specs}
    for state in plan.states:
        by_spec[state.spec].append(state)
    shards: list[_Shard] = []
    rows: dict[int, dict[str, Any]] = {}
    for digest, states in by_spec.items():
        per_shard = max(1, max_shard_bytes // max(layouts[digest].state_bytes, 1))
        for number, first in enumerate(range(0, len(states), per_shard)):
            members = states[first : first + per_shard]
            shards.append(_Shard(f"{digest[:12]}-{number:05d}.safetensors", digest, len(members)))
            for position, state in enumerate(members):
                rows[id(state)] = {**state.row, "shard": shards[-1].file, "position": position}
    return shards, rows


def _take_statistics(
    folder: Path, layouts: Mapping[str, RowLayout], shards: list[_Shard], rows: list[dict[str, Any]]
) -> dict[str, Any]:
    """Digest of a spec -> moments of every generated tensor over its training states; None if it has none."""
    training: dict[str, list[int]] = {}
    for row in rows:
        if row["split"] == "train":
            training.setdefault(row["shard"], []).append(row["position"])
    found = {digest: MomentsByTensor(layout.spec) for digest, layout in layouts.items()}
    for shard in shards:
        layout, positions = layouts[shard.spec], np.array(training.get(shard.file, []), dtype=np.int64)
        for dtype, matrix in map_shard(folder / shard.file, layout, shard.num_states).items():
            for column in layout.columns[dtype]:
                if column.tensor.is_generated:
                    for block in _blocks(matrix, positions, column):
                        found[shard.spec].add(column.tensor.name, torch.from_numpy(block).view(getattr(torch, dtype)))
    with_training = {row["spec"] for row in rows if row["split"] == "train"}
    return {digest: f.fit().to_json() if digest in with_training else None for digest, f in found.items()}


def _blocks(matrix: np.ndarray, positions: np.ndarray, column: Column) -> Iterator[np.ndarray]:
    """Copies of one tensor's numbers in these rows, in blocks of bounded size."""
    wide = max(1, min(column.width, _STATISTICS_NUMBERS))
    tall = max(1, _STATISTICS_NUMBERS // wide)
    for row in range(0, len(positions), tall):
        for start in range(column.start, column.start + column.width, wide):
            stop = min(start + wide, column.start + column.width)
            yield matrix[positions[row : row + tall], start:stop]


def _write_index(folder: Path, index: Mapping[str, Any]) -> None:
    write_file(folder / "index.json", encode_json(index, name="index.json") + b"\n")
    hashes = {shard["file"]: shard["sha256"] for shard in index["shards"]}
    hashes["index.json"] = sha256_file(folder / "index.json")
    lines = [f"{sha256}  {file}\n" for file, sha256 in sorted(hashes.items())]
    write_file(folder / "SHA256SUMS", "".join(lines).encode())


def _read_hashes(folder: Path) -> dict[str, str]:
    """File name -> sha256, from SHA256SUMS."""
    path = folder / "SHA256SUMS"
    with open_to_read(path) as file:
        text = file.read(MAX_JSON_BYTES).decode("utf-8", errors="replace")
    lines = [line.partition("  ") for line in text.splitlines()]
    if not all(len(sha256) == 64 and name for sha256, _, name in lines):
        raise CorruptFile(f"{path}: expected lines of a sha256 and a file name")
    return {name: sha256 for sha256, _, name in lines}


def _find_references(plan: Plan) -> dict[str, tuple[dict[str, Any], State]]:
    """Digest of a spec with hidden units -> run_id and step of its most accurate training state, and the state."""
    best: dict[str, PlannedState] = {}
    for state in plan.states:
        if state.row["split"] == "train" and plan.specs[state.spec].hidden:
            current = best.get(state.spec)
            if current is None or (state.row["test_accuracy"] or 0) > (current.row["test_accuracy"] or 0):
                best[state.spec] = state
    without = [spec.arch for digest, spec in plan.specs.items() if digest not in best]
    if without:
        raise BadOption(
            f"canonical: {without[0]!r} has no hidden axis that may be permuted, or no training run to align to"
        )
    wanted = {id(state) for state in best.values()}
    found: dict[str, tuple[dict[str, Any], State]] = {}
    for file in plan.files:
        if any(id(state) in wanted for state in file.states):
            for planned, stored in read_planned(file, plan.specs):
                if id(planned) in wanted:
                    name = {"run_id": planned.row["run_id"], "step": planned.row["step"]}
                    found[planned.spec] = (name, _load(stored, plan.specs[planned.spec]))
    return found


def _load(stored: StoredState, spec: StateSpec) -> State:
    """The whole state with its ties restored."""
    return spec.share_ties({t.name: stored.read(t.name) for t in spec.stored})


def _align(stored: StoredState, spec: StateSpec, reference: State) -> State:
    return canonicalize(_load(stored, spec), spec, reference=reference, scalable=())
