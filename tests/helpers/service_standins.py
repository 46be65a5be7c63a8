"""A service whose weights are made at once from the request, for tests of everything round generation."""

import json
import struct
import threading
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from service.app import create_app, open_artifacts
from service.artifacts.artifact_store import ArtifactStore
from service.jobs.job_store import JobStore
from service.jobs.runner import Progress
from service.settings import Settings
from service.uploads.names import is_upload
from service.work.catalogue import Catalogue
from weightgen.errors import UnknownName, WeightgenError

ASKED = {"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits"}
REPOSITORY = "gen/cnn-tiny.digits.mip.s0"


class Clock:
    """Time that stands still until a test moves it; seconds since the epoch."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class StandInRun:
    """Makes an artifact that depends on the seed alone; can be held, and told to fail."""

    def __init__(self, data_dir: Path, artifacts: ArtifactStore) -> None:
        self.artifacts = artifacts
        self.scratch = data_dir / "scratch"
        self.runs: list[dict[str, Any]] = []
        self.error: Exception | None = None
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, request: dict[str, Any], progress: Progress) -> dict[str, Any]:
        self.runs.append(request)
        progress("generating", 0, 1)
        while not self.go_on.wait(0.02):
            progress("generating", 0, 1)  # raises once the job is cancelled
        if self.error is not None:
            raise self.error
        folder = self.scratch / f"{len(self.runs)}-{threading.get_ident()}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(write_safetensors([float(request["seed"])] * 300))
        (folder / "config.json").write_text(json.dumps({"num_classes": 10}))
        sha = self.artifacts.add(folder)
        files = [{"name": f.name, "sha256": f.sha256, "size": f.size} for f in self.artifacts.files(sha)]
        return {"artifact": sha, "repository": f"sha/{sha}", "files": files, "report": {"seed": request["seed"]}}


def write_safetensors(numbers: list[float]) -> bytes:
    """The bytes of a safetensors file with one float32 tensor, "weight"."""
    data = struct.pack(f"<{len(numbers)}f", *numbers)
    about = {"weight": {"dtype": "F32", "shape": [len(numbers)], "data_offsets": [0, len(data)]}}
    header = json.dumps(about).encode()
    return struct.pack("<Q", len(header)) + header + data


def stand_in_catalogue() -> Catalogue:
    """One generator, two architectures, two data sets."""
    architectures, datasets = ["cnn", "cnn-tiny"], ["digits", "mnist"]

    def check_names(request: dict[str, Any]) -> None:
        if request["architecture"] not in architectures:
            raise UnknownName("architecture", request["architecture"], architectures)
        if not is_upload(request["dataset"]) and request["dataset"] not in datasets:
            raise UnknownName("data set", request["dataset"], datasets)

    return Catalogue(
        lambda: {"mip": "a" * 64},
        lambda: architectures,
        lambda: datasets,
        check_names,
        contents=lambda _: {},
        fewest_parameters={"cnn": 100_000, "cnn-tiny": 2_000}.__getitem__,
    )


def stand_in_app(data_dir: Path, *, inline_seconds: float = 600.0, **settings: Any) -> tuple[FastAPI, StandInRun]:
    """The app over a migrated database, and what runs its jobs.

    It waits for results as long as it takes, longer than a setting could say, so that no test is a matter of speed.
    """
    chosen = Settings(**{"data_dir": data_dir, "drain_seconds": 0.5, **settings})
    chosen = chosen.model_copy(update={"inline_seconds": inline_seconds})
    jobs = JobStore(chosen.database_url)
    jobs.migrate()
    jobs.close()
    run = StandInRun(data_dir, open_artifacts(chosen))
    return create_app(chosen, run=run, catalogue=stand_in_catalogue()), run


class Refused(WeightgenError):
    """An error that no table names."""
