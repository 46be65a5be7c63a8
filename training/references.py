"""Make the reference zoos that a released generator is compared with.

    python -m training.references --generator mip --arch cnn-tiny        # then SHA256SUMS
    python -m training.references --generator d2nwg --arch cnn-tiny --channels 1 --zoo runs/zoo/training/cnn-tiny

For one and for three channels, this trains networks on tasks of the training sets
(`model_zoo.zoo.config.reference_zoo`) and keeps the zoos in runs/zoo, so that a second call trains nothing again; --zoo
takes an existing zoo instead. It then writes one file of trunks, each with the generator's embedding of its task. Make
the files again when the generator has changed for that architecture: embeddings of another generator mean nothing.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from model_zoo.architectures import build_target
from model_zoo.released import FOLDER, generator_file
from model_zoo.zoo.builder import build_zoo
from model_zoo.zoo.config import reference_zoo
from model_zoo.zoo.networks import draw_task_support
from training.command import run_command
from weightgen.generators import load_generator
from weightgen.references.zoo import build_reference_zoo


def make_references(
    arch: str, in_channels: int, *, generator: Path, zoo: Path, out: Path, max_trunks: int
) -> dict[str, Any]:
    """Embed the tasks of a zoo and write the file; returns a summary as JSON."""
    embedder: Any = load_generator(generator)
    references = build_reference_zoo(
        zoo,
        build_target(arch, in_channels=in_channels),
        embed=embedder.embed,
        support_of=lambda task: draw_task_support(task, in_channels),
        embedder=embedder.digest_of(arch),
        max_trunks=max_trunks,
    )
    path = out / f"{arch}-c{in_channels}.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    references.save(path)
    return {"file": str(path), "bytes": path.stat().st_size, "networks": len(references)}


def main(
    arch: Annotated[str, typer.Option(help="The target architecture.")],
    generator: Annotated[str, typer.Option(help="Name of a released generator.")] = "mip",
    out: Annotated[Path | None, typer.Option(help="Folder of the files; else that of the released ones.")] = None,
    zoos: Annotated[Path, typer.Option(help="Folder of the zoos.")] = Path("runs/zoo"),
    channels: Annotated[list[int] | None, typer.Option(help="1, 3 or both; both if not given.")] = None,
    runs: Annotated[int, typer.Option(help="Networks to train for each.")] = 42,
    steps: Annotated[int, typer.Option(help="Training steps of each.")] = 1500,
    zoo: Annotated[Path | None, typer.Option(help="An existing zoo, in place of training one.")] = None,
    max_trunks: Annotated[int, typer.Option(help="Networks to keep.")] = 64,
) -> None:
    """Write ARCH-c1.safetensors and ARCH-c3.safetensors."""
    out = out or FOLDER / "references" / generator
    for in_channels in channels or (1, 3):
        taken = zoo or zoos / f"{arch}-c{in_channels}"
        if zoo is None:
            config = replace(reference_zoo(arch, in_channels), num_runs=runs, steps=steps, checkpoints=(1.0,))
            build_zoo(config, taken)
        file = generator_file(generator)
        made = make_references(arch, in_channels, generator=file, zoo=taken, out=out, max_trunks=max_trunks)
        typer.echo(json.dumps(made))


if __name__ == "__main__":
    run_command(main)
