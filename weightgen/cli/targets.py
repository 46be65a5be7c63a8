"""The network that a user names: an architecture, something to import, a library's model, or a Hugging Face folder.

A target is built on the meta device, where it takes no memory. Only what needs numbers is built on the CPU.
"""

import contextlib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightgen.canonical_json import parse_json
from weightgen.errors import BadData, BadOption, CorruptFile, NotFound, UnknownName, UnsupportedTask, WeightgenError
from weightgen.files.storage import read_json

if TYPE_CHECKING:
    from torch import nn

    from weightgen.generators.logah.generator import Logah
    from weightgen.init.fill import InitPlan
    from weightgen.spec import StateSpec
    from weightgen.weightspace.axes import AxesReport

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build the target network that a user means."""

    name: str
    """The name as the user typed it."""
    make: Callable[[], Any]
    dtype: str | None = None
    """Dtype of the floats in the files; None keeps the constructor's."""
    config: Mapping[str, Any] | None = None
    """Content of config.json of a Hugging Face model."""

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
        except (Exception, SystemExit):  # from the target's own code; plan_on_cpu reports what fails there too
            return self.plan_on_cpu(generator, seed)
        return self._plan(module, generator)

    def plan_on_cpu(self, generator: "Logah", seed: int) -> "InitPlan":
        """The plan for the target with its own initialisation, drawn with `seed`; the global RNG is left as it was."""
        return self._plan(self.build(seed), generator)

    def build(self, seed: int) -> "nn.Module":
        """The target on the CPU with its own initialisation, drawn with `seed`; the global RNG is left as it was."""
        import torch

        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = self.make()
        except WeightgenError:
            raise
        except (Exception, SystemExit) as error:
            raise BadData(f"{self.name!r} cannot be built: {_first_line(error)}") from error
        return self._check(module)

    def _check(self, module: Any) -> "nn.Module":
        import torch

        if not isinstance(module, torch.nn.Module):
            raise BadOption(f"{self.name!r} makes a {type(module).__name__}, expected a torch.nn.Module")
        return module

    def _plan(self, module: Any, generator: "Logah") -> "InitPlan":
        import torch

        from weightgen.init.fill import plan_init

        self._check(module)
        return plan_init(module, generator, dtype=None if self.dtype is None else getattr(torch, self.dtype))


def find_recipe(name: str, *, config: Mapping[str, Any] | None, classes: int | None, channels: int | None) -> Recipe:
    """Recipe for a name that a user typed: an architecture, something to import, or a file.

    Raises UnknownName or NotFound if it does not exist, BadOption for options that this kind of network does not take.
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
        raise BadOption(f"--classes and --channels are for architectures, and {name!r} is not one")
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
            raise NotFound(f"{name!r}: no module is called {error.name!r}, here or among installed ones") from error
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
            raise BadOption(f"{name!r} is a module already; --config is for a class or function that makes one")
        return Recipe(name, lambda: found)
    if not callable(found):
        raise BadOption(
            f"{name!r} is a {type(found).__name__}, expected a torch.nn.Module or a class or function that makes one"
        )
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
    """Recipe for the model of a Hugging Face config. Its class is one of transformers: code beside it is not run."""
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
    dtype = asked if asked in DTYPES else None  # the dtype that from_pretrained loads
    return Recipe(name, lambda: model_class(config_class.from_dict(dict(content))), dtype, content)


def _unknown(kind: str, name: str, known: Iterable[str]) -> NotFound:
    """UnknownName if a known name is similar, else NotFound: a list of hundreds of names would not help."""
    error = UnknownName(kind, name, known)
    return error if error.nearest else NotFound(f"no {kind} is called {name!r}")


def read_config(text_or_file: str | None) -> dict[str, Any] | None:
    """The keyword arguments in a JSON file or text; None if nothing is given."""
    if text_or_file is None:
        return None
    is_text = text_or_file.lstrip().startswith(("{", "["))
    value = parse_json(text_or_file.encode(), name="--config") if is_text else read_json(text_or_file)
    if not isinstance(value, dict):
        raise BadOption(f"--config is a {type(value).__name__}, expected a JSON object of keyword arguments")
    return value


@contextlib.contextmanager
def foreign_code() -> Iterator[None]:
    """Run the user's code in this context: it can import from the current folder, and its prints go to stderr."""
    path = list(sys.path)
    sys.path.insert(0, "")
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path[:] = path


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:300]}"


def trace_target(name: str, *, config: Mapping[str, Any] | None, inputs: str) -> "tuple[StateSpec, AxesReport]":
    """Spec of a module that declares no AXES, which tracing finds, and the report of the tracing.

    `inputs` is the shape of one example, such as 3x32x32; a batch of two random examples is traced.
    """
    import torch

    from weightgen.spec import StateSpec
    from weightgen.weightspace.axes import trace_axes

    if not re.fullmatch(r"[1-9]\d{0,6}(x[1-9]\d{0,6})*", inputs):
        raise BadOption(f"the shape of an example is {inputs!r}, expected one like 3x32x32")
    shape = [int(n) for n in inputs.split("x")]
    with foreign_code():
        module = find_recipe(name, config=config, classes=None, channels=None).build(seed=0)
        report = trace_axes(module, torch.rand(2, *shape, generator=torch.Generator().manual_seed(0)))
    return StateSpec.from_module(module, report.axes, arch=name, config=config), report
