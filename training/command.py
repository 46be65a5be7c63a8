"""How every program here meets its caller: progress on stderr, and a caller's mistake as one sentence and exit code."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from weightgen.errors import WeightgenError

StepsOption = Annotated[int | None, typer.Option(help="Steps to train, in place of minutes.")]
RunFolder = Annotated[Path, typer.Option(help="Folder of this run.")]


def run_command(command: Callable[..., None] | typer.Typer) -> None:
    """Run a function with Typer's annotations, or an app of several, as this process's command line."""
    app = command if isinstance(command, typer.Typer) else typer.Typer(pretty_exceptions_enable=False)
    if not isinstance(command, typer.Typer):
        app.command()(command)
    try:
        app()
    except WeightgenError as error:
        typer.echo(f"error: {error}", err=True)
        raise SystemExit(error.exit_code) from None


def say(line: str) -> None:
    """Print a line of progress."""
    typer.echo(line, err=True)
