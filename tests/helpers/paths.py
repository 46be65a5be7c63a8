"""Where tests find files: the checkout, and real data sets and checkpoints, which are not part of the repository."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The folder of the checkout."""
_BESIDE_THE_CHECKOUT = ROOT.parent / "shared" / "data"


def shared_path(relative: str) -> Path:
    """A file or folder below $WEIGHTGEN_SHARED (else ../shared/data beside the checkout); skips the test without it."""
    folder = Path(os.environ.get("WEIGHTGEN_SHARED") or _BESIDE_THE_CHECKOUT)
    path = folder / relative
    if not path.exists():
        pytest.skip(f"needs {relative} of the shared data folder (set WEIGHTGEN_SHARED to the folder that holds it)")
    return path
