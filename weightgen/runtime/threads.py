"""How many threads torch uses: one for small networks, whatever the machine has.

A small network gains nothing from several threads. Where cores are shared it loses much: every operation waits for the
slowest thread. One thread also makes the bytes of weights independent of the number of cores.
"""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """torch works on one thread inside the block, and on as many as before after it.

    The number belongs to the whole process: another thread of it that uses torch meanwhile is slowed down too.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
