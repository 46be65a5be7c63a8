"""Starts the process that reads an upload, and takes its output.

An unknown file is read where it can do no harm: by a process that has no secrets and little memory and time, and may
crash. It takes a tenth of a second to start. No file can crash or fill a server process, not even through a fault of a
decoder.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from service.uploads.reading import Limits, Raw, Unusable

MAX_WAIT = 4
"""Most time in all, as a multiple of the processor time that it may take: other processes need the processor too."""
_MAX_ERRORS = 4000
"""Most bytes of the process's errors that are logged."""

_log = logging.getLogger(__name__)


def read_apart(
    file: BinaryIO, *, declared: str | None, label: str | None, is_pixels: bool, limits: Limits, scratch: Path
) -> Raw:
    """What a file holds, read by another process with `reading.formats.read_file`; raises Unusable as that does.

    `scratch` is a folder for the output of that process.
    """
    from safetensors.numpy import load

    asked = {"declared": declared, "label": label, "is_pixels": is_pixels, "limits": asdict(limits)}
    file.seek(0)
    with tempfile.TemporaryFile(dir=scratch) as written, tempfile.TemporaryFile(dir=scratch) as errors:
        try:
            ended = subprocess.run(
                [sys.executable, "-B", "-m", "service.uploads.reading", json.dumps(asked)],
                stdin=file,
                stdout=written,
                stderr=errors,
                env=reader_environment(),
                start_new_session=True,
                timeout=MAX_WAIT * limits.max_reading_seconds,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            ended = None
        if ended != 0:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - _MAX_ERRORS))
            _log.warning(
                "an upload was not read", extra={"code": ended, "said": errors.read().decode(errors="replace")}
            )
            raise Unusable("it cannot be read in the memory and time that an upload may take; send fewer or smaller "
                           "examples, or save the file anew")  # fmt: skip
        written.seek(0)
        content = written.read()
    return _judge(load(content), _read_verdict(content))


def reader_environment() -> dict[str, str]:
    """Environment variables that say where the code is, and no more: the server's own hold addresses and passwords."""
    return {
        "PYTHONPATH": os.pathsep.join(path for path in (str(Path(__file__).parents[2]), *sys.path) if path),
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # the others reserve address space, which is limited
    }


def _read_verdict(content: bytes) -> dict[str, Any]:
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return json.loads(header["__metadata__"]["verdict"])


def _judge(arrays: dict[str, Any], verdict: dict[str, Any]) -> Raw:
    if "refused" in verdict:
        raise Unusable(verdict["refused"])
    return Raw(arrays=arrays, **verdict)
