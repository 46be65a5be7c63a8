"""Train a graph hypernetwork on spaces of architectures (LoGAH, Zhou et al. 2024, arXiv:2405.16287, section 4).

    python -m training.logah graphs --preset spaces --out runs/logah/spaces     # draw architectures, store their graphs
    python -m training.logah train --out runs/logah/spaces                      # goes on where it was interrupted
    torchrun --nproc-per-node 2 -m training.logah train --out runs/logah/spaces

Every step draws architectures from the stored ones, predicts all their parameters, runs them with those on a batch and
follows the task's loss into the hypernetwork. BatchNorm uses the statistics of the batch. Interrupted runs go on to
the same bits. Architectures whose graph is that of one in `model_zoo.spaces.HELD_OUT` are never drawn.

The preset `table` learns from Fashion-MNIST, which is an evaluation set everywhere else: it serves the comparison of
`benchmarks.logah_table` alone and is not for release.
"""

import gzip
import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
import typer
from torch import Tensor, nn
from torch.func import functional_call

from model_zoo.architectures import make_meta
from model_zoo.data import EVALUATION_SETS, load_data, shared_folder
from model_zoo.spaces import (
    HELD_OUT,
    CnnMember,
    GptMember,
    Member,
    MlpMember,
    ResNetMember,
    ViTMember,
    draw_member,
)
from training.command import run_command
from weightgen.checkpoint import load_state, read_manifest, save_state
from weightgen.errors import BadOption, CorruptFile, NotFound, UnknownName
from weightgen.evaluate import augment_images
from weightgen.generators.graph_hypernet import LogahConfig, new_graph_hypernet
from weightgen.graph import ArchGraph, Node, OwnedTensor, build_graph
from weightgen.spec import State, StateSpec
from weightgen.storage import read_json, write_json
from weightgen.weight_plan import WeightScale

Say = Callable[[str], None]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)

_MEMBERS: dict[str, type[Any]] = {
    kind.__name__: kind for kind in (CnnMember, MlpMember, ResNetMember, ViTMember, GptMember)
}


@dataclass(frozen=True, slots=True)
class LogahTraining:
    """What is learnt from, and how."""

    spaces: dict[str, int]
    """Name of a space -> how many of its architectures are drawn."""
    data: str
    """A set of labelled images; grey, and as many classes as it has."""
    text: str | None = None
    """A set of texts, for language models on bytes; None where no space has any."""
    model: LogahConfig = field(default_factory=LogahConfig)
    steps: int = 10_000
    meta_batch: int = 1
    """Architectures of a step, in each process."""
    batch_size: int = 64
    """Examples that each of them sees."""
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
    augment: bool = False
    """Whether images are shifted, turned and scaled a little."""
    max_parameters: int = 10_000_000
    """Larger architectures are drawn anew."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.steps, self.meta_batch, self.batch_size - 1, self.learning_rate, self.clip) <= 0:
            raise BadOption("expected steps, meta_batch, learning_rate and clip above 0, and a batch_size of 2 or more")


def spaces() -> LogahTraining:
    """All spaces, the paper's recipe and size T."""
    counts = {"cnns": 300, "mlps": 100, "resnets": 30, "vits": 300, "gpts": 200}
    return LogahTraining(spaces=counts, data="mnist", text="banking77")


def table() -> LogahTraining:
    """Small CNNs and ViTs on Fashion-MNIST in 3.5 minutes of one CPU thread, with 0.7 million parameters."""
    return LogahTraining(
        spaces={"narrow_cnns": 160, "small_vits": 80},
        data="fashion_mnist",
        model=LogahConfig(rank=24, dim=64, num_layers=3),
        steps=7500,
        batch_size=32,
        learning_rate=4e-4,
        warmup=300,
        rate_by_fan_in=True,
    )


PRESETS = {"spaces": spaces, "table": table}


@dataclass(frozen=True, slots=True)
class StoredMember:
    """An architecture to learn from, with its graph."""

    space: str
    member: Member
    graph: ArchGraph


def draw_members(config: LogahTraining, *, num_classes: int) -> list[StoredMember]:
    """Different architectures of every space, none of them with the graph of a held-out one."""
    rng = torch.Generator().manual_seed(config.seed)
    refused = {_graph_of(_with_classes(member, num_classes)).digest for member in HELD_OUT.values()}
    seen: set[Member] = set()
    drawn: list[StoredMember] = []
    for space, count in config.spaces.items():
        misses, wanted = 0, len(drawn) + count
        while len(drawn) < wanted:
            member = _with_classes(draw_member(space, rng), num_classes)
            graph = _graph_of(member)
            size = sum(t.numel for t in graph.spec.tensors if t.tied_to is None)
            if member in seen or graph.digest in refused or size > config.max_parameters:
                misses += 1
                if misses > 100 + 20 * count:
                    raise BadOption(f"space {space!r} has fewer than {count} different architectures of this size")
                continue
            seen.add(member)
            drawn.append(StoredMember(space, member, graph))
    return drawn


def save_members(path: Path, members: Iterable[StoredMember], config: LogahTraining) -> None:
    """Write architectures and their graphs to a JSON file, with what they were drawn for."""
    rows = [
        {
            "space": m.space,
            "member": {"kind": type(m.member).__name__, **asdict(m.member)},  # pyright: ignore[reportArgumentType]
            "spec": m.graph.spec.to_json(),
            "nodes": [[n.op, [[t.name, t.role, t.is_transposed, t.is_buffer] for t in n.tensors], n.reads]
                      for n in m.graph.nodes],
            "edges": m.graph.edges.tolist(),
            "digest": m.graph.digest,
        }
        for m in members
    ]  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"config": _plain(config), "members": rows})


def load_members(path: Path) -> tuple[LogahTraining, list[StoredMember]]:
    """What `save_members` wrote; CorruptFile where a graph is not the one that was stored."""
    if not path.exists():
        raise NotFound(f"{path}: not there; run `graphs` before `train`")
    content = read_json(path)
    members = []
    for row in content["members"]:
        about = {k: tuple(v) if isinstance(v, list) else v for k, v in row["member"].items()}
        kind = _MEMBERS[row["member"]["kind"]]
        nodes = tuple(
            Node(op, tuple(OwnedTensor(*t[:3], is_buffer=t[3]) for t in tensors), tuple(reads))
            for op, tensors, reads in row["nodes"]
        )
        edges = torch.tensor(row["edges"], dtype=torch.long).reshape(-1, 2)
        graph = ArchGraph(StateSpec.from_json(row["spec"]), nodes, edges)
        if graph.digest != row["digest"]:
            raise CorruptFile(f"{path}: the graph of {row['member']} is not the one that was stored")
        members.append(StoredMember(row["space"], kind(**{k: v for k, v in about.items() if k != "kind"}), graph))
    return _read_config(content["config"]), members


class Batches:
    """Batches for any member: labelled images, or texts as bytes."""

    def __init__(self, config: LogahTraining) -> None:
        data = load_data(config.data)
        self.images, self.labels = data.x_train.mean(1, keepdim=True), data.y_train
        self.num_classes, self.augment = data.num_classes, config.augment
        self.text = _load_text(config.text) if config.text else torch.empty(0, dtype=torch.long)

    def draw(self, member: Member, size: int, *, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (n, 1, h, w) and labels (n,), or byte ids (n, t) and the ids that follow them (n, t)."""
        if isinstance(member, GptMember):
            if len(self.text) <= member.context:
                raise BadOption("language models need texts to learn from: set `text`")
            starts = torch.randint(len(self.text) - member.context, (size, 1), generator=rng)
            ids = self.text[starts + torch.arange(member.context + 1)]
            return ids[:, :-1], ids[:, 1:]
        rows = torch.randint(len(self.labels), (size,), generator=rng)
        images = self.images[rows]
        return augment_images(images, rng=rng) if self.augment else images, self.labels[rows]


class Run:
    """A training under way: hypernetwork, optimiser, clock and random numbers, of one of `world_size` processes."""

    def __init__(self, config: LogahTraining, *, rank: int = 0, world_size: int = 1) -> None:
        self.config, self.rank, self.world_size = config, rank, world_size
        self.hypernet = new_graph_hypernet(config.model, seed=config.seed)
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

    def advance(self, members: list[StoredMember], batches: Batches) -> None:
        """One step; the gradient is the mean over all processes."""
        began = time.process_time()
        config = self.config
        self.optimizer.zero_grad(set_to_none=False)
        for _ in range(config.meta_batch):
            index = int(torch.randint(len(members), (1,), generator=self.rng))
            drawn = members[index]
            inputs, answers = batches.draw(drawn.member, config.batch_size, rng=self.rng)
            predicted = self.hypernet(drawn.graph)
            module, own = self._skeleton(index, drawn.member, predicted)
            logits = functional_call(module, {**own, **predicted}, (inputs,)).flatten(0, -2)
            loss = F.cross_entropy(logits, answers.flatten())
            size = torch.stack([w.norm() for w in predicted.values()]).sum()
            ((loss + config.weight_norm * size) / config.meta_batch).backward()
            right = float((logits.detach().argmax(1) == answers.flatten()).float().mean())
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

    def _skeleton(self, index: int, member: Member, predicted: State) -> tuple[nn.Module, State]:
        """The member's structure on the meta device, and its own values of the parameters that are not predicted."""
        if index not in self.skeletons:
            module = make_meta(member.build).train()
            for part in module.modules():
                if isinstance(part, nn.modules.batchnorm._BatchNorm):
                    part.track_running_stats = False  # else it would write to statistics that have no storage
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
        manifest = {"config": _plain(self.config), "step": self.step, "seconds": self.seconds, "running": self.running}
        save_state(path, tensors, manifest=manifest)

    def load(self, path: Path) -> None:
        """Go on from a saved run of the same settings and number of processes."""
        manifest, tensors = read_manifest(path), load_state(path)
        if manifest["config"] != _plain(self.config):
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
    members = draw_members(config, num_classes=load_data(config.data).num_classes)
    save_members(out / "members.json", members, config)
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
    config, members = load_members(out / "members.json")
    batches, run, path = Batches(config), Run(config, rank=rank, world_size=world_size), out / "run.safetensors"
    if path.exists():
        run.load(path)
    end = config.steps if until is None else min(until, config.steps)
    while run.step < end:
        run.advance(members, batches)
        if run.step % save_every == 0 or run.step == end:
            run.save(path)
            if not rank:
                found = ", ".join(f"{name} {value:.3f}" for name, value in sorted(run.running.items()))
                (say or _say)(f"step {run.step} {run.seconds:.0f} s: {found}")
    if not rank:
        run.hypernet.training_record = {
            "config": _plain(config),
            "steps": run.step,
            "cpu_seconds": round(run.seconds, 1),
            "processes": world_size,
            "members": {space: sum(m.space == space for m in members) for space in config.spaces},
            "for_evaluation_only": config.data in EVALUATION_SETS,
        }
        run.hypernet.save(_generator_of(out))
    return run


def _generator_of(out: Path) -> Path:
    return out / "generator.safetensors"


def _graph_of(member: Member) -> ArchGraph:
    example = torch.zeros(1, 8, dtype=torch.long) if isinstance(member, GptMember) else torch.zeros(1, 1, 28, 28)
    return build_graph(make_meta(member.build), example)


def _with_classes(member: Member, num_classes: int) -> Member:
    if is_dataclass(member) and any(f.name == "num_classes" for f in fields(member)):
        return replace(member, num_classes=num_classes)  # pyright: ignore
    return member


def _load_text(name: str) -> Tensor:
    """The texts of the training part of a shared set as bytes, a line each, (n,)."""
    folder = shared_folder()
    path = folder / "text" / f"{name}.jsonl.gz" if folder else None
    if path is None or not path.is_file():
        raise NotFound(f"text set {name!r} is not there; set WEIGHTGEN_SHARED to the shared data folder")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    text = "\n".join(row["text"] for row in rows if row["split"] == "train")
    return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).long()


def _plain(config: LogahTraining) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(config)))


def _read_config(saved: dict[str, Any]) -> LogahTraining:
    model = dict(saved["model"])
    model["scale"] = WeightScale(**model["scale"])
    return LogahTraining(**{**saved, "model": LogahConfig(**model)})


def _say(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    run_command(app)
