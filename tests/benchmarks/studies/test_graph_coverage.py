"""Tiny models of transformers and, where installed, torchvision: traced to the end, every tensor accounted for."""

import importlib.util

import pytest
import torch
from torch import nn

import weightgen
from benchmarks.studies import graph_coverage
from benchmarks.studies.graph_coverage import STAND_INS, TRANSFORMERS, make_transformer, measure_coverage, render_row
from tests.helpers.graph_zoo import assert_whole, ops_of
from weightgen.errors import UnknownName
from weightgen.generators.logah.generator import LogahConfig, new_logah
from weightgen.graph.arch_graph import build_graph

needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None,
    reason="transformers is not installed (pip install 'weightgen[clip]')",
)
NOT_FUSED = ("mamba", "resnet", "convnext")
OPS = {
    "llama": {"rms_norm": 5, "linear": 15, "attention": 2, "activation": 2, "product": 2, "sum": 4},
    "gpt2": {"layer_norm": 5, "linear": 9, "attention": 2, "activation": 2, "sum": 5},
    "bert": {"layer_norm": 6, "linear": 14, "attention": 2, "activation": 3},
    "t5": {"rms_norm": 12, "attention": 6, "embedding": 4, "activation": 4},
    "mixtral": {"gate": 2, "expert": 4, "attention": 2},
    "gemma": {"rms_norm": 5, "linear": 15, "attention": 2, "activation": 2},
}


def small_generator():
    return new_logah(LogahConfig(rank=4, num_layers=1, dim=16, num_heads=2), seed=0)


@needs_transformers
@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_transformers_are_traced_to_the_end(name, attention):
    attention = "eager" if name in NOT_FUSED else attention
    with torch.device("meta"):
        module = make_transformer(name, attention=attention)
    graph = build_graph(module)
    assert_whole(graph, module)
    assert graph.unreached == ()
    assert "broke off" not in " ".join(graph.notes)
    assert {op: ops_of(graph).count(op) for op in OPS.get(name, {})} == OPS.get(name, {})


@needs_transformers
@pytest.mark.parametrize(
    ("name", "role"), [("gemma", "norm bias"), ("gemma3", "norm bias"), ("llama", "norm weight"), ("t5", "norm weight")]
)
def test_weights_of_norms_are_predicted_around_the_value_that_the_model_begins_at(name, role):
    module = make_transformer(name)
    graph = build_graph(module)
    norms = {n for n, t in graph.owned.items() if graph.nodes[graph.owner[n]].op == "rms_norm"}
    assert {graph.owned[n].role for n in norms} == {role}
    begun = {n: t.mean().item() for n, t in module.state_dict().items() if n in norms}
    weightgen.init_(module, small_generator())
    for n in norms:
        assert module.state_dict()[n].mean().item() == pytest.approx(begun[n], abs=0.5)


@needs_transformers
def test_what_a_decoder_without_its_encoder_leaves_out_is_what_its_like_are():
    module = make_transformer("t5").get_submodule("decoder")
    graph = build_graph(module)
    assert {name.split(".")[3] for name in graph.unreached} == {"1"}  # the cross-attention of each block
    assert {t.role for name, t in graph.owned.items() if name.endswith("layer_norm.weight")} == {"norm weight"}


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed; it is no dependency"
)
@pytest.mark.parametrize("name", graph_coverage.TORCHVISION)
def test_torchvision_models_are_traced_to_the_end(name):
    with torch.device("meta"):
        module = graph_coverage.models()[f"torchvision {name}"]()
    graph = build_graph(module)
    assert_whole(graph, module)
    assert graph.unreached == ()


@pytest.mark.parametrize("name", STAND_INS)
def test_everything_of_a_stand_in_is_predicted_but_scales_and_indices(name):
    row = measure_coverage(STAND_INS[name], small_generator())
    assert row["unreached"] == row["notes"] == []
    assert row["tensors"] == row["predicted"] + sum(count for count, _ in row["own"].values())
    reasons = {"convnext-pattern": "a raw vector that scales something", "swin-pattern": "integers are carried along"}
    (why,) = row["own"]
    assert why.startswith(reasons[name])
    assert row["own"][why][0] == 4


def test_tensors_and_parameters_are_counted_by_what_becomes_of_them():
    def make() -> nn.Module:
        module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.PReLU(4))
        module[2].weight = module[0].weight
        return module

    row = measure_coverage(make, small_generator())
    assert {why[:11]: counts for why, counts in row["own"].items()} == {
        "a statistic": [2, 8],
        "integers ar": [1, 1],
        "a raw vecto": [1, 4],
    }
    assert (row["tensors"], row["predicted"], row["tied"]) == (10, 5, 1)
    assert (row["parameters"], row["parameters_predicted"]) == (36, 32)
    assert render_row("mixed", row) == "| mixed | 10 | 5 | 1 | 4 | 88.9% |"


def test_some_architectures_are_printed_and_unknown_ones_refused(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(graph_coverage, "OUT", tmp_path / "coverage.json")
    assert graph_coverage.main(["swin-pattern"]) == 0
    assert "| swin-pattern | 67 | 63 | 0 | 4 | 100.0% |" in capsys.readouterr().out
    assert not graph_coverage.OUT.exists()
    assert graph_coverage.main(["swinpattern"]) == UnknownName.exit_code
    assert "error: no architecture is called 'swinpattern'; did you mean 'swin-pattern'?" in capsys.readouterr().err
    monkeypatch.setattr(graph_coverage, "models", lambda: STAND_INS)
    graph_coverage.main([])
    assert graph_coverage.OUT.exists()
