"""The zoo builder's command line.

    python -m model_zoo build --arch cnn-tiny --data mnist --runs 32 --steps 500 --out runs/zoo --seed 0
    python -m model_zoo build --preset reference --arch cnn-tiny --in-channels 1 --out runs/references
    python -m model_zoo training-zoo --out runs/zoo/training --index model_zoo/zoo/training.jsonl

stdout is a JSON summary; stderr is progress. Exit codes are those of `weightgen.errors`.
"""

import json
import os
import signal
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from weightgen.errors import BadOption, UnknownName, WeightgenError

app = typer.Typer(
    help="Trains the networks whose weights generators learn from.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="Folder of the zoo; an unfinished one is continued.")],
    arch: Annotated[str | None, typer.Option(help="Architecture, for example cnn-tiny, cnn-w16, mlp.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Data set name or file; give it again for several.")] = None,
    runs: Annotated[int | None, typer.Option(help="Networks to train.")] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each.")] = None,
    ways: Annotated[int | None, typer.Option(help="Classes of each task, drawn at random; all if not given.")] = None,
    in_channels: Annotated[int | None, typer.Option(help="Bring images to 1 or 3 channels.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples in a step.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of every random draw.")] = None,
    preset: Annotated[str | None, typer.Option(help="Start from demo, published-tiny or reference.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda if there is one.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes on a CPU; one per core if not given.")] = None,
) -> None:
    """Train many networks and keep their weights, metrics and provenance; resumes after a kill."""
    from tqdm import tqdm

    from model_zoo.zoo.builder import GroupReport, build_zoo
    from model_zoo.zoo.config import PRESETS, ZooConfig

    if preset is not None and preset not in PRESETS:
        raise UnknownName("preset", preset, PRESETS)
    if preset is None and (arch is None or not data):
        missing = " and ".join(f for f, v in (("--arch", arch), ("--data", data)) if not v)
        raise BadOption(f"{missing} missing: give both, or a --preset")
    given = {
        "arch": arch,
        "data": tuple(data) if data else None,
        "num_runs": runs,
        "steps": steps,
        "ways": ways,
        "in_channels": in_channels,
        "batch_size": batch_size,
        "seed": seed,
    }
    chosen = {name: value for name, value in given.items() if value is not None}
    assert chosen.keys() <= {f.name for f in fields(ZooConfig)}
    config = replace(PRESETS[preset](), **chosen) if preset else ZooConfig(**chosen)
    device = _choose(device)
    with tqdm(unit="run", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:

        def report(done: int, total: int, group: GroupReport | None) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if not sys.stderr.isatty():
                scores = group.test_accuracy if group else ()
                mean = f", test accuracy {sum(scores) / len(scores):.3f}" if scores else ""
                print(f"{done}/{total} runs{mean}", file=sys.stderr, flush=True)

        num_workers = workers if workers is not None else os.cpu_count() or 1
        try:
            summary = build_zoo(config, out, device=device, num_workers=num_workers, report=report)
        except KeyboardInterrupt:  # here, because typer would exit without a message
            _fail("interrupted; run the same command to go on", 130)
    print(json.dumps(summary, indent=2))


@app.command("training-zoo")
def training_zoo(
    out: Annotated[Path, typer.Option(help="Folder of the zoo; an unfinished one is continued.")],
    index: Annotated[Path | None, typer.Option(help="File of its index, JSON lines, to write at the end.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: cuda if there is one.")] = "auto",
    workers: Annotated[int | None, typer.Option(help="Processes on a CPU; one per core if not given.")] = None,
) -> None:
    """Train the networks that generators of weight distributions learn from; resumes after a kill."""
    from model_zoo.zoo.training_zoo import build_training_zoo, write_index

    def report(part: str, done: int, total: int) -> None:
        print(f"{part}: {done}/{total} runs", file=sys.stderr, flush=True)

    try:
        num_workers = workers if workers is not None else os.cpu_count() or 1
        parts = build_training_zoo(out, device=_choose(device), num_workers=num_workers, report=report)
    except KeyboardInterrupt:
        _fail("interrupted; run the same command to go on", 130)
    summary: dict[str, object] = {"parts": parts}
    if index is not None:
        summary["index"] = write_index(out, index)
    print(json.dumps(summary, indent=2))


def _choose(device: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def main() -> NoReturn:
    """Run the command line on sys.argv and leave with its exit code."""
    signal.signal(signal.SIGTERM, _terminate)  # as an exception, so that workers are stopped on the way out
    try:
        app(prog_name="python -m model_zoo")
    except WeightgenError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"{error.strerror or error}" + (f": {error.filename}" if error.filename else ""), 1)
    sys.exit(0)


def _fail(sentence: str, exit_code: int) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(exit_code)


def _terminate(signal_number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + signal_number)


if __name__ == "__main__":
    main()
