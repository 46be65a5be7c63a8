"""What a tensor is to the layer that owns it."""

import torch
from torch import nn

from model_zoo.architectures import build_target
from tests.helpers.graph_zoo import HandMadeAttention
from weightgen.graph.arch_graph import build_graph


def test_fused_attention_and_attention_by_hand_are_one_graph():
    fused, by_hand = (build_graph(HandMadeAttention(fused=fused)) for fused in (True, False))
    assert fused.nodes == by_hand.nodes
    assert torch.equal(fused.edges, by_hand.edges)


def test_roles_say_what_a_tensor_is_to_its_node():
    roles = {n: t.role for n, t in build_graph(build_target("resnet8").make()).owned.items() if n.startswith("norm")}
    assert roles == {
        "norm.weight": "norm weight",
        "norm.bias": "norm bias",
        "norm.running_mean": "running mean",
        "norm.running_var": "running var",
        "norm.num_batches_tracked": "carried",
    }
    buffers = {t.name for t in build_graph(nn.BatchNorm1d(4)).owned.values() if t.is_buffer}
    assert buffers == {"running_mean", "running_var", "num_batches_tracked"}
    attend = build_graph(nn.TransformerEncoderLayer(8, 2, 16)).owned
    assert attend["self_attn.in_proj_weight"].role == "in_proj"
    assert attend["self_attn.out_proj.weight"].role == "weight"
    assert {t.role for t in build_graph(nn.GRU(4, 5)).owned.values()} == {"weight", "bias"}
