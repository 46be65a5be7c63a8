"""The common base of the sections of the study of d2nwg: the generator, its zoo, and held-out tasks."""

import statistics
from pathlib import Path

import torch

from model_zoo.architectures import build_target
from model_zoo.data import load_data
from model_zoo.released import released_references
from model_zoo.zoo.networks import Networks, load_networks
from model_zoo.zoo.tasks import Task
from weightgen.condition import Condition, SupportSet
from weightgen.errors import BadOption
from weightgen.generators.d2nwg.generator import D2nwg
from weightgen.generators.d2nwg.method import D2nwgOptions
from weightgen.labelled_data import LabelledData, match_channels
from weightgen.references.zoo import ReferenceZoo
from weightgen.request import GenerationRequest, WeightGenerator
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import accuracy

SHOTS = 20


class Bench:
    """A generator, the zoo it learnt from, and held-out tasks."""

    def __init__(self, generator: D2nwg, zoo: Path, *, num_tasks: int, seeds: int) -> None:
        self.generator, self.zoo, self.num_tasks, self.seeds = generator, zoo, num_tasks, seeds
        found = load_networks(zoo)
        self.networks = {member: found[member] for member in generator.members if member in found}
        if not self.networks:
            raise BadOption(f"{zoo} has no network of {', '.join(generator.members)}")
        self._data: dict[tuple[str, int], LabelledData] = {}

    def data(self, name: str, channels: int) -> LabelledData:
        if (name, channels) not in self._data:
            self._data[name, channels] = match_channels(load_data(name), channels)
        return self._data[name, channels]

    def held_out(self, networks: Networks) -> list[tuple[int, Task]]:
        """(row, task) of the last checkpoint for each task of the `test` runs that no `train` run has."""
        known = {(networks.datasets[i], networks.classes[i]) for i in networks.rows("train")}
        last = {(networks.datasets[i], networks.classes[i]): i for i in networks.rows("test")}
        rows = sorted(i for task, i in last.items() if task not in known)
        chosen = rows[:: max(1, len(rows) // self.num_tasks)][: self.num_tasks]
        return [(i, Task(networks.datasets[i], networks.classes[i])) for i in chosen]

    def prepare(self, networks: Networks, task: Task, *, shots: int = SHOTS) -> tuple[Target, SupportSet, LabelledData]:
        """The target network, a support set from the train part, and the task's part of the data."""
        channels = networks.target.input_shape[0]
        part = task.select(self.data(task.dataset, channels))
        fewest = min(torch.bincount(part.y_train).tolist())
        support = Task(task.dataset, tuple(range(task.ways))).draw_support(
            part, min(shots, fewest), rng=torch.Generator().manual_seed(0)
        )
        target = build_target(networks.target.spec.arch, num_classes=task.ways, in_channels=channels)
        return target, support, part

    def score(
        self,
        source: WeightGenerator,
        target: Target,
        support: SupportSet,
        part: LabelledData,
        *,
        options: D2nwgOptions | None = None,
    ) -> float:
        """Test accuracy of a source; for generators that sample, the mean over the seeds."""
        many = self.seeds if source.name.startswith(self.generator.name) else 1
        request = GenerationRequest(target, Condition(support=support), num_samples=many, options=options)
        return statistics.fmean(accuracy(target, s, part.x_test, part.y_test) for s in source.generate(request))

    def score_trunk(self, target: Target, trunk: State, support: SupportSet, part: LabelledData) -> dict[str, float]:
        """Test accuracy of a trunk in normal form, finished like a sample, with and without refinement."""
        states = {
            "refined": self.generator.finish(target, trunk, support, refinements=None),
            "unrefined": self.generator.finish(target, trunk, support),
        }
        return {name: accuracy(target, state, part.x_test, part.y_test) for name, state in states.items()}

    def references(self, networks: Networks) -> ReferenceZoo | None:
        arch, channels = networks.target.spec.arch, networks.target.input_shape[0]
        path = released_references(self.generator.name, arch, channels)
        return ReferenceZoo.load(path) if path else None
