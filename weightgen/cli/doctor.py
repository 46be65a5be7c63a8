"""weightgen doctor: what this installation has and lacks."""

import importlib.util
import platform
import tempfile
from typing import Any

import typer

from weightgen import __version__
from weightgen.cli.output import JsonOption, print_json, print_table

EXTRAS = {
    "table": ("pandas", "pyarrow"),
    "images": ("PIL",),
    "hf": ("datasets",),
    "clip": ("transformers",),
    "transformers": ("transformers",),
    "vision": ("torchvision", "timm"),
    "plot": ("matplotlib",),
}
"""Extra of pyproject.toml -> the modules it brings."""


def doctor(as_json: JsonOption = False) -> None:
    """Check this installation: versions, devices, released generators and their hashes, extras, a writable folder."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        print_table(_rows(report))
    if report["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """The report of the doctor, JSON values; `problems` is empty when all is well."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    generators = _examine_generators()
    writable = _is_writable()
    problems = [f"generator {name!r}: {g['hash']}" for name, g in generators.items() if g["hash"] != "ok"]
    problems += [] if writable else ["the current folder cannot be written"]
    return {
        "weightgen": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "gpus": gpus,
        "extras": {name: all(map(_is_installed, modules)) for name, modules in EXTRAS.items()},
        "generators": generators,
        "writable": writable,
        "problems": problems,
    }


def _examine_generators() -> dict[str, dict[str, Any]]:
    from model_zoo.released import FOLDER, RELEASED, expected_hashes
    from weightgen.files.storage import sha256_file

    expected = expected_hashes()
    files = {**RELEASED, **{f.removesuffix(".safetensors"): f for f in expected if f not in RELEASED.values()}}
    found = {}
    for name, file in files.items():
        path = FOLDER / file
        if not path.is_file():
            found[name] = {"file": file, "hash": "missing"}
            continue
        digest = sha256_file(path)
        verdict = "ok" if expected.get(file) == digest else "not listed" if file not in expected else "differs"
        found[name] = {"file": file, "bytes": path.stat().st_size, "sha256": digest, "hash": verdict}
    return found


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _is_writable() -> bool:
    try:
        with tempfile.TemporaryFile(dir="."):
            return True
    except OSError:
        return False


def _rows(report: dict[str, Any]) -> list[tuple[str, Any]]:
    extras = report["extras"]
    return [
        ("weightgen", report["weightgen"]),
        ("python", report["python"]),
        ("torch", f"{report['torch']}, {report['threads']} threads"),
        ("gpu", ", ".join(report["gpus"]) or "none"),
        ("extras", ", ".join(name if here else f"({name})" for name, here in extras.items()) + "   (absent)"),
        *((f"generator {name}", _describe(g)) for name, g in report["generators"].items()),
        ("current folder", "writable" if report["writable"] else "cannot be written"),
        ("verdict", "; ".join(report["problems"]) or "ok"),
    ]


def _describe(generator: dict[str, Any]) -> str:
    if generator["hash"] == "missing":
        return f"{generator['file']} is missing"
    return f"{generator['bytes'] / 1e6:.1f} MB, sha256 {generator['sha256'][:12]}, hash {generator['hash']}"
