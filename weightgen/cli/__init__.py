"""The command line, an application on top of weightgen and model_zoo (docs/decisions/0001-cli-on-top.md).

    weightgen generate | init | compare | tokenize | inspect | score | doctor
    weightgen remote generate | estimate | upload | list | status | cancel

stdout is data: a short table, or JSON with --json. stderr is progress and errors, one sentence each. Exit codes: 0 ok,
1 failed, 2 usage, 3 verification failed, 4 unsupported, 5 not found, 130 interrupted. Commands import torch only when
they run, so that --help and --version answer at once.
"""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from weightgen.cli.doctor import doctor
from weightgen.cli.files import inspect, score, tokenize
from weightgen.cli.init import init
from weightgen.cli.remote import app as remote
from weightgen.cli.weights import compare, generate
from weightgen.errors import WeightgenError
from weightgen.runtime.freed_memory import keep_freed_memory
from weightgen.version import __version__

app = typer.Typer(
    name="weightgen",
    help="Weights for small networks, generated from labelled examples and verified before they are handed over.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
for command in (generate, init, compare, tokenize, inspect, score, doctor):
    app.command()(command)
app.add_typer(remote)


def main() -> NoReturn:
    """Run the command line on sys.argv and leave with its exit code."""
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _terminate)  # as an exception, so that temporary files are removed on the way out
    try:
        typer.main.get_command(app)(prog_name="weightgen")
    except WeightgenError as error:
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        # The reader of stdout has gone; a flush at interpreter exit would raise the same error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1)
    sys.exit(0)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
) -> None:
    if version:
        typer.echo(f"weightgen {__version__}")
        raise typer.Exit


def _fail(sentence: str, exit_code: int) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(exit_code)


def _terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal_number)
