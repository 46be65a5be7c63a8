"""One computation written in several ways: norms, and where their weights begin."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import weightgen
from tests.helpers.graph_zoo import Net, ops_of
from weightgen.generators.logah.generator import LogahConfig, new_logah
from weightgen.graph.arch_graph import build_graph


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


NORMS: dict[str, tuple[Callable[[Tensor, Tensor, Tensor], Tensor], str, str]] = {
    "plain": (lambda x, w, b: unit(x) * w + b, "norm weight", "norm bias"),
    "one plus": (lambda x, w, b: unit(x) * (1.0 + w.float()) + b, "norm bias", "norm bias"),
    "from the left": (lambda x, w, b: (1 + w) * unit(x) + b, "norm bias", "norm bias"),
    "cast": (lambda x, w, b: (unit(x) * (w + 1).to(x.dtype)).to(x.dtype) + b, "norm bias", "norm bias"),
    "two plus": (lambda x, w, b: unit(x) * (2 + w) + b, "norm weight", "norm bias"),
    "weight twice": (lambda x, w, b: unit(x) * (1 + w) * b, "norm bias", "raw"),
    "bias twice": (lambda x, w, b: unit(x) + w + b, "norm bias", "raw"),
    "layer norm": (lambda x, w, b: F.layer_norm(x, (8,), w, b), "norm weight", "norm bias"),
    "layer norm, one plus": (lambda x, w, b: F.layer_norm(x, (8,), w + 1, b), "norm bias", "norm bias"),
    "layer norm, bias behind": (
        lambda x, w, b: F.layer_norm(x, (8,), torch.add(1.0, w)) + b,
        "norm bias",
        "norm bias",
    ),
}


def make_normed(name: str) -> nn.Module:
    """A linear layer and a norm of its result."""
    norm = NORMS[name][0]
    parameters = {key: nn.Parameter(torch.zeros(8)) for key in "wb"}
    return nn.Sequential(nn.Linear(4, 8), Net(lambda m, x: norm(x, m.w, m.b), **parameters))


@pytest.mark.parametrize("name", NORMS)
def test_the_weight_of_a_norm_by_one_plus_itself_has_the_role_of_a_bias(name):
    graph = build_graph(make_normed(name))
    assert (graph.owned["1.w"].role, graph.owned["1.b"].role) == NORMS[name][1:]
    assert ops_of(graph)[:2] == ["linear", "layer_norm" if "layer norm" in name else "rms_norm"]
    assert graph.owner["1.w"] == 2


def test_weights_of_norms_are_predicted_around_the_value_at_which_they_do_nothing():
    generator = new_logah(LogahConfig(rank=4, num_layers=1, dim=16, num_heads=2), seed=0)
    for name, value in (("plain", 1), ("one plus", 0), ("layer norm", 1), ("layer norm, one plus", 0)):
        module = make_normed(name)
        weightgen.init_(module, generator)
        assert float(module.state_dict()["1.w"].mean()) == pytest.approx(value, abs=0.5)


def test_a_norm_by_one_plus_its_weight_that_is_run_twice_owns_its_weight_once():
    linear, norm = make_normed("one plus").children()
    graph = build_graph(nn.Sequential(linear, norm, norm))
    assert ops_of(graph) == ["linear", "rms_norm", "rms_norm"]
    assert [t.name for t in graph.nodes[2].tensors] == ["1.w", "1.b", "2.w", "2.b"]
    assert graph.nodes[3].reads == ("1.w", "1.b")
