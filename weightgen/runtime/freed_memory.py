"""What is freed stays with the process: making weights frees and takes the same large blocks thousands of times.

glibc hands blocks over 128 KiB back to the system at once and takes them anew page by page, a fifth of the time
that a generation takes. With these limits it keeps up to 256 MiB for the next tensor, in one place for all threads:
what threads kept each for itself would be handed back, or lie idle. Threads that began before stay as they are.
"""

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
"""Of mallopt(3)."""
KEPT_BYTES, MAPPED_BYTES = 256 * 2**20, 32 * 2**20
"""How much may be kept free, and from what size a block is the system's own: glibc allows no more than that."""


def keep_freed_memory() -> bool:
    """Let this process keep what it frees; False where the C library is no glibc, or the environment says otherwise."""
    if os.name != "posix" or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    wanted = {M_TRIM_THRESHOLD: KEPT_BYTES, M_MMAP_THRESHOLD: MAPPED_BYTES, M_ARENA_MAX: 1}
    taken = [mallopt(name, value) for name, value in wanted.items()]  # each of them, also if one is refused
    return all(taken)
