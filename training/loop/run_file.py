"""The file that a training run is resumed from, and the file of its best model, in one format.

Tensors are named `model.<name>`, `average.<name>` (where there is one), `optimizer.<moment>.<name>` and `rng.<rank>`.
The manifest holds the settings, the counts and the log. The file of the best model has only weights and a manifest.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn, optim

from weightgen.errors import CorruptFile
from weightgen.files.checkpoint import load_state, read_manifest, save_state
from weightgen.spec import State

FORMAT = "weightgen.training-run"


def write_run(path: Path, parts: Mapping[str, Mapping[str, Tensor]], manifest: Mapping[str, Any]) -> None:
    """Replace the file of a run. A killed process leaves the whole old file or the whole new one."""
    tensors = {f"{part}.{name}": tensor.detach() for part, named in parts.items() for name, tensor in named.items()}
    save_state(path, tensors, manifest={"format": FORMAT, **manifest})


def read_run(path: Path) -> tuple[dict[str, Any], dict[str, State]]:
    """Manifest and tensors of a run by part: `model`, `average`, `optimizer`, `rng`."""
    manifest = read_manifest(path)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CorruptFile(f"{path}: not the file of a training run; remove it, or give another folder")
    parts: dict[str, State] = {"model": {}, "average": {}, "optimizer": {}, "rng": {}}
    for key, tensor in load_state(path, allow_nonfinite=True).items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    return manifest, parts


def read_weights(path: Path) -> tuple[dict[str, Any], State]:
    """Manifest and model of a run, with the averaged weights where it has them."""
    manifest, parts = read_run(path)
    return manifest, parts["model"] | parts["average"]


def name_moments(optimizer: optim.Optimizer, parameters: Mapping[str, nn.Parameter]) -> State:
    """The moments that an optimiser keeps, named `<moment>.<name of the parameter>`."""
    return {
        f"{moment}.{name}": value
        for name, parameter in parameters.items()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(optimizer: optim.Optimizer, parameters: Mapping[str, nn.Parameter], moments: State) -> None:
    """Put moments that `name_moments` returned back into an optimiser."""
    by_name: dict[str, State] = {}
    for key, value in moments.items():
        moment, _, name = key.partition(".")
        by_name.setdefault(name, {})[moment] = value
    names = {parameter: name for name, parameter in parameters.items()}
    in_order = [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    state = {index: by_name[name] for index, name in enumerate(in_order) if name in by_name}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
