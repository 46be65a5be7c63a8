"""Weights for any module: `init_` fills it in place, `write_init` streams them to safetensors files.

Both take a graph hypernetwork, its file or the name of a released one. They return a report with a row for every
tensor: predicted, or the module's own initialisation and why. `plan_init` makes the report without making weights.
"""

import contextlib
import copy
import hashlib
import importlib.metadata
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from weightgen.errors import BadOption, NotFound, UnknownName, UnsupportedTask
from weightgen.files.state_file import DTYPES
from weightgen.files.state_stream import Slot, write_shards
from weightgen.files.storage import new_folder, write_json
from weightgen.generators.file import read_method
from weightgen.generators.logah.generator import Logah
from weightgen.generators.logah.plan import Kept
from weightgen.graph.arch_graph import ArchGraph, build_graph
from weightgen.graph.entries import read_entries
from weightgen.init.report import InitReport, TensorReport, report_of
from weightgen.runtime.global_rng import borrowed_rng
from weightgen.spec import State, TensorSpec

MAX_SHARD_BYTES = 5 * 10**9
"""The shard size of the Hugging Face libraries."""
RELEASED_GROUP = "weightgen.released"
"""Entry points of this group find the file of a released generator by its name (docs/decisions/0008)."""

_AS_IT_IS = "the value it has"
_BY_CONSTRUCTOR = "the module's constructor"
_NOT_WRITTEN = "not written"


def init_(module: nn.Module, source: Logah | str | Path = "logah", seed: int = 0, *, noise: float = 0.0) -> InitReport:
    """Fill a module's weights in place; returns a report that says where each tensor came from.

    `source` is a graph hypernetwork, its file or the name of a released one. The module's ties, mode, dtypes and every
    random number generator are not changed; tensors that are not predicted keep their values. The same module, source,
    seed and noise give the same bytes. `noise` is the share of a weight's variance that is drawn at random; without it
    the seed changes nothing.
    """
    generator = load_source(source)
    check_draw(seed, noise)
    return fill_module(generator, module, seed=seed, noise=noise)


def fill_module(
    generator: Logah, module: nn.Module, *, graph: ArchGraph | None = None, seed: int = 0, noise: float = 0.0
) -> InitReport:
    """Fill a module in place with the tensors that a generator predicts; returns a report on every tensor.

    A known `graph` saves the tracing. Raises BadOption for a module on the meta device, which has no place for numbers:
    use `write_init` for those.
    """
    graph = build_graph(module) if graph is None else graph
    plan = generator.plan(graph)
    tensors, _, _ = read_entries(module)
    if any(tensors[p.tensor.name].is_meta for p in plan):
        raise BadOption("the module is on the meta device and has no place for numbers; give write_init a folder")
    generator.fill(graph, tensors, seed=seed, noise=noise)
    return report_of(graph, plan, module)


def write_init(
    module: nn.Module,
    folder: str | Path,
    *,
    source: Logah | str | Path = "logah",
    seed: int = 0,
    noise: float = 0.0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> InitReport:
    """Write the weights that `init_` would make to a new folder, tensor by tensor; the module is not changed.

    The module may be on the meta device. Then memory holds one tensor at a time, and a tensor that is not predicted is
    drawn by `reset_parameters` of its layer, with `seed`. Files: model.safetensors, or shards of at most
    `max_shard_bytes` and their index, with tied tensors once; report.json. Raises BadOption, which names them, for
    tensors on the meta device that are neither predicted nor drawn by their layer.
    """
    planned = plan_init(module, load_source(source))
    with new_folder(folder) as partial:
        fill_folder(partial, planned, seed=seed, noise=noise, max_shard_bytes=max_shard_bytes)
    return planned.report


@dataclass(frozen=True, slots=True, eq=False)
class InitPlan:
    """What a generator will make for a module, before it is made."""

    module: nn.Module
    generator: Logah
    graph: ArchGraph
    slots: Mapping[str, Slot]
    """The tensors for the files: each once, without those that a safetensors file cannot hold."""
    report: InitReport

    @property
    def num_bytes(self) -> int:
        return sum(slot.num_bytes for slot in self.slots.values())


def plan_init(module: nn.Module, generator: Logah, *, dtype: torch.dtype | None = None) -> InitPlan:
    """The report of `write_init` and the slots that it would fill, on the meta device for a module of any size.

    `dtype` is the dtype of floats in the files; None keeps the module's own. Graph and weights do not depend on it.
    """
    graph = build_graph(module)
    plan = generator.plan(graph)
    with _loops_cut(module):
        tensors = module.state_dict(keep_vars=True)
    own = {p.tensor.name: _origin(module, p.tensor, tensors) for p in plan if isinstance(p, Kept)}
    report = report_of(graph, plan, module, own=own)
    left_out = {name: tensors[name] for name in graph.left_out}
    rows = tuple(_describe_left_out(r, left_out[r.name]) if r.name in left_out else r for r in report.rows)
    slots = {p.tensor.name: Slot(_cast(p.tensor.torch_dtype, dtype), p.tensor.shape) for p in plan}
    slots |= {name: Slot(t.dtype, tuple(t.shape)) for name, t in left_out.items() if _is_writable(t)}
    return InitPlan(module, generator, graph, slots, replace(report, rows=rows))


def fill_folder(
    folder: Path, planned: InitPlan, *, seed: int = 0, noise: float = 0.0, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write the files of `write_init` into an existing folder, for callers that add other files."""
    check_draw(seed, noise)
    own, missing = _own_values(planned, seed=seed)
    if missing:
        raise BadOption(
            f"on the meta device, not predicted, and no reset_parameters draws them: {name_some(missing)}; "
            "build the module on the CPU"
        )
    made = planned.generator.predict(planned.graph, seed=seed, noise=noise)
    tensors = ((name, tensor.to(planned.slots[name].dtype)) for name, tensor in itertools.chain(own.items(), made))
    write_shards(folder, planned.slots, tensors, max_shard_bytes=max_shard_bytes)
    write_json(folder / "report.json", planned.report.to_json())


def find_undrawn(planned: InitPlan) -> list[str]:
    """Tensors on the meta device that are neither predicted nor drawn by their layer: `fill_folder` refuses them."""
    return _own_values(planned, seed=0)[1]


def load_source(source: Logah | str | Path) -> Logah:
    """The graph hypernetwork that `source` names.

    Raises NotFound if there is no such file and no released generator of this name, CorruptFile if the file is not a
    generator file, UnsupportedTask if it holds another method.
    """
    if isinstance(source, Logah):
        return source
    path = _find_file(source)
    method = read_method(path)
    if method != Logah.name:
        raise UnsupportedTask(f"{source}: {method!r} makes weights for known architectures only, not for any module")
    return Logah.load(path)


def _find_file(source: str | Path) -> Path:
    path = Path(source)
    if isinstance(source, Path) or path.suffix or len(path.parts) > 1:
        if not path.exists():
            raise NotFound(f"source is {str(source)!r}, expected a Logah, its file or a released generator")
        return path
    unknown: NotFound | None = None
    for entry in importlib.metadata.entry_points(group=RELEASED_GROUP):
        try:
            return entry.load()(source)
        except UnknownName as error:
            unknown = error
    if path.exists():
        return path
    raise unknown or NotFound(
        f"{source!r} is no file, and no installed package says where released generators are; "
        "install weightgen again (pip install -e . in a checkout), or give a generator file"
    )


def check_draw(seed: int, noise: float) -> None:
    """Raise BadOption for a seed or a share of noise that is out of range."""
    if not 0 <= seed < 2**63:
        raise BadOption(f"seed is {seed}, expected 0 to 2^63 - 1")
    if not 0 <= noise < 1:
        raise BadOption(f"noise is {noise}, expected a share from 0 to below 1")


@contextlib.contextmanager
def _loops_cut(module: nn.Module) -> Iterator[None]:
    """Inside the block no submodule contains itself; torch's own loops over such a module would never end."""
    above: set[int] = set()
    finished: set[int] = set()
    cut: list[tuple[dict[str, Any], str, nn.Module]] = []

    def visit(part: nn.Module) -> None:
        above.add(id(part))
        for name, child in part._modules.items():
            if child is None or id(child) in finished:
                continue
            if id(child) in above:
                cut.append((part._modules, name, child))
            else:
                visit(child)
        above.remove(id(part))
        finished.add(id(part))

    visit(module)
    for children, name, _ in cut:
        children[name] = None
    try:
        yield
    finally:
        for children, name, child in cut:
            children[name] = child


def _origin(module: nn.Module, tensor: TensorSpec, tensors: Mapping[str, Tensor]) -> str:
    """The source of the numbers of a tensor that is not predicted, as a phrase."""
    if not tensors[tensor.name].is_meta or tensor.carried is not None or tensor.numel == 0:
        return _AS_IT_IS
    layer = module.get_submodule(tensor.name.rpartition(".")[0])
    return f"{type(layer).__name__}.reset_parameters" if _can_reset(layer) else _BY_CONSTRUCTOR


def _cast(own: torch.dtype, asked: torch.dtype | None) -> torch.dtype:
    return asked if asked is not None and own.is_floating_point else own


def _describe_left_out(row: TensorReport, tensor: object) -> TensorReport:
    if isinstance(tensor, Tensor) and _is_writable(tensor):
        return replace(row, shape=tuple(tensor.shape))
    return replace(row, how=_BY_CONSTRUCTOR if isinstance(tensor, Tensor) and tensor.is_meta else _NOT_WRITTEN)


def _is_writable(tensor: object) -> bool:
    """Whether a safetensors file can hold an entry of a state_dict as it is."""
    return (
        isinstance(tensor, Tensor)
        and not (is_lazy(tensor) or tensor.is_meta or tensor.is_quantized)
        and tensor.layout == torch.strided
        and tensor.dtype in DTYPES.values()
    )


def _own_values(planned: InitPlan, *, seed: int) -> tuple[State, list[str]]:
    """Values of the tensors that are not predicted, and the names of those that only a constructor can make."""
    rows = [row for row in planned.report.kept if row.how != _NOT_WRITTEN]
    module, specs = planned.module, planned.graph.spec.by_name
    values: State = {}
    of_layer: dict[str, list[str]] = {}
    with _loops_cut(module):
        tensors = module.state_dict(keep_vars=True)
        for name, how in ((row.name, row.how) for row in rows):
            if not tensors[name].is_meta:
                values[name] = tensors[name].detach()
            elif how == _AS_IT_IS:
                spec = specs[name]
                values[name] = torch.tensor(spec.carried or (), dtype=spec.torch_dtype).reshape(spec.shape)
            elif how != _BY_CONSTRUCTOR:
                of_layer.setdefault(name.rpartition(".")[0], []).append(name)
        for path, names in of_layer.items():
            values |= _draw(module.get_submodule(path), path, names, seed=seed)
    return values, [row.name for row in rows if row.name not in values]


def _can_reset(layer: nn.Module) -> bool:
    return callable(getattr(layer, "reset_parameters", None))


def _draw(layer: nn.Module, path: str, names: list[str], *, seed: int) -> State:
    """The tensors of a layer that its own reset_parameters draws; the global RNG is left as it was."""
    # The layer's path is part of the seed, or equal layers would get equal values.
    drawn_from = int.from_bytes(hashlib.sha256(f"{seed}/{path}".encode()).digest()[:8])
    try:
        first, second = (_reset(layer, seed=drawn_from, blank=blank) for blank in (0, 1))
    except Exception:  # from the module's own code, which may need arguments or a state that a constructor makes
        return {}
    values = {}
    for name in names:
        tensor, again = (getattr(made, name.rpartition(".")[2]).detach() for made in (first, second))
        if torch.equal(tensor, again):  # if they differ, reset_parameters left it blank
            values[name] = tensor
    return values


def _reset(layer: nn.Module, *, seed: int, blank: int) -> nn.Module:
    """A copy of a layer on the CPU, filled with `blank` and then drawn by reset_parameters."""
    layer = copy.deepcopy(layer).to_empty(device="cpu")
    with torch.no_grad(), borrowed_rng():
        for tensor in itertools.chain(layer.parameters(), layer.buffers()):
            tensor.fill_(blank)
        torch.manual_seed(seed)
        layer.reset_parameters()  # pyright: ignore
    return layer


def name_some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
