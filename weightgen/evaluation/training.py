"""Fine-tuning from a state and training from scratch, for comparisons.

All training here is AdamW on the support set and nothing else. BatchNorm networks are trained on batch statistics and
scored on running statistics. These are recalibrated on the clean support set whenever a state is taken: after a few
steps with momentum 0.1 they would lag behind the weights.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightgen.condition import SupportSet
from weightgen.errors import BadOption
from weightgen.layers.augment import augment_images
from weightgen.solve.statistics import recalibrate_batchnorm
from weightgen.spec import State
from weightgen.target.network import Target


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """How a state is fine-tuned on a support set."""

    learning_rate: float = 2e-3
    record_at: tuple[int, ...] = (0, 1, 5, 10, 25, 50, 100)
    """Steps after which a state is taken; the last one ends the run."""
    cycle: int = 50
    """Steps of one cosine from the learning rate to 0 (SGDR, arXiv:1608.03983, with restarts of equal length)."""
    warmup: int = 5
    """First steps, over which the rate rises linearly: Adam's first steps have full length but a poor direction."""
    batch_size: int = 128
    weight_decay: float = 1e-4
    augment: bool = True

    def __post_init__(self) -> None:
        if not self.record_at or list(self.record_at) != sorted(set(self.record_at)) or self.record_at[0] < 0:
            raise BadOption(f"record_at is {list(self.record_at)}, expected increasing step counts from 0")
        if not (self.learning_rate > 0 and self.cycle > 0 and self.batch_size > 1 and self.warmup >= 0):
            raise BadOption(
                f"learning_rate {self.learning_rate}, cycle {self.cycle}, batch_size {self.batch_size} and "
                f"warmup {self.warmup}: expected more than 0, 0, 1 and -1"
            )


@dataclass(frozen=True, slots=True)
class ScratchConfig:
    """How a network is trained from its default initialisation: one cosine from peak to 0.

    Training runs to convergence or to the step limit; `benchmarks.studies.scratch_length` measures how near that is.
    """

    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    max_steps: int = 400
    max_steps_augmented: int = 1000
    converged_loss: float = 2e-3
    """Training ends early once the running mean of the training loss (over about 10 steps) is below this."""
    batch_size: int = 128
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if not self.learning_rates or min(self.learning_rates) <= 0 or self.batch_size < 2:
            raise BadOption(
                f"learning rates {list(self.learning_rates)} and batch size {self.batch_size}: "
                "expected at least one rate, all above 0, and a batch of 2 or more"
            )
        if min(self.max_steps, self.max_steps_augmented) < 1:
            raise BadOption(f"at most {min(self.max_steps, self.max_steps_augmented)} steps, expected at least 1")


@dataclass(frozen=True, eq=False)
class ScratchRun:
    """One training from scratch."""

    state: State
    learning_rate: float
    augmented: bool
    steps: int
    train_loss: float
    """Running mean of the loss at the end."""
    seconds: float
    """Wall clock of this run: initialisation, training and recalibration, without any scoring."""


def finetune(
    target: Target, state: State, support: SupportSet, config: FinetuneConfig, *, rng: torch.Generator
) -> dict[int, State]:
    """The states after each of `config.record_at` steps; the state of step 0 is the one given.

    Every parameter is trained. Equal seeds of `rng` give equal batches and augmentation, whatever the state.
    """
    module = target.load(state).train()
    taken = {0: state} if 0 in config.record_at else {}

    def rate(step: int) -> float:
        rise = min(1.0, (step + 1) / (config.warmup + 1))
        return rise * config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step % config.cycle) / config.cycle))

    losses = _train(
        module,
        support,
        rate,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        augment=config.augment,
        rng=rng,
    )
    for step, _ in zip(range(1, config.record_at[-1] + 1), losses, strict=False):
        if step in config.record_at:
            taken[step] = _take_state(target, module, support)
    return taken


def train_from_scratch(
    target: Target, support: SupportSet, config: ScratchConfig, *, learning_rate: float, augment: bool, seed: int
) -> ScratchRun:
    """A network trained on the support set to convergence, from the default initialisation of `seed`."""
    start = time.perf_counter()
    rng = torch.Generator().manual_seed(seed)
    module = target.load(target.init_state(seed)).train()
    steps = config.max_steps_augmented if augment else config.max_steps

    def rate(step: int) -> float:
        return learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))

    losses = _train(
        module,
        support,
        rate,
        batch_size=config.batch_size,
        weight_decay=config.weight_decay,
        augment=augment,
        rng=rng,
    )
    taken, mean_loss = 0, math.inf
    for taken, loss in zip(range(1, steps + 1), losses, strict=False):
        mean_loss = loss if taken == 1 else 0.9 * mean_loss + 0.1 * loss
        if mean_loss < config.converged_loss:
            break
    state = _take_state(target, module, support)
    return ScratchRun(
        state=state,
        learning_rate=learning_rate,
        augmented=augment,
        steps=taken,
        train_loss=mean_loss,
        seconds=time.perf_counter() - start,
    )


def sweep_from_scratch(target: Target, support: SupportSet, config: ScratchConfig, *, seed: int) -> list[ScratchRun]:
    """Training from scratch at every learning rate, without and (for images) with augmentation, each its own seed."""
    grid = [
        (rate, augment)
        for augment in ((False, True) if support.inputs.ndim == 4 else (False,))
        for rate in config.learning_rates
    ]
    return [
        train_from_scratch(target, support, config, learning_rate=rate, augment=augment, seed=seed + i)
        for i, (rate, augment) in enumerate(grid)
    ]


def _train(
    module: nn.Module,
    support: SupportSet,
    rate: Callable[[int], float],
    *,
    batch_size: int,
    weight_decay: float,
    augment: bool,
    rng: torch.Generator,
) -> Iterator[float]:
    """Train without end: every loss that is asked for takes one AdamW step."""
    augment = augment and support.inputs.ndim == 4
    if support.inputs.ndim == 4:
        module = module.to(memory_format=torch.channels_last)  # a third faster on a CPU # pyright: ignore
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate(0), weight_decay=weight_decay, fused=True)
    batches = _draw_batches(len(support.labels), batch_size, rng)
    step = 0
    while True:
        rows = next(batches)
        images, labels = (support.inputs, support.labels) if rows is None else _rows(support, rows)
        images = augment_images(images, rng=rng) if augment else images
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = F.cross_entropy(module(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        step += 1
        yield loss.item()


def _draw_batches(count: int, batch_size: int, rng: torch.Generator) -> Iterator[Tensor | None]:
    """Row numbers of each batch, without end and without gaps between epochs; None means all rows."""
    if count <= batch_size:
        while True:
            yield None
    waiting = torch.empty(0, dtype=torch.int64)
    while True:
        if len(waiting) < batch_size:
            waiting = torch.cat([waiting, torch.randperm(count, generator=rng)])
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _rows(support: SupportSet, rows: Tensor) -> tuple[Tensor, Tensor]:
    return support.inputs[rows], support.labels[rows]


def _take_state(target: Target, module: nn.Module, support: SupportSet) -> State:
    """A copy of the module's state, ready to be scored in eval mode; the module is not changed."""
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }
    return target.spec.complete(recalibrate_batchnorm(target, state, support.inputs))
