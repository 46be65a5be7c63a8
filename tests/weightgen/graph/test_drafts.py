"""Which node owns a tensor that several operations read."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.graph_zoo import Net, ops_of, tied, used_twice
from weightgen.graph.arch_graph import build_graph


def test_tied_tensors_go_with_their_owner_and_the_other_reader_points_at_it():
    graph = build_graph(tied())
    embedding, head = graph.nodes[1:3]
    assert [t.name for t in embedding.tensors] == ["embed.weight", "head.weight"]
    assert (head.op, head.tensors, head.reads) == ("linear", (), ("embed.weight",))
    assert graph.spec.by_name["head.weight"].tied_to == "embed.weight"


def test_a_module_used_twice_owns_its_tensors_once():
    first, _, second = build_graph(used_twice()).nodes[1:-1]
    assert [t.name for t in first.tensors if t.name.startswith("0.")] == ["0.weight", "0.bias"]
    assert (second.tensors, second.reads) == ((), ("0.weight", "0.bias"))


def test_a_loop_over_slices_of_stacked_experts_leaves_the_nodes_of_one():
    def mix(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        _, chosen = m.gate(x).topk(2)
        mixed = torch.zeros_like(x)
        for i in range(5):
            rows = (chosen == i).any(-1).nonzero()[:, 0]
            mixed[rows] += F.relu(x[rows] @ m.w[i] + m.b[i])
        return mixed

    parts = {"w": nn.Parameter(torch.zeros(5, 8, 8)), "b": nn.Parameter(torch.zeros(5, 8))}
    graph = build_graph(Net(mix, first=nn.Linear(8, 8), gate=nn.Linear(8, 5), **parts))
    assert ops_of(graph) == ["linear", "gate", "expert", "activation"]
    assert [(t.name, t.role) for t in graph.nodes[3].tensors] == [("w", "weight"), ("b", "bias")]
    assert graph.shape_code("w") == (8, 8, 5, 1)
