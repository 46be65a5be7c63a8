"""Tensors that no operation of a pass reads."""

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.graph_zoo import Net, RootNorm, sources_of
from weightgen.graph.arch_graph import build_graph


def test_tensors_that_no_operation_reads_hang_behind_the_tensor_before():
    net = Net(lambda m, x: m.last(m.first(x)), first=nn.Linear(4, 5), spare=nn.Conv2d(3, 2, 1), last=nn.Linear(5, 2))
    graph = build_graph(net)
    assert graph.unreached == ("spare.weight", "spare.bias")
    assert graph.nodes[graph.owner["spare.weight"]].op == "conv"
    assert sources_of(graph, graph.owner["spare.weight"]) == [graph.owner["first.weight"]]
    assert sources_of(graph, len(graph.nodes) - 1) == [graph.owner["last.weight"]]


class OffsetNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)) * (1 + self.weight)


@pytest.mark.parametrize(
    ("norm", "name", "role"), [(RootNorm, "gain", "norm weight"), (OffsetNorm, "weight", "norm bias")]
)
def test_a_part_that_was_not_met_is_what_others_of_its_type_are(norm, name, role):
    net = Net(lambda m, x: m.met(m.first(x)), first=nn.Linear(4, 5), met=norm(5), spare=norm(5))
    graph = build_graph(net)
    assert graph.unreached == (f"spare.{name}",)
    assert graph.nodes[graph.owner[f"spare.{name}"]].op == "rms_norm"
    assert graph.owned[f"spare.{name}"].role == graph.owned[f"met.{name}"].role == role


def test_a_part_of_a_type_that_was_never_met_is_a_parameter():
    net = Net(lambda m, x: m.first(x), first=nn.Linear(4, 5), spare=RootNorm(5))
    graph = build_graph(net)
    assert graph.nodes[graph.owner["spare.gain"]].op == "parameter"
    assert graph.owned["spare.gain"].role == "raw"
