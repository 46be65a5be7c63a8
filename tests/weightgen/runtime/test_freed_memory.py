"""What is freed stays with the process."""

import os
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
from weightgen.runtime.freed_memory import keep_freed_memory

print(keep_freed_memory() if sys.argv[1] == "keep" else False)
for _ in range(3):
    bytearray(8 * 2**20)  # the heap has grown
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    bytearray(8 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def count_faults(asked: str, **variables: str) -> tuple[bool, int]:
    """Whether it was done, and how many pages were taken anew by blocks that were freed each time."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC"))}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_FAULTS, asked],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=True,
    )
    told, faults = done.stdout.split()
    return told == "True", int(faults)


@pytest.mark.skipif(not os.confstr("CS_GNU_LIBC_VERSION"), reason="the C library is not glibc, which this is about")
def test_blocks_that_are_freed_are_not_faulted_in_anew():
    is_kept, faults = count_faults("keep")
    assert is_kept and faults < 50 * 2048 / 10  # of 2,048 pages a block


def test_what_the_environment_says_of_memory_stands():
    assert not count_faults("keep", MALLOC_ARENA_MAX="2")[0]
