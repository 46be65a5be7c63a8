"""Train the generator `d2nwg` on a zoo and release it.

    python -m model_zoo training-zoo --out runs/zoo/training                       # the networks to learn from
    python -m training.d2nwg codec --zoo runs/zoo/training --out runs/d2nwg        # first stage: tokens to latents
    python -m training.d2nwg denoiser --zoo runs/zoo/training --out runs/d2nwg     # second stage: latents from noise
    python -m training.d2nwg release --out runs/d2nwg --file model_zoo/released/d2nwg.safetensors
    python -m training.d2nwg layerwise --help                                      # networks larger than one context

If a stage is interrupted, give its command again: it goes on. `training.d2nwg.recipe` says how it is trained.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from model_zoo.data import TRAIN_SETS, data_licence
from model_zoo.zoo.networks import Networks, load_networks
from training.command import RunFolder, StepsOption, run_command, say
from training.d2nwg import layerwise
from training.d2nwg.codecs import train_codecs
from training.d2nwg.denoiser import train_denoiser
from training.d2nwg.recipe import D2nwgTraining
from training.d2nwg.scores import evaluate, reconstruction
from training.d2nwg.stages import join_stages, read_stage, write_stage
from training.loop import Span, budget_of
from weightgen.errors import BadOption
from weightgen.files.checkpoint import read_manifest
from weightgen.files.storage import sha256_file, write_json
from weightgen.generators.d2nwg.generator import D2nwg

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(layerwise.app, name="layerwise")


@app.command()
def codec(
    zoo: Annotated[Path, typer.Option(help="Folder of the zoo.")],
    out: RunFolder,
    minutes: Annotated[float | None, typer.Option(help="Training time, without evaluation; 20 if not given.")] = None,
    steps: StepsOption = None,
    members: Annotated[list[str] | None, typer.Option(help="Members to train; all if not given.")] = None,
    hold_out: Annotated[list[str] | None, typer.Option(help="A training set to leave out whole; repeatable.")] = None,
    report: Annotated[Path | None, typer.Option(help="JSON file for the scores on sets left out.")] = None,
) -> None:
    """First stage: train a codec for every architecture of the zoo."""
    if report is not None and not hold_out:
        raise BadOption("--report is about training sets that are left out, and none is; name one with --hold-out")
    torch.set_num_threads(1)
    budget = budget_of(minutes=minutes, steps=steps, default=Span(minutes=20))
    config = D2nwgTraining(held_out=tuple(hold_out or ()))
    networks = _load_networks(zoo, config, members)
    torch.manual_seed(config.seed)
    model = D2nwg({m: n.target.spec for m, n in networks.items()}, config.model)
    trained = train_codecs(model, networks, config=config, budget=budget, folder=out / "codec")
    spent = {f"codecs of {' and '.join(networks)}": trained}
    _finish(model, out / "codec.safetensors", config, networks, spent)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        kinds = {"held-out runs": "val", "held-out data sets": "left out"}
        found = {kind: evaluate(model, networks, tasks_each=24, seed=1, split=s) for kind, s in kinds.items()}
        shown = {kind: {m: reconstruction(s) for m, s in each.items()} for kind, each in found.items()}
        write_json(report, {"left_out": config.held_out, "spent": spent, "results": shown})


@app.command()
def denoiser(
    zoo: Annotated[Path, typer.Option(help="Folder of the zoo.")],
    out: RunFolder,
    minutes: Annotated[float | None, typer.Option(help="Training time, without evaluation; 30 if not given.")] = None,
    steps: StepsOption = None,
    codecs: Annotated[list[Path] | None, typer.Option("--codec", help="First stage; else --out's.")] = None,
    refinements: Annotated[int, typer.Option(help="Steps that refine a sample.")] = 3,
    clip: Annotated[str | None, typer.Option(help="A CLIP that encodes support sets: folder or hub name.")] = None,
) -> None:
    """Second stage: train the encoder of support sets and the denoiser on the latents of the first.

    Codecs may come from several runs that were trained side by side, each for its own architectures.
    """
    torch.set_num_threads(1)
    budget = budget_of(minutes=minutes, steps=steps, default=Span(minutes=30))
    files = [run / "codec.safetensors" for run in codecs or [out]]
    model, config, spent = join_stages([read_stage(file) for file in files], refinements=refinements, clip=clip)
    networks = _load_networks(zoo, config, list(model.members))
    spent["denoiser"] = train_denoiser(
        model,
        networks,
        config=config,
        first_stage=[sha256_file(file) for file in files],
        budget=budget,
        folder=out / "denoiser",
    )
    _finish(model, out / "denoiser.safetensors", config, networks, spent)


@app.command()
def release(
    out: Annotated[Path, typer.Option(help="Folder of a run, with both stages.")],
    file: Annotated[Path, typer.Option(help="The generator file to write.")],
) -> None:
    """Write the generator file of a finished run."""
    model, config, spent = read_stage(out / "denoiser.safetensors")
    if config.held_out:
        raise BadOption(f"{out} left out {', '.join(config.held_out)}: a run to choose a recipe by, not to release")
    held_out = read_manifest(out / "denoiser.safetensors")["held_out_tasks"]
    licences = {name: data_licence(name) for name in sorted(TRAIN_SETS)}
    model.training_record = {"config": asdict(config), "spent": spent, "held_out_tasks": held_out, "data": licences}
    model.config = replace(model.config, max_classes=config.episodes.max_ways)
    model.save(file)
    typer.echo(json.dumps({"file": str(file), "bytes": file.stat().st_size, "members": list(model.members)}))


def _load_networks(zoo: Path, config: D2nwgTraining, members: Sequence[str] | None) -> dict[str, Networks]:
    networks = load_networks(zoo, held_out=config.held_out, members=members)
    say(", ".join(f"{m}: {len(n.tokens)} checkpoints" for m, n in networks.items()))
    return networks


def _finish(
    model: D2nwg, path: Path, config: D2nwgTraining, networks: dict[str, Networks], spent: dict[str, Any]
) -> None:
    """Score a trained stage on held-out tasks and write its file."""
    held_out = evaluate(model, networks, tasks_each=12, seed=1)
    write_stage(model, path, config, spent=spent, held_out=held_out)
    typer.echo(json.dumps({"spent": spent, "held_out_tasks": held_out}, indent=1))


if __name__ == "__main__":
    run_command(app)
