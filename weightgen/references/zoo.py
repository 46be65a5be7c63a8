"""ReferenceZoo: a few dozen trained trunks in one file, used by references and to measure novelty.

Only trunks are kept. The networks of a zoo solve tasks with other classes, so a reference takes a trunk from here and
refits BatchNorm's statistics and the class head on the support set, in closed form (`refit`). So references see the
same data as the generator they are compared with. This makes them far stronger than in published comparisons, where a
retrieved or averaged network keeps the head of another task.

All trunks are stored aligned to the first one (`weightgen.weightspace.canonical`), so that means of them are soups.

The file (safetensors, canonical): `trunk/<tensor>` (n, *shape) in float16 or float32, `embeddings` (n, e) float32 of
the tasks they were trained on, `leave_one_out` (n,) float32 distance of each trunk to the nearest other, and the
manifest {"format": "weightgen.references", "version": 1, "arch", "embedder", "runs": [...]}.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weightgen.condition import SupportSet
from weightgen.errors import BadOption, CorruptFile, NotFound, UnsupportedTask
from weightgen.files.checkpoint import load_state, read_manifest, save_state
from weightgen.files.storage import read_json, sha256_file
from weightgen.request import GenerationRequest, TaskEmbedding, require_support
from weightgen.spec import State, StateSpec
from weightgen.target.network import Target
from weightgen.target.trunk import take_trunk, trunk_spec
from weightgen.weightspace.canonical import align

FORMAT, VERSION = "weightgen.references", 1
MAX_TRUNKS = 1024
ABOVE_CHANCE = 1.1
"""A training run counts only if its test accuracy is more than this times chance."""
_CANDIDATES = 3
"""Number of trunks, nearest in the common alignment, whose distance is measured again after their own alignment."""


@dataclass(frozen=True, eq=False)
class ReferenceZoo:
    """Aligned trunks of one architecture and input, with what they were trained on."""

    arch: str
    trunks: Mapping[str, Tensor]
    """Tensor name -> (n, *shape)."""
    embeddings: Tensor
    """(n, e), unit norm: each task's embedding by the generator `embedder`."""
    leave_one_out: Tensor
    """(n,) distance (`trunk_distance`) of each trunk to the nearest other one; 0 for a single trunk."""
    runs: tuple[Mapping[str, Any], ...]
    """run_id, dataset, classes, step, test_accuracy and sha256 of each checkpoint."""
    embedder: str
    """`digest_of` of the generator whose embedding was used."""

    def __len__(self) -> int:
        return len(self.runs)

    def check(self, target: Target) -> None:
        """Raise UnsupportedTask unless the trunks fit the target's trunk."""
        want = {t.name: t.shape for t in trunk_spec(target.spec).tensors}
        have = {name: tuple(t.shape[1:]) for name, t in self.trunks.items()}
        if want != have:
            wrong = sorted(n for n in want.keys() | have.keys() if want.get(n) != have.get(n))
            raise UnsupportedTask(
                f"the reference zoo holds trunks of {self.arch!r} that do not fit {target.spec.arch!r} here: "
                f"{wrong[0]!r} is {_shape(have.get(wrong[0]))}, expected {_shape(want.get(wrong[0]))}"
            )

    def trunk(self, index: int) -> State:
        """The trunk at `index`, in float32."""
        return {name: t[index].float() for name, t in self.trunks.items()}

    def nearest(self, request: GenerationRequest, embed: TaskEmbedding) -> list[int]:
        """Indices of trunks by likeness of their task to the request's, nearest first."""
        return self.rank(embed(require_support(request), arch=request.target.spec.arch))

    def mean_trunk(self, indices: Sequence[int] | None = None) -> State:
        """The mean of some trunks, all of them by default."""
        rows = torch.arange(len(self)) if indices is None else torch.tensor(indices)
        return {name: t[rows].float().mean(0) for name, t in self.trunks.items()}

    def distances(self, target: Target, trunk: Mapping[str, Tensor]) -> list[float]:
        """`trunk_distance` of a trunk to each of the zoo's, computed together."""
        learnt = [name for name, _ in target.skeleton.named_parameters() if name in trunk]
        squares = torch.zeros(len(self))
        for name in learnt:
            squares += (self._unit_trunks[name] - _unit(trunk[name]).flatten()).square().sum(1)
        return (squares / sum(trunk[name].numel() for name in learnt)).sqrt().tolist()

    @cached_property
    def _unit_trunks(self) -> dict[str, Tensor]:
        """Every tensor of the trunks at unit mean square, (n, numel) float32."""
        flat = {name: t.float().flatten(1) for name, t in self.trunks.items()}
        return {name: t / t.square().mean(1, keepdim=True).sqrt().clamp_min(1e-12) for name, t in flat.items()}

    def rank(self, embedding: Tensor) -> list[int]:
        """Indices of trunks by likeness of their task to `embedding` (e,), nearest first; ties in stored order."""
        if embedding.shape != self.embeddings.shape[1:]:
            raise UnsupportedTask(
                f"the reference zoo was embedded in {self.embeddings.shape[1]} dimensions, "
                f"this generator embeds in {len(embedding)}; build the references with this generator"
            )
        return torch.argsort(self.embeddings @ embedding, descending=True, stable=True).tolist()

    def save(self, path: str | Path) -> None:
        tensors = {f"trunk/{name}": t.contiguous() for name, t in self.trunks.items()}
        tensors |= {"embeddings": self.embeddings, "leave_one_out": self.leave_one_out}
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            "arch": self.arch,
            "embedder": self.embedder,
            "runs": [dict(r) for r in self.runs],
        }
        save_state(path, tensors, manifest=manifest)

    @classmethod
    def load(cls, path: str | Path) -> "ReferenceZoo":
        manifest = read_manifest(path)
        if manifest.get("format") != FORMAT:
            raise CorruptFile(f"{path}: format {manifest.get('format')!r}, expected a reference zoo ({FORMAT!r})")
        if manifest.get("version") != VERSION:
            raise UnsupportedTask(
                f"{path}: version {manifest.get('version')!r} of {FORMAT}, this weightgen reads version {VERSION}"
            )
        tensors = load_state(path)
        trunks = {n.removeprefix("trunk/"): t for n, t in tensors.items() if n.startswith("trunk/")}
        runs = manifest.get("runs")
        arch, embedder = manifest.get("arch"), manifest.get("embedder")
        named = isinstance(arch, str) and isinstance(embedder, str)
        if not named or not isinstance(runs, list) or not 1 <= len(runs) <= MAX_TRUNKS:
            raise CorruptFile(f"{path}: the manifest does not say which runs the trunks come from")
        embeddings, left_out = tensors.get("embeddings"), tensors.get("leave_one_out")
        if embeddings is None or left_out is None or embeddings.ndim != 2 or not trunks:
            raise CorruptFile(f"{path}: expected trunks, 'embeddings' (n, e) and 'leave_one_out' (n,)")
        if any(len(t) != len(runs) for t in (*trunks.values(), embeddings, left_out)):
            raise CorruptFile(f"{path}: the manifest names {len(runs)} runs, the tensors hold another number")
        return cls(
            arch=str(arch),
            trunks=trunks,
            embeddings=embeddings.float(),
            leave_one_out=left_out.float(),
            runs=tuple(runs),
            embedder=str(embedder),
        )


def require_one(request: GenerationRequest) -> SupportSet:
    """The support set of a request for one sample; UnsupportedTask if it asks for more."""
    support = require_support(request)
    if request.num_samples != 1:
        raise UnsupportedTask(
            f"{request.num_samples} samples are asked for; this generator is deterministic, expected 1"
        )
    return support


def trunk_distance(target: Target, a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Relative L2 distance of two trunks' parameters, each tensor at unit mean square, 0 to 2.

    The root mean square difference sqrt(sum_t |a_t / rms(a_t) - b_t / rms(b_t)|^2 / sum_t n_t) over tensors t of n_t
    numbers each. Unit mean square, because the scale of a layer before a ReLU or a BatchNorm has no meaning.
    BatchNorm's running statistics do not count: they are measured, not learnt. Unrelated trunks are at about 1.4.
    """
    learnt = {name for name, _ in target.skeleton.named_parameters()}
    names = [n for n in a if n in learnt]
    squares = sum(float((_unit(a[n]) - _unit(b[n])).square().sum()) for n in names)
    return (squares / sum(a[n].numel() for n in names)) ** 0.5


def nearest_trunk(
    zoo: ReferenceZoo, target: Target, trunk: Mapping[str, Tensor], *, excluded: Collection[int] = ()
) -> tuple[int, float]:
    """Index and distance of the zoo's trunk nearest to this one, hidden units matched; `excluded` ones do not count.

    All are compared after alignment to the zoo's first trunk. The nearest few are compared again after alignment to
    each of them.
    """
    spec = trunk_spec(target.spec)
    moved = align(trunk, zoo.trunk(0), spec)
    others = [i for i in range(len(zoo)) if i not in excluded]
    distances = zoo.distances(target, moved)
    rough = sorted((distances[i], i) for i in others)
    fine = []
    for distance, i in rough[:_CANDIDATES]:
        other = zoo.trunk(i)
        fine.append((min(distance, trunk_distance(target, align(moved, other, spec), other)), i))
    distance, index = min(fine)
    return index, distance


def build_reference_zoo(
    zoo_dir: str | Path,
    target: Target,
    *,
    embed: TaskEmbedding,
    support_of: Callable[[Mapping[str, Any]], SupportSet],
    embedder: str,
    max_trunks: int = 64,
    dtype: torch.dtype = torch.float16,
) -> ReferenceZoo:
    """A reference zoo from the final checkpoints of a zoo folder's runs whose trunk fits the target's, any classes.

    Runs that learnt nothing (dead units: test accuracy at chance) are left out, or references would be too weak.
    `support_of` draws a support set of a run's task ({"dataset", "classes"}), `embed` embeds it, and `embedder` is
    `digest_of` of the generator that embeds. If there are more than `max_trunks` runs, the data sets take turns, each
    with its most accurate runs first. float16 halves the file; its rounding (a relative 5e-4) is far below what the
    head's refit absorbs.
    """
    if not 1 <= max_trunks <= MAX_TRUNKS or dtype not in (torch.float16, torch.float32):
        raise BadOption(f"max_trunks {max_trunks} and {dtype}: expected 1 to {MAX_TRUNKS}, float16 or float32")
    found = _choose_runs(_find_runs(Path(zoo_dir), target), max_trunks)
    spec = trunk_spec(target.spec)
    trunks: list[State] = []
    for path, _ in found:
        trunk = take_trunk(load_state(path), target.spec)
        trunks.append(align(trunk, trunks[0], spec) if trunks else trunk)
    stacked = {t.name: _store(torch.stack([trunk[t.name] for trunk in trunks]), dtype) for t in spec.tensors}
    zoo = ReferenceZoo(
        arch=target.spec.arch,
        trunks=stacked,
        embeddings=torch.stack(
            [embed(support_of(run["task"]), arch=target.spec.arch).detach().float() for _, run in found]
        ),
        leave_one_out=torch.zeros(len(found)),
        runs=tuple(_describe_run(path, run) for path, run in found),
        embedder=embedder,
    )
    if len(zoo) > 1:
        for i in range(len(zoo)):
            zoo.leave_one_out[i] = nearest_trunk(zoo, target, zoo.trunk(i), excluded=[i])[1]
    return zoo


def _find_runs(zoo_dir: Path, target: Target) -> list[tuple[Path, dict[str, Any]]]:
    """Final checkpoint file and run.json of every complete run that fits the target and is above chance, by run_id."""
    index = read_json(zoo_dir / "zoo.json")
    if not isinstance(index, dict) or index.get("format") != "weightgen.zoo":
        raise CorruptFile(f"{zoo_dir / 'zoo.json'}: expected the index of a zoo (format 'weightgen.zoo')")
    want = [(t.name, t.shape) for t in trunk_spec(target.spec).tensors]
    fitting = set()
    for digest, data in index["specs"].items():
        spec = StateSpec.from_json(data)
        if spec.arch == target.spec.arch and [(t.name, t.shape) for t in trunk_spec(spec).tensors] == want:
            fitting.add(digest)
    found = []
    for path in sorted((zoo_dir / "runs").glob("*/run.json")):
        run = read_json(path)
        if run["spec"] in fitting and run["split"] == "train" and run["checkpoints"]:
            last = max(run["checkpoints"], key=lambda c: c["step"])
            if last["test_accuracy"] * len(run["task"]["classes"]) > ABOVE_CHANCE:
                found.append((path.parent / Path(last["file"]).name, {**run, "last": last}))
    if not found:
        raise NotFound(
            f"{zoo_dir}: no complete training run of {target.spec.arch!r} with inputs {target.input_shape} that is "
            "better than chance"
        )
    return found


def _choose_runs(found: list[tuple[Path, dict[str, Any]]], limit: int) -> list[tuple[Path, dict[str, Any]]]:
    by_set: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for item in sorted(found, key=lambda item: (-item[1]["last"]["test_accuracy"], item[1]["run_id"])):
        by_set.setdefault(item[1]["task"]["dataset"], []).append(item)
    turns = zip_longest(*(by_set[name] for name in sorted(by_set)))
    return [item for turn in turns for item in turn if item is not None][:limit]


def _describe_run(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    digest = sha256_file(path)
    if digest != run["last"]["sha256"]:
        raise CorruptFile(f"{path}: sha256 {digest[:12]}…, its run.json says {run['last']['sha256'][:12]}…")
    return {
        "run_id": run["run_id"],
        "dataset": run["task"]["dataset"],
        "classes": list(run["task"]["classes"]),
        "step": run["last"]["step"],
        "test_accuracy": run["last"]["test_accuracy"],
        "sha256": digest,
    }


def _store(stacked: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in `dtype`, or unchanged if values are too large for it, as BatchNorm's variances can be."""
    small = stacked.to(dtype)
    return small if torch.isfinite(small).all() else stacked


def _unit(tensor: Tensor) -> Tensor:
    return tensor / tensor.square().mean().sqrt().clamp_min(1e-12)


def _shape(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
