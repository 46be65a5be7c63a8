"""Files between the stages of `d2nwg`: a model, how it was trained, and what was spent on it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from training.d2nwg.recipe import D2nwgTraining
from training.episodes import EpisodeConfig
from weightgen.errors import BadOption, NotFound
from weightgen.files.checkpoint import load_state, read_manifest, save_state
from weightgen.generators.d2nwg.generator import D2nwg, D2nwgConfig
from weightgen.spec import StateSpec

Trained = tuple[D2nwg, D2nwgTraining, dict[str, Any]]
"""A model, how it is trained, and what was spent on it."""


def write_stage(
    model: D2nwg, path: Path, config: D2nwgTraining, *, spent: dict[str, Any], held_out: dict[str, Any]
) -> None:
    """Write the file of a finished stage; `held_out` says how it does on held-out tasks."""
    specs = [[member, spec.to_json()] for member, spec in model.specs.items()]
    manifest = {"config": asdict(config), "specs": specs, "spent": spent, "held_out_tasks": held_out}
    save_state(path, model.state_dict(), manifest=manifest)


def read_stage(path: Path) -> Trained:
    """What `write_stage` wrote."""
    if not path.exists():
        raise NotFound(f"{path}: not there; run the stage before this one")
    manifest = read_manifest(path)
    saved = manifest["config"]
    config = D2nwgTraining(**{
        **saved,
        "model": D2nwgConfig(**saved["model"]),
        "episodes": EpisodeConfig(**saved["episodes"]),
        "held_out": tuple(saved["held_out"]),
    })  # fmt: skip
    model = D2nwg({m: StateSpec.from_json(s) for m, s in manifest["specs"]}, config.model)
    model.load_state_dict(model.state_dict() | load_state(path))  # a first stage has no rates of refinement yet
    return model, config, manifest["spent"]


def join_stages(stages: Sequence[Trained], *, refinements: int, clip: str | None) -> Trained:
    """One model with the codecs of several first stages; the learnt settings of their heads are averaged."""
    config = stages[0][1]
    if any(other != config for _, other, _ in stages):
        raise BadOption("the first stages were trained with different settings; train them alike")
    config = replace(config, model=replace(config.model, refinements=refinements, clip=clip))
    specs = {member: spec for model, _, _ in stages for member, spec in model.specs.items()}
    torch.manual_seed(config.seed)
    joined = D2nwg(specs, config.model)
    tensors = [model.state_dict() for model, _, _ in stages]
    state = joined.state_dict() | {n: t for found in tensors for n, t in found.items() if n.startswith("codecs.")}
    for name in state:
        if name.startswith("log_"):
            state[name] = torch.stack([found[name] for found in tensors]).mean(0)
    joined.load_state_dict(state)
    return joined, config, {name: spent for _, _, each in stages for name, spent in each.items()}
