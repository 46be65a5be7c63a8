"""Fixtures of the service's tests: a clock that stands still, and an empty database of each kind."""

from pathlib import Path

import pytest

from tests.helpers.service_standins import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new, empty database, once of each kind."""
    if request.param == "postgresql":
        return request.getfixturevalue("postgres").make_database()
    return f"sqlite:///{tmp_path}/jobs.sqlite"
