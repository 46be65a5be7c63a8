"""Train the generator `d2nwg` on a zoo and release it.

    python -m model_zoo training-zoo --out runs/zoo/training                       # the networks to learn from
    python -m training.d2nwg codec --zoo runs/zoo/training --out runs/d2nwg        # first stage: tokens to latents
    python -m training.d2nwg denoiser --zoo runs/zoo/training --out runs/d2nwg     # second stage: latents from noise
    python -m training.d2nwg release --out runs/d2nwg --file model_zoo/released/d2nwg.safetensors

Codecs learn to give back the tokens of canonical states, and that decoded trunks do their run's task under a solved
head (behaviour loss). The denoiser learns to tell a run's latents from noise given a support set of its task; its own
samples, decoded, also have to do new tasks (`training.episodes`), through decoder, refinement and head; decoders go on
giving back the zoo's own networks meanwhile. Only runs of the zoo's
`train` split are learnt from; `val` is watched.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from model_zoo.data import TRAIN_SETS, data_licence, load_data
from model_zoo.zoo.networks import Networks, load_networks
from training.command import run_command
from training.d2nwg_scores import evaluate, reconstruction
from training.episodes import ClassPool, Episode, EpisodeConfig
from training.zoo_tasks import Images, draw_task
from weightgen.errors import BadOption, NotFound
from weightgen.files.checkpoint import load_state, read_manifest, save_state
from weightgen.files.storage import write_json
from weightgen.generators.d2nwg.diffusion import add_noise, draw_noise_levels
from weightgen.generators.d2nwg.generator import (
    D2nwg,
    D2nwgConfig,
)
from weightgen.spec import State, StateSpec
from weightgen.target.network import Target
from weightgen.weightspace.codecs.vae import kl_divergence
from weightgen.weightspace.normal_form import fitted_features

Say = Callable[[str], None]
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass(frozen=True)
class D2nwgTraining:
    """Both stages."""

    model: D2nwgConfig = field(default_factory=lambda: D2nwgConfig(refinements=3))
    held_out: tuple[str, ...] = ()
    """Training sets left out whole, to choose a recipe by; none for a release."""
    batch_size: int = 24
    """Networks of a step of the first stage."""
    latents_size: int = 12
    """Networks of a step of the second stage, whose latents are to be told from noise."""
    behaviour_size: int = 4
    """Networks of a batch that are run on images."""
    sample_size: int = 2
    """Samples of the denoiser that are run on images, each on its own new task."""
    unrefined: float = 0.2
    """Share of the steps whose samples are not refined."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    weights: float = 4.0
    """Weight of the error of decoded tokens; at 1 behaviour makes codecs forget what they are to give back."""
    kl: float = 1e-4
    latent_noise: float = 0.2
    """Standard deviation of the noise on a latent of unit variance while codecs are trained."""
    behaviour: float = 1.0
    """Weight of the behaviour loss."""
    generated_head: float = 0.3
    """Weight of the loss of generated class rows, from which no trunk learns."""
    alignment: float = 0.05
    """Weight of the contrastive loss between summaries and latents."""
    without_support: float = 0.15
    without_accuracy: float = 0.5
    episodes: EpisodeConfig = field(default_factory=lambda: EpisodeConfig(max_ways=20))
    seed: int = 0


def behaviour_loss(model: D2nwg, target: Target, trunk: State, task: Episode) -> tuple[Tensor, float, Tensor]:
    """Cross-entropy of a trunk under a solved head on the queries, over that of guessing; its accuracy; and what the
    head saw of the queries."""
    state, head = model.fit(target, trunk, task.support, task.support_labels, task.num_classes)
    features = fitted_features(target, state, task.query)
    logits = features @ head.weight.T + head.bias
    loss = F.cross_entropy(logits, task.query_labels) / math.log(task.num_classes)
    return loss, float((logits.argmax(1) == task.query_labels).float().mean()), features.detach()


class Run:
    """A stage under way: the model, its optimiser, its clock and its log."""

    def __init__(self, model: D2nwg, groups: list[dict[str, Any]], config: D2nwgTraining) -> None:
        self.model, self.config = model, config
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)
        self.base = [g["lr"] for g in self.optimizer.param_groups]
        self.average = {n: t.detach().clone() for n, t in model.named_parameters()}
        self.steps, self.spent = 0, 0.0
        self.running: dict[str, float] = {}

    def update(self, losses: dict[str, Tensor], seen: dict[str, float], *, progress: float) -> None:
        """One step along the sum of the losses, and the moving average of the weights."""
        warmup = min(1.0, (self.steps + 1) / 100)
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            group["lr"] = base * warmup * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))
        total = torch.stack(list(losses.values())).sum()
        self.optimizer.zero_grad()
        total.backward()
        # Each group by itself: the codecs' slopes are the largest, and would decide how far the others go.
        norms = [nn.utils.clip_grad_norm_(group["params"], 1.0) for group in self.optimizer.param_groups]
        if torch.isfinite(torch.stack(norms)).all():
            self.optimizer.step()
        self.steps += 1
        decay = min(0.998, self.steps / (self.steps + 10))
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                self.average[name].lerp_(parameter, 1 - decay)
        for name, value in {**{k: float(v.detach()) for k, v in losses.items()}, **seen}.items():
            self.running[name] = 0.98 * self.running.get(name, value) + 0.02 * value

    def averaged(self) -> dict[str, Tensor]:
        """The state of the model with the averaged weights."""
        return {**self.model.state_dict(), **self.average}


def train_codecs(
    model: D2nwg, networks: dict[str, Networks], config: D2nwgTraining, *, minutes: float, say: Say
) -> dict[str, Any]:
    """First stage: all codecs in turn, one batch of one member a step."""
    rng, images = torch.Generator().manual_seed(config.seed), Images("train")
    rows = {m: n.rows("train") for m, n in networks.items()}
    for member, known in networks.items():
        model.codec(member).set_scaling(known.tokens[rows[member]])
    heads = [p for n, p in model.named_parameters() if n.startswith("log_")]
    groups = [{"params": model.codecs.parameters()}, {"params": heads, "lr": 0.01}]
    run, order = Run(model, groups, config), _share_steps(rows, rng)
    said = 0.0
    while run.spent < 60 * minutes:
        begun = time.perf_counter()
        member = next(order)
        known, codec = networks[member], model.codec(member)
        picked = _pick(rows[member], config.batch_size, rng)
        tokens = known.tokens[picked]
        mean, log_var = codec.encode_distribution(tokens)
        noise = (log_var.exp() + config.latent_noise**2 * mean.detach().var(0)).sqrt()
        decoded = codec.decode_raw(mean + noise * torch.randn(mean.shape, generator=rng))
        losses = {
            "weights": config.weights * codec.weight_loss(tokens, decoded),
            "kl": config.kl * kl_divergence(mean, log_var),
        }
        size = config.behaviour_size
        found = _behave(model, known, decoded[:size], picked[:size], images, rng)
        losses["behaviour"] = config.behaviour * found[0]
        run.update(losses, {f"accuracy {member}": found[1]}, progress=run.spent / (60 * minutes))
        run.spent += time.perf_counter() - begun
        if run.spent - said > 60:
            said = run.spent
            say(f"codec step {run.steps} {run.spent / 60:.1f} min: {_format(run.running)}")
    model.load_state_dict(run.averaged())
    for member, known in networks.items():
        model.codec(member).set_latent_scaling(known.tokens[rows[member]])
    return {"steps": run.steps, "minutes": round(run.spent / 60, 1)}


def train_denoiser(
    model: D2nwg, networks: dict[str, Networks], config: D2nwgTraining, *, minutes: float, say: Say
) -> dict[str, Any]:
    """Second stage: encoder of support sets and denoiser; decoders and head go on learning behaviour, slowly."""
    rng, images = torch.Generator().manual_seed(config.seed + 1), Images("train")
    rows = {m: n.rows("train") for m, n in networks.items()}
    with torch.no_grad():
        latents = {m: torch.cat([model.codec(m).encode(t) for t in n.tokens.split(256)]) for m, n in networks.items()}
    names = sorted({n.datasets[i] for m, n in networks.items() for i in rows[m]})
    pool = ClassPool({name: images.pool(name, load_data(name).in_channels or 1) for name in names})
    project = nn.Linear(latents[next(iter(latents))][0].numel(), model.config.encoder_dim)
    fresh = [p for n, p in model.named_parameters() if not n.startswith(("codecs", "log_"))]
    groups = [
        {"params": [*fresh, *project.parameters()]},
        {"params": model.codecs.parameters(), "lr": 0.3 * config.learning_rate},
        {"params": [p for n, p in model.named_parameters() if n.startswith("log_")], "lr": 0.01},
    ]
    run, order = Run(model, groups, config), _share_steps(rows, rng)
    said = 0.0
    while run.spent < 60 * minutes:
        begun = time.perf_counter()
        member = next(order)
        known = networks[member]
        picked = _pick(rows[member], config.latents_size, rng)
        clean = latents[member][picked]
        shots = int(torch.randint(2, 7, (1,), generator=rng))  # few: most of a step's time; the behaviour loss has more
        tasks = [draw_task(known, i, images, shots=shots, queries=1, rng=rng) for i in picked]
        _, summaries = _encode(model, tasks)
        level = draw_noise_levels(len(picked), rng=rng)
        noisy = add_noise(clean, level, rng=rng)
        told = _tell(model, known, picked, summaries, config, rng)
        weight = (level.exp() + 1).clamp(max=5.0) / 5.0
        error = (model.denoiser(noisy, level, told) - clean).square().mean((1, 2))
        losses = {"denoising": (weight * error).mean()}
        losses["alignment"] = config.alignment * _contrast(summaries, project(clean.flatten(1)), known, picked)
        decoded = model.codec(member).decode(clean)
        losses["weights"] = config.weights * model.codec(member).weight_loss(known.tokens[picked], decoded)
        own, kept = _behave(model, known, decoded[:1], picked[:1], images, rng)
        losses["own behaviour"] = config.behaviour * own
        behaved, reached = _behave_on_samples(model, known, pool, config, rng)
        losses |= behaved
        seen = {f"accuracy {member}": reached, f"own {member}": kept}
        run.update(losses, seen, progress=run.spent / (60 * minutes))
        run.spent += time.perf_counter() - begun
        if run.spent - said > 60:
            said = run.spent
            say(f"denoiser step {run.steps} {run.spent / 60:.1f} min: {_format(run.running)}")
    model.load_state_dict(run.averaged())
    return {"steps": run.steps, "minutes": round(run.spent / 60, 1)}


def _behave(
    model: D2nwg,
    known: Networks,
    decoded: Tensor,
    picked: list[int],
    images: Images,
    rng: torch.Generator,
) -> tuple[Tensor, float]:
    """Behaviour of decoded networks on their own tasks."""
    trunks = model.layouts[known.member].decode_batch(decoded)
    found = []
    for row, index in enumerate(picked):
        task = draw_task(known, index, images, shots=12, queries=10, rng=rng)
        found.append(behaviour_loss(model, known.target, {n: t[row] for n, t in trunks.items()}, task))
    return torch.stack([loss for loss, _, _ in found]).mean(), sum(a for _, a, _ in found) / len(found)


def _behave_on_samples(
    model: D2nwg, known: Networks, pool: ClassPool, config: D2nwgTraining, rng: torch.Generator
) -> tuple[dict[str, Tensor], float]:
    """Behaviour of the denoiser's own samples on new tasks: a few steps from noise, the last one with gradient."""
    count = config.sample_size
    channels = known.target.input_shape[0]
    tasks = [_with_channels(pool.draw(config.episodes, rng=rng), channels) for _ in range(count)]
    prototypes, summaries = _encode(model, tasks)
    dropped = torch.rand(count, generator=rng) < config.without_support
    refined = float(torch.rand(1, generator=rng)) >= config.unrefined
    summaries = torch.where(dropped[:, None], model.no_support, summaries)
    told = model.condition([known.member] * count, summaries, [None] * count)
    steps = int(torch.randint(1, 4, (1,), generator=rng))
    times = torch.cat([torch.tensor([0.999]), torch.rand(steps - 1, generator=rng).sort(descending=True).values])
    levels = -2 * torch.tan(0.5 * math.pi * times.clamp(0.02, 0.999)).log()
    noisy = torch.randn(count, model.config.num_latents, model.config.latent_dim, generator=rng)
    for i, level in enumerate(levels):
        last = i == steps - 1
        with torch.set_grad_enabled(last):
            clean = model.denoiser(noisy, level.expand(count), told if last else told.detach())
        if not last:
            kept, after = torch.sigmoid(level), torch.sigmoid(levels[i + 1])
            noise = (noisy - kept.sqrt() * clean) / (1 - kept).sqrt()
            noisy = after.sqrt() * clean + (1 - after).sqrt() * noise
    trunks, found = model.decode_trunks(known.member, clean), []
    for i, task in enumerate(tasks):
        trunk: State = {n: t[i] for n, t in trunks.items()}
        if refined:
            trunk = model.refine(known.target, trunk, task.support, task.support_labels, task.num_classes)
        found.append(behaviour_loss(model, known.target, trunk, task))
    losses = {"behaviour": config.behaviour * torch.stack([loss for loss, _, _ in found]).mean()}
    by_rows = []
    for task, rows, latents, (_, _, features) in zip(tasks, prototypes, clean, found, strict=True):
        head = model.generate_head(known.member, rows, latents.detach())
        logits = features @ head.weight.T + head.bias
        by_rows.append(F.cross_entropy(logits, task.query_labels) / math.log(task.num_classes))
    losses["generated head"] = config.generated_head * torch.stack(by_rows).mean()
    return losses, sum(a for _, a, _ in found) / count


def _contrast(summaries: Tensor, latents: Tensor, known: Networks, picked: list[int]) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748): a task's summary belongs to its networks' latents."""
    logits = F.normalize(summaries, dim=1) @ F.normalize(latents, dim=1).T / 0.1
    tasks = [(known.datasets[i], known.classes[i]) for i in picked]
    same = torch.tensor([[float(a == b) for b in tasks] for a in tasks])
    wanted = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted))


def _tell(
    model: D2nwg,
    known: Networks,
    picked: list[int],
    summaries: Tensor,
    config: D2nwgTraining,
    rng: torch.Generator,
) -> Tensor:
    """The condition of these networks, parts of it left away at random."""
    draws = torch.rand(2, len(picked), generator=rng)
    summaries = torch.where((draws[0] < config.without_support)[:, None], model.no_support, summaries)
    told = known.accuracies[picked].tolist()
    aims = [None if draw < config.without_accuracy else a for draw, a in zip(draws[1], told, strict=True)]
    return model.condition([known.member] * len(picked), summaries, aims)


def _encode(model: D2nwg, tasks: Sequence[Episode]) -> tuple[list[Tensor], Tensor]:
    """Prototypes and summaries of the tasks' support sets."""
    images, labels = [t.support for t in tasks], [t.support_labels for t in tasks]
    return model.encoder(images, labels, [t.num_classes for t in tasks])


def _with_channels(task: Episode, channels: int) -> Episode:
    """Images of three channels as they are, or their mean."""
    if channels == 3:
        return task
    support, query = task.support.mean(1, keepdim=True), task.query.mean(1, keepdim=True)
    return Episode(support, task.support_labels, query, task.query_labels, task.num_classes)


def _share_steps(rows: dict[str, list[int]], rng: torch.Generator) -> Iterator[str]:
    """Members without end, drawn by the square root of their number of networks."""
    names = list(rows)
    weights = torch.tensor([len(r) for r in rows.values()]).float().sqrt()
    while True:
        yield names[int(torch.multinomial(weights, 1, generator=rng))]


def _pick(rows: list[int], count: int, rng: torch.Generator) -> list[int]:
    return [rows[i] for i in torch.randint(len(rows), (count,), generator=rng).tolist()]


def _format(running: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in running.items())


_Trained = tuple[D2nwg, D2nwgTraining, dict[str, Any]]
"""A model, how it is trained, and what was spent on it."""


@app.command()
def codec(
    zoo: Annotated[Path, typer.Option(help="Folder of the zoo.")],
    out: Annotated[Path, typer.Option(help="Folder of this run.")],
    minutes: Annotated[float, typer.Option(help="Training time, without evaluation.")] = 20,
    members: Annotated[list[str] | None, typer.Option(help="Only these; all if not given.")] = None,
    hold_out: Annotated[list[str] | None, typer.Option(help="A training set to leave out whole; repeatable.")] = None,
    report: Annotated[Path | None, typer.Option(help="Write what it gives back of sets left out, as JSON.")] = None,
) -> None:
    """First stage: train a codec for every architecture of the zoo."""
    if report is not None and not hold_out:
        raise BadOption("--report tells of training sets left out, and none is; name one with --hold-out")
    torch.set_num_threads(1)
    config = D2nwgTraining(held_out=tuple(hold_out or ()))
    networks = _load(zoo, config, members)
    torch.manual_seed(config.seed)
    model = D2nwg({m: n.target.spec for m, n in networks.items()}, config.model)
    spent = train_codecs(model, networks, config, minutes=minutes, say=_say)
    spent = {f"codecs of {' and '.join(networks)}": spent}
    _save(model, out / "codec.safetensors", config, spent, evaluate(model, networks, tasks_each=12, seed=1))
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        kinds = {"held-out runs": "val", "held-out data sets": "left out"}
        found = {kind: evaluate(model, networks, tasks_each=24, seed=1, split=s) for kind, s in kinds.items()}
        shown = {kind: {m: reconstruction(s) for m, s in each.items()} for kind, each in found.items()}
        write_json(report, {"left_out": config.held_out, "spent": spent, "results": shown})


@app.command()
def denoiser(
    zoo: Annotated[Path, typer.Option(help="Folder of the zoo.")],
    out: Annotated[Path, typer.Option(help="Folder of this run.")],
    minutes: Annotated[float, typer.Option(help="Training time, without evaluation.")] = 30,
    codecs: Annotated[list[Path] | None, typer.Option("--codec", help="Run of a first stage; else --out's.")] = None,
    refinements: Annotated[int, typer.Option(help="Steps that refine a sample.")] = 3,
    clip: Annotated[str | None, typer.Option(help="A CLIP, folder or hub name, to see support sets by.")] = None,
) -> None:
    """Second stage: train the encoder of support sets and the denoiser on the latents of the first.

    Codecs may come from several runs, trained side by side, each for its own architectures.
    """
    torch.set_num_threads(1)
    model, config, spent = _join([_read(run / "codec.safetensors") for run in codecs or [out]], refinements, clip)
    networks = _load(zoo, config, list(model.members))
    spent["denoiser"] = train_denoiser(model, networks, config, minutes=minutes, say=_say)
    _save(model, out / "denoiser.safetensors", config, spent, evaluate(model, networks, tasks_each=12, seed=1))


@app.command()
def release(
    out: Annotated[Path, typer.Option(help="Folder of a run, with both stages.")],
    file: Annotated[Path, typer.Option(help="The generator file to write.")],
) -> None:
    """Write the generator file of a finished run."""
    model, config, spent = _read(out / "denoiser.safetensors")
    if config.held_out:
        raise BadOption(f"{out} left out {', '.join(config.held_out)}: a run to choose a recipe by, not to release")
    held_out = read_manifest(out / "denoiser.safetensors")["held_out_tasks"]
    licences = {name: data_licence(name) for name in sorted(TRAIN_SETS)}
    model.training_record = {"config": asdict(config), "spent": spent, "held_out_tasks": held_out, "data": licences}
    model.config = replace(model.config, max_classes=config.episodes.max_ways)
    model.save(file)
    typer.echo(json.dumps({"file": str(file), "bytes": file.stat().st_size, "members": list(model.members)}))


def _load(zoo: Path, config: D2nwgTraining, members: Sequence[str] | None) -> dict[str, Networks]:
    networks = load_networks(zoo, held_out=config.held_out, members=members)
    _say(", ".join(f"{m}: {len(n.tokens)} checkpoints" for m, n in networks.items()))
    return networks


def _save(model: D2nwg, path: Path, config: D2nwgTraining, spent: dict[str, Any], held_out: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    specs = [[member, spec.to_json()] for member, spec in model.specs.items()]
    manifest = {"config": asdict(config), "specs": specs, "spent": spent, "held_out_tasks": held_out}
    save_state(path, model.state_dict(), manifest=manifest)
    typer.echo(json.dumps({"spent": spent, "held_out_tasks": held_out}, indent=1))


def _read(path: Path) -> _Trained:
    if not path.exists():
        raise NotFound(f"{path}: not there; run the stage before this one")
    manifest = read_manifest(path)
    saved = manifest["config"]
    config = D2nwgTraining(**{
        **saved,
        "model": D2nwgConfig(**saved["model"]),
        "episodes": EpisodeConfig(**saved["episodes"]),
        "held_out": tuple(saved["held_out"]),
    })  # fmt: skip
    model = D2nwg({m: StateSpec.from_json(s) for m, s in manifest["specs"]}, config.model)
    model.load_state_dict(model.state_dict() | load_state(path))  # a first stage knows no refinement
    return model, config, manifest["spent"]


def _join(stages: Sequence[_Trained], refinements: int, clip: str | None) -> _Trained:
    """One model with the codecs of several first stages; what their heads learnt is averaged."""
    config = stages[0][1]
    if any(other != config for _, other, _ in stages):
        raise BadOption("the first stages were trained with different settings; train them alike")
    config = replace(config, model=replace(config.model, refinements=refinements, clip=clip))
    specs = {member: spec for model, _, _ in stages for member, spec in model.specs.items()}
    torch.manual_seed(config.seed)
    joined = D2nwg(specs, config.model)
    tensors = [model.state_dict() for model, _, _ in stages]
    state = joined.state_dict() | {n: t for found in tensors for n, t in found.items() if n.startswith("codecs.")}
    for name in state:
        if name.startswith("log_"):
            state[name] = torch.stack([found[name] for found in tensors]).mean(0)
    joined.load_state_dict(state)
    return joined, config, {name: spent for _, _, each in stages for name, spent in each.items()}


def _say(line: str) -> None:
    typer.echo(line, err=True)


if __name__ == "__main__":
    run_command(app)
