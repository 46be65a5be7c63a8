"""Graphs: seconds to build the ArchGraph of large networks on the meta device, one thread.

python -m benchmarks.speed.graph            prints the ratios and writes docs/results/bench/graph_speed.json

`build` has an empty cache; `kept` finds the cached graph of the same structure. Both sides of a ratio are run in turn:
building ViT-S against drawing random numbers for all its tensors, which is the cost of a default initialisation.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.speed.measure import Ratio, median_ratio, medians, time_in_turn
from benchmarks.speed.ratios import render, write_ratios
from weightgen.graph import arch_graph as graphs
from weightgen.graph.arch_graph import ArchGraph, build_graph

OUT = Path(__file__).resolve().parents[2] / "docs" / "results" / "bench" / "graph_speed.json"
AIMS = {"vit-s": 0.1, "gpt2-96": 0.5}
"""Model -> most seconds to build its graph."""
NUM_ROUNDS = 7


def measure_graphs() -> list[Ratio]:
    """Needs transformers; ResNet-50 is measured only if torchvision is installed."""
    ratios = []
    for name, make in networks().items():
        with torch.device("meta"):
            module = make()
        sides: dict[str, Callable[[], object]] = {
            "build": lambda module=module: build_afresh(module),
            "kept": lambda module=module: build_graph(module),
        }
        if name == "vit-s":
            tensors = [torch.empty(t.shape) for t in module.state_dict().values()]
            sides["normal_"] = lambda tensors=tensors: draw(tensors)
        build_afresh(module)  # torch imports some meta kernels at their first use
        graph = build_graph(module)
        sides["distances"] = lambda graph=graph: graph._find_distances(50)
        seconds = time_in_turn(sides, num_rounds=NUM_ROUNDS)
        found = medians(seconds)
        size = f"{len(graph.nodes)} nodes, {len(graph.spec.tensors)} tensors"
        aim = AIMS.get(name)
        is_met = None if aim is None else found["build"] <= aim
        label = f"graph: seconds to build {name} ({size})"
        ratios.append(Ratio(label, found["build"], "" if aim is None else f"<= {aim}", is_met, found))
        if "normal_" in sides:
            value = median_ratio(seconds, "build", "normal_")
            ratios.append(Ratio(f"graph: build {name} / normal_ of every tensor", value, "", None, found))
    return ratios


def networks() -> dict[str, Callable[[], nn.Module]]:
    import transformers

    vit = transformers.ViTConfig(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
    found: dict[str, Callable[[], nn.Module]] = {
        "vit-s": lambda: transformers.ViTModel(vit),
        "gpt2-96": lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=96)),
    }
    try:
        from torchvision import models  # pyright: ignore
    except ImportError:
        return found
    return {**found, "resnet50": models.resnet50}


def build_afresh(module: nn.Module) -> ArchGraph:
    graphs.forget_graphs()
    return build_graph(module)


def draw(tensors: list[Tensor]) -> None:
    for tensor in tensors:
        tensor.normal_()


def main() -> int:
    torch.set_num_threads(1)
    ratios = measure_graphs()
    for ratio in ratios:
        print(render(ratio), flush=True)
    write_ratios(OUT, ratios)
    return 0


if __name__ == "__main__":
    sys.exit(main())
