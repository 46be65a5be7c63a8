"""The zoo builder: trains the runs of a config and writes a folder for each; a killed build can be resumed.

    ZOO/zoo.json                       {"format": "weightgen.zoo", "version": 1, "specs", "data", "runs": planned ids}
    ZOO/runs/RUN_ID/run.json           what was trained, on what, how well, at which steps
    ZOO/runs/RUN_ID/STEP.safetensors   the states

A run's id is the hash of everything that determines its numbers, and its folder is written whole. So a run exists
completely or not at all, and never twice. On a CPU the same config gives the same bytes, even if builds were killed.
"""

import contextlib
import fcntl
import hashlib
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch

from model_zoo.architectures import build_target
from model_zoo.data import EVALUATION_SETS, data_licence, find_evaluation_files, load_data
from model_zoo.zoo.config import ZooConfig
from model_zoo.zoo.group_training import Job, Rows, Snapshot, is_stacked, train_group
from model_zoo.zoo.tasks import Task, sample_task
from weightgen import __version__
from weightgen.errors import BadData, BadOption, CorruptFile, StorageFailed, WeightgenError
from weightgen.files.checkpoint import save_for_spec
from weightgen.files.storage import new_folder, read_json, sha256_file, write_json
from weightgen.labelled_data import LabelledData, match_channels
from weightgen.target.network import Target

FORMAT, VERSION = "weightgen.zoo", 1
GROUP_SIZE = {"cpu": 16, "cuda": 128}
"""Networks trained together, by kind of device."""
_RUN_ID = re.compile(r"[0-9a-f]{16}")
_NEVER = EVALUATION_SETS | {"omniglot_held_out"}


@dataclass(frozen=True)
class RunPlan:
    """One run before it is trained."""

    run_id: str
    index: int
    arch: str
    config: dict[str, Any]
    spec: str
    """Digest of the spec."""
    task: Task
    seed: int
    hyper: dict[str, Any]


@dataclass(frozen=True)
class GroupReport:
    """The results of the runs of one group."""

    run_ids: tuple[str, ...]
    test_accuracy: tuple[float, ...]
    """Test accuracy of the last checkpoint of each run that has one."""
    num_diverged: int


def build_zoo(
    config: ZooConfig,
    out: str | Path,
    *,
    device: str = "cpu",
    num_workers: int = 1,
    report: Callable[[int, int, GroupReport | None], None] = lambda done, total, group: None,
) -> dict[str, Any]:
    """Train every run of `config` that the zoo at `out` does not hold yet; returns a summary in JSON values.

    `report(runs done, runs planned, group)` is called at the start (with None) and after each group. Workers are
    processes of one thread each; with more than one, a calling script needs `if __name__ == "__main__":`. Raises
    BadData for evaluation sets, which never enter a zoo, and BadOption if `out` is another kind of folder.
    """
    out = Path(out)
    on = _check_device(device)
    if num_workers < 1:
        raise BadOption(f"num_workers is {num_workers}, expected at least 1")
    started = time.perf_counter()
    refuse_evaluation_data(config.data)
    data = {name: _load(name, config.in_channels) for name in config.data}
    plans, targets = plan_runs(config, data)
    facts = {
        name: {"sha256": d.digest(), "licence": data_licence(name), "notes": list(d.notes)} for name, d in data.items()
    }
    with _claim(out):
        _write_index(out, plans, targets, facts)
        there = {plan.run_id for plan in plans if _is_complete(out, plan.run_id)}
        report(len(there), len(plans), None)
        groups = _group(plans, there, targets, device=on, num_workers=num_workers)
        train = partial(train_and_publish, out, config, device=device, facts=facts)
        reports = []
        with contextlib.closing(_run_groups(train, groups, num_workers if on.type == "cpu" else 1)) as finished:
            for group in finished:
                reports.append(group)
                report(len(there) + sum(len(r.run_ids) for r in reports), len(plans), group)
    _load.cache_clear()
    accuracies = [a for r in reports for a in r.test_accuracy]
    seconds = time.perf_counter() - started
    num_built = sum(len(r.run_ids) for r in reports)
    return {
        "zoo": str(out),
        "arch": config.arch,
        "num_runs": len(plans),
        "num_built": num_built,
        "num_already_there": len(there),
        "num_diverged": sum(r.num_diverged for r in reports),
        "num_specs": len(targets),
        "mean_test_accuracy": sum(accuracies) / len(accuracies) if accuracies else None,
        "seconds": round(seconds, 3),
        "networks_per_second": round(num_built / seconds, 4),
    }


def plan_runs(config: ZooConfig, data: dict[str, LabelledData]) -> tuple[list[RunPlan], dict[str, Target]]:
    """Every run of the config in the order of its index, and the targets by the digest of their spec."""
    plans: list[RunPlan] = []
    targets: dict[str, Target] = {}
    build = lru_cache(None)(partial(_build_target, config.arch))
    for index in range(config.num_runs):
        name = config.data[index % len(config.data)]
        found = data[name]
        rng = torch.Generator().manual_seed(_hash_to_seed(config.seed, index))
        ways = None if config.ways is None else min(config.ways, found.num_classes)
        task = sample_task(name, found.num_classes, ways=ways, rng=rng)
        target, digest = build(task.ways, found.in_channels, found.in_features)
        targets[digest] = target
        seed = int(torch.randint(2**62, (), generator=rng))
        hyper = {
            "optimizer": "adamw",
            "learning_rate": _draw_log_uniform(config.learning_rate, rng),
            "weight_decay": _draw_log_uniform(config.weight_decay, rng),
            "augmentation": bool(torch.rand((), generator=rng) < config.augmented) and found.in_channels is not None,
            "batch_size": config.batch_size,
            "steps": config.steps,
            "checkpoint_steps": list(config.checkpoint_steps),
            "eval_examples": config.eval_examples,
        }
        identity = [config.arch, target.spec.digest(), found.digest(), name, task.classes, seed, hyper]
        run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        plans.append(RunPlan(run_id, index, config.arch, dict(target.spec.config), digest, task, seed, hyper))
    assert len({p.run_id for p in plans}) == len(plans), "two runs have one id"
    return plans, targets


def split_of(run_id: str) -> str:
    """ "train" (80%), "val" or "test" (10% each), by the run's id alone."""
    place = int(run_id, 16) % 10
    return "train" if place < 8 else "val" if place == 8 else "test"


def refuse_evaluation_data(names: Sequence[str]) -> None:
    """Raise BadData if one of these data sets, or a copy of its file, is for evaluation only."""
    held_back = find_evaluation_files()
    for name in names:
        source = name if name in _NEVER else None
        if source is None and Path(name).is_file():
            source = held_back.get(sha256_file(name))
        if source is not None:
            what = repr(name) if source == name else f"{name!r} ({source})"
            raise BadData(f"data set {what} is for evaluation only and never enters a zoo; choose another data set")


def train_and_publish(
    out: Path,
    config: ZooConfig,
    plans: Sequence[RunPlan],
    *,
    device: str,
    facts: dict[str, Any],
    before_step: Callable[[], None] = lambda: None,
) -> GroupReport:
    """Train these runs of one spec and write a folder for each; complete folders are not changed."""
    on = torch.device(device)
    jobs = [_make_job(plan, _load(plan.task.dataset, config.in_channels)) for plan in plans]
    found = _load(plans[0].task.dataset, config.in_channels)
    target, _ = _build_target(config.arch, plans[0].task.ways, found.in_channels, found.in_features)
    published, accuracies, num_diverged = [], [], 0
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums over several threads differ in their last bits
    try:
        trained = train_group(
            target,
            jobs,
            batch_size=config.batch_size,
            checkpoint_steps=config.checkpoint_steps,
            eval_examples=config.eval_examples,
            device=on,
            before_step=before_step,
        )
        for plan, snapshots in zip(plans, trained, strict=True):
            if _is_complete(out, plan.run_id):
                continue
            before_step()
            _publish(out, plan, target, snapshots, on, facts[plan.task.dataset])
            published.append(plan.run_id)
            accuracies += [s.test_accuracy for s in snapshots[-1:]]
            num_diverged += len(snapshots) < len(config.checkpoint_steps)
    finally:
        torch.set_num_threads(num_threads)
    return GroupReport(tuple(published), tuple(accuracies), num_diverged)


def _publish(
    out: Path, plan: RunPlan, target: Target, snapshots: list[Snapshot], device: torch.device, facts: dict[str, Any]
) -> None:
    with new_folder(out / "runs" / plan.run_id) as folder:
        checkpoints = []
        for s in snapshots:
            file = folder / f"{s.step}.safetensors"
            about = {"format": "weightgen.state", "arch": plan.arch, "config": plan.config, "run_id": plan.run_id}
            save_for_spec(file, s.state, target.spec, manifest=about | {"step": s.step})
            checkpoints.append(
                {
                    "step": s.step,
                    "file": file.name,
                    "sha256": sha256_file(file),
                    "train_accuracy": s.train_accuracy,
                    "train_loss": s.train_loss,
                    "test_accuracy": s.test_accuracy,
                    "test_loss": s.test_loss,
                }
            )
        run = {
            "run_id": plan.run_id,
            "arch": plan.arch,
            "config": plan.config,
            "spec": plan.spec,
            "task": {"dataset": plan.task.dataset, "classes": list(plan.task.classes)},
            "seed": plan.seed,
            "split": split_of(plan.run_id),
            "hyper": plan.hyper,
            "checkpoints": checkpoints,
            "diverged": len(snapshots) < len(plan.hyper["checkpoint_steps"]),
            "provenance": {
                "weightgen": __version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "device": device.type if device.type == "cpu" else torch.cuda.get_device_name(device),
                "data": facts,
            },
        }
        write_json(folder / "run.json", run)


def _make_job(plan: RunPlan, data: LabelledData) -> Job:
    label_of = torch.full((data.num_classes,), -1)
    label_of[torch.tensor(plan.task.classes)] = torch.arange(plan.task.ways)
    parts = []
    for x, y in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        rows = torch.nonzero(label_of[y] >= 0).flatten()
        if len(rows) == 0:
            raise BadData(f"{data.name!r}: the test part has no example of the classes {list(plan.task.classes)[:12]}")
        parts.append(Rows(pool=x, rows=rows, labels=label_of[y[rows]]))
    return Job(
        train=parts[0],
        test=parts[1],
        seed=plan.seed,
        learning_rate=plan.hyper["learning_rate"],
        weight_decay=plan.hyper["weight_decay"],
        augment=plan.hyper["augmentation"],
    )


def _group(
    plans: list[RunPlan], there: set[str], targets: dict[str, Target], *, device: torch.device, num_workers: int
) -> list[list[RunPlan]]:
    """The runs that are left to train, in groups of one spec. A stacked group stays whole: its numbers depend on it."""
    size = GROUP_SIZE[device.type]
    groups: list[list[RunPlan]] = []
    for digest, target in targets.items():
        # Sorted by data set, so that workers load each only once.
        ordered = sorted((p for p in plans if p.spec == digest), key=lambda p: (p.task.dataset, p.index))
        if is_stacked(target, device):
            chunks = [ordered[i : i + size] for i in range(0, len(ordered), size)]
            groups += [c for c in chunks if any(p.run_id not in there for p in c)]
        else:
            waiting = [p for p in ordered if p.run_id not in there]
            fair = max(1, min(size, -(-len(waiting) // (2 * num_workers))))
            groups += [waiting[i : i + fair] for i in range(0, len(waiting), fair)]
    return groups


def _run_groups(
    train: Callable[..., GroupReport], groups: list[list[RunPlan]], num_workers: int
) -> Generator[GroupReport, None, None]:
    num_workers = min(num_workers, len(groups))
    if num_workers <= 1:
        for group in groups:
            yield train(group)
        return
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    pool = ProcessPoolExecutor(num_workers, mp_context=context, initializer=start_worker, initargs=(stop, os.getpid()))
    try:
        waiting = [pool.submit(_work, train, group) for group in groups]
        for future in as_completed(waiting):
            yield future.result()
    except BrokenProcessPool as error:
        raise WeightgenError("a worker process of the zoo builder died (out of memory?); the runs that are done are "
                             "kept, run the same command to go on") from error  # fmt: skip
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


class _Stopped(Exception):
    """The build has ended while this worker was training."""


class _Worker:
    """Values that a worker process checks before every step; set once, when it starts."""

    stop: Any = None
    parent: int = 0

    @classmethod
    def check(cls) -> None:
        if os.getppid() != cls.parent:
            os._exit(1)  # the builder was killed; the next build must not find this worker
        if cls.stop.is_set():
            raise _Stopped


def start_worker(stop: Any, parent: int) -> None:
    """Make this process a worker: it ends between two steps once `stop` is set, and at once if `parent` is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the builder, which sets `stop`
    _Worker.stop, _Worker.parent = stop, parent
    # An idle worker would wait for ever after the builder was killed, because each worker holds the queue open.
    threading.Thread(target=_watch_builder, daemon=True).start()


def _watch_builder() -> None:
    while os.getppid() == _Worker.parent:
        time.sleep(0.2)
    os._exit(1)


def _work(train: Callable[..., GroupReport], plans: list[RunPlan]) -> GroupReport:
    with _lock(train.args[0], fcntl.LOCK_SH):  # pyright: ignore[reportFunctionMemberAccess]
        _Worker.check()
        return train(plans, before_step=_Worker.check)


@contextlib.contextmanager
def _claim(out: Path) -> Iterator[None]:
    """Lock the zoo for this process alone, and remove what a killed build left."""
    if out.exists() and not out.is_dir():
        raise BadOption(f"{str(out)!r} is a file; expected a folder for the zoo")
    if out.is_dir() and any(out.iterdir()):
        _read_index(out)  # refuses another kind of folder before anything in it is changed
    try:
        (out / "runs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(f"{out}: cannot be written: {error.strerror}") from error
    with _lock(out / "runs", fcntl.LOCK_EX | fcntl.LOCK_NB):
        # Workers of a killed build hold the outer folder until they stop, within a training step.
        with _lock(out, fcntl.LOCK_EX):
            _clean(out)
        yield


@contextlib.contextmanager
def _lock(folder: Path, how: int) -> Iterator[None]:
    """Hold a lock on a folder; the system drops it when the process dies."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, how)
        except BlockingIOError as error:
            raise StorageFailed(f"{folder.parent}: another process is building this zoo; wait until it ends") from error
        yield
    finally:
        os.close(descriptor)


def _clean(out: Path) -> None:
    """Remove unfinished runs; folders with other names are not touched."""
    for folder in (out / "runs").iterdir():
        name = folder.name
        is_partial = name.startswith(".") and name.endswith((".partial", ".replaced"))
        if is_partial and folder.is_dir():
            shutil.rmtree(folder)
        elif is_partial:
            folder.unlink()
        elif _RUN_ID.fullmatch(name) and not _is_complete(out, name):
            shutil.rmtree(folder)
    for file in out.glob(".zoo.json.*.partial"):
        file.unlink()


def _is_complete(out: Path, run_id: str) -> bool:
    """Whether the run's record exists, with every file that it lists."""
    folder = out / "runs" / run_id
    if not (folder / "run.json").is_file():
        return False
    run = read_json(folder / "run.json")
    try:
        return all((folder / str(c["file"])).is_file() for c in run["checkpoints"])
    except (KeyError, TypeError) as error:
        raise CorruptFile(
            f"{folder / 'run.json'}: not the record of a run; remove its folder to train it again"
        ) from error


def _read_index(out: Path) -> dict[str, Any]:
    file = out / "zoo.json"
    leftovers = ("runs", ".zoo.json")
    if not file.is_file():
        if all(p.name.startswith(leftovers) for p in out.iterdir()) and not any((out / "runs").glob("*")):
            return {}
        raise BadOption(f"{str(out)!r} is not empty and no zoo (it has no zoo.json); choose another folder")
    index = read_json(file)
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise CorruptFile(f"{file}: not the index of a zoo")
    if index.get("version") != VERSION:
        raise CorruptFile(f"{file}: version {index.get('version')} of the zoo format; this is weightgen {__version__}, "
                          f"which writes version {VERSION}")  # fmt: skip
    return index


def _write_index(out: Path, plans: list[RunPlan], targets: dict[str, Target], facts: dict[str, Any]) -> None:
    before = _read_index(out)
    known = before.get("data", {})
    for name, fact in facts.items():
        if name in known and known[name]["sha256"] != fact["sha256"]:
            raise BadData(f"data set {name!r} is not what it was when this zoo was begun; build into another folder")
    index = {
        "format": FORMAT,
        "version": VERSION,
        "specs": before.get("specs", {}) | {digest: t.spec.to_json() for digest, t in targets.items()},
        "data": known | facts,
        "runs": sorted({*before.get("runs", ()), *(p.run_id for p in plans)}),
    }
    if index != before:
        write_json(out / "zoo.json", index)


@lru_cache(maxsize=4)
def _load(name: str, in_channels: int | None) -> LabelledData:
    data = load_data(name)
    return data if in_channels is None or data.in_channels is None else match_channels(data, in_channels)


def _build_target(arch: str, ways: int, in_channels: int | None, in_features: int | None) -> tuple[Target, str]:
    target = (
        build_target(arch, num_classes=ways, in_features=in_features)
        if in_features is not None
        else build_target(arch, num_classes=ways, in_channels=in_channels or 1)
    )
    return target, target.spec.digest()


def _check_device(device: str) -> torch.device:
    if device not in ("cpu", "cuda"):
        raise BadOption(f"device is {device!r}, expected 'cpu' or 'cuda'")
    if device == "cuda" and not torch.cuda.is_available():
        raise BadOption("device 'cuda' is asked for, but torch sees no CUDA device; use 'cpu'")
    return torch.device(device)


def _draw_log_uniform(bounds: tuple[float, float], rng: torch.Generator) -> float:
    """A number drawn log-uniformly, rounded to four digits so that run.json holds the exact number."""
    share = float(torch.rand((), generator=rng, dtype=torch.float64))
    return float(f"{bounds[0] ** (1 - share) * bounds[1] ** share:.4g}")


def _hash_to_seed(*parts: int) -> int:
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1
