"""Trains many networks of one spec at once, for the zoo builder; writes no files.

All parameters of a group are in one matrix theta (m, p), one row for each network. One AdamW step of a few tensor
operations serves all; each row has its own learning rate and weight decay. The gradient is computed in one of two ways:

- stacked: torch.func.vmap over the rows. One kernel serves the whole group. Used on a GPU, and on a CPU for networks
  without convolutions, where calls cost more than computation.
- in turn: one module for each row, whose parameters are views of the row. On a CPU, a convolution of one small network
  in channels-last layout is faster than the grouped convolution that vmap makes, and one network fits into the cache.

Trained in turn, a network's numbers do not depend on its group.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call, vmap

from weightgen.layers.augment import augment_images
from weightgen.spec import State
from weightgen.target.network import Target

BETAS, EPS = (0.9, 0.999), 1e-8
_EVAL_BATCH = 1000


@dataclass(frozen=True, eq=False)
class Rows:
    """Labelled examples as rows of a bigger tensor, which several jobs may share."""

    pool: Tensor
    rows: Tensor
    """(n,) int64, the rows of the examples in the pool."""
    labels: Tensor
    """(n,) int64."""


@dataclass(frozen=True, eq=False)
class Job:
    """One network to train."""

    train: Rows
    test: Rows
    seed: int
    """Seed of the initialisation, the order of the batches and the augmentation."""
    learning_rate: float
    weight_decay: float
    augment: bool


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A network at a step and its scores; losses are mean cross-entropies, accuracies are fractions."""

    step: int
    state: State
    train_accuracy: float
    train_loss: float
    test_accuracy: float
    test_loss: float


def is_stacked(target: Target, device: torch.device) -> bool:
    """Whether a group of these networks is faster stacked than in turn."""
    return device.type != "cpu" or not any(isinstance(m, nn.Conv2d) for m in target.skeleton.modules())


def train_group(
    target: Target,
    jobs: Sequence[Job],
    *,
    batch_size: int,
    checkpoint_steps: Sequence[int],
    eval_examples: int,
    device: torch.device,
    stacked: bool | None = None,
    before_step: Callable[[], None] = lambda: None,
) -> Iterator[list[Snapshot]]:
    """The snapshots of each job, in the jobs' order. A network that diverges has only the snapshots from before.

    Jobs that are trained in turn are yielded one by one.
    """
    use_stack = is_stacked(target, device) if stacked is None else stacked
    for group in [jobs] if use_stack else [[job] for job in jobs]:
        stack = _Stack(target, group, device=device, stacked=use_stack)
        batches = _Batches(group, batch_size=batch_size, num_steps=max(checkpoint_steps), device=device)
        snapshots: list[list[Snapshot]] = [[] for _ in group]
        for step in range(1, max(checkpoint_steps) + 1):
            before_step()
            stack.step(*batches.draw(step - 1))
            if step in checkpoint_steps:
                for kept, job, state in zip(snapshots, group, stack.take_states(), strict=True):
                    if all(bool(torch.isfinite(t).all()) for t in state.values()):
                        kept.append(_score(target, job, state, step=step, limit=eval_examples, device=device))
        yield from snapshots


class _Batches:
    """Batches (m, b, ...) of a group; every job has its own epochs, without gaps, from its own rng."""

    def __init__(self, jobs: Sequence[Job], *, batch_size: int, num_steps: int, device: torch.device) -> None:
        pools: dict[int, Tensor] = {id(j.train.pool): j.train.pool for j in jobs}
        starts = dict(zip(pools, torch.tensor([0, *map(len, pools.values())]).cumsum(0).tolist(), strict=False))
        self.pool = (next(iter(pools.values())) if len(pools) == 1 else torch.cat(list(pools.values()))).to(device)
        self.rngs = [torch.Generator().manual_seed(job.seed) for job in jobs]
        self.jobs = jobs
        orders = [
            _draw_orders(len(j.train.rows), batch_size * num_steps, r) for j, r in zip(jobs, self.rngs, strict=True)
        ]
        rows = torch.stack([j.train.rows[o] + starts[id(j.train.pool)] for j, o in zip(jobs, orders, strict=True)])
        labels = torch.stack([j.train.labels[o] for j, o in zip(jobs, orders, strict=True)])
        self.rows = rearrange(rows, "m (s b) -> s m b", b=batch_size).to(device)
        self.labels = rearrange(labels, "m (s b) -> s m b", b=batch_size).to(device)

    def draw(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs (m, b, ...) and labels (m, b)."""
        rows = self.rows[step]
        inputs = self.pool.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        if any(job.augment for job in self.jobs):
            inputs = torch.stack([
                augment_images(x, rng=rng) if job.augment else x
                for x, job, rng in zip(inputs, self.jobs, self.rngs, strict=True)
            ])  # fmt: skip
        return inputs, self.labels[step]


class _Stack:
    """The networks of a group, and AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, alg. 2) over theta (m, p)."""

    def __init__(self, target: Target, jobs: Sequence[Job], *, device: torch.device, stacked: bool) -> None:
        self.target, self.stacked = target, stacked
        states = [target.init_state(job.seed) for job in jobs]
        trained = dict(target.skeleton.named_parameters())
        self.shapes = {name: p.shape for name, p in trained.items()}
        self.theta = torch.stack([torch.cat([s[n].flatten() for n in self.shapes]) for s in states]).to(device)
        self.buffers = {
            t.name: torch.stack([s[t.name] for s in states]).to(device)
            for t in target.spec.stored
            if t.name not in self.shapes
        }
        self.rates = torch.tensor([[j.learning_rate] for j in jobs], device=device)
        self.decays = 1 - self.rates * torch.tensor([[j.weight_decay] for j in jobs], device=device)
        self.mean, self.square = torch.zeros_like(self.theta), torch.zeros_like(self.theta)
        self.num_steps = 0
        self.module = target.load(states[0]).to(device).train()
        if not stacked:
            assert len(jobs) == 1, "in turn, a group is one network"
            for (_, p), view in zip(self.module.named_parameters(), self._split(self.theta[0]), strict=True):
                p.data = view
            self.buffers = {name: b[None] for name, b in self.module.named_buffers()}

    def step(self, inputs: Tensor, labels: Tensor) -> None:
        gradient = self._gradient_stacked(inputs, labels) if self.stacked else self._gradient_alone(inputs, labels)
        self.num_steps += 1
        beta1, beta2 = BETAS
        self.mean.lerp_(gradient, 1 - beta1)
        self.square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        scale = self.square.sqrt().div_((1 - beta2**self.num_steps) ** 0.5).add_(EPS)
        self.theta.mul_(self.decays).sub_((self.mean / scale).mul_(self.rates / (1 - beta1**self.num_steps)))

    def take_states(self) -> list[State]:
        """A copy of every network's full state, on the CPU."""
        states = []
        for row, theta in enumerate(self.theta.detach().cpu()):
            state = {name: view.clone() for name, view in zip(self.shapes, self._split(theta), strict=True)}
            state |= {name: buffer[row].detach().cpu().clone() for name, buffer in self.buffers.items()}
            states.append(self.target.spec.complete(state))
        return states

    def _split(self, theta: Tensor) -> list[Tensor]:
        """Views of theta (..., p) as parameters, each (..., *shape)."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()], dim=-1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes.values(), strict=True)]

    def _gradient_alone(self, inputs: Tensor, labels: Tensor) -> Tensor:
        x = _channels_last(inputs[0])
        loss = F.cross_entropy(self.module(x), labels[0])
        gradients = torch.autograd.grad(loss, list(self.module.parameters()))
        return torch.cat([g.flatten() for g in gradients])[None]

    def _gradient_stacked(self, inputs: Tensor, labels: Tensor) -> Tensor:
        theta = self.theta.detach().requires_grad_()
        parameters = dict(zip(self.shapes, self._split(theta), strict=True))
        # BatchNorm's running statistics are changed in place, each network's own row.
        logits = vmap(lambda p, b, x: functional_call(self.module, (p, b), (x,)))(parameters, self.buffers, inputs)
        # The sum of the networks' mean losses, so that no gradient depends on another network.
        loss = F.cross_entropy(rearrange(logits, "m b k -> (m b) k"), labels.flatten(), reduction="sum")
        return torch.autograd.grad(loss / labels.shape[1], theta)[0]


def _draw_orders(num_examples: int, count: int, rng: torch.Generator) -> Tensor:
    """`count` row numbers: permutations of all examples, one after the other."""
    num_epochs = -(-count // num_examples)
    return torch.cat([torch.randperm(num_examples, generator=rng) for _ in range(num_epochs)])[:count]


def _score(target: Target, job: Job, state: State, *, step: int, limit: int, device: torch.device) -> Snapshot:
    on_device = {name: t.to(device) for name, t in state.items()}
    train = _evaluate(target, on_device, job.train, limit=limit, device=device)
    test = _evaluate(target, on_device, job.test, limit=limit, device=device)
    return Snapshot(step, state, train_accuracy=train[0], train_loss=train[1], test_accuracy=test[0], test_loss=test[1])


@torch.no_grad()
def _evaluate(target: Target, state: State, part: Rows, *, limit: int, device: torch.device) -> tuple[float, float]:
    """Accuracy and mean loss on the part's examples; on `limit` evenly spaced ones if there are more."""
    count = len(part.rows)
    chosen = torch.arange(count) if count <= limit else torch.linspace(0, count - 1, limit, dtype=torch.float64).long()
    correct, loss = 0, 0.0
    for rows in chosen.split(_EVAL_BATCH):
        x, y = part.pool.index_select(0, part.rows[rows]).to(device), part.labels[rows].to(device)
        logits = target.run(state, _channels_last(x))
        correct += int((logits.argmax(1) == y).sum())
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
    return correct / len(chosen), loss / len(chosen)


def _channels_last(x: Tensor) -> Tensor:
    """Images in channels-last layout, with which convolutions and pooling on a CPU are faster.

    `contiguous` would not change one-channel images, and the whole network would stay in the slow layout.
    """
    return x.to(memory_format=torch.channels_last) if x.ndim == 4 else x
