"""LoGAH: time to predict all weights of a model against drawing them (`normal_` of every tensor), and memory.

python -m benchmarks.speed.logah                                             five minutes
python -m benchmarks.speed.logah --json docs/results/bench/logah_speed.json  also write a file

Both sides fill the same model in place. The graph is known, as after a first call. The hypernetwork has random weights;
the models are transformers' classes at their default configurations, without pretrained weights.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from benchmarks.speed.measure import Ratio, median_ratio, medians, time_in_turn
from benchmarks.speed.ratios import render, write_ratios
from weightgen.generators.logah.generator import SIZES, new_logah
from weightgen.graph.arch_graph import build_graph
from weightgen.init.fill import fill_module

PAIRS = (("T", "ViT-S", 1.2), ("T", "ResNet-50", 1.2), ("T", "GPT-2-small", 0.4), ("S", "ViT-S", 4.0))
"""(size of the hypernetwork, model, largest ratio)"""
MAX_PEAK = 1.2
NUM_ROUNDS = 15

_MEMORY = """
import re
from pathlib import Path
def memory(line):
    return int(re.search(rf"{line}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
def forget_peak():
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")
"""
_CONSTRUCT = (
    _MEMORY
    + """
import json, time
from weightgen.generators.logah.generator import SIZES, new_logah
before, started = forget_peak(), time.perf_counter()
generator = new_logah(SIZES["T"](), seed=0)
print(json.dumps([time.perf_counter() - started, memory("VmHWM") - before]))
"""
)
_FILL = (
    _MEMORY
    + """
import json, sys
import torch
from benchmarks.speed.logah import make_model
from weightgen.generators.logah.generator import SIZES, new_logah
from weightgen.init.fill import init_, write_init
torch.set_num_threads(1)
generator = new_logah(SIZES["T"](), seed=0)
way, folder = sys.argv[1:]
with torch.device("meta" if way == "streamed" else "cpu"):
    model = make_model("GPT-2-large")
before = forget_peak()
if way == "streamed":
    write_init(model, folder + "/out", source=generator)
else:
    init_(model, generator)
size = sum(p.nbytes for p in model.parameters())
print(json.dumps([memory("VmHWM"), memory("VmHWM") - before, size]))
"""
)


def make_model(name: str) -> nn.Module:
    """A model at its own initialisation; on the meta device under `torch.device("meta")`."""
    import transformers as hf

    classes = {i: str(i) for i in range(1000)}
    makers: dict[str, Callable[[], nn.Module]] = {
        "ViT-S": lambda: hf.ViTForImageClassification(
            hf.ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536, id2label=classes)
        ),
        "ResNet-50": lambda: hf.ResNetForImageClassification(hf.ResNetConfig(id2label=classes)),
        "GPT-2-small": lambda: hf.GPT2LMHeadModel(hf.GPT2Config()),
        "GPT-2-large": lambda: hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=1280, n_layer=36, n_head=20)),
    }
    return makers[name]()


def measure_logah() -> list[Ratio]:
    """Construction and all pairs in fewer rounds, in less than a minute; memory is left out, it takes minutes."""
    return [*measure_construction(), *measure_pairs(num_rounds=5)]


def measure_pairs(*, num_rounds: int = NUM_ROUNDS) -> list[Ratio]:
    """Predict / normal_ for each pair, on one thread, median over interleaved rounds."""
    return [_measure_pair(size, name, aim, num_rounds) for size, name, aim in PAIRS]


def _measure_pair(size: str, name: str, aim: float, num_rounds: int) -> Ratio:
    generator, model = new_logah(SIZES[size](), seed=0), make_model(name)
    graph = build_graph(model)

    @torch.no_grad()
    def draw() -> None:
        for parameter in model.parameters():
            parameter.normal_()

    sides = {"predict": lambda: fill_module(generator, model, graph=graph), "normal_": draw}
    seconds = time_in_turn(sides, num_rounds=num_rounds)
    value = median_ratio(seconds, "predict", "normal_")
    return Ratio(f"logah: {size} on {name}, predict / normal_", value, f"<= {aim}", value <= aim, medians(seconds))


def measure_memory() -> list[Ratio]:
    """Peak memory for filling GPT-2-large (774M), divided by the size of the model.

    Streamed to files: memory of the whole process, with libraries. In place: the model and what filling it adds.
    """
    with tempfile.TemporaryDirectory() as folder:
        whole, _, size = _run(_FILL, "streamed", folder)
        _, added, _ = _run(_FILL, "in place", folder)
    name, aim = "logah: T on GPT-2-large, peak memory / model", f"<= {MAX_PEAK}"
    streamed, in_place = whole / size, 1 + added / size
    return [
        Ratio(f"{name}, streamed to files", streamed, aim, streamed <= MAX_PEAK, {}),
        Ratio(f"{name}, in place, without libraries", in_place, aim, in_place <= MAX_PEAK, {}),
    ]


def measure_construction() -> list[Ratio]:
    """Seconds to construct T, and megabytes that it adds to the peak of the process."""
    seconds, size = _run(_CONSTRUCT)
    return [
        Ratio("logah: seconds to construct T", seconds, "< 1", seconds < 1, {}),
        Ratio("logah: megabytes to construct T", size / 1e6, "< 100", size < 100e6, {}),
    ]


def _run(code: str, *arguments: str) -> list[float]:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed.logah", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    ratios: list[Ratio] = []
    for measure in (measure_construction, measure_pairs, measure_memory):
        for ratio in measure():
            print(render(ratio), flush=True)
            ratios.append(ratio)
    if options.json:
        write_ratios(options.json, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
