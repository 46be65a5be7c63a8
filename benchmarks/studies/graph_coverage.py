"""LoGAH's coverage: how many tensors and parameters of known architectures are predicted, and why others are not.

python -m benchmarks.studies.graph_coverage  half a minute; prints the table, writes docs/results/logah/coverage.json
python -m benchmarks.studies.graph_coverage bert t5    some architectures, only printed

It uses tiny configurations, and the plan that an untrained graph hypernetwork of size T makes for them. Models of
torchvision and timm are included if these are installed; stand-ins built like torchvision's are always included.
"""

import argparse
import importlib
import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.studies.torchvision_patterns import make_convnext, make_swin
from weightgen.errors import UnknownName
from weightgen.files.storage import write_json
from weightgen.generators.logah.generator import Logah, new_logah, size_t
from weightgen.generators.logah.plan import Predicted
from weightgen.graph.arch_graph import build_graph

OUT = Path(__file__).resolve().parents[2] / "docs" / "results" / "logah" / "coverage.json"

_SMALL: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}
_DECODER = _SMALL | {"num_key_value_heads": 1}
_IMAGES: dict[str, Any] = {"image_size": 32, "patch_size": 8}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("BertForMaskedLM", "BertConfig", _SMALL),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 1},
    ),
    "llama": ("LlamaForCausalLM", "LlamaConfig", _DECODER),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _DECODER),
    "opt": ("OPTForCausalLM", "OPTConfig", _SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16}),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    ),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", _DECODER),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _DECODER | {"head_dim": 8}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", _DECODER | {"head_dim": 8}),
    "vit": ("ViTForImageClassification", "ViTConfig", _SMALL | _IMAGES),
    "resnet": (
        "ResNetForImageClassification",
        "ResNetConfig",
        {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"},
    ),
    "convnext": (
        "ConvNextForImageClassification",
        "ConvNextConfig",
        {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
    ),
    "swin": (
        "SwinForImageClassification",
        "SwinConfig",
        {"embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "image_size": 32, "patch_size": 2, "window_size": 4},
    ),
}
"""Name -> model class and configuration class of transformers, and options that make it tiny."""
STAND_INS: dict[str, Callable[[], nn.Module]] = {"convnext-pattern": make_convnext, "swin-pattern": make_swin}
TORCHVISION = ("resnet18", "resnet50", "vit_b_16", "convnext_tiny", "swin_t", "swin_v2_t")
TIMM = ("resnet18", "vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224")


def models() -> dict[str, Callable[[], nn.Module]]:
    """Name -> function that builds the architecture, for all whose libraries are installed."""
    found = dict(STAND_INS)
    if importlib.util.find_spec("transformers") is not None:
        found |= {name: lambda name=name: make_transformer(name) for name in TRANSFORMERS}
    if importlib.util.find_spec("torchvision") is not None:
        vision = importlib.import_module("torchvision.models")
        found |= {f"torchvision {name}": lambda name=name: vision.get_model(name) for name in TORCHVISION}
    if importlib.util.find_spec("timm") is not None:
        timm = importlib.import_module("timm")
        found |= {f"timm {name}": lambda name=name: timm.create_model(name) for name in TIMM}
    return found


def make_transformer(name: str, *, attention: str | None = None) -> nn.Module:
    """A tiny model of TRANSFORMERS; `attention` is `sdpa` (fused), `eager`, or None for the model's own choice."""
    transformers = importlib.import_module("transformers")
    model, config, options = TRANSFORMERS[name]
    chosen = {} if attention is None else {"attn_implementation": attention}
    return getattr(transformers, model)(getattr(transformers, config)(**options, **chosen))


def measure_coverage(make: Callable[[], nn.Module], generator: Logah) -> dict[str, Any]:
    """Numbers of tensors and parameters of a module that are predicted, tied, or kept.

    `own` maps each reason to (tensors, numbers) that keep the module's own initialisation; `unreached` are the names
    of tensors that the traced pass does not read.
    """
    module = make()
    graph = build_graph(module)
    plan = generator.plan(graph)
    predicted = [p.tensor for p in plan if isinstance(p, Predicted)]
    tensors, numbers = Counter[str](), Counter[str]()
    for p in plan:
        if not isinstance(p, Predicted):
            tensors[p.why] += 1
            numbers[p.why] += p.tensor.numel
    for why in graph.left_out.values():
        tensors[why] += 1
    num_tied = sum(t.tied_to is not None for t in graph.spec.tensors)
    assert len(predicted) + tensors.total() + num_tied == len(module.state_dict())
    parameters = {name: p.numel() for name, p in module.named_parameters()}
    return {
        "tensors": len(module.state_dict()),
        "predicted": len(predicted),
        "tied": num_tied,
        "own": {why: [tensors[why], numbers[why]] for why in tensors},
        "parameters": sum(parameters.values()),
        "parameters_predicted": sum(parameters.get(t.name, 0) for t in predicted),
        "unreached": list(graph.unreached),
        "notes": list(graph.notes),
    }


def render_row(name: str, row: dict[str, Any]) -> str:
    """One line of the table: tensors, predicted, tied, own, share of the parameters predicted."""
    num_own = sum(count for count, _ in row["own"].values())
    share = 100 * row["parameters_predicted"] / row["parameters"]
    return f"| {name} | {row['tensors']} | {row['predicted']} | {row['tied']} | {num_own} | {share:.1f}% |"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.graph_coverage", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures; all, if none is named")
    options = parser.parse_args(argv)
    found = models()
    for name in options.names:
        if name not in found:
            error = UnknownName("architecture", name, found)
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    generator = new_logah(size_t(), seed=0)
    print("| architecture | tensors | predicted | tied | own | parameters predicted |\n|---|---|---|---|---|---|")
    rows = {}
    for name in options.names or found:
        rows[name] = measure_coverage(found[name], generator)
        print(render_row(name, rows[name]), flush=True)
    if not options.names:
        write_json(OUT, {"torch": torch.__version__, "generator": "logah, size T, untrained", "architectures": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
