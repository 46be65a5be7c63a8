"""Accuracy of a state, fine-tuning from it, and training from scratch: what every comparison is made of.

All training here is AdamW on the support set and nothing else. BatchNorm networks are trained on batch statistics and
scored on running ones, which are recalibrated on the clean support set wherever a state is taken: a few steps with
momentum 0.1 would leave them behind the weights.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from weightgen.condition import SupportSet
from weightgen.errors import BadData, BadOption
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.side_by_side import can_run_side_by_side, run_each, run_halves

EVAL_BATCH = 512
"""Examples a forward pass; bounds the memory of activations."""


@dataclass(frozen=True, slots=True)
class FinetuneConfig:
    """How a state is fine-tuned on a support set."""

    learning_rate: float = 2e-3
    record_at: tuple[int, ...] = (0, 1, 5, 10, 25, 50, 100)
    """Steps after which a state is taken; the last one ends the run."""
    cycle: int = 50
    """Steps of one cosine from the learning rate to 0 (SGDR, arXiv:1608.03983, with restarts of equal length)."""
    warmup: int = 5
    """First steps, over which the rate rises in a line: Adam's first steps are as long as its later ones, but blind."""
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

    To convergence, or as near as this many steps come: `benchmarks.studies.scratch_length` says how near.
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
    """Running mean at the end."""
    seconds: float
    """Wall clock of this run: initialisation, training and recalibration, without any scoring."""


def predict(target: Target, state: State, inputs: Float[Tensor, "n ..."]) -> Float[Tensor, "n classes"]:
    """Logits (n, classes) of any number of inputs, in eval mode and batches, without gradients."""
    with torch.no_grad():
        if can_run_side_by_side(target.skeleton):
            return run_halves(target.skeleton, state, inputs)
        return torch.cat([target.run(state, batch) for batch in inputs.split(EVAL_BATCH)])


def predict_each(
    target: Target, states: Sequence[State], inputs: Float[Tensor, "n ..."]
) -> Float[Tensor, "states n classes"]:
    """Logits (b, n, classes) of several states for the same inputs, as `predict` gives them but for rounding."""
    if not can_run_side_by_side(target.skeleton):
        return torch.stack([predict(target, state, inputs) for state in states])
    with torch.no_grad():
        return run_each(target.skeleton, states, inputs)


def accuracy(target: Target, state: State, inputs: Float[Tensor, "n ..."], labels: Int[Tensor, " m"]) -> float:
    """Fraction of inputs (n, *input_shape) whose highest logit is at their label (n,), in [0, 1]."""
    if len(inputs) == 0 or len(inputs) != len(labels):
        raise BadData(f"{len(inputs)} inputs and {len(labels)} labels to score, expected equally many and at least one")
    return float((predict(target, state, inputs).argmax(1) == labels).double().mean())


def recalibrate_batchnorm(target: Target, state: State, inputs: Float[Tensor, "n ..."]) -> State:
    """The same state with BatchNorm's running statistics measured on inputs (n, *input_shape); others come back as is.

    Deterministic: one pass over all inputs in equal chunks, the plain mean of the chunks' statistics. The rest of the
    network stays in eval mode.
    """
    if not _batch_norms(target.skeleton):
        return state
    module = target.load(state)
    _measure_batchnorm(module, inputs)
    measured = module.state_dict()
    return {t.name: state[t.name] if t.carried is not None else measured[t.name] for t in target.spec.tensors}


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


def augment_images(
    images: Float[Tensor, "n c h w"],
    *,
    rng: torch.Generator,
    max_shift: float = 3.0,
    max_degrees: float = 10.0,
    max_scaling: float = 0.1,
) -> Float[Tensor, "n c h w"]:
    """Images (n, c, h, w), each shifted (pixels), turned and scaled at random in one resampling, edges repeated."""
    n, _, height, width = images.shape
    draw = 2 * torch.rand(4, n, generator=rng, device=rng.device).to(images) - 1
    angle = math.radians(max_degrees) * draw[0]
    factor = 1 + max_scaling * draw[1]
    cos, sin = factor * angle.cos(), factor * angle.sin()
    # affine_grid works in [-1, 1] across the image: one pixel is 2 / size.
    rows = (cos, -sin, 2 * max_shift / width * draw[2], sin, cos, 2 * max_shift / height * draw[3])
    maps = torch.stack(rows, 1).reshape(n, 2, 3)
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


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
    """Trains without end, one AdamW step for every loss that is asked for."""
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
    """Row numbers of batch after batch, epochs end to end; None stands for all rows."""
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
    """A copy of the module's state, fit to be scored in eval mode; the module itself goes on as it was."""
    state = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in module.state_dict().items()
    }
    return target.spec.complete(recalibrate_batchnorm(target, state, support.inputs))


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def _measure_batchnorm(module: nn.Module, inputs: Tensor) -> None:
    norms = _batch_norms(module.eval())
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative mean instead of a moving one
        norm.train()
    with torch.no_grad():
        for chunk in inputs.tensor_split(math.ceil(len(inputs) / EVAL_BATCH)):
            module(chunk)
    module.eval()
