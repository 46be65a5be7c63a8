"""Runs jobs in threads of the server's own processes: every process of the service is a runner."""

from collections.abc import Callable
from typing import Any

Progress = Callable[[str, int, int], None]
"""(stage, done, total): tells how far a job is; raises where the job is no longer this runner's."""

Run = Callable[[dict[str, Any], Progress], dict[str, Any]]
"""Request -> result; what it raises of WeightgenError becomes the job's problem."""
