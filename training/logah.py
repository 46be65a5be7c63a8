"""Train a graph hypernetwork on spaces of architectures (LoGAH, Zhou et al. 2024, arXiv:2405.16287, section 4).

    python -m training.logah graphs --preset release --out runs/logah/release   # draw architectures, store their graphs
    python -m training.logah train --out runs/logah/release                     # goes on where it was interrupted
    python -m training.logah release runs/logah/release --out model_zoo/released/logah.safetensors
    torchrun --nproc-per-node 2 -m training.logah train --out runs/logah/release

Every step draws architectures from the stored ones, predicts all their parameters, runs them with those on a batch and
follows the task's loss into the hypernetwork. BatchNorm uses the statistics of the batch. Interrupted runs go on to
the same bits. Architectures whose graph is that of one in `model_zoo.spaces.HELD_OUT` are never drawn.

Class heads are either predicted like everything else, as published: then the generator knows the classes of one data
set. Or they are solved in closed form on a task's examples, each judged by the head that left it out
(`weightgen.solve.head`), which needs no queries apart: then the trunk alone is learnt, and any task will do.

Presets: `release`, the released generator, about an hour of one CPU thread; `table`, Fashion-MNIST alone, an evaluation
set everywhere else, for the comparison of `benchmarks.studies.logah_table` and not for release, 3.5 minutes; `spaces`, the
paper's own recipe, many hours of a GPU.
"""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.func import functional_call

from model_zoo.architectures import make_meta
from model_zoo.data import EVALUATION_SETS, TRAIN_SETS, data_licence, load_data
from model_zoo.spaces import Member
from training.command import run_command
from training.episodes import ClassPool, Episode, draw_tasks, load_pool
from training.logah_members import StoredMember, draw_members, load_members, save_members
from training.logah_scores import SCHEDULES, choose_schedule, held_out_scores, with_refinement
from training.logah_tasks import Batch, Classes, Sources, Tasks, Texts
from weightgen.errors import BadOption, UnknownName
from weightgen.files.checkpoint import load_state, read_manifest, save_state
from weightgen.generators.logah.generator import Logah, LogahConfig, new_logah
from weightgen.generators.logah.plan import WeightScale
from weightgen.solve.head import ridge_head
from weightgen.spec import State
from weightgen.target.interventions import head_inputs, normalise_by_batch

CHOICE_NETWORKS = ("cnn-tiny", "cnn", "vit-tiny", "cnn 26-34-42")
"""What refinements are chosen on."""
Say = Callable[[str], None]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass(frozen=True, slots=True)
class LogahTraining:
    """What is learnt from, and how."""

    spaces: dict[str, int]
    """Name of a space -> how many of its architectures are drawn."""
    data: tuple[str, ...]
    """Sets of labelled images; one where heads are predicted."""
    text: tuple[str, ...] = ()
    """Sets of texts, for language models on bytes."""
    is_head_solved: bool = False
    """Whether class heads are solved on the batch; else they are predicted."""
    is_transformed: bool = False
    """Whether tasks are turned, inverted, coloured … without end, where heads are solved."""
    classes: tuple[int, int] = (10, 10)
    """The range of the numbers of classes that architectures are built for."""
    channels: tuple[int, ...] = (1,)
    """What numbers of channels they are built for."""
    unconditioned: float = 0.15
    """Share of steps that tell the hypernetwork nothing of the data, where it can be told."""
    model: LogahConfig = field(default_factory=LogahConfig)
    steps: int = 10_000
    meta_batch: int = 1
    """Architectures of a step, in each process."""
    batch_size: int = 64
    """Images that each of them sees; of a task with a solved head, one a class more."""
    texts: int = 64
    """Pieces of text that a language model sees."""
    learning_rate: float = 3e-4
    rate_by_fan_in: bool = False
    """Whether wide layers learn more slowly (`rate_share`)."""
    warmup: int = 100
    """Steps over which the learning rate rises in a line, before one cosine to 0."""
    weight_decay: float = 1e-2
    clip: float = 5.0
    """Largest norm of a gradient."""
    weight_norm: float = 3e-5
    """Weight of the sum of the norms of all predicted tensors."""
    max_parameters: int = 10_000_000
    """Larger architectures are drawn anew."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.meta_batch, self.batch_size - 1, self.learning_rate, self.clip) <= 0:
            raise BadOption("expected steps, meta_batch, learning_rate and clip above 0, and a batch_size of 2 or more")

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "LogahTraining":
        """What `to_json` gave."""
        model = dict(saved["model"])
        model["scale"] = WeightScale(**model["scale"])
        model["refinement_rates"] = tuple(model.get("refinement_rates", ()))
        plain = {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
        return cls(**{**plain, "model": LogahConfig(**model)})

    def to_json(self) -> dict[str, Any]:
        return json.loads(json.dumps(asdict(self)))


def released() -> LogahTraining:
    """The released generator: solved heads, told support sets; about an hour of one CPU thread."""
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


class Run:
    """A training under way: hypernetwork, optimiser, clock and random numbers, of one of `world_size` processes."""

    def __init__(self, config: LogahTraining, *, rank: int = 0, world_size: int = 1) -> None:
        self.config, self.rank, self.world_size = config, rank, world_size
        self.hypernet = new_logah(config.model, seed=config.seed)
        self.parameters = dict(self.hypernet.named_parameters())
        for parameter in self.parameters.values():
            # Every step updates every parameter: which of them a member uses must not tell processes apart.
            parameter.grad = torch.zeros_like(parameter)
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault(rate_share(name, parameter) if config.rate_by_fan_in else 1.0, []).append(parameter)
        self.shares = list(groups)
        self.optimizer = torch.optim.AdamW(
            [{"params": group} for group in groups.values()],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.rng = torch.Generator().manual_seed(config.seed + 7919 * (rank + 1))
        self.step, self.seconds = 0, 0.0
        self.running: dict[str, float] = {}
        self.skeletons: dict[int, tuple[nn.Module, State]] = {}

    def advance(self, members: list[StoredMember], sources: Sources) -> None:
        """One step; the gradient is the mean over all processes."""
        began = time.process_time()
        config = self.config
        self.optimizer.zero_grad(set_to_none=False)
        for _ in range(config.meta_batch):
            index = int(torch.randint(len(members), (1,), generator=self.rng))
            drawn = members[index]
            batch = sources.draw(drawn.member, size=config.batch_size, texts=config.texts, rng=self.rng)
            predicted = self.hypernet(drawn.graph, self._encode(batch))
            module, own = self._skeleton(index, drawn.member, predicted)
            logits, used = self._answer(module, own, predicted, batch)
            loss = F.cross_entropy(logits, batch.answers.flatten())
            size = torch.stack([w.norm() for w in used.values()]).sum()
            share = 1 / math.log(batch.num_classes) if config.is_head_solved else 1.0
            ((share * loss + config.weight_norm * size) / config.meta_batch).backward()
            right = float((logits.detach().argmax(1) == batch.answers.flatten()).float().mean())
            for name, value in ((f"{drawn.space} loss", float(loss.detach())), (f"{drawn.space} accuracy", right)):
                self.running[name] = 0.99 * self.running.get(name, value) + 0.01 * value
        average_gradients(list(self.parameters.values()), self.world_size)
        norm = nn.utils.clip_grad_norm_(self.parameters.values(), config.clip)
        for group, share in zip(self.optimizer.param_groups, self.shares, strict=True):
            group["lr"] = share * learning_rate(config, self.step)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.step += 1
        self.seconds += time.process_time() - began

    def _encode(self, batch: Batch) -> Tensor | None:
        """What the hypernetwork is told of the batch, mostly."""
        if self.config.model.encoding_dim is None or batch.inputs.ndim != 4:
            return None
        if float(torch.rand(1, generator=self.rng)) < self.config.unconditioned:
            return None
        return self.hypernet.encode(batch.inputs, batch.answers, batch.num_classes)

    def _answer(self, module: nn.Module, own: State, predicted: State, batch: Batch) -> tuple[Tensor, State]:
        """Logits (n, classes), and the predicted tensors that they depend on."""
        state = {**own, **predicted}
        if not self.config.is_head_solved or batch.inputs.ndim != 4:
            return functional_call(module, state, (batch.inputs,)).flatten(0, -2), predicted
        seen: list[Tensor] = []
        with head_inputs(module, "head.weight", seen):
            functional_call(module, state, (batch.inputs,))
        head = ridge_head(seen[0], batch.answers, num_classes=batch.num_classes)
        return head.left_out_logits, {name: w for name, w in predicted.items() if not name.startswith("head.")}

    def _skeleton(self, index: int, member: Member, predicted: State) -> tuple[nn.Module, State]:
        """The member's structure on the meta device, and its own values of the parameters that are not predicted."""
        if index not in self.skeletons:
            module = normalise_by_batch(make_meta(member.build))
            kept = [name for name, _ in module.named_parameters() if name not in predicted]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.seed)
                own = {name: member.build().get_parameter(name).detach() for name in kept}
            self.skeletons[index] = module, own
        return self.skeletons[index]

    def save(self, path: Path) -> None:
        """Write all that a later `load` needs to go on as if nothing had happened; every process has to call it."""
        states = gather_states(self.rng.get_state(), self.world_size)
        if self.rank:
            return
        tensors: State = {f"hypernet.{n}": t.detach() for n, t in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}.{name}"] = value
        tensors |= {f"rng.{rank}": state for rank, state in enumerate(states)}
        manifest = {
            "config": self.config.to_json(),
            "step": self.step,
            "seconds": self.seconds,
            "running": self.running,
        }
        save_state(path, tensors, manifest=manifest)

    def load(self, path: Path) -> None:
        """Go on from a saved run of the same settings and number of processes."""
        manifest, tensors = read_manifest(path), load_state(path)
        if LogahTraining.from_json(manifest["config"]) != self.config:
            raise BadOption(f"{path} was begun with other settings; give another folder")
        if f"rng.{self.world_size}" in tensors or f"rng.{self.world_size - 1}" not in tensors:
            raise BadOption(f"{path} was begun with another number of processes than {self.world_size}")
        self.step, self.seconds, self.running = manifest["step"], manifest["seconds"], manifest["running"]
        self.rng.set_state(tensors[f"rng.{self.rank}"])
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(tensors[f"hypernet.{name}"])
                if self.step:
                    keys = ("step", "exp_avg", "exp_avg_sq")
                    self.optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in keys}


def learning_rate(config: LogahTraining, step: int) -> float:
    """A rise in a line over `warmup` steps times one cosine over all."""
    rise = min(1.0, (step + 1) / (config.warmup + 1))
    return config.learning_rate * rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))


def rate_share(name: str, parameter: Tensor) -> float:
    """The share of the learning rate that a parameter gets: 64 / fan in, at most 1.

    Yang et al. 2022 (arXiv:2203.03466): one step of Adam moves an output by rate x fan in. At a rate that suits
    embeddings, a core read off 512 features would be another one after a few steps.
    """
    is_table = ".of_op." in name or ".of_role." in name
    return 1.0 if parameter.ndim < 2 or is_table else min(1.0, 64 / parameter.shape[1])


def average_gradients(parameters: list[nn.Parameter], world_size: int) -> None:
    """Replace every gradient by its mean over all processes, in one exchange."""
    if world_size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world_size).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def gather_states(state: Tensor, world_size: int) -> list[Tensor]:
    """The random number generators' states of all processes, in the order of their ranks."""
    if world_size == 1:
        return [state]
    states = [torch.empty_like(state) for _ in range(world_size)]
    dist.all_gather(states, state)
    return states


@app.command()
def graphs(
    out: Annotated[Path, typer.Option(help="Folder of this run.")],
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "spaces",
    steps: Annotated[int | None, typer.Option(help="Training steps, where not the preset's.")] = None,
) -> None:
    """Draw the architectures to learn from and store their graphs, in OUT/members.json."""
    if preset not in PRESETS:
        raise UnknownName("preset", preset, PRESETS)
    config = PRESETS[preset]() if steps is None else replace(PRESETS[preset](), steps=steps)
    began = time.process_time()
    classes = config.classes
    if not config.is_head_solved:
        known = load_data(config.data[0]).num_classes
        classes = known, known
    members = draw_members(
        config.spaces,
        classes=classes,
        channels=config.channels,
        max_parameters=config.max_parameters,
        seed=config.seed,
    )
    save_members(out / "members.json", members, config.to_json())
    typer.echo(json.dumps({"members": len(members), "seconds": round(time.process_time() - began, 1)}))


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of this run, with the architectures that `graphs` stored.")],
    until: Annotated[int | None, typer.Option(help="Stop after this step of all, to go on later.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between two saves of the run.")] = 1000,
) -> None:
    """Train the hypernetwork, or go on; OUT/generator.safetensors is the result."""
    torch.set_num_threads(1)
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world_size > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        run = train_run(out, until=until, save_every=save_every, rank=rank, world_size=world_size)
    finally:
        if world_size > 1:
            dist.destroy_process_group()
    if not rank:
        typer.echo(json.dumps({"step": run.step, "seconds": round(run.seconds, 1), "file": str(_generator_of(out))}))


@app.command()
def release(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="The generator file to write.")],
    tasks_each: Annotated[int, typer.Option(help="Held-out tasks on each training set to choose and to score by.")] = 1,
) -> None:
    """Choose the refinements of a trained hypernetwork on held-out tasks, score it on others, write its file."""
    hypernet = Logah.load(_generator_of(run))
    if hypernet.training_record["for_evaluation_only"]:
        raise BadOption(f"{run} has learnt from an evaluation set: not for release")
    pool = load_pool(sorted(hypernet.training_record["data"]), "test")
    chosen, found = choose_schedule(hypernet, _tasks(pool, tasks_each, seed=20_000), CHOICE_NETWORKS)
    generator = with_refinement(hypernet, SCHEDULES[chosen])
    generator.training_record |= {
        "refinements": {"chosen": chosen, "accuracy": found, "networks": list(CHOICE_NETWORKS)},
        "held_out": held_out_scores(generator, _tasks(pool, tasks_each, seed=30_000)),
    }
    generator.save(out)
    typer.echo(json.dumps({"file": str(out), "bytes": out.stat().st_size, **generator.training_record["refinements"]}))


def _tasks(pool: ClassPool, each: int, *, seed: int) -> list[Episode]:
    return [task for tasks in draw_tasks(pool, each=each, seed=seed).values() for task in tasks]


def train_run(
    out: Path,
    *,
    until: int | None = None,
    save_every: int = 1000,
    rank: int = 0,
    world_size: int = 1,
    say: Say | None = None,
) -> Run:
    """Train on the stored architectures of a folder up to step `until`, from where its saved run stands."""
    saved, members = load_members(out / "members.json")
    config = LogahTraining.from_json(saved)
    sources, run, path = load_sources(config), Run(config, rank=rank, world_size=world_size), out / "run.safetensors"
    if path.exists():
        run.load(path)
    end = config.steps if until is None else min(until, config.steps)
    while run.step < end:
        run.advance(members, sources)
        if run.step % save_every == 0 or run.step == end:
            run.save(path)
            if not rank:
                found = ", ".join(f"{name} {value:.3f}" for name, value in sorted(run.running.items()))
                (say or _say)(f"step {run.step} {run.seconds:.0f} s: {found}")
    if not rank:
        run.hypernet.training_record = {
            "config": config.to_json(),
            "steps": run.step,
            "cpu_seconds": round(run.seconds, 1),
            "processes": world_size,
            "members": {space: sum(m.space == space for m in members) for space in config.spaces},
            "member_digests": [m.graph.digest for m in members],
            "data": {name: data_licence(name) for name in config.data},
            "for_evaluation_only": bool(set(config.data) & set(EVALUATION_SETS)),
        }
        run.hypernet.save(_generator_of(out))
    return run


def _generator_of(out: Path) -> Path:
    return out / "generator.safetensors"


def _say(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    run_command(app)
