"""Train the generator `logah`, a graph hypernetwork, on spaces of architectures and release it.

    python -m training.logah graphs --preset release --out runs/logah/release   # draw architectures, store their graphs
    python -m training.logah train --out runs/logah/release                     # goes on where it was interrupted
    python -m training.logah release runs/logah/release --out model_zoo/released/logah.safetensors
    torchrun --nproc-per-node 2 -m training.logah train --out runs/logah/release    # two processes

An interrupted run ends in the same bits as one that was not interrupted. `training.logah.recipe` says how the generator
is trained, and what the presets are.
"""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from model_zoo.data import load_data
from training.command import RunFolder, run_command
from training.episodes import ClassPool, Episode, draw_tasks, load_pool
from training.logah.members import draw_members, save_members
from training.logah.recipe import PRESETS, generator_file, train_run
from training.logah.scores import SCHEDULES, choose_schedule, held_out_scores, with_refinement
from training.loop import join_processes
from weightgen.errors import BadOption, UnknownName
from weightgen.generators.logah.generator import Logah

CHOICE_NETWORKS = ("cnn-tiny", "cnn", "vit-tiny", "cnn 26-34-42")
"""Networks on which the refinements of a release are chosen."""
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command()
def graphs(
    out: RunFolder,
    preset: Annotated[str, typer.Option(help=f"One of {', '.join(PRESETS)}.")] = "spaces",
    steps: Annotated[int | None, typer.Option(help="Training steps; the preset's if not given.")] = None,
) -> None:
    """Draw the architectures to learn from and store their graphs, in OUT/members.json."""
    if preset not in PRESETS:
        raise UnknownName("preset", preset, PRESETS)
    config = PRESETS[preset]() if steps is None else replace(PRESETS[preset](), steps=steps)
    began = time.process_time()
    classes = config.classes
    if not config.is_head_solved:
        known = load_data(config.data[0]).num_classes
        classes = known, known
    members = draw_members(
        config.spaces,
        classes=classes,
        channels=config.channels,
        max_parameters=config.max_parameters,
        seed=config.seed,
    )
    save_members(out / "members.json", members, config.to_json())
    typer.echo(json.dumps({"members": len(members), "seconds": round(time.process_time() - began, 1)}))


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of this run, with the architectures that `graphs` stored.")],
    until: Annotated[int | None, typer.Option(help="Stop after this step; a later call goes on.")] = None,
    save_every: Annotated[int, typer.Option(help="Steps between two saves of the run.")] = 1000,
) -> None:
    """Train the hypernetwork, from where an earlier call stopped; OUT/generator.safetensors is the result."""
    torch.set_num_threads(1)
    with join_processes() as (rank, world_size):
        run = train_run(out, until=until, save_every=save_every, rank=rank, world_size=world_size)
    if not rank:
        found = {"step": run.steps, "seconds": round(run.cpu_seconds, 1), "file": str(generator_file(out))}
        typer.echo(json.dumps(found))


@app.command()
def release(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option(help="The generator file to write.")],
    tasks_each: Annotated[int, typer.Option(help="Held-out tasks on each training set to choose and to score by.")] = 1,
) -> None:
    """Choose the refinements of a trained hypernetwork on held-out tasks, score it on others and write its file."""
    hypernet = Logah.load(generator_file(run))
    if hypernet.training_record["for_evaluation_only"]:
        raise BadOption(f"{run} has learnt from an evaluation set: not for release")
    pool = load_pool(sorted(hypernet.training_record["data"]), "test")
    chosen, found = choose_schedule(hypernet, _tasks(pool, tasks_each, seed=20_000), CHOICE_NETWORKS)
    generator = with_refinement(hypernet, SCHEDULES[chosen])
    generator.training_record |= {
        "refinements": {"chosen": chosen, "accuracy": found, "networks": list(CHOICE_NETWORKS)},
        "held_out": held_out_scores(generator, _tasks(pool, tasks_each, seed=30_000)),
    }
    generator.save(out)
    typer.echo(json.dumps({"file": str(out), "bytes": out.stat().st_size, **generator.training_record["refinements"]}))


def _tasks(pool: ClassPool, each: int, *, seed: int) -> list[Episode]:
    return [task for tasks in draw_tasks(pool, each=each, seed=seed).values() for task in tasks]


if __name__ == "__main__":
    run_command(app)
