"""Entries of a state_dict that cannot be served are reported, and the others served."""

import pytest
import torch
from torch import nn

from tests.helpers.graph_zoo import Net
from weightgen.errors import BadData
from weightgen.graph.arch_graph import build_graph


def test_lazy_parameters_are_reported_and_the_rest_is_served():
    graph = build_graph(nn.Sequential(nn.Linear(4, 5), nn.LazyLinear(3)))
    assert [t.name for t in graph.spec.tensors] == ["0.weight", "0.bias"]
    assert graph.left_out == dict.fromkeys(
        ("1.weight", "1.bias"), "it is lazy, its shape is not known yet; run one batch through the module first"
    )
    with pytest.raises(BadData, match="LazyLinear has no tensors to make; left out: 'weight', 'bias'.*run one"):
        build_graph(nn.LazyLinear(3))


def test_quantised_tensors_are_reported_and_the_rest_is_served():
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    net[1].weight = nn.Parameter(torch.zeros(2000, 2200, dtype=torch.int8), requires_grad=False)
    graph = build_graph(net)
    assert graph.left_out["1.weight"].startswith("it holds 4,400,000 integers (int8), as quantised weights do")
    assert "1.bias" in graph.owner


def test_tensors_without_elements_are_reported_and_served():
    graph = build_graph(Net(lambda m, x: m.linear(x), linear=nn.Linear(4, 2), none=nn.Parameter(torch.empty(0, 3))))
    assert "'none' has no elements" in graph.notes
    assert graph.unreached == ("none",)


def test_a_module_that_contains_itself_is_reported_and_served():
    outer, inner = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    outer.add_module("inner", inner)
    inner.add_module("outer", outer)
    graph = build_graph(outer)
    assert graph.notes[0].startswith("'the module' contains itself as 'inner.outer'; its tensors are listed once")
    assert {t.name for t in graph.spec.tensors} == {"0.weight", "0.bias", "inner.0.weight", "inner.0.bias"}


def test_a_module_without_tensors_is_refused():
    with pytest.raises(BadData, match="ReLU has no tensors to make"):
        build_graph(nn.ReLU())
