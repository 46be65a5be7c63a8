"""Weights for a module at hand: `init_` fills it in place, `write_init` streams them to safetensors files.

Both take a graph hypernetwork or its file and return a report with a row for every tensor: predicted, or the module's
own initialisation and why.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from weightgen.errors import BadOption, NotFound, UnsupportedTask
from weightgen.generator_file import read_method
from weightgen.generators.graph_hypernet import GraphHypernet, report_of
from weightgen.graph import build_graph
from weightgen.init_report import InitReport
from weightgen.state_stream import Slot, write_shards
from weightgen.storage import new_folder, write_json
from weightgen.weight_plan import Kept

MAX_SHARD_BYTES = 5 * 10**9
"""As the Hugging Face libraries split."""


def init_(
    module: nn.Module, source: GraphHypernet | str | Path = "logah", seed: int = 0, *, noise: float = 0.0
) -> InitReport:
    """Fill a module's weights in place and say where each tensor's came from.

    `source` is a graph hypernetwork or its file. The module's ties, mode, dtypes and every random number generator are
    left alone; what is not predicted keeps the value it has. The same module, source, seed and noise give the same
    bytes; without noise (the share of a weight's variance that is drawn at random) the seed changes nothing.
    """
    return load_source(source).init_(module, seed=seed, noise=noise)


def write_init(
    module: nn.Module,
    folder: str | Path,
    *,
    source: GraphHypernet | str | Path = "logah",
    seed: int = 0,
    noise: float = 0.0,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> InitReport:
    """Write the weights that `init_` would give to a new folder, tensor by tensor; the module is only read.

    It may be on the meta device: then memory holds one tensor at a time, and what is not predicted is drawn by
    `reset_parameters` of the layer it belongs to, with `seed`. Files: model.safetensors, or shards of at most
    `max_shard_bytes` and their index; tied tensors once; report.json. Raises BadOption, naming them, for tensors on the
    meta device that are neither predicted nor drawn by their layer.
    """
    generator = load_source(source)
    graph = build_graph(module)
    plan = generator.plan(graph)
    kept = [p for p in plan if isinstance(p, Kept)]
    own, how = _own_values(module, kept, seed=seed)
    slots = {p.tensor.name: Slot(p.tensor.torch_dtype, p.tensor.shape) for p in plan}
    report = report_of(graph, plan, module, own=how)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        yield from own.items()
        yield from generator.predict(graph, seed=seed, noise=noise)

    with new_folder(folder) as partial:
        write_shards(partial, slots, tensors(), max_shard_bytes=max_shard_bytes)
        write_json(partial / "report.json", report.to_json())
    return report


def load_source(source: GraphHypernet | str | Path) -> GraphHypernet:
    """The graph hypernetwork that is meant; NotFound for a name that no file has been released for."""
    if isinstance(source, GraphHypernet):
        return source
    if not Path(source).exists():
        if str(source) == GraphHypernet.name:
            raise NotFound("no 'logah' generator has been released yet; give source= a GraphHypernet or its file")
        raise NotFound(f"source is {str(source)!r}, expected a GraphHypernet or the file of one")
    method = read_method(Path(source))
    if method != GraphHypernet.name:
        raise UnsupportedTask(f"{source}: {method!r} makes weights for known architectures only, not for any module")
    return GraphHypernet.load(source)


def _own_values(module: nn.Module, kept: list[Kept], *, seed: int) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Values of the tensors that are not predicted, and in words where those on the meta device came from."""
    found = module.state_dict(keep_vars=True)
    values = {p.tensor.name: found[p.tensor.name].detach() for p in kept if not found[p.tensor.name].is_meta}
    missing = [p for p in kept if p.tensor.name not in values]
    how: dict[str, str] = {}
    fresh: dict[str, nn.Module] = {}
    for p in missing:
        path, _, attribute = p.tensor.name.rpartition(".")
        if p.tensor.carried is not None:
            values[p.tensor.name] = torch.tensor(p.tensor.carried, dtype=p.tensor.torch_dtype).reshape(p.tensor.shape)
            how[p.tensor.name] = "the value it has"
            continue
        layer = module.get_submodule(path)
        if not callable(getattr(layer, "reset_parameters", None)):
            continue
        if path not in fresh:
            fresh[path] = _drawn(layer, seed)
        values[p.tensor.name] = getattr(fresh[path], attribute).detach()
        how[p.tensor.name] = f"{type(layer).__name__}.reset_parameters"
    unknown = [p.tensor.name for p in missing if p.tensor.name not in values]
    if unknown:
        shown = ", ".join(map(repr, unknown[:5])) + (f" and {len(unknown) - 5} more" if len(unknown) > 5 else "")
        raise BadOption(
            f"on the meta device, not predicted, and no reset_parameters draws them: {shown}; "
            "build the module on the CPU"
        )
    return values, how


def _drawn(layer: nn.Module, seed: int) -> nn.Module:
    """A copy of a layer on the CPU, drawn by its own reset_parameters; the global RNG is left as it was."""
    layer = copy.deepcopy(layer).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer.reset_parameters()  # pyright: ignore
    return layer
