"""Passes that depend on numbers of tensors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.graph_zoo import Experts, Net, assert_whole, ops_of
from weightgen.graph.arch_graph import build_graph


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


@pytest.mark.parametrize("count", [torch.unique, torch.unique_consecutive])
def test_elements_are_counted_as_if_they_were_alike(count):
    def check(m: Any, x: Tensor) -> Tensor:
        assert count((x > 0).sum(1)).numel() == 1
        rows, place, size = count(x, return_inverse=True, return_counts=True, dim=0)
        assert rows.shape == (1, x.shape[1]) and place.shape == (len(x),) and size.shape == (1,)
        return m.layer(rows[place])

    graph = build_graph(Net(check, layer=nn.Linear(4, 4)))
    assert_whole(graph, nn.ModuleDict({"layer": nn.Linear(4, 4)}))
    assert graph.notes == ("the forward pass depends on values of tensors (numbers), which were guessed",)


def test_a_classifier_that_counts_the_ends_of_its_sequences_is_traced():
    transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")
    config = transformers.T5Config(
        vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    graph = build_graph(transformers.T5ForSequenceClassification(config))
    assert graph.unreached == () and "broke off" not in "".join(graph.notes)
