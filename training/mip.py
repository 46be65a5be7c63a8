"""Train the generator `mip` and release it.

    python -m training.mip train --arch cnn-tiny --out runs/mip/cnn-tiny     # one architecture; stop and start at will
    python -m training.mip release runs/mip/cnn-tiny runs/mip/cnn --out model_zoo/released/mip.safetensors

Every step draws one episode (`training.episodes`), generates a network from its support set and takes the
cross-entropy of that network on the queries, through the whole route. The model with the lowest cross-entropy on
held-out tasks is kept: images that no step has seen, from the data sets named with --hold-out or, without, from the
test splits of the training sets. A release takes that one or the last, whichever does better on other such tasks.
Cost: `--minutes` of one thread each; the released generator took what its card says.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor, nn

from model_zoo.architectures import build_target
from model_zoo.data import TRAIN_SETS, data_licence
from training.command import run_command
from training.episodes import ClassPool, Episode, EpisodeConfig, draw_tasks, load_pool
from weightgen.errors import BadOption
from weightgen.files.checkpoint import load_state, read_manifest, save_state
from weightgen.generators.mip.generator import ArchHypernet, Mip, MipConfig, new_hypernet

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass(frozen=True)
class MipTraining:
    """One training run of one architecture."""

    arch: str
    minutes: float
    """Training time; evaluation is not counted. The learning rate falls to zero over it."""
    model: MipConfig = field(default_factory=MipConfig)
    episodes: EpisodeConfig = field(default_factory=EpisodeConfig)
    held_out: tuple[str, ...] = ()
    """Training sets left out whole, to choose a recipe by; none for a release."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    unconditioned: float = 0.1
    """Share of steps with the condition off, so that the unconditioned route is trained too."""
    evaluate_every: float = 3.0
    """Minutes between evaluations."""
    seed: int = 0


def tiny_preset(minutes: float = 45) -> MipTraining:
    """cnn-tiny: about 45 minutes of one CPU thread."""
    return MipTraining(arch="cnn-tiny", minutes=minutes, model=MipConfig(refinements=3))


def cnn_preset(minutes: float = 75) -> MipTraining:
    """cnn: about 75 minutes of one CPU thread; without refinement, which costs it more than twice as much."""
    return MipTraining(arch="cnn", minutes=minutes, model=MipConfig(refinements=0))


def vit_preset(minutes: float = 150) -> MipTraining:
    """vit-tiny: about 150 minutes of one CPU thread; without refinement, likewise."""
    return MipTraining(arch="vit-tiny", minutes=minutes, model=MipConfig(refinements=0), evaluate_every=6.0)


PRESETS = {"cnn-tiny": tiny_preset, "cnn": cnn_preset, "vit-tiny": vit_preset}


class Trainer:
    """State of one run: model, optimiser, the rng of episodes, and what has been spent and seen."""

    def __init__(self, config: MipTraining, out: Path, *, device: torch.device) -> None:
        self.config, self.out, self.device = config, out, device
        self.targets = {c: build_target(config.arch, num_classes=2, in_channels=c) for c in (1, 3)}
        self.model = new_hypernet(self.targets[3], config.model, seed=config.seed).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=config.weight_decay)
        self.rng = torch.Generator().manual_seed(config.seed)
        self.steps, self.spent, self.log = 0, 0.0, []
        self.before = {"steps": 0, "minutes": 0.0}
        """What the run had behind it that this one started from."""
        self.best: float | None = None

    def step(self, pool: ClassPool) -> float:
        """One episode, one update; returns its accuracy."""
        progress = self.spent / (60 * self.config.minutes)
        warmup = min(1.0, (self.steps + 1) / 100)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warmup * (0.5 + 0.5 * math.cos(math.pi * min(1.0, progress)))
        episode = pool.draw(self.config.episodes, rng=self.rng)
        conditioned = float(torch.rand(1, generator=self.rng)) >= self.config.unconditioned
        logits, labels = self.answer(episode, conditioned=conditioned)
        loss = F.cross_entropy(logits, labels) / math.log(episode.num_classes)
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if torch.isfinite(norm):
            self.optimizer.step()
        self.steps += 1
        return float((logits.argmax(1) == labels).float().mean())

    def answer(self, episode: Episode, *, conditioned: bool) -> tuple[Tensor, Tensor]:
        """Logits of the network generated from the support set on the queries, and their labels."""
        support, query = episode.support.to(self.device), episode.query.to(self.device)
        if bool((support[:, 0] == support[:, 1]).all()):
            support, query = support[:, :1].contiguous(), query[:, :1].contiguous()
        labels = episode.support_labels.to(self.device)
        skeleton = self.targets[support.shape[1]].skeleton
        state = self.model(skeleton, support, labels, num_classes=episode.num_classes, conditioned=conditioned)
        return self.model.run(skeleton, state, query), episode.query_labels.to(self.device)

    def evaluate(self, episodes: dict[str, list[Episode]]) -> dict[str, Any]:
        """Mean accuracy and cross-entropy over held-out tasks, with and without condition, and by data set."""
        rows = {}
        with torch.no_grad():
            for name, tasks in episodes.items():
                found = []
                for task in tasks:
                    logits, labels = self.answer(task, conditioned=True)
                    plain, _ = self.answer(task, conditioned=False)
                    hits = [float((x.argmax(1) == labels).float().mean()) for x in (logits, plain)]
                    found.append([*hits, float(F.cross_entropy(logits, labels))])
                rows[name] = torch.tensor(found).mean(0)
        accuracy, unconditioned, loss = torch.stack(list(rows.values())).mean(0).tolist()
        by_set = {name: round(float(row[0]), 4) for name, row in rows.items()}
        return {"accuracy": accuracy, "unconditioned": unconditioned, "cross_entropy": loss, "by_set": by_set}

    def save(self, name: str) -> None:
        """Write model, optimiser and rng, from which `resume` goes on exactly."""
        state = {f"model.{k}": v.cpu() for k, v in self.model.state_dict().items()}
        for index, entry in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{index}.{k}": v.cpu() for k, v in entry.items()}
        state["rng"] = self.rng.get_state()
        manifest = {
            "config": asdict(self.config), "steps": self.steps, "spent": self.spent, "best": self.best, "log": self.log,
            "before": self.before,
        }  # fmt: skip
        save_state(self.out / name, state, manifest=manifest)

    def start_from(self, path: Path) -> None:
        """Take over the weights of another run of this architecture, whose number of refinements may be another."""
        manifest, state = read_manifest(path), load_state(path, allow_nonfinite=True)
        if manifest["config"]["arch"] != self.config.arch:
            raise BadOption(f"{path} trains {manifest['config']['arch']!r}, not {self.config.arch!r}")
        for name, tensor in self.model.state_dict().items():
            given = state[f"model.{name}"]
            if name.startswith("rates") and len(given):  # (steps, tensors): the last step is repeated as needed
                given = torch.cat([given, *[given[-1:]] * len(tensor)])[: len(tensor)]
            if given.shape == tensor.shape:
                tensor.copy_(given)
        earlier = manifest.get("before", {"steps": 0, "minutes": 0.0})
        self.before = {
            "steps": earlier["steps"] + manifest["steps"], "minutes": earlier["minutes"] + manifest["spent"] / 60
        }  # fmt: skip

    def resume(self) -> bool:
        """Go on from the last save, if there is one."""
        path = self.out / "last.safetensors"
        if not path.exists():
            return False
        manifest, state = read_manifest(path), load_state(path, allow_nonfinite=True)
        if manifest["config"] != json.loads(json.dumps(asdict(self.config))):
            raise BadOption(f"{self.out} holds a run with other settings; give another --out, or the same settings")
        self.model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("optimizer."):
                _, index, part = key.split(".")
                moments.setdefault(int(index), {})[part] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})
        self.rng.set_state(state["rng"])
        self.steps, self.spent, self.best, self.log = (manifest[k] for k in ("steps", "spent", "best", "log"))
        self.before = manifest.get("before", self.before)
        return True


def fit(config: MipTraining, out: Path, *, device: torch.device, start: Path | None = None) -> dict[str, Any]:
    """Train until the time is spent; `best.safetensors` and `last.safetensors` in `out`, the last evaluation back.

    `start` is a save of another run, whose weights a run that has not begun takes over; its learning rate starts anew.
    """
    out.mkdir(parents=True, exist_ok=True)
    names = [name for name in sorted(TRAIN_SETS) if name not in config.held_out]
    pool = load_pool(names, "train")
    held_out = load_pool(list(config.held_out), "train") if config.held_out else load_pool(names, "test")
    tasks = draw_tasks(held_out, each=3, seed=10_000)
    trainer = Trainer(config, out, device=device)
    if not trainer.resume() and start is not None:
        trainer.start_from(start)
    running, evaluated = 0.5, trainer.spent
    result = {}
    while trainer.spent < 60 * config.minutes:
        begun = time.perf_counter()
        running = 0.99 * running + 0.01 * trainer.step(pool)
        trainer.spent += time.perf_counter() - begun
        due = trainer.spent - evaluated >= 60 * config.evaluate_every or trainer.spent >= 60 * config.minutes
        if due:
            evaluated = trainer.spent
            result = trainer.evaluate(tasks)
            trainer.log.append({"step": trainer.steps, "minutes": round(trainer.spent / 60, 2), **result})
            typer.echo(
                f"{config.arch} step {trainer.steps} {trainer.spent / 60:.1f} min: training {running:.3f}, held-out "
                f"{result['accuracy']:.4f} (unconditioned {result['unconditioned']:.4f}, "
                f"cross-entropy {result['cross_entropy']:.3f})",
                err=True,
            )
            if trainer.best is None or result["cross_entropy"] < trainer.best:
                trainer.best = result["cross_entropy"]
                trainer.save("best.safetensors")
            trainer.save("last.safetensors")
    return result


@app.command()
def train(
    arch: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of this run; an unfinished run in it is resumed.")],
    minutes: Annotated[float | None, typer.Option(help="Training time; the preset's if not given.")] = None,
    hold_out: Annotated[list[str] | None, typer.Option(help="A training set to leave out whole; repeatable.")] = None,
    start: Annotated[Path | None, typer.Option(help="A save of another run to start a new one from.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train one architecture's part of the generator; on a GPU when there is one."""
    torch.set_num_threads(threads)
    if arch not in PRESETS:
        raise BadOption(f"no recipe for {arch!r}; there are recipes for {', '.join(PRESETS)}")
    config = PRESETS[arch](**({} if minutes is None else {"minutes": minutes}))
    config = replace(config, held_out=tuple(hold_out or ()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    typer.echo(json.dumps(fit(config, out, device=device, start=start)))


@app.command()
def release(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, one for each architecture.")],
    out: Annotated[Path, typer.Option(help="The generator file to write.")],
    tasks_each: Annotated[int, typer.Option(help="Held-out tasks on each training set to choose a model by.")] = 6,
) -> None:
    """Put the better of the best and the last model of every run into one generator file."""
    hypernets: dict[str, ArchHypernet] = {}
    records = {}
    tasks = draw_tasks(load_pool(sorted(TRAIN_SETS), "test"), each=tasks_each, seed=20_000)
    for run in runs:
        found = [_load_trained(run / name, tasks) for name in ("best.safetensors", "last.safetensors")]
        hypernet, record = min(found, key=lambda pair: pair[1]["held_out"]["cross_entropy"])
        hypernets[hypernet.spec.arch], records[hypernet.spec.arch] = hypernet, record
    licences = {name: data_licence(name) for name in sorted(TRAIN_SETS)}
    generator = Mip(hypernets, training={"runs": records, "data": licences})
    generator.save(out)
    typer.echo(json.dumps({"file": str(out), "bytes": out.stat().st_size, "archs": list(hypernets)}))


def _load_trained(path: Path, tasks: dict[str, list[Episode]]) -> tuple[ArchHypernet, dict[str, Any]]:
    """A saved model, what its training was and how it does on held-out tasks."""
    manifest, state = read_manifest(path), load_state(path, allow_nonfinite=True)
    saved = manifest["config"]
    if saved["held_out"]:
        raise BadOption(
            f"{path.parent} left out {', '.join(saved['held_out'])}: a run to choose a recipe by, not to release"
        )
    model, episodes = MipConfig(**saved["model"]), EpisodeConfig(**saved["episodes"])
    config = MipTraining(**{**saved, "model": model, "episodes": episodes, "held_out": ()})
    trainer = Trainer(config, path.parent, device=torch.device("cpu"))
    trainer.model.load_state_dict({k[6:]: v for k, v in state.items() if k.startswith("model.")})
    before = manifest.get("before", {"steps": 0, "minutes": 0.0})
    record = {
        "config": saved,
        "steps": before["steps"] + manifest["steps"],
        "minutes": round(before["minutes"] + manifest["spent"] / 60, 1),
        "log": [{k: v for k, v in entry.items() if k != "by_set"} for entry in manifest["log"]],
        "held_out": trainer.evaluate(tasks),
    }
    return trainer.model, record


if __name__ == "__main__":
    run_command(app)
