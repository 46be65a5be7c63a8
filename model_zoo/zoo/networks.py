"""The networks of a zoo as tokens of one layout, with their tasks, as training data for codecs and denoisers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_zoo.architectures import build_target
from model_zoo.data import load_data
from model_zoo.zoo.tasks import Task
from weightgen.condition import SupportSet
from weightgen.errors import BadOption, NotFound
from weightgen.files.checkpoint import load_state
from weightgen.files.storage import read_json
from weightgen.generators.d2nwg.generator import member_name, trunk_layout
from weightgen.labelled_data import LabelledData, match_channels
from weightgen.references.zoo import ABOVE_CHANCE
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.trunk import trunk_spec
from weightgen.weightspace.canonical import align, balance
from weightgen.weightspace.normal_form import to_normal_form

SHOTS = 20
"""Images of each class on which a network's units are measured."""


@dataclass(frozen=True, eq=False)
class Networks:
    """Networks of one member of the zoo: canonical tokens, and the task of each."""

    member: str
    target: Target
    """With ten classes; only its trunk is used."""
    tokens: Tensor
    """(b, n, d)"""
    datasets: tuple[str, ...]
    classes: tuple[tuple[int, ...], ...]
    accuracies: Tensor
    """(b,) on the run's test part."""
    split: tuple[str, ...]
    """`train`, `val` or `test` by run; `left out` for all runs of a held-out data set."""

    def rows(self, split: str) -> list[int]:
        return [i for i, s in enumerate(self.split) if s == split]


def load_networks(
    zoo: Path, *, held_out: Sequence[str] = (), members: Sequence[str] | None = None
) -> dict[str, Networks]:
    """Every checkpoint of the zoo that is better than chance, by member, or only of the given members.

    Trunks are in normal form, measured on images of their own task, and aligned to the first, then to the mean of all.
    Runs on a held-out data set are included as `left out`, and do not count in that mean.
    """
    found: dict[tuple[str, int], list[tuple[Path, dict[str, Any], dict[str, Any]]]] = {}
    for path in sorted(zoo.glob("*/runs/*/run.json")):
        run = read_json(path)
        for checkpoint in run["checkpoints"]:
            if checkpoint["test_accuracy"] * len(run["task"]["classes"]) > ABOVE_CHANCE:
                key = (run["arch"], run["config"].get("in_channels", 1))
                found.setdefault(key, []).append((path.parent / checkpoint["file"], run, checkpoint))
    if not found:
        raise NotFound(f"{zoo}: no run of a zoo that is better than chance; build it with `model_zoo training-zoo`")
    targets = {key: build_target(key[0], in_channels=key[1]) for key in sorted(found)}
    names = {member_name(target): key for key, target in targets.items()}
    unknown = [name for name in members or () if name not in names]
    if unknown:
        raise BadOption(f"the zoo has no {unknown[0]!r}; it has {', '.join(names)}")
    networks = {}
    for member in members or names:
        arch, in_channels = names[member]
        rows, target = found[names[member]], targets[names[member]]
        spec = trunk_spec(target.spec)
        trunks: list[State] = []
        for path, run, _ in rows:
            whole = build_target(arch, num_classes=len(run["task"]["classes"]), in_channels=in_channels)
            scalable: Any = whole.skeleton.SCALABLE
            state = balance(load_state(path), whole.spec, scalable=scalable)
            trunks.append(to_normal_form(whole, state, draw_task_support(run["task"], in_channels).inputs))
        splits = ["left out" if run["task"]["dataset"] in held_out else run["split"] for _, run, _ in rows]
        known = [i for i, split in enumerate(splits) if split != "left out"]
        if not known:
            raise BadOption(f"every network of {member!r} was trained on a data set that is held out")
        reference: State = trunks[known[0]]
        for _ in range(2):
            trunks = [align(trunk, reference, spec) for trunk in trunks]
            reference = {name: torch.stack([trunks[i][name] for i in known]).mean(0) for name in reference}
        layout = trunk_layout(target.spec)
        networks[member] = Networks(
            member=member,
            target=target,
            tokens=torch.stack([layout.encode(trunk) for trunk in trunks]),
            datasets=tuple(run["task"]["dataset"] for _, run, _ in rows),
            classes=tuple(tuple(run["task"]["classes"]) for _, run, _ in rows),
            accuracies=torch.tensor([c["test_accuracy"] for _, _, c in rows]),
            split=tuple(splits),
        )
    return networks


def draw_task_support(task: Mapping[str, Any], in_channels: int) -> SupportSet:
    """A support set of a run's task ({"dataset", "classes"}), the same every time: SHOTS of each class, or all."""
    data = _load(task["dataset"], in_channels)
    classes = tuple(task["classes"])
    fewest = min(int((data.y_train == c).sum()) for c in classes)
    rng = torch.Generator().manual_seed(0)
    return Task(task["dataset"], classes).draw_support(data, min(SHOTS, fewest), rng=rng)


@lru_cache(maxsize=16)
def _load(name: str, in_channels: int) -> LabelledData:
    return match_channels(load_data(name), in_channels)
