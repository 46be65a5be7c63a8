"""Passes that depend on numbers of tensors."""

from typing import Any

from torch import Tensor, nn

from tests.graph_zoo import Experts, Net, assert_whole, ops_of
from weightgen.graph import build_graph


def test_experts_run_once_each_behind_their_gate():
    graph = build_graph(Experts())
    ops = ops_of(graph)
    assert (ops.count("gate"), ops.count("expert"), ops.count("linear")) == (1, 6, 0)
    assert graph.notes == ("the forward pass depends on values of tensors (positions), which were guessed",)


def test_loops_over_a_condition_of_the_data_end():
    def loop(m: Any, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = m.step(x)
        return x

    graph = build_graph(Net(loop, step=nn.Linear(4, 4)))
    assert_whole(graph, nn.ModuleDict({"step": nn.Linear(4, 4)}))
    assert "conditions" in graph.notes[0]
