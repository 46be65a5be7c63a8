"""A training run: steps, evaluations, and a file from which it goes on as if it had never been interrupted."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from training.command import say
from training.loop.processes import average_gradients, gather_states, share_clock, wait_for_all
from training.loop.recipe import Losses, Recipe
from training.loop.run_file import name_moments, read_run, restore_moments, write_run
from training.loop.settings import LoopSettings, Span
from weightgen.errors import BadOption
from weightgen.spec import State

LAST, BEST = "last.safetensors", "best.safetensors"
_KEPT = 0.98
"""Share of a running figure that the next step keeps."""
_FREE = ("log_every", "save_every")
"""Settings that may change when a run is resumed, because its weights do not depend on them."""


def train(
    recipe: Recipe,
    settings: LoopSettings,
    folder: Path,
    *,
    until: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    report: Callable[[str], None] = say,
) -> "Run":
    """Train until the budget is spent, or up to step `until`, from where the saved run in the folder stands.

    The folder gets LAST, from which a later call goes on, and BEST, the model with the best evaluation. A run whose
    budget is spent ends with its averaged weights in the module.
    """
    run = Run(recipe, settings, rank=rank, world_size=world_size)
    if (folder / LAST).exists():
        run.load(folder / LAST)
    while run.progress < 1 and (until is None or run.steps < until):
        before = run.steps, run.seconds
        run.advance()
        is_over = run.progress >= 1 or run.steps == until
        if run.passed(settings.log_every, before) and not rank:
            report(f"{run.describe()}: {_format(run.running)}")
        is_evaluated = recipe.evaluate is not None and run.passed_evaluation(before)
        if is_evaluated and not rank:
            report(f"{run.describe()}, held-out: {_format(run.evaluate(folder / BEST))}")
        if is_evaluated or is_over or run.passed(settings.save_every, before):
            run.save(folder / LAST)
    if run.progress >= 1:
        run.take_average()
    return run


class Run:
    """A run in progress, in one of `world_size` processes: model, optimiser, random numbers, and what was spent."""

    def __init__(self, recipe: Recipe, settings: LoopSettings, *, rank: int = 0, world_size: int = 1) -> None:
        self.recipe, self.settings, self.rank, self.world_size = recipe, settings, rank, world_size
        trained = {parameter for group in recipe.groups for parameter in group.parameters}
        self.parameters = {name: p for name, p in recipe.module.named_parameters() if p in trained}
        assert len(self.parameters) == len(trained), "groups hold parameters that the module does not"
        self.updates_all = settings.updates_unused or world_size > 1
        if self.updates_all:
            # All processes have to exchange and update the same parameters, whatever they have drawn.
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
        self.optimizer = torch.optim.AdamW(
            [{"params": list(group.parameters), "lr": group.rate} for group in recipe.groups],
            weight_decay=settings.weight_decay,
            fused=settings.is_fused or None,
        )
        self.rng = torch.Generator().manual_seed(settings.seed + 7919 * rank)
        self.steps, self.seconds, self.cpu_seconds = 0, 0.0, 0.0
        self.running: dict[str, float] = {}
        self.best: float | None = None
        self.log: list[dict[str, Any]] = []
        self.average: dict[str, Tensor] = {}
        if settings.average is not None:
            self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    @property
    def progress(self) -> float:
        """The share of the budget that is spent."""
        return self.settings.budget.share(self.steps, self.seconds)

    def advance(self) -> None:
        """Take one step; the gradient is the mean over all processes."""
        began, cpu_began = time.perf_counter(), time.process_time()
        progress, settings = self.progress, self.settings
        self.optimizer.zero_grad(set_to_none=not self.updates_all)
        for _ in range(settings.accumulate):
            found = self.recipe.losses(self.steps, progress, self.rng)
            (torch.stack(list(found.terms.values())).sum() / settings.accumulate).backward()
            self._note(found)
        average_gradients(list(self.parameters.values()), self.world_size)
        for group, own in zip(self.optimizer.param_groups, self.recipe.groups, strict=True):
            group["lr"] = settings.rate(own.rate, steps=self.steps, progress=progress)
        # A step whose gradient is not finite is left out: it would spoil weights and moments for good.
        if torch.isfinite(self._clip_gradients()).all():
            self.optimizer.step()
        self.steps += 1
        self._follow_average()
        self.seconds = share_clock(self.seconds + time.perf_counter() - began, self.world_size)
        self.cpu_seconds += time.process_time() - cpu_began

    def _clip_gradients(self) -> Tensor:
        """Scale down gradients that are too long and return their norms, one for each part that is clipped alone."""
        parts = [group.parameters for group in self.recipe.groups]
        if not self.settings.is_clipped_by_group:
            parts = [list(self.parameters.values())]
        return torch.stack([nn.utils.clip_grad_norm_(part, self.settings.clip) for part in parts])

    @torch.no_grad()
    def _follow_average(self) -> None:
        if self.settings.average is None:
            return
        decay = min(self.settings.average, self.steps / (self.steps + self.settings.average_warmup))
        for name, parameter in self.parameters.items():
            self.average[name].lerp_(parameter, 1 - decay)

    def _note(self, found: Losses) -> None:
        values = {name: float(loss.detach()) for name, loss in found.terms.items()} | dict(found.seen)
        for name, value in values.items():
            if math.isfinite(value):
                self.running[name] = _KEPT * self.running.get(name, value) + (1 - _KEPT) * value

    def passed(self, span: Span, before: tuple[int, float]) -> bool:
        """Whether a multiple of the span lies between the steps and seconds `before` and those of now."""
        return int(span.share(self.steps, self.seconds)) > int(span.share(*before))

    def passed_evaluation(self, before: tuple[int, float]) -> bool:
        """Whether an evaluation has become due since the steps and seconds `before`."""
        count, budget = self.settings.evaluations, self.settings.budget
        return int(count * min(1.0, self.progress)) > int(count * min(1.0, budget.share(*before)))

    def evaluate(self, path: Path) -> dict[str, Any]:
        """Evaluate the averaged weights, or the model's own if there are none; the best model so far goes to `path`."""
        assert self.recipe.evaluate is not None
        with self._averaged(), torch.no_grad():
            found = self.recipe.evaluate()
            self.log.append({"step": self.steps, "minutes": round(self.seconds / 60, 2), **found})
            score = found[self.recipe.best_by]
            if self.best is None or score < self.best:
                self.best = score
                write_run(path, {"model": self.recipe.module.state_dict()}, self._manifest())
        return found

    @torch.no_grad()
    def take_average(self) -> None:
        """Replace the model's weights by their averages, if there are any."""
        for name, value in self.average.items():
            self.parameters[name].copy_(value)

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        own = {name: self.parameters[name].detach().clone() for name in self.average}
        self.take_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in own.items():
                    self.parameters[name].copy_(value)

    def save(self, path: Path) -> None:
        """Write everything that `load` needs. Every process has to call this; process 0 writes."""
        states = gather_states(self.rng.get_state(), self.world_size)
        if not self.rank:
            parts: dict[str, State] = {
                "model": self.recipe.module.state_dict(),
                "average": self.average,
                "optimizer": name_moments(self.optimizer, self.parameters),
                "rng": {str(rank): state for rank, state in enumerate(states)},
            }
            write_run(path, parts, self._manifest())
        wait_for_all(self.world_size)

    def load(self, path: Path) -> None:
        """Take over the state of a saved run; BadOption if it has other settings or another number of processes."""
        manifest, parts = read_run(path)
        other = _differences(manifest["settings"], self._settings())
        if other:
            raise BadOption(
                f"{path.parent} holds a run with other settings ({', '.join(other)}); give another folder, or the same "
                "settings"
            )
        if len(parts["rng"]) != self.world_size:
            raise BadOption(f"{path.parent} holds a run begun with another number of processes than {self.world_size}")
        self.recipe.module.load_state_dict(parts["model"])
        for name, value in self.average.items():
            value.copy_(parts["average"][name])
        restore_moments(self.optimizer, self.parameters, parts["optimizer"])
        self.rng.set_state(parts["rng"][str(self.rank)])
        self.steps, self.seconds, self.cpu_seconds = (manifest[k] for k in ("steps", "seconds", "cpu_seconds"))
        self.running, self.best, self.log = (manifest[k] for k in ("running", "best", "log"))
        self.recipe.record.update(manifest["record"])

    def describe(self) -> str:
        """The beginning of a log line: name, steps and training time."""
        return f"{self.recipe.name} step {self.steps} {self.seconds / 60:.1f} min"

    def summary(self) -> dict[str, Any]:
        """What was spent and the last losses, for the record of a generator."""
        last = {name: round(value, 4) for name, value in self.running.items()}
        return {"steps": self.steps, "minutes": round(self.seconds / 60, 1), "last": last}

    def _settings(self) -> dict[str, Any]:
        loop = {name: value for name, value in asdict(self.settings).items() if name not in _FREE}
        return json.loads(json.dumps({"recipe": self.recipe.settings, "loop": loop}))

    def _manifest(self) -> dict[str, Any]:
        return {
            "settings": self._settings(),
            "steps": self.steps,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "running": self.running,
            "best": self.best,
            "log": self.log,
            "record": self.recipe.record,
        }


def _differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Dotted names of the entries in which two JSON values differ."""
    if not (isinstance(a, Mapping) and isinstance(b, Mapping)):
        return [] if a == b else [prefix.removesuffix(".")]
    return [found for key in sorted({*a, *b}) for found in _differences(a.get(key), b.get(key), f"{prefix}{key}.")]


def _format(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float))
