"""Fields that every log line of a request or a job has: the ids of both, as far as known.

The fields are a dict in a context variable. So the middleware that logs the answer sees what a route's thread adds.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_FIELDS: ContextVar[dict[str, Any] | None] = ContextVar("log_fields", default=None)


@contextmanager
def logged_with(**fields: Any) -> Iterator[dict[str, Any]]:
    """Add these fields, and those of `note`, to every log line inside the block; yields the dict of fields."""
    own = {**current_fields(), **fields}
    token = _FIELDS.set(own)
    try:
        yield own
    finally:
        _FIELDS.reset(token)


def note(**fields: Any) -> None:
    """Add fields to the log lines of the current block; outside of a block, do nothing."""
    own = _FIELDS.get()
    if own is not None:
        own.update(fields)


def current_fields() -> dict[str, Any]:
    """The fields of the current block."""
    return dict(_FIELDS.get() or {})
