"""torch's global random generator, used by one thread at a time; constructors of modules draw from it.

Everything else draws from an explicit `rng`. If two threads seeded the global one and drew from it at the same time,
they would get each other's numbers, and the same request would give other weights.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_LOCK = threading.RLock()


@contextmanager
def borrowed_rng(seed: int | None = None) -> Iterator[None]:
    """Let this thread alone draw from the global generator of the CPU, seeded if `seed` is given.

    Its state is restored afterwards. Other threads that borrow it wait.
    """
    with _LOCK, torch.random.fork_rng(devices=[]):
        if seed is not None:
            torch.manual_seed(seed)
        yield
