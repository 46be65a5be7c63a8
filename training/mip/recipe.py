"""How the generator `mip` is trained.

Every step draws one episode (`training.episodes`) and generates a network from its support set. The loss is the
cross-entropy of that network on the queries; its gradient goes through every part of the generator. The model with the
lowest cross-entropy on held-out tasks is kept. Their images come from the data sets that are held out or, if there are
none, from the test splits of the training sets. A release takes the best model or the last one, whichever does better
on other held-out tasks. The cost of a preset is its minutes on one CPU thread; the card of the released generator says
what it took.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model_zoo.architectures import build_target
from model_zoo.data import TRAIN_SETS, data_licence
from training.episodes import ClassPool, Episode, EpisodeConfig, draw_tasks, load_pool
from training.loop import BEST, LAST, Group, LoopSettings, Losses, Recipe, Span, read_weights, train
from weightgen.errors import BadOption
from weightgen.generators.mip.generator import Mip
from weightgen.generators.mip.hypernet import ArchHypernet, MipConfig, new_hypernet


@dataclass(frozen=True)
class MipTraining:
    """One training run of one architecture."""

    arch: str
    budget: Span
    """Training time or steps, without evaluations; the learning rate falls to zero over it."""
    model: MipConfig = field(default_factory=MipConfig)
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    held_out: tuple[str, ...] = ()
    """Training sets that are left out whole, to choose a recipe by them; none for a release."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    unconditioned: float = 0.1
    """Share of steps with the condition off, so that weights without a condition are trained too."""
    evaluations: int = 15
    """Number of evaluations, evenly spread over the run."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.evaluations < 1:
            raise BadOption(f"{self.evaluations} evaluations, expected 1 or more: the best model is kept by them")

    def loop(self) -> LoopSettings:
        return LoopSettings(
            budget=self.budget, seed=self.seed, weight_decay=self.weight_decay, evaluations=self.evaluations
        )

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "MipTraining":
        """The settings that a saved run holds."""
        parts = {"budget": Span, "model": MipConfig, "episodes": EpisodeConfig}
        built = {name: kind(**saved[name]) for name, kind in parts.items()}
        return cls(**{**saved, **built, "held_out": tuple(saved["held_out"])})


def tiny_preset() -> MipTraining:
    """cnn-tiny: about 45 minutes of one CPU thread."""
    return MipTraining(arch="cnn-tiny", budget=Span(minutes=45), model=MipConfig(refinements=3))


def cnn_preset() -> MipTraining:
    """cnn: about 75 minutes of one CPU thread. Without refinement, which would more than double the cost of a step."""
    return MipTraining(arch="cnn", budget=Span(minutes=75), model=MipConfig(refinements=0), evaluations=25)


def vit_preset() -> MipTraining:
    """vit-tiny: about 150 minutes of one CPU thread. Without refinement, for the same reason."""
    return MipTraining(arch="vit-tiny", budget=Span(minutes=150), model=MipConfig(refinements=0), evaluations=25)


PRESETS = {"cnn-tiny": tiny_preset, "cnn": cnn_preset, "vit-tiny": vit_preset}


class Learner:
    """The model of one run, and how it answers episodes."""

    def __init__(self, config: MipTraining, *, device: torch.device) -> None:
        self.config, self.device = config, device
        self.targets = {c: build_target(config.arch, num_classes=2, in_channels=c) for c in (1, 3)}
        self.model = new_hypernet(self.targets[3], config.model, seed=config.seed).to(device)
        self.record: dict[str, Any] = {"before": {"steps": 0, "minutes": 0.0}}
        """`before`: what had been spent on the weights that this run started from."""

    def recipe(self, pool: ClassPool, tasks: dict[str, list[Episode]]) -> Recipe:
        """Training on episodes of a pool, evaluated on held-out tasks by data set."""

        def losses(_steps: int, _progress: float, rng: torch.Generator) -> Losses:
            episode = pool.draw(self.config.episodes, rng=rng)
            conditioned = float(torch.rand(1, generator=rng)) >= self.config.unconditioned
            logits, labels = self.answer(episode, conditioned=conditioned)
            loss = F.cross_entropy(logits, labels) / math.log(episode.num_classes)
            return Losses({"loss": loss}, {"accuracy": float((logits.argmax(1) == labels).float().mean())})

        return Recipe(
            name=self.config.arch,
            module=self.model,
            groups=[Group(list(self.model.parameters()), self.config.learning_rate)],
            losses=losses,
            settings=asdict(self.config),
            evaluate=lambda: self.evaluate(tasks),
            best_by="cross_entropy",
            record=self.record,
        )

    def answer(self, episode: Episode, *, conditioned: bool) -> tuple[Tensor, Tensor]:
        """Logits on the queries, of the network generated from the support set, and the labels of the queries."""
        support, query = episode.support.to(self.device), episode.query.to(self.device)
        if bool((support[:, 0] == support[:, 1]).all()):
            support, query = support[:, :1].contiguous(), query[:, :1].contiguous()
        labels = episode.support_labels.to(self.device)
        skeleton = self.targets[support.shape[1]].skeleton
        state = self.model(skeleton, support, labels, num_classes=episode.num_classes, conditioned=conditioned)
        return self.model.run(skeleton, state, query), episode.query_labels.to(self.device)

    @torch.no_grad()
    def evaluate(self, tasks: dict[str, list[Episode]]) -> dict[str, Any]:
        """Mean accuracy and cross-entropy over held-out tasks, with and without condition, and accuracy by data set."""
        rows = {}
        for name, of_set in tasks.items():
            found = []
            for task in of_set:
                logits, labels = self.answer(task, conditioned=True)
                plain, _ = self.answer(task, conditioned=False)
                hits = [float((x.argmax(1) == labels).float().mean()) for x in (logits, plain)]
                found.append([*hits, float(F.cross_entropy(logits, labels))])
            rows[name] = torch.tensor(found).mean(0)
        accuracy, unconditioned, loss = torch.stack(list(rows.values())).mean(0).tolist()
        by_set = {name: round(float(row[0]), 4) for name, row in rows.items()}
        return {"accuracy": accuracy, "unconditioned": unconditioned, "cross_entropy": loss, "by_set": by_set}

    def start_from(self, path: Path) -> None:
        """Take over the weights of another run of this architecture; its number of refinements may differ."""
        manifest, state = read_weights(path)
        arch = manifest["settings"]["recipe"]["arch"]
        if arch != self.config.arch:
            raise BadOption(f"{path} trains {arch!r}, not {self.config.arch!r}")
        for name, tensor in self.model.state_dict().items():
            given = state[name]
            if name.startswith("rates") and len(given):  # (steps, tensors): repeat the last step as needed
                given = torch.cat([given, *[given[-1:]] * len(tensor)])[: len(tensor)]
            if given.shape == tensor.shape:
                tensor.copy_(given)
        earlier = manifest["record"]["before"]
        self.record["before"] = {
            "steps": earlier["steps"] + manifest["steps"], "minutes": earlier["minutes"] + manifest["seconds"] / 60
        }  # fmt: skip


def fit(config: MipTraining, out: Path, *, device: torch.device, start: Path | None = None) -> dict[str, Any]:
    """Train until the budget is spent and return the last evaluation; `out` gets the best and the last model.

    `start` is a save of another run: a run that has not begun takes over its weights, and its learning rate starts
    anew.
    """
    names = [name for name in sorted(TRAIN_SETS) if name not in config.held_out]
    pool = load_pool(names, "train")
    held_out = load_pool(list(config.held_out), "train") if config.held_out else load_pool(names, "test")
    tasks = draw_tasks(held_out, each=3, seed=10_000)
    learner = Learner(config, device=device)
    if start is not None and not (out / LAST).exists():
        learner.start_from(start)
    return train(learner.recipe(pool, tasks), config.loop(), out).log[-1]


def gather_runs(runs: Sequence[Path], *, tasks_each: int) -> Mip:
    """A generator from several runs; each gives its best or its last model, whichever does better on held-out tasks."""
    hypernets: dict[str, ArchHypernet] = {}
    records = {}
    tasks = draw_tasks(load_pool(sorted(TRAIN_SETS), "test"), each=tasks_each, seed=20_000)
    for run in runs:
        found = [_load_trained(run / name, tasks) for name in (BEST, LAST)]
        hypernet, record = min(found, key=lambda pair: pair[1]["held_out"]["cross_entropy"])
        hypernets[hypernet.spec.arch], records[hypernet.spec.arch] = hypernet, record
    licences = {name: data_licence(name) for name in sorted(TRAIN_SETS)}
    return Mip(hypernets, training={"runs": records, "data": licences})


def _load_trained(path: Path, tasks: dict[str, list[Episode]]) -> tuple[ArchHypernet, dict[str, Any]]:
    """A saved model, and a record of its training and its scores on held-out tasks."""
    manifest, state = read_weights(path)
    saved = manifest["settings"]["recipe"]
    if saved["held_out"]:
        raise BadOption(
            f"{path.parent} left out {', '.join(saved['held_out'])}: a run to choose a recipe by, not to release"
        )
    learner = Learner(MipTraining.from_json(saved), device=torch.device("cpu"))
    learner.model.load_state_dict(state)
    before = manifest["record"]["before"]
    record = {
        "config": saved,
        "steps": before["steps"] + manifest["steps"],
        "minutes": round(before["minutes"] + manifest["seconds"] / 60, 1),
        "log": [{k: v for k, v in entry.items() if k != "by_set"} for entry in manifest["log"]],
        "held_out": learner.evaluate(tasks),
    }
    return learner.model, record
