"""weightgen init: weights for a target of any kind (`weightgen.cli.targets`), from its graph."""

import re
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightgen.cli.output import JsonOption, print_json, print_table, say
from weightgen.cli.targets import DTYPES, Recipe, find_recipe, foreign_code, read_config
from weightgen.errors import BadOption
from weightgen.files.storage import new_folder, write_json

if TYPE_CHECKING:
    from weightgen.init.fill import InitPlan
    from weightgen.init.report import InitReport, TensorReport

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
LINE_WIDTH = 100
SOURCES = ("predicted", "own", "tied")


def init(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE_OR_NAME",
            help="An architecture, package.module:class_or_function, a Hugging Face model's folder or config.json, "
            "torchvision:NAME or timm:NAME.",
        ),
    ],
    generator: Annotated[
        str, typer.Option(help="A released generator or a generator file.", metavar="NAME_OR_FILE")
    ] = "logah",
    out: Annotated[Path | None, typer.Option(help="The folder to write.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise and of the tensors that are not predicted.")] = 0,
    noise: Annotated[float, typer.Option(help="Share of a weight's variance that is drawn at random, 0 to 1.")] = 0.0,
    config: Annotated[
        str | None, typer.Option(help="Keyword arguments for what makes the target.", metavar="JSON_FILE_OR_TEXT")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes of an architecture; 10 if not given.")] = None,
    channels: Annotated[int | None, typer.Option(help="Channels of an architecture's images; 1 if not given.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Larger files are split: 300MB, 5GB, 2GiB.")] = "5GB",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the target's own if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report only; make and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make weights for any network from its graph, report where each tensor came from, and write safetensors."""
    from model_zoo.released import generator_file
    from weightgen.init.fill import check_draw, fill_folder, load_source

    if out is None and not dry_run:
        raise BadOption("nowhere to write: give --out FOLDER, or --dry-run for the report alone")
    if dtype is not None and dtype not in DTYPES:
        raise BadOption(f"dtype is {dtype!r}, expected {', '.join(DTYPES[:-1])} or {DTYPES[-1]}")
    check_draw(seed, noise)
    max_shard_bytes = parse_size(max_shard_size)
    source = load_source(generator_file(generator))
    began = time.perf_counter()
    with foreign_code():
        recipe = find_recipe(target, config=read_config(config), classes=classes, channels=channels)
        recipe = recipe.with_dtype(dtype)
        say(f"building {target}")
        planned = recipe.plan(source, seed)
        written: dict[str, Any] = {"folder": None, "files": [], "bytes": planned.num_bytes}
        if out is not None and not dry_run:
            with new_folder(out) as partial:
                planned = _with_numbers(recipe, planned, seed)
                say(f"writing {out}")
                fill_folder(partial, planned, seed=seed, noise=noise, max_shard_bytes=max_shard_bytes)
                if recipe.config is not None:
                    write_json(partial / "config.json", dict(recipe.config))
                sizes = {path.name: path.stat().st_size for path in sorted(partial.iterdir())}
            written = {"folder": str(out), "files": list(sizes), "bytes": sum(sizes.values())}
    report = planned.report
    seconds = time.perf_counter() - began
    counts = {name: _count(report, name) for name in SOURCES}
    summary = {"target": target, "generator": generator, **written, "seconds": seconds, **counts}
    if as_json:
        print_json(summary | report.to_json())
    else:
        print_table(_summarise(summary, report))


def parse_size(text: str) -> int:
    """Bytes of a size such as 300MB, 5GB or 2GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise BadOption(f"max shard size is {text!r}, expected a size such as 300MB, 5GB or 2GiB")
    return size


def _with_numbers(recipe: Recipe, planned: "InitPlan", seed: int) -> "InitPlan":
    """The plan; a new one for the target on the CPU if some tensors are neither predicted nor drawn by their layer."""
    from weightgen.init.fill import find_undrawn, name_some

    undrawn = find_undrawn(planned)
    if not undrawn:
        return planned
    say(f"building {recipe.name} on the CPU, because its constructor fills {name_some(undrawn)}")
    return recipe.plan_on_cpu(planned.generator, seed)


def _count(report: "InitReport", source: str) -> dict[str, int]:
    rows = [row for row in report.rows if row.source == source]
    return {"tensors": len(rows), "numbers": sum(row.numel for row in rows)}


def _summarise(summary: Mapping[str, Any], report: "InitReport") -> list[tuple[str, Any]]:
    size = f"{summary['bytes'] / 1e6:,.1f} MB"
    rows: list[tuple[str, Any]] = [
        ("target", summary["target"]),
        ("written", f"{summary['folder']}, {size}: {', '.join(summary['files'])}")
        if summary["folder"]
        else ("would be written", size),
        *((name, "{numbers:,} numbers in {tensors:,} tensor(s)".format(**summary[name])) for name in SOURCES),
        (
            "coverage",
            f"{report.tensor_coverage:.1%} of the parameter tensors, {report.number_coverage:.1%} of their numbers",
        ),
        ("seconds", f"{summary['seconds']:.2f}"),
        *(("note", note) for note in report.notes),
    ]
    groups: dict[tuple[str, str], list[TensorReport]] = {}
    for row in report.kept:
        groups.setdefault((row.why, row.how), []).append(row)
    for (why, how), kept in groups.items():
        rows.append(("own", f"{why} ({how}):"))
        rows += [("", line) for line in textwrap.wrap(", ".join(row.name for row in kept), LINE_WIDTH)]
    return rows
