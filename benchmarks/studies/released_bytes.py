"""The bytes of weights that every released generator makes for fixed requests, through the command line.

    python -m benchmarks.studies.released_bytes --check                  compare with tests/golden/released_bytes.json
    python -m benchmarks.studies.released_bytes --write FILE.json        write the file again, only after a new release

The same request to the same generator file must give the same bytes. Floating-point kernels differ between processors,
so the file names its processor. On an equal processor the bytes must be equal. On another one the root mean square of
every tensor must agree.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from weightgen.cli import app

GOLDEN = Path(__file__).parents[2] / "tests" / "golden" / "released_bytes.json"
SIZE_TOLERANCE = 0.1
"""Largest relative difference of a tensor's root mean square between processors: steps along normalised gradients
amplify rounding differences."""


@dataclass(frozen=True)
class Case:
    """One command line that writes its weights to the folder `{out}`."""

    name: str
    command: tuple[str, ...]
    is_slow: bool = False


def list_cases() -> list[Case]:
    """Every released generator with every architecture that it serves, grey and colour, `init` and `tokenize`."""
    made: list[Case] = []

    def add(generator: str, arch: str, data: str, *more: str, is_slow: bool = False) -> None:
        name = " ".join((generator, arch, data.strip("{}"), *more))
        command = ("generate", "--generator", generator, "--arch", arch, "--data", data, "--seed", "3",
                   "--support-per-class", "5", *more, "--out", "{out}")  # fmt: skip
        made.append(Case(name, command, is_slow))

    for arch in ("cnn-tiny", "cnn", "vit-tiny"):
        add("mip", arch, "digits")
        add("mip", arch, "{colour}", is_slow=arch != "cnn-tiny")
    for arch in ("cnn-tiny", "mlp-w32-d2", "cnn-w8-d2", "cnn-w8-d3"):
        add("d2nwg", arch, "digits", is_slow=arch == "cnn-w8-d3")
    add("d2nwg", "cnn-tiny", "{colour}")
    add("d2nwg", "cnn-tiny", "digits", "--samples", "2", "--scheduler", "ddim", "--steps", "4", "--guidance", "1.5")
    add("d2nwg", "cnn-tiny", "digits", "--scheduler", "flow", "--refinements", "0", "--target-accuracy", "0.9")
    for arch in ("cnn-tiny", "cnn", "mlp", "vit-tiny", "vit-hf-tiny", "resnet8", "resnet20"):
        add("logah", arch, "digits", is_slow=arch.startswith(("resnet", "vit")))
    add("logah", "cnn-tiny", "{colour}", is_slow=True)
    add("logah", "mlp", "wine")
    for arch in ("cnn-tiny", "resnet20", "vit-tiny"):
        made.append(Case(f"init {arch}", ("init", arch, "--generator", "logah", "--out", "{out}")))
    layer = ("torch.nn:TransformerEncoderLayer", "--config", '{"d_model": 64, "nhead": 4}')
    made.append(Case("init layer", ("init", *layer, "--generator", "logah", "--seed", "5", "--out", "{out}")))
    made.append(Case("tokenize checkpoints", ("tokenize", "{checkpoints}", "--out", "{out}")))
    return made


def run_case(case: Case, folder: Path) -> dict[str, Any]:
    """File of weights that the command writes -> sha256 and root mean squares of its tensors."""
    colour = folder / "colour.npz"
    if not colour.exists():
        _write_colour(colour)
        _write_checkpoints(folder / "checkpoints")
    out = folder / hashlib.sha256(case.name.encode()).hexdigest()[:12]
    command = [part.replace("{out}", str(out)).replace("{colour}", str(colour)) for part in case.command]
    command = [part.replace("{checkpoints}", str(folder / "checkpoints")) for part in command]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        result = CliRunner().invoke(app, command, catch_exceptions=False)
    finally:
        torch.set_num_threads(threads)
    assert result.exit_code == 0, f"{case.name}: exit code {result.exit_code}\n{result.output}"
    return {str(path.relative_to(out)): _measure(path) for path in sorted(out.rglob("*.safetensors"))}


def processor() -> dict[str, str]:
    """The properties that determine which floating-point kernels run."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "model": models[0].partition(":")[2].strip() if models else "unknown",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__.partition("+")[0],
    }


def differences(made: dict[str, Any], golden: dict[str, Any], *, same_processor: bool) -> Iterator[str]:
    """A sentence for every file that has changed."""
    if set(made) != set(golden):
        yield f"files {sorted(made)}, expected {sorted(golden)}"
    for name in set(made) & set(golden):
        if same_processor and made[name]["sha256"] != golden[name]["sha256"]:
            yield f"{name}: sha256 {made[name]['sha256'][:12]}, expected {golden[name]['sha256'][:12]}"
        before, now = golden[name]["rms"], made[name]["rms"]
        if set(before) != set(now):
            yield f"{name}: tensors {sorted(set(before) ^ set(now))[:4]} are in one of the two only"
            continue
        far = [t for t in before if abs(now[t] - before[t]) > SIZE_TOLERANCE * max(before[t], 1e-3)]
        if far:
            yield f"{name}: root mean square of {far[0]!r} is {now[far[0]]:.4g}, expected {before[far[0]]:.4g}"


def _measure(path: Path) -> dict[str, Any]:
    tensors = load_file(path)
    sha = hashlib.sha256()
    for name in sorted(tensors):
        sha.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        sha.update(tensors[name].contiguous().numpy().tobytes())
    rms = {n: float(f"{float(t.double().square().mean().sqrt()):.4g}") for n, t in tensors.items() if t.numel()}
    return {"sha256": sha.hexdigest(), "rms": rms}


def _write_colour(path: Path) -> None:
    """Coloured digits: each picture has one hue."""
    pictures, labels = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    hues = rng.uniform(0.3, 1, (len(pictures), 1, 1, 3))
    x = (pictures.reshape(-1, 8, 8, 1) / 16 * hues * 255).astype(np.uint8)
    y = labels.astype(np.int64)
    np.savez(path, x_train=x[:900], y_train=y[:900], x_test=x[900:1200], y_test=y[900:1200])


def _write_checkpoints(folder: Path) -> None:
    """Three states of one shape, drawn by seed."""
    folder.mkdir()
    for seed in range(3):
        rng = torch.Generator().manual_seed(seed)
        state = {"a.weight": torch.randn(6, 4, generator=rng), "a.bias": torch.randn(6, generator=rng)}
        save_file(state, folder / f"run{seed}.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the weights of released generators with recorded ones.")
    parser.add_argument("--write", type=Path, help="write the results to this file")
    parser.add_argument("--check", action="store_true", help=f"compare with {GOLDEN.name}")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        made = {}
        for case in list_cases():
            print(case.name, file=sys.stderr)
            made[case.name] = run_case(case, Path(folder))
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(json.dumps({"processor": processor(), "cases": made}, indent=1) + "\n")
    if args.check:
        golden = json.loads(GOLDEN.read_text())
        same = golden["processor"] == processor()
        faults = [f"{name}: {fault}" for name in made
                  for fault in differences(made[name], golden["cases"][name], same_processor=same)]  # fmt: skip
        print("\n".join(faults) or f"{len(made)} requests: {'the same bytes' if same else 'the same sizes'}")
        sys.exit(bool(faults))


if __name__ == "__main__":
    main()
