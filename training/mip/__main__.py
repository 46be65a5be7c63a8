"""Train the generator `mip` and release it.

    python -m training.mip train --arch cnn-tiny --out runs/mip/cnn-tiny     # one architecture; goes on after a stop
    python -m training.mip release runs/mip/cnn-tiny runs/mip/cnn --out model_zoo/released/mip.safetensors

`training.mip.recipe` says how it is trained.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from training.command import StepsOption, run_command
from training.loop import budget_of
from training.mip.recipe import PRESETS, fit, gather_runs
from weightgen.errors import BadOption

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def train(
    arch: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")],
    out: Annotated[Path, typer.Option(help="Folder of this run; an unfinished run in it is resumed.")],
    minutes: Annotated[float | None, typer.Option(help="Training time; the preset's if not given.")] = None,
    steps: StepsOption = None,
    hold_out: Annotated[list[str] | None, typer.Option(help="A training set to leave out whole; repeatable.")] = None,
    start: Annotated[Path | None, typer.Option(help="File of another run whose weights a new run starts from.")] = None,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Train the part of the generator for one architecture, on a GPU if there is one."""
    torch.set_num_threads(threads)
    if arch not in PRESETS:
        raise BadOption(f"no recipe for {arch!r}; there are recipes for {', '.join(PRESETS)}")
    preset = PRESETS[arch]()
    budget = budget_of(minutes=minutes, steps=steps, default=preset.budget)
    config = replace(preset, budget=budget, held_out=tuple(hold_out or ()))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    typer.echo(json.dumps(fit(config, out, device=device, start=start)))


@app.command()
def release(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs, one for each architecture.")],
    out: Annotated[Path, typer.Option(help="The generator file to write.")],
    tasks_each: Annotated[int, typer.Option(help="Held-out tasks on each training set to choose a model by.")] = 6,
) -> None:
    """Put one model of every run into one generator file: its best or its last, whichever does better."""
    generator = gather_runs(runs, tasks_each=tasks_each)
    generator.save(out)
    typer.echo(json.dumps({"file": str(out), "bytes": out.stat().st_size, "archs": list(generator.archs)}))


if __name__ == "__main__":
    run_command(app)
