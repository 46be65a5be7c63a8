"""The artifact: a folder that any Hub client loads, and that says where its weights come from.

    model.safetensors   the state, written by weightgen.files.checkpoint
    config.json         the keyword arguments of the architecture's class, and nothing else: a class that takes
                        **kwargs would get every other key too
    README.md           the model card
    manifest.json       request, generator, seed, nearest checkpoint, verification, spec, sha256 of the other files

`PyTorchModelHubMixin.from_pretrained(folder)` of the architecture's class loads it. `read_artifact` loads it too, and
checks every hash. A network of another library is loaded by that library's loader; `hub_files(class_names)` gives the
JSON files that the loader reads (config.json and others). The same request to the same generator file writes the same
bytes, so no time and no path is written.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightgen.delivery.gate import VerifiedWeights
from weightgen.errors import CorruptFile, NotFound, SpecMismatch, UnsupportedTask
from weightgen.files.checkpoint import load_for_spec, save_for_spec
from weightgen.files.storage import new_folder, read_json, sha256_file, write_file, write_json
from weightgen.request import GenerationRequest
from weightgen.spec import State, StateSpec
from weightgen.target.network import Target
from weightgen.version import __version__

FORMAT, VERSION = "weightgen.artifact", 1
_JSON_NAME = re.compile(r"[a-z][a-z_]{0,60}\.json")
WEIGHTS, CONFIG, CARD, MANIFEST = "model.safetensors", "config.json", "README.md", "manifest.json"


@dataclass(frozen=True, eq=False)
class Artifact:
    """The content of a folder whose hashes were checked."""

    state: State
    spec: StateSpec
    manifest: dict[str, Any]


def describe_artifact(
    request: GenerationRequest,
    weights: VerifiedWeights,
    *,
    generator: str,
    generator_sha256: str,
    nearest: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The manifest of an artifact, without what `write_artifact` adds: format, spec and hashes.

    `nearest` is `weightgen.evaluation.novelty.describe_nearest`; `data` says in JSON where the support set comes from.
    """
    support = request.condition.support
    return {
        "request": {
            "digest": request.digest(),
            "arch": request.target.spec.arch,
            "config": dict(request.target.spec.config),
            "num_samples": request.num_samples,
            "seed": request.seed,
            "support": None if support is None else {
                "sha256": support.digest(),
                "class_names": list(support.class_names),
                "shots": support.shots,
                "input_shape": list(support.inputs.shape[1:]),
            },
            "data": dict(data) if data is not None else None,
        },
        "generator": {"name": generator, "sha256": generator_sha256},
        "seed": request.seed,
        "source": weights.source,
        "nearest_checkpoint": dict(nearest) if nearest is not None else None,
        "verification": weights.report,
    }  # fmt: skip


def write_artifact(
    folder: str | Path,
    target: Target,
    state: State,
    *,
    manifest: Mapping[str, Any],
    scoreboard: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write the folder, whole or not at all, and return its manifest; refuses a folder that is not empty.

    `manifest` comes from `describe_artifact`; the card shows the accuracies of a `scoreboard`.
    """
    spec = target.spec
    with new_folder(folder) as partial:
        save_for_spec(partial / WEIGHTS, state, spec)
        described = _describe_for_hub(target, manifest)
        for name, value in described.items():
            write_json(partial / name, value)
        write_file(partial / CARD, _write_card(target, manifest, scoreboard).encode())
        complete = {
            **manifest,
            "format": FORMAT,
            "version": VERSION,
            "weightgen": __version__,
            "arch": spec.arch,
            **({"library": library} if (library := _library(target)) else {}),
            "module": f"{type(target.skeleton).__module__}:{type(target.skeleton).__qualname__}",
            "spec": spec.to_json(),
            "files": {name: sha256_file(partial / name) for name in (WEIGHTS, CARD, *described)},
        }
        write_json(partial / MANIFEST, complete)
    return complete


def read_artifact(folder: str | Path, *, target: Target | None = None) -> Artifact:
    """The artifact in a folder; CorruptFile names what is missing or altered, SpecMismatch if `target` differs."""
    folder = Path(folder)
    if not folder.is_dir():
        raise NotFound(f"{folder}: no such folder; expected an artifact")
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CorruptFile(f"{folder / MANIFEST}: not the manifest of an artifact (format {FORMAT!r})")
    if manifest.get("version") != VERSION:
        raise UnsupportedTask(
            f"{folder}: version {manifest.get('version')!r} of {FORMAT}, this weightgen reads version {VERSION}"
        )
    files = manifest.get("files")
    if not isinstance(files, dict) or not {WEIGHTS, CONFIG, CARD} <= set(files):
        raise CorruptFile(f"{folder / MANIFEST}: expected the sha256 of {WEIGHTS}, {CONFIG} and {CARD}")
    if strange := [name for name in files if name not in (WEIGHTS, CARD) and not _JSON_NAME.fullmatch(name)]:
        raise CorruptFile(f"{folder / MANIFEST}: {strange[0][:80]!r} is no file of an artifact")
    for name, digest in files.items():
        found = sha256_file(folder / name)
        if found != digest:
            raise CorruptFile(f"{folder / name}: sha256 {found[:12]}…, the manifest says {str(digest)[:12]}…")
    try:
        spec = StateSpec.from_json(manifest["spec"])
    except (KeyError, TypeError, AttributeError, SpecMismatch) as error:
        raise CorruptFile(f"{folder / MANIFEST}: the spec cannot be read ({error})") from error
    if manifest.get("library") is None and read_json(folder / CONFIG) != spec.config:
        raise CorruptFile(f"{folder / CONFIG}: not the configuration in the manifest's spec")
    if target is not None and target.spec.digest() != spec.digest():
        raise SpecMismatch(f"{folder} holds a {spec.arch!r} {dict(spec.config)}, expected {target.spec.arch!r} "
                           f"{dict(target.spec.config)}")  # fmt: skip
    return Artifact(state=load_for_spec(folder / WEIGHTS, spec), spec=spec, manifest=manifest)


def _library(target: Target) -> str | None:
    """The library whose loader reads a network of this target, if it is not the network's own class."""
    return getattr(target.skeleton, "HUB_LIBRARY", None)


def _loader(target: Target) -> tuple[str, str]:
    """Module and name of the class whose `from_pretrained` loads the folder."""
    module: Any = type(target.skeleton)
    library = _library(target)
    return (library, module.HUB_LOADER) if library else (module.__module__, module.__qualname__)


def _describe_for_hub(target: Target, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Name -> JSON value of the files that the loader of the weights reads, CONFIG among them."""
    if _library(target) is None:
        return {CONFIG: dict(target.spec.config)}
    support = manifest["request"]["support"]
    num_classes = target.spec.config["num_classes"]
    names = support["class_names"] if support else [f"LABEL_{i}" for i in range(num_classes)]
    skeleton: Any = target.skeleton
    return skeleton.hub_files(names)


def _write_card(target: Target, manifest: Mapping[str, Any], scoreboard: Mapping[str, Any] | None) -> str:
    spec, library, (imported, loader) = target.spec, _library(target), _loader(target)
    mixin = ("model_hub_mixin", "pytorch_model_hub_mixin") if library is None else ()
    generator, verification = manifest["generator"], manifest["verification"]
    support = manifest["request"]["support"]
    lines = [
        "---",
        f"library_name: {library or 'weightgen'}",
        "license: other",
        "license_name: as-the-support-examples",
        f"pipeline_tag: {'image' if len(target.input_shape) == 3 else 'tabular'}-classification",
        "tags:",
        *(f"- {tag}" for tag in ("generated-weights", *mixin, "weightgen")),
        "---",
        "",
        f"# {spec.arch}: generated weights",
        "",
        f"{spec.num_parameters:,} parameters of `{spec.arch}`, requested from the weightgen generator "
        f"`{generator['name']}` with {sum(support['shots']) if support else 'no'} labelled examples, "
        "made without a training step.",
        "",
        "```python",
        f"from {imported} import {loader}",
        "",
        f'model = {loader}.from_pretrained("path/to/this/folder")',
        "```",
        "",
        f"It takes float32 {_describe_input(target)} and returns one logit a class, in this order:",
        "",
        "```json",
        # A backtick in a name would end the block.
        json.dumps(support["class_names"] if support else [], ensure_ascii=False).replace("`", "\\u0060"),
        "```",
        "",
        "## Verification",
        "",
        f"These weights come from `{manifest['source']}`: {verification['sentence']}.",
        "",
        *(_write_scores(scoreboard) if scoreboard is not None else []),
        "## Licence",
        "",
        "The weights derive from the support examples and from the generator. The owner of the examples decides under "
        "which licence the weights may be used. The generator's card names the data it was trained on.",
        "",
        "## Provenance",
        "",
        f"`manifest.json` holds the request, its seed ({manifest['seed']}), the generator file's sha256 "
        f"(`{generator['sha256'][:12]}…`), the nearest trained checkpoint, the verification and the spec.",
        "",
    ]  # fmt: skip
    return "\n".join(lines)


def _write_scores(scoreboard: Mapping[str, Any]) -> list[str]:
    scores = {name: value for name, value in scoreboard["accuracy"].items() if value is not None}
    return [
        "## Scoreboard",
        "",
        "Accuracy on the test part of the same data, each reference with equal access to the support examples.",
        "",
        "| source | accuracy |",
        "|---|---|",
        *(f"| {name} | {value:.1%} |" for name, value in scores.items()),
        "",
    ]


def _describe_input(target: Target) -> str:
    if len(target.input_shape) == 3:
        return "images (n, {}, {}, {}) in [0, 1]".format(*target.input_shape)
    return f"features (n, {target.input_shape[0]})"
