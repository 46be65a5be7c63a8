"""weightgen init: weights for a target of any kind, from its graph.

The target is found by name (`find_recipe`) and built on the meta device, where it takes no memory. Only what needs
numbers that neither a generator nor a layer's `reset_parameters` gives is built on the CPU too.
"""

import contextlib
import importlib
import re
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from weightgen.canonical_json import parse_json
from weightgen.cli.output import JsonOption, print_json, print_table, say
from weightgen.errors import BadData, BadOption, CorruptFile, NotFound, UnknownName, UnsupportedTask, WeightgenError
from weightgen.files.storage import new_folder, read_json, write_json

if TYPE_CHECKING:
    from weightgen.generators.logah.generator import Logah
    from weightgen.init.fill import InitPlan
    from weightgen.init.report import InitReport, TensorReport

DTYPES = ("float32", "bfloat16", "float16")
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
    seed: Annotated[int, typer.Option(help="Decides noise and what is not predicted.")] = 0,
    noise: Annotated[float, typer.Option(help="Share of a weight's variance that is drawn at random, 0 to 1.")] = 0.0,
    config: Annotated[
        str | None, typer.Option(help="Keyword arguments of what makes the target.", metavar="JSON_FILE_OR_TEXT")
    ] = None,
    classes: Annotated[int | None, typer.Option(help="Of an architecture; 10 if not given.")] = None,
    channels: Annotated[int | None, typer.Option(help="Of an architecture's images; 1 if not given.")] = None,
    max_shard_size: Annotated[str, typer.Option(help="Larger files are split: 300MB, 5GB, 2GiB.")] = "5GB",
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; the target's own if not given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report only; make and write nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make weights for any target network from its graph, say where every tensor's came from, and write safetensors."""
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
    with _foreign_code():
        recipe = find_recipe(target, config=_read_config(config), classes=classes, channels=channels)
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


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build the target network that a user means."""

    name: str
    """As typed."""
    make: Callable[[], Any]
    dtype: str | None = None
    """Of floats in files; None: as the constructor makes them."""
    config: Mapping[str, Any] | None = None
    """What config.json of a Hugging Face model holds."""

    def with_dtype(self, dtype: str | None) -> "Recipe":
        """The same network in another dtype, if one is given; `from_pretrained` reads it in the config."""
        if dtype is None:
            return self
        key = "torch_dtype" if "torch_dtype" in (self.config or {}) else "dtype"
        return replace(self, dtype=dtype, config=None if self.config is None else {**self.config, key: dtype})

    def plan(self, generator: "Logah", seed: int) -> "InitPlan":
        """The plan for the target on the meta device; on the CPU where its constructor needs numbers."""
        import torch

        try:
            with torch.device("meta"):
                module = self.make()
        except (Exception, SystemExit):  # of the target's author; what is wrong on the CPU too is told there
            return self.plan_on_cpu(generator, seed)
        return self._plan(module, generator)

    def plan_on_cpu(self, generator: "Logah", seed: int) -> "InitPlan":
        """The plan for the target with its own initialisation, drawn with `seed`; the global RNG is left as it was."""
        import torch

        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = self.make()
        except WeightgenError:
            raise
        except (Exception, SystemExit) as error:
            raise BadData(f"{self.name!r} cannot be built: {_first_line(error)}") from error
        return self._plan(module, generator)

    def _plan(self, module: Any, generator: "Logah") -> "InitPlan":
        import torch

        from weightgen.init.fill import plan_init

        if not isinstance(module, torch.nn.Module):
            raise BadOption(f"{self.name!r} makes a {type(module).__name__}, expected a torch.nn.Module")
        return plan_init(module, generator, dtype=None if self.dtype is None else getattr(torch, self.dtype))


def find_recipe(name: str, *, config: Mapping[str, Any] | None, classes: int | None, channels: int | None) -> Recipe:
    """What a user means by the name of an architecture, of something to import, or of a file.

    Raises UnknownName or NotFound for what does not exist, BadOption for options that this kind of network has not.
    """
    library, separator, thing = name.partition(":")
    is_file = name.endswith(".json") or "/" in name
    is_arch = not separator and not is_file
    if is_arch:
        try:
            return _find_architecture(name, config=config, classes=classes, channels=channels)
        except UnknownName:
            if not Path(name).exists():
                raise
    if classes is not None or channels is not None:
        raise BadOption(f"--classes and --channels are for architectures, {name!r} is none")
    if is_file or Path(name).exists():
        if config is not None:
            raise BadOption(f"{name!r} is built from its own config.json; change that instead of giving --config")
        return _find_hugging_face(name)
    if library in ("torchvision", "timm"):
        return _find_in_library(library, thing, config or {})
    return _find_callable(name, library, thing, config)


def _find_architecture(
    name: str, *, config: Mapping[str, Any] | None, classes: int | None, channels: int | None
) -> Recipe:
    from model_zoo.architectures import build_target

    target = build_target(
        name, num_classes=10 if classes is None else classes, in_channels=1 if channels is None else channels
    )
    if config is not None:
        raise BadOption(f"architecture {name!r} takes --classes and --channels, not --config")
    return Recipe(name, target.make)


def _find_callable(name: str, module_name: str, attribute: str, config: Mapping[str, Any] | None) -> Recipe:
    if not re.fullmatch(r"\w+(\.\w+)*:\w+(\.\w+)*", name):
        raise NotFound(f"{name!r}: expected package.module:class_or_function")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise NotFound(f"{name!r}: no module is called {error.name!r}, here or among the installed") from error
        raise BadData(f"{name!r} cannot be imported: {_first_line(error)}") from error
    except (Exception, SystemExit) as error:
        raise BadData(f"{name!r} cannot be imported: {_first_line(error)}") from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = (each for each in dir(found) if not each.startswith("_"))
            raise _unknown(f"class or function of {module_name!r}", attribute, known)
        found = getattr(found, part)

    from torch import nn

    if isinstance(found, nn.Module):
        if config is not None:
            raise BadOption(f"{name!r} is a module already; --config is for what makes one")
        return Recipe(name, lambda: found)
    if not callable(found):
        raise BadOption(f"{name!r} is a {type(found).__name__}, expected a torch.nn.Module or what makes one")
    return Recipe(name, lambda: found(**(config or {})))


def _find_in_library(library: str, model: str, config: Mapping[str, Any]) -> Recipe:
    """A model of torchvision or timm, without its published weights."""
    try:
        models: Any = importlib.import_module("torchvision.models" if library == "torchvision" else "timm")
    except ImportError as error:
        raise WeightgenError(
            f"'{library}:{model}' needs {library}; install it with: pip install 'weightgen[vision]'"
        ) from error
    known = models.list_models()
    if model.partition(".")[0] not in known:
        raise _unknown(f"model of {library}", model, known)
    if library == "torchvision":
        return Recipe(f"{library}:{model}", lambda: models.get_model(model, weights=None, **config))
    return Recipe(f"{library}:{model}", lambda: models.create_model(model, pretrained=False, **config))


def _find_hugging_face(name: str) -> Recipe:
    """The model of a Hugging Face config, of a class that transformers has: code that comes with it is not run."""
    path = Path(name)
    path = path / "config.json" if path.is_dir() else path
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("model_type"), str):
        raise CorruptFile(f"{path}: no 'model_type', expected the config.json of a Hugging Face model")
    if content.get("quantization_config"):
        raise UnsupportedTask(f"{path}: asks for quantised weights; take 'quantization_config' out of it")
    try:
        import transformers
    except ImportError as error:
        raise WeightgenError(
            f"{path}: a Hugging Face model needs transformers; install it with: pip install 'weightgen[transformers]'"
        ) from error
    kinds = transformers.CONFIG_MAPPING
    if content["model_type"] not in kinds:
        raise _unknown("model type of transformers", content["model_type"], kinds.keys())
    named = content.get("architectures") or []
    model_class: Any = transformers.AutoModel.from_config
    if named:
        model_class = getattr(transformers, str(named[0]), None)
        if not (isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)):
            raise NotFound(f"{path}: transformers has no model {named[0]!r}; code that comes with a model is not run")
    config_class = kinds[content["model_type"]]
    asked = content.get("dtype") or content.get("torch_dtype")
    dtype = asked if asked in DTYPES else None  # in which from_pretrained will load
    return Recipe(name, lambda: model_class(config_class.from_dict(dict(content))), dtype, content)


def _unknown(kind: str, name: str, known: Iterable[str]) -> NotFound:
    """UnknownName where something has a similar name; hundreds of others would be no help."""
    error = UnknownName(kind, name, known)
    return error if error.nearest else NotFound(f"no {kind} is called {name!r}")


def parse_size(text: str) -> int:
    """Bytes of a size such as 300MB, 5GB or 2GiB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?", text.strip().upper())
    size = int(float(match[1]) * UNITS[match[2] or ""]) if match else 0
    if size < 1:
        raise BadOption(f"max shard size is {text!r}, expected a size such as 300MB, 5GB or 2GiB")
    return size


def _read_config(text_or_file: str | None) -> dict[str, Any] | None:
    if text_or_file is None:
        return None
    is_text = text_or_file.lstrip().startswith(("{", "["))
    value = parse_json(text_or_file.encode(), name="--config") if is_text else read_json(text_or_file)
    if not isinstance(value, dict):
        raise BadOption(f"--config is a {type(value).__name__}, expected a JSON object of keyword arguments")
    return value


@contextlib.contextmanager
def _foreign_code() -> Iterator[None]:
    """For code of the user's, which finds modules in the current folder and whose prints are no data of ours."""
    path = list(sys.path)
    sys.path.insert(0, "")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:] = path


def _with_numbers(recipe: Recipe, planned: "InitPlan", seed: int) -> "InitPlan":
    """The plan, or if some tensors are neither predicted nor drawn by their layer, one of the target on the CPU."""
    from weightgen.init.fill import find_undrawn, name_some

    undrawn = find_undrawn(planned)
    if not undrawn:
        return planned
    say(f"building {recipe.name} on the CPU, where its constructor gives numbers to {name_some(undrawn)}")
    return recipe.plan_on_cpu(planned.generator, seed)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


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
