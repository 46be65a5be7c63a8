"""Several processes that train one model: each has its own random draws, all follow the mean of their gradients."""

import contextlib
import os
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


@contextlib.contextmanager
def join_processes() -> Iterator[tuple[int, int]]:
    """Join the processes that torchrun started, for the block; gives the rank of this one and the number of all."""
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if world_size == 1:
        yield 0, 1
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield rank, world_size
    finally:
        dist.destroy_process_group()


def average_gradients(parameters: Sequence[nn.Parameter], world_size: int) -> None:
    """Replace every gradient by its mean over all processes, in one exchange."""
    if world_size == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(gradients, (flat / world_size).split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def gather_states(state: Tensor, world_size: int) -> list[Tensor]:
    """The states of the random number generators of all processes, in the order of their ranks."""
    if world_size == 1:
        return [state]
    states = [torch.empty_like(state) for _ in range(world_size)]
    dist.all_gather(states, state)
    return states


def share_clock(seconds: float, world_size: int) -> float:
    """The seconds that process 0 has spent. All processes use them, to stop and to save at the same step."""
    if world_size == 1:
        return seconds
    clock = torch.tensor([seconds], dtype=torch.float64)
    dist.broadcast(clock, src=0)
    return float(clock)


def wait_for_all(world_size: int) -> None:
    """Return once every process has called this."""
    if world_size > 1:
        dist.all_reduce(torch.zeros(1))  # on the CPU, where every group of ours can meet
