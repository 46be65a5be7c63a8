"""Which inputs a pass is run on, and what follows where it breaks off."""

import torch
from torch import nn

from tests.helpers.graph_zoo import Net, Stubborn, ops_of
from weightgen.graph.arch_graph import build_graph


def test_a_pass_that_breaks_off_is_continued_part_by_part():
    graph = build_graph(Stubborn())
    assert ops_of(graph) == ["linear", "linear", "sum", "linear", "linear"]
    assert graph.edges.tolist() == [[0, 1], [1, 2], [1, 3], [2, 3], [3, 4], [4, 5], [5, 6]]
    assert graph.unreached == ()
    assert len(graph.notes) == 1 and graph.notes[0].startswith("the forward pass broke off (")


def test_given_inputs_are_used():
    net = Net(lambda m, x: m.wide(x) if x.shape[-1] == 6 else m.narrow(x), narrow=nn.Linear(4, 2), wide=nn.Linear(6, 2))
    assert build_graph(net, torch.rand(1, 6)).unreached == ("narrow.weight", "narrow.bias")
    assert build_graph(net, torch.rand(1, 4)).unreached == ("wide.weight", "wide.bias")
    assert build_graph(net).unreached == ("wide.weight", "wide.bias")
