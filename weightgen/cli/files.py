"""weightgen tokenize, inspect, score: commands about files that exist."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightgen.cli.output import JsonOption, print_json, print_table, say
from weightgen.cli.targets import read_config, trace_target

if TYPE_CHECKING:
    from weightgen.spec import State, StateSpec
    from weightgen.target.network import Target

ConfigOption = Annotated[
    str | None, typer.Option(help="Keyword arguments for what makes the module.", metavar="JSON_FILE_OR_TEXT")
]
InputOption = Annotated[
    str | None, typer.Option("--input", help="The shape of one example, such as 3x32x32.", metavar="SHAPE")
]
SHOWN_TENSORS = 40
"""Rows of a table; the JSON has all of them."""


def tokenize(
    zoo: Annotated[Path, typer.Argument(help="A zoo folder as `python -m model_zoo build` writes it, or checkpoints.")],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    canonical: Annotated[bool, typer.Option("--canonical", help="Put hidden units into one common order.")] = False,
    module: Annotated[
        str | None,
        typer.Option(
            help="The network of checkpoint files, as `weightgen init` takes it; tracing finds its AXES, so that "
            "--canonical knows which units may move. Needs --input.",
            metavar="MODULE_OR_NAME",
        ),
    ] = None,
    config: ConfigOption = None,
    example: InputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Turn a zoo into a weight dataset: stacked shards, an index, hashes and statistics."""
    from tqdm import tqdm

    from weightgen.errors import BadOption
    from weightgen.weight_dataset.dataset import build_weight_dataset, verify_weight_dataset

    spec = None
    if module is not None:
        if example is None:
            raise BadOption(f"--module {module} needs --input, the shape of one example, such as 3x32x32")
        say(f"tracing {module}")
        spec, _ = trace_target(module, config=read_config(config), inputs=example)
    elif example is not None or config is not None:
        raise BadOption("--input and --config are for --module, which is not given")
    say(f"reading {zoo}")
    with tqdm(unit="state", file=sys.stderr, disable=not sys.stderr.isatty(), leave=False) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        build_weight_dataset(zoo, out, canonical=canonical, spec=spec, progress=show)
    report = {"kind": "weight dataset", "path": str(out), **verify_weight_dataset(out)}
    if as_json:
        print_json(report)
    else:
        print_table([(key, _flatten(value)) for key, value in report.items()])


def inspect(
    what: Annotated[
        str,
        typer.Argument(
            help="A checkpoint, artifact, zoo, weight dataset, generator or architecture; with --input, any module "
            "that `weightgen init` takes."
        ),
    ],
    config: ConfigOption = None,
    example: InputOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a file, folder, registered architecture or released generator is, and what it holds.

    With --input, find the axes of a module's tensors by tracing, and list the axes that could not be proved.
    """
    report = examine(what) if example is None else examine_module(what, read_config(config), example)
    if as_json:
        print_json(report)
        return
    tensors = report.pop("tensors", [])
    rows = [(key, value if isinstance(value, str | int | float) else _flatten(value)) for key, value in report.items()]
    rows += [(t["name"], f"{t['dtype']} {t['shape']}  {t.get('axes', '')}".rstrip()) for t in tensors[:SHOWN_TENSORS]]
    if len(tensors) > SHOWN_TENSORS:
        rows.append(("...", f"{len(tensors) - SHOWN_TENSORS} more tensors; --json lists all"))
    print_table(rows)


def score(
    weights: Annotated[Path, typer.Argument(help="An artifact folder, or a checkpoint together with --arch.")],
    data: Annotated[str, typer.Option(help="A registered data set, a file or a folder of images.")],
    arch: Annotated[
        str | None, typer.Option(help="The architecture of a checkpoint; an artifact knows its own.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Accuracy of weights on the test split of labelled data."""
    import torch
    import torch.nn.functional as F

    from model_zoo.data import load_data
    from weightgen.target.predict import predict

    say(f"loading {data}")
    loaded = load_data(data)
    target, state = _open_weights(weights, arch, loaded)
    logits = predict(target, state, loaded.x_test)
    right = (logits.argmax(1) == loaded.y_test).double()
    counts = torch.bincount(loaded.y_test, minlength=loaded.num_classes)
    hits = torch.bincount(loaded.y_test, weights=right, minlength=loaded.num_classes)
    report = {
        "weights": str(weights),
        "arch": target.spec.arch,
        "data": loaded.name,
        "examples": len(right),
        "accuracy": float(right.mean()),
        "loss": float(F.cross_entropy(logits, loaded.y_test)),
        "class_accuracy": {
            name: hit / count if count else None
            for name, hit, count in zip(loaded.class_names, hits.tolist(), counts.tolist(), strict=True)
        },
        "notes": list(loaded.notes),
    }
    if as_json:
        print_json(report)
        return
    rows = [("accuracy", f"{report['accuracy']:.1%} of {len(right)} test examples"), ("loss", f"{report['loss']:.3f}")]
    worst = sorted((a, n) for n, a in report["class_accuracy"].items() if a is not None)[:3]
    rows += [("worst classes", ", ".join(f"{n} {a:.0%}" for a, n in worst))]
    print_table(rows + [("note", n) for n in loaded.notes], title=f"{weights} on {loaded.name}")


def examine(what: str) -> dict[str, Any]:
    """Report of `weightgen inspect` on a path or name, JSON values."""
    from model_zoo.released import RELEASED, released_generator

    path = Path(what)
    if path.is_dir():
        return _examine_folder(path)
    if path.exists():
        return _examine_file(path)
    if what in RELEASED:
        return _examine_file(released_generator(what))
    return _examine_architecture(what)


def examine_module(name: str, config: dict[str, Any] | None, inputs: str) -> dict[str, Any]:
    """Axes of a module that declares none, found by tracing it on examples of shape `inputs`, JSON values."""
    spec, traced = trace_target(name, config=config, inputs=inputs)
    described = spec.to_json()
    return {
        "kind": "module",
        "module": name,
        "config": described["config"],
        "parameters": spec.num_parameters,
        "hidden": spec.hidden,
        "held_fixed": traced.held_fixed,
        "tensors": described["tensors"],
    }


def _examine_folder(path: Path) -> dict[str, Any]:
    from weightgen.errors import CorruptFile
    from weightgen.files.storage import read_json

    if (path / "model.safetensors").is_file():
        manifest = read_json(path / "manifest.json") if (path / "manifest.json").is_file() else None
        return _examine_file(path / "model.safetensors") | {
            "kind": "artifact" if manifest else "Hub folder without a weightgen manifest",
            "path": str(path),
            "config": read_json(path / "config.json"),
            **({"manifest": manifest} if manifest else {}),
        }
    if (path / "zoo.json").is_file():
        runs = [read_json(run) for run in sorted(path.glob("runs/*/run.json"))]
        return {
            "kind": "zoo",
            "path": str(path),
            "architectures": sorted({run["arch"] for run in runs}),
            "runs": len(runs),
            "checkpoints": sum(len(run["checkpoints"]) for run in runs),
            "splits": {s: sum(run["split"] == s for run in runs) for s in ("train", "val", "test")},
        }
    if (path / "index.json").is_file():
        from weightgen.weight_dataset.dataset import verify_weight_dataset

        return {"kind": "weight dataset", "path": str(path), **verify_weight_dataset(path)}
    raise CorruptFile(f"{path}: the folder is not an artifact, zoo or weight dataset; a checkpoint is a file")


def _examine_file(path: Path) -> dict[str, Any]:
    from weightgen.files.checkpoint import StateReader, load_foreign

    manifest: dict[str, Any] | None = None
    if path.suffix == ".safetensors":
        with StateReader(path) as reader:
            manifest = reader.manifest
            tensors = [(name, entry.dtype, entry.shape) for name, entry in reader.entries.items()]
    else:
        tensors = [(name, t.dtype, tuple(t.shape)) for name, t in load_foreign(path).items()]
    is_generator = manifest is not None and manifest.get("format") == "weightgen.generator"
    parameters = sum(_numel(shape) for _, _, shape in tensors)
    report = {"kind": "generator" if is_generator else "checkpoint", "path": str(path), "parameters": parameters}
    if path.is_file():
        report["bytes"] = path.stat().st_size
    if is_generator and manifest is not None:
        report |= {"method": manifest.get("method"), "architectures": list(manifest.get("archs", ()))}
    if manifest is not None:
        report["manifest"] = manifest
    return report | {
        "tensors": [{"name": n, "dtype": str(d).removeprefix("torch."), "shape": list(s)} for n, d, s in tensors]
    }


def _examine_architecture(name: str) -> dict[str, Any]:
    from model_zoo.architectures import ARCHITECTURES, build_target
    from model_zoo.released import RELEASED
    from weightgen.errors import NotFound, UnknownName

    if Path(name).suffix or len(Path(name).parts) > 1:
        raise NotFound(f"{name}: no such file or folder")
    try:
        spec: StateSpec = build_target(name).spec
    except UnknownName:
        raise UnknownName("file, architecture or released generator", name, {**ARCHITECTURES, **RELEASED}) from None
    described = spec.to_json()
    return {
        "kind": "architecture",
        "arch": name,
        "config": described["config"],
        "parameters": spec.num_parameters,
        "hidden": spec.hidden,
        "tensors": described["tensors"],
    }


def _open_weights(weights: Path, arch: str | None, data: Any) -> "tuple[Target, State]":
    from model_zoo.lookup import target_for
    from weightgen.delivery.artifact import read_artifact
    from weightgen.errors import BadOption, NotFound, SpecMismatch
    from weightgen.files.checkpoint import load_foreign

    if not weights.exists():
        raise NotFound(f"{weights}: no such file or folder")
    if weights.is_dir():
        artifact = read_artifact(weights)
        target = target_for(artifact.spec.arch, data)
        if target.spec.digest() != artifact.spec.digest():
            raise SpecMismatch(
                f"{weights} holds a {artifact.spec.arch!r} with {_flatten(dict(artifact.spec.config))}; "
                f"{data.name!r} needs one with {_flatten(dict(target.spec.config))}"
            )
        return target, artifact.state
    if arch is None:
        raise BadOption(f"{weights} is a checkpoint: say with --arch which architecture it is for")
    target = target_for(arch, data)
    state = load_foreign(weights)
    target.spec.check(state)
    return target, state


def _numel(shape: tuple[int, ...]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count


def _flatten(value: Any) -> str:
    """A nested value on one line of at most 200 characters."""
    if isinstance(value, list):
        text = ", ".join(str(v) for v in value)
    elif isinstance(value, dict):
        text = ", ".join(f"{k}={v}" for k, v in value.items() if not isinstance(v, dict | list))
    else:
        text = str(value)
    return text if len(text) <= 200 else text[:197] + "..."
