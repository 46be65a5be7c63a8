"""The Hub clients that tests run: the huggingface_hub that is installed, and an older one in a folder of its own."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT

OLDER = "0.36.2"
VERSIONS = ("installed", OLDER)


def client_environment(version: str, url: str, home: Path, *, token: str | None = None) -> dict[str, str]:
    """The environment in which a process asks `url` with that version of huggingface_hub and a cache below `home`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "WEIGHTGEN_"))}
    path = [str(ROOT)] if version == "installed" else [str(_install(version)), str(ROOT)]
    chosen = {"HF_ENDPOINT": f"{url}/hf", "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "NO_COLOR": "1"}
    chosen["NO_PROXY"] = "127.0.0.1"
    return kept | chosen | {"PYTHONPATH": os.pathsep.join(path)} | ({"HF_TOKEN": token} if token else {})


def run_client(code: str, *arguments: str, environment: dict[str, str]) -> str:
    """What a program prints, run in another process with warnings allowed; its errors are the test's."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=600, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def _install(version: str) -> Path:
    """The folder of that version, installed there on first use; what it requires, the environment has already."""
    folder = ROOT / "runs" / "hub_clients" / version
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / "lock", "wb") as guard:  # several processes run tests
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not folder.exists():
            partial = folder.with_name(f"{version}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            command = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--retries", "1", "--timeout", "20",
                       "--target", str(partial), f"huggingface_hub=={version}"]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                pytest.skip(f"huggingface_hub {version} cannot be installed: {done.stderr.strip()[-200:]}")
            partial.rename(folder)
    return folder
