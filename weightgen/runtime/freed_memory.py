"""Keeps freed memory in the process: making weights frees and takes the same large blocks thousands of times.

glibc returns blocks over 128 KiB to the system at once and takes them again page by page, which costs a fifth of the
time of a generation. With these limits it keeps up to 256 MiB for the next tensor, in one arena for all threads: blocks
in an arena of one thread would be returned, or not be used. Threads that started before are not affected.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Parameters of mallopt(3)."""
KEPT_BYTES, MAPPED_BYTES = 256 * 2**20, 32 * 2**20
"""Most bytes kept free, and the size from which a block is returned to the system: the largest that glibc allows."""


def keep_freed_memory() -> bool:
    """Let this process keep memory that it frees; False without glibc, or if the environment sets its own limits."""
    if os.name != "posix" or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {M_TRIM_THRESHOLD: KEPT_BYTES, M_MMAP_THRESHOLD: MAPPED_BYTES, M_ARENA_MAX: 1}
    taken = [mallopt(name, value) for name, value in wanted.items()]  # all of them are set, also if one is refused
    return all(taken)
