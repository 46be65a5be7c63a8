"""Settings every test runs under: one torch thread a worker, a steady hypothesis profile, rngs by seed."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from benchmarks.service.postgres_server import PostgresServer
from tests.helpers.standins import STAND_IN
from weightgen.files.checkpoint import save_state
from weightgen.generators import METHODS

settings.register_profile(
    "weightgen",
    deadline=None,  # a shared machine's timing is no fault of the code
    derandomize=True,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "50")),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("weightgen")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # xdist already runs one worker a core


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def generator_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A generator file of the registered method 'stand-in', which holds nothing."""
    monkeypatch.setitem(METHODS, "stand-in", STAND_IN)
    manifest = {"format": "weightgen.generator", "version": 1, "method": "stand-in"}
    save_state(tmp_path / "stand-in.safetensors", {"nothing": torch.zeros(1)}, manifest=manifest)
    return tmp_path / "stand-in.safetensors"


@pytest.fixture
def make_rng() -> Callable[[int], torch.Generator]:
    return lambda seed: torch.Generator().manual_seed(seed)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this test process; the test is skipped where none is installed."""
    try:
        server = PostgresServer()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    yield server
    server.remove()
