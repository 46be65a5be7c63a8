"""python -m service.uploads.reading ASKED: reads a file on stdin, writes arrays and the verdict to stdout.

ASKED is JSON: {declared, label, is_pixels, limits}. The output is safetensors with the verdict in its metadata:
{"refused": sentence}, or the fields of a Raw without its arrays.
"""

import contextlib
import json
import os
import resource
import sys

import numpy as np
from safetensors.numpy import save

from service.uploads.reading import Limits, Unusable
from service.uploads.reading.formats import read_file

BASE_BYTES = 768 * 2**20
"""Address space for Python and its packages, with room to spare."""
OF_UNCOMPRESSED = 4
"""How many copies of the unpacked file may be in memory: unpacked, as arrays, put together, written."""


def main() -> int:
    """Read and write; returns 0 for a bad file too, which is no fault of this process."""
    asked = json.loads(sys.argv[1])
    limits = Limits(**asked.pop("limits"))
    confine(limits)
    try:
        os.lseek(0, 0, os.SEEK_SET)
        with os.fdopen(0, "rb") as file:
            raw = read_file(file, limits=limits, **asked)
        about = {"form": raw.form, "texts": raw.texts, "class_names": raw.class_names, "num_train": raw.num_train}
        written = save(raw.arrays, {"verdict": json.dumps(about)})
    except Unusable as refused:
        written = refuse(str(refused))
    except MemoryError:
        written = refuse("it takes more memory than an upload may; send fewer or smaller examples")
    with os.fdopen(1, "wb") as out:
        out.write(written)
    return 0


def refuse(sentence: str) -> bytes:
    """The output for a file that is refused."""
    return save({"none": np.zeros(0, np.uint8)}, {"verdict": json.dumps({"refused": sentence})})


def confine(limits: Limits) -> None:
    """Limit this process for good to what it needs."""
    memory = BASE_BYTES + OF_UNCOMPRESSED * limits.max_uncompressed_bytes
    written = limits.max_uncompressed_bytes + 16 * 2**20
    for what, limit in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, limits.max_reading_seconds),
        (resource.RLIMIT_FSIZE, written),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ):
        _, most = resource.getrlimit(what)
        allowed = limit if most == resource.RLIM_INFINITY else min(limit, most)
        resource.setrlimit(what, (allowed, allowed))
    os.nice(5)  # other requests are answered first
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # where memory runs out, this process is killed and not the server


if __name__ == "__main__":
    sys.exit(main())
