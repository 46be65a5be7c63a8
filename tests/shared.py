"""Where tests find real data sets and checkpoints, which are not part of the repository."""

import os
from pathlib import Path

import pytest

_BESIDE_THE_CHECKOUT = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared_path(relative: str) -> Path:
    """A file or folder below $WEIGHTGEN_SHARED (else ../shared/data beside the checkout); skips the test without it."""
    folder = Path(os.environ.get("WEIGHTGEN_SHARED") or _BESIDE_THE_CHECKOUT)
    path = folder / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the shared data folder (set WEIGHTGEN_SHARED to the folder that holds it)")
    return path
