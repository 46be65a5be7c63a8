"""The examples with curl in docs/service.md, run with a real curl against a live server, one after the other."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.helpers.live_servers import live_generation, live_service
from tests.helpers.paths import ROOT
from tests.helpers.service_standins import StandInRun, write_safetensors

ADDRESS = "http://127.0.0.1:8000"
NAMES = ("JOB", "SHA")
"""Variables that one block sets and a later one reads."""

Check = Callable[[str, Path], bool]


def holds(*parts: str) -> Check:
    return lambda said, folder: all(part in said for part in parts)


def has_downloaded(said: str, folder: Path) -> bool:
    weights = (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    return said.endswith("304\n") and weights == write_safetensors([1.0] * 300) and config == {"num_classes": 10}


def has_uploaded(said: str, folder: Path) -> bool:
    names = re.findall(r'"name": ?"(up-[0-9a-f]{64})"', said)
    return len(names) == 5 and names[2] == names[4] and len(set(names)) == 4  # one of them is sent twice


CHECKS: list[tuple[str, Check]] = [
    ('"dataset": "digits"}', holds('"state":"succeeded"', '"repository":"sha/')),
    ("Last-Event-ID", lambda said, folder: said.count("event: job") >= 2 and said.count('"state":"succeeded"') == 2),
    ("-X DELETE", holds('"state":"cancelled"')),
    ("If-None-Match", has_downloaded),
    ("--data-binary", has_uploaded),
]
"""What is in a block -> whether it has done what it says; in the order of the docs."""


OF_A_METHOD = '"options": {"scheduler": "ddim"'
"""In the block that a generator in earnest has to answer."""


def curl_blocks() -> list[str]:
    text = (ROOT / "docs" / "service.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    return [block for block in blocks if re.match(r"curl |[A-Z]+=(\$\(curl |http://)", block)]


def make_examples(folder: Path) -> None:
    """The files that the examples upload."""
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    np.savez(folder / "examples.npz", x=rng.integers(0, 255, (40, 9, 9)).astype(np.uint8), y=labels)
    with zipfile.ZipFile(folder / "pictures.zip", "w") as archive:
        for i, label in enumerate(labels):
            picture = BytesIO()
            Image.fromarray(rng.integers(0, 255, (9, 9)).astype(np.uint8)).save(picture, "PNG")
            archive.writestr(f"{'ab'[label]}/{i}.png", picture.getvalue())
    pd.DataFrame({"size": rng.random(40), "species": ["ab"[i] for i in labels]}).to_csv(
        folder / "flowers.csv", index=False
    )
    pixels = pd.DataFrame(rng.integers(0, 255, (40, 784)), columns=[f"p{i}" for i in range(784)])
    pixels.assign(target=labels).to_parquet(folder / "pixels.parquet")


def run_block(block: str, url: str, folder: Path, known: dict[str, str]) -> str:
    """What a block prints; the variables it sets go into `known`."""
    tell = "\n".join(f'echo "{name}=${{{name}-}}" >&3' for name in NAMES)
    script = f"set -euo pipefail\nexec 3>variables\n{block.replace(ADDRESS, url)}\n{tell}\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=os.environ | known, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    known |= dict(line.split("=", 1) for line in (folder / "variables").read_text().splitlines())
    return done.stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_every_example_with_curl_does_what_it_says(tmp_path):
    folder, known = tmp_path / "here", {}
    folder.mkdir()
    make_examples(folder)
    with live_service(tmp_path / "data") as (url, run):
        blocks = [block for block in curl_blocks() if OF_A_METHOD not in block]
        for block, (part, is_as_said) in zip(blocks, CHECKS, strict=True):
            assert part in block
            hold(run, is_held="-X DELETE" in block)
            said = run_block(block, url, folder, known)
            assert is_as_said(said, folder), said
        hold(run, is_held=False)


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_options_of_a_method_reach_its_generator(tmp_path):
    (block,) = [block for block in curl_blocks() if OF_A_METHOD in block]
    with live_generation(tmp_path / "data") as (url, _):
        job = json.loads(run_block(block, url, tmp_path, {}))
    assert job["request"]["options"] == {"scheduler": "ddim", "steps": 4}
    assert job["state"] == "succeeded" and job["result"]["report"]["source"] == "d2nwg"


def hold(run: StandInRun, *, is_held: bool) -> None:
    """Let jobs wait or go on: one that has ended cannot be cancelled."""
    if is_held:
        run.go_on.clear()
    else:
        run.go_on.set()
