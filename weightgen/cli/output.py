"""What commands print: data on stdout, progress on stderr."""

import json
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def print_json(value: Any) -> None:
    """Print one JSON document on stdout."""
    _write(json.dumps(value, indent=2, allow_nan=False))


def print_table(rows: Sequence[tuple[str, Any]], *, title: str | None = None) -> None:
    """Print two columns on stdout: name and value."""
    width = max((len(name) for name, _ in rows), default=0)
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    _write("\n".join(([title] if title else []) + lines))


def say(sentence: str) -> None:
    """Print one line of progress on stderr."""
    print(sentence, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    # Flushed here, so that a closed pipe or a full disk raises while the error can still be reported.
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
