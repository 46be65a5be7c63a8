"""How the generator `logah` is trained: on spaces of architectures (Zhou et al. 2024, arXiv:2405.16287, section 4).

Every step draws architectures from the stored ones, predicts all their parameters, runs them on a batch and follows the
gradient of the loss into the hypernetwork. BatchNorm uses the statistics of the batch. Architectures with the graph of
one in `model_zoo.spaces.HELD_OUT` are never drawn.

Class heads are made in one of two ways. Predicted, like all other tensors, as published: then the generator knows the
classes of one data set. Or solved in closed form on the examples of a task, where each example is judged by the head
that left it out (`weightgen.solve.head`), so that no separate queries are needed: then only the trunk is learnt, and
any task will do.

Presets:

    release     the released generator; about an hour of one CPU thread
    table       Fashion-MNIST, an evaluation set elsewhere: only for `benchmarks.studies.logah_table`; 3.5 minutes
    spaces      the recipe of the paper; many hours of a GPU

See `docs/decisions/0009-heads-solved-in-training.md` for the reasons.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from model_zoo.architectures import make_meta
from model_zoo.data import EVALUATION_SETS, TRAIN_SETS, data_licence
from model_zoo.spaces import Member
from training.logah.members import StoredMember, load_members
from training.logah.tasks import Batch, Classes, Sources, Tasks, Texts
from training.loop import Group, LoopSettings, Losses, Recipe, Run, Span, train
from weightgen.errors import BadOption
from weightgen.generators.logah.generator import LogahConfig, new_logah
from weightgen.generators.logah.plan import WeightScale
from weightgen.solve.head import ridge_head
from weightgen.spec import State
from weightgen.target.interventions import head_inputs, normalise_by_batch


@dataclass(frozen=True, slots=True)
class LogahTraining:
    """Settings of one training run."""

    spaces: dict[str, int]
    """How many architectures are drawn from each space, by its name."""
    data: tuple[str, ...]
    """Sets of labelled images; exactly one if heads are predicted."""
    text: tuple[str, ...] = ()
    """Sets of texts, for language models on bytes."""
    is_head_solved: bool = False
    """Whether class heads are solved on the batch; otherwise they are predicted."""
    is_transformed: bool = False
    """Whether tasks are changed at random (`training.episodes`); only where heads are solved."""
    classes: tuple[int, int] = (10, 10)
    """Smallest and largest number of classes that architectures are built for."""
    channels: tuple[int, ...] = (1,)
    """Numbers of channels that they are built for; a number that is listed twice is drawn twice as often."""
    unconditioned: float = 0.15
    """Share of steps in which a hypernetwork that takes support sets gets none."""
    model: LogahConfig = field(default_factory=LogahConfig)
    steps: int = 10_000
    meta_batch: int = 1
    """Architectures in a step of each process."""
    batch_size: int = 64
    """Images that each of them is run on; a task with a solved head has one more in each class."""
    texts: int = 64
    """Pieces of text that a language model is run on."""
    learning_rate: float = 3e-4
    rate_by_fan_in: bool = False
    """Whether wide layers have a lower learning rate (`rate_share`)."""
    warmup: int = 100
    """Steps over which the learning rate rises in a line; over the whole run it falls to 0 along half a cosine."""
    weight_decay: float = 1e-2
    clip: float = 5.0
    """Largest norm of a gradient."""
    weight_norm: float = 3e-5
    """Weight of the sum of the norms of all predicted tensors."""
    max_parameters: int = 10_000_000
    """Architectures with more parameters than this are replaced by others."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.meta_batch, self.batch_size - 1, self.learning_rate, self.clip) <= 0:
            raise BadOption("expected steps, meta_batch, learning_rate and clip above 0, and a batch_size of 2 or more")

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "LogahTraining":
        """The settings that `to_json` returned."""
        model = dict(saved["model"])
        model["scale"] = WeightScale(**model["scale"])
        model["refinement_rates"] = tuple(model.get("refinement_rates", ()))
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        return cls(**{**plain, "model": LogahConfig(**model)})

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))

    def loop(self, *, save_every: int = 1000) -> LoopSettings:
        """Settings of the loop; the run is logged whenever it is saved."""
        return LoopSettings(
            budget=Span(steps=self.steps),
            seed=self.seed + 7919,
            warmup=self.warmup + 1,
            weight_decay=self.weight_decay,
            clip=self.clip,
            is_clipped_by_group=False,
            accumulate=self.meta_batch,
            updates_unused=True,
            is_fused=True,
            log_every=Span(steps=save_every),
            save_every=Span(steps=save_every),
        )


def released() -> LogahTraining:
    """The released generator: solved heads, conditioned on support sets; about an hour of one CPU thread."""
    return LogahTraining(
        spaces={
            **{"registered": 160, "cnns": 120, "narrow_cnns": 60, "wide_cnns": 40, "mlps": 60, "resnets": 30},
            **{"small_vits": 120, "small_gpts": 40},
        },
        data=tuple(sorted(TRAIN_SETS)),
        text=("banking77", "clinc150"),
        model=LogahConfig(encoding_dim=64),
        is_head_solved=True,
        is_transformed=True,
        classes=(2, 40),
        channels=(1, 1, 3),
        steps=45_000,
        batch_size=72,
        texts=12,
        learning_rate=7e-4,
        warmup=500,
        rate_by_fan_in=True,
    )


def spaces() -> LogahTraining:
    """The paper's recipe, size T, on all spaces."""
    counts = {"cnns": 300, "mlps": 100, "resnets": 14, "vits": 300, "gpts": 200}
    return LogahTraining(spaces=counts, data=("mnist",), text=("banking77",))


def table() -> LogahTraining:
    """Small CNNs and ViTs on Fashion-MNIST in 3.5 minutes of one CPU thread, with 0.7 million parameters."""
    return LogahTraining(
        spaces={"narrow_cnns": 140, "wide_cnns": 30, "cnns": 30, "small_vits": 80},
        data=("fashion_mnist",),
        model=LogahConfig(rank=24, dim=64, num_layers=3),
        is_head_solved=True,
        steps=4200,
        batch_size=60,
        weight_norm=0.0,  # a solved head makes up for any size: weights would only shrink
        learning_rate=7e-4,
        warmup=200,
        rate_by_fan_in=True,
    )


PRESETS = {"release": released, "spaces": spaces, "table": table}


def load_sources(config: LogahTraining) -> Sources:
    """What the members of the config's spaces learn from."""
    texts = Texts(config.text)
    if not config.is_head_solved:
        return Sources(Classes(config.data[0]), texts)
    return Sources(Tasks(config.data, most=config.batch_size, is_transformed=config.is_transformed), texts)


class Learner:
    """The hypernetwork of one run, and how it does on members of the spaces."""

    def __init__(self, config: LogahTraining, members: Sequence[StoredMember], sources: Sources) -> None:
        self.config, self.members, self.sources = config, members, sources
        self.hypernet = new_logah(config.model, seed=config.seed)
        self.skeletons: dict[int, tuple[nn.Module, State]] = {}

    def recipe(self) -> Recipe:
        return Recipe(
            name="logah",
            module=self.hypernet,
            groups=self.groups(),
            losses=self.losses,
            settings=self.config.to_json(),
        )

    def groups(self) -> list[Group]:
        """Parameters by the share of the learning rate that they get."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.hypernet.named_parameters():
            share = rate_share(name, parameter) if self.config.rate_by_fan_in else 1.0
            groups.setdefault(share, []).append(parameter)
        return [Group(parameters, share * self.config.learning_rate) for share, parameters in groups.items()]

    def losses(self, _steps: int, _progress: float, rng: torch.Generator) -> Losses:
        """Loss of one member, drawn at random, on a batch; and the size of its predicted weights."""
        config = self.config
        index = int(torch.randint(len(self.members), (1,), generator=rng))
        drawn = self.members[index]
        batch = self.sources.draw(drawn.member, size=config.batch_size, texts=config.texts, rng=rng)
        predicted = self.hypernet(drawn.graph, self.encode(batch, rng=rng))
        module, own = self.skeleton(index, predicted)
        logits, used = self.answer(module, own, predicted, batch)
        loss = F.cross_entropy(logits, batch.answers.flatten())
        size = torch.stack([w.norm() for w in used.values()]).sum()
        share = 1 / math.log(batch.num_classes) if config.is_head_solved else 1.0
        right = float((logits.detach().argmax(1) == batch.answers.flatten()).float().mean())
        seen = {f"{drawn.space} loss": float(loss.detach()), f"{drawn.space} accuracy": right}
        return Losses({"task": share * loss, "size": config.weight_norm * size}, seen)

    def encode(self, batch: Batch, *, rng: torch.Generator) -> Tensor | None:
        """The encoding of the batch; None in some steps, and always where the hypernetwork takes none."""
        if self.config.model.encoding_dim is None or batch.inputs.ndim != 4:
            return None
        if float(torch.rand(1, generator=rng)) < self.config.unconditioned:
            return None
        return self.hypernet.encode(batch.inputs, batch.answers, batch.num_classes)

    def answer(self, module: nn.Module, own: State, predicted: State, batch: Batch) -> tuple[Tensor, State]:
        """Logits (n, classes), and the predicted tensors that they depend on."""
        state = {**own, **predicted}
        if not self.config.is_head_solved or batch.inputs.ndim != 4:
            return functional_call(module, state, (batch.inputs,)).flatten(0, -2), predicted
        seen: list[Tensor] = []
        with head_inputs(module, "head.weight", seen):
            functional_call(module, state, (batch.inputs,))
        head = ridge_head(seen[0], batch.answers, num_classes=batch.num_classes)
        return head.left_out_logits, {name: w for name, w in predicted.items() if not name.startswith("head.")}

    def skeleton(self, index: int, predicted: State) -> tuple[nn.Module, State]:
        """A member's structure on the meta device, and its own values of the parameters that are not predicted."""
        if index not in self.skeletons:
            member: Member = self.members[index].member
            module = normalise_by_batch(make_meta(member.build))
            kept = [name for name, _ in module.named_parameters() if name not in predicted]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                own = {name: member.build().get_parameter(name).detach() for name in kept}
            self.skeletons[index] = module, own
        return self.skeletons[index]


def rate_share(name: str, parameter: Tensor) -> float:
    """The share of the learning rate that a parameter gets: 64 / fan in, at most 1.

    Yang et al. 2022 (arXiv:2203.03466): one step of Adam moves an output by rate x fan in. At a rate that suits
    embeddings, a layer with 512 inputs would change completely within a few steps.
    """
    is_table = ".of_op." in name or ".of_role." in name
    return 1.0 if parameter.ndim < 2 or is_table else min(1.0, 64 / parameter.shape[1])


def train_run(
    out: Path, *, until: int | None = None, save_every: int = 1000, rank: int = 0, world_size: int = 1
) -> Run:
    """Train on the stored architectures of a folder up to step `until`, from where its saved run stands.

    Process 0 writes the hypernetwork, as far as it has come, to `generator_file(out)`.
    """
    saved, members = load_members(out / "members.json")
    config = LogahTraining.from_json(saved)
    learner = Learner(config, members, load_sources(config))
    run = train(
        learner.recipe(), config.loop(save_every=save_every), out, until=until, rank=rank, world_size=world_size
    )
    if not rank:
        learner.hypernet.training_record = {
            "config": config.to_json(),
            "steps": run.steps,
            "cpu_seconds": round(run.cpu_seconds, 1),
            "processes": world_size,
            "members": {space: sum(m.space == space for m in members) for space in config.spaces},
            "member_digests": [m.graph.digest for m in members],
            "data": {name: data_licence(name) for name in config.data},
            "for_evaluation_only": bool(set(config.data) & set(EVALUATION_SETS)),
        }
        learner.hypernet.save(generator_file(out))
    return run


def generator_file(out: Path) -> Path:
    return out / "generator.safetensors"
