"""What every log line of one request or one job says besides its own words: the ids of both, as far as known.

The fields live in a context variable that holds a dict, so that what a route's thread adds is seen by the middleware
that logs the answer.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_FIELDS: ContextVar[dict[str, Any] | None] = ContextVar("log_fields", default=None)


@contextmanager
def logged_with(**fields: Any) -> Iterator[dict[str, Any]]:
    """Let every log line inside the block carry these fields, and those that `note` adds; they are yielded."""
    own = {**current_fields(), **fields}
    token = _FIELDS.set(own)
    try:
        yield own
    finally:
        _FIELDS.reset(token)


def note(**fields: Any) -> None:
    """Add fields to the log lines of the block that this runs in; outside of any, nothing happens."""
    own = _FIELDS.get()
    if own is not None:
        own.update(fields)


def current_fields() -> dict[str, Any]:
    """The fields of the block that this runs in."""
    return dict(_FIELDS.get() or {})
