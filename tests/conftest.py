"""Settings every test runs under: one torch thread a worker, a steady hypothesis profile, rngs by seed."""

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, settings

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
def make_rng() -> Callable[[int], torch.Generator]:
    return lambda seed: torch.Generator().manual_seed(seed)
