import math

import pytest
import torch
from torch import Tensor, nn

from weightgen.generators.logah.plan import Kept, Predicted, WeightScale, count_twins, graph_inputs, plan_weights
from weightgen.graph.arch_graph import build_graph


class Mixed(nn.Module):
    """One of many kinds of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, (3, 5))
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.act = nn.PReLU()
        self.class_token = nn.Parameter(torch.zeros(1, 1, 6))
        self.position = nn.Parameter(torch.zeros(1, 5, 6))
        self.query, self.key, self.value = (nn.Linear(6, 6) for _ in range(3))
        self.layer_scale = nn.Parameter(torch.full((6,), 1e-5))
        self.last_norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.up(self.grouped(self.norm(self.conv(x)))))
        x = x.mean(3).transpose(1, 2)[:, :4]
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.position
        mixed = nn.functional.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.last_norm(x + self.layer_scale * mixed)


@pytest.fixture(scope="module")
def graph():
    return build_graph(Mixed(), torch.zeros(1, 3, 12, 14))


def planned(graph, scale=None):
    return {p.tensor.name: p for p in plan_weights(graph, scale or WeightScale())}


def test_every_tensor_is_predicted_or_has_a_reason(graph):
    plan = planned(graph)
    assert list(plan) == [tensor.name for tensor in graph.spec.tensors]
    kept = {name: p.why for name, p in plan.items() if isinstance(p, Kept)}
    assert kept.keys() == {
        *("norm.running_mean", "norm.running_var", "norm.num_batches_tracked", "layer_scale", "act.weight")
    }
    assert "calibrate" in kept["norm.running_mean"] and "scales" in kept["layer_scale"]


def test_weights_are_as_large_as_their_fan_in_says(graph):
    rms = {name: p.unfolded.rms for name, p in planned(graph).items() if isinstance(p, Predicted)}
    assert rms["conv.weight"] == pytest.approx(math.sqrt(2 / 45))
    assert rms["grouped.weight"] == pytest.approx(math.sqrt(2 / 9))
    assert rms["up.weight"] == pytest.approx(math.sqrt(2 / 32))
    assert rms["query.weight"] == pytest.approx(math.sqrt(1 / 6))
    assert rms["position"] == rms["class_token"] == 0.3
    fixed = planned(graph, WeightScale(initializer_range=0.1))
    weights = [p for p in fixed.values() if isinstance(p, Predicted) and p.kind == "weight"]
    assert {p.unfolded.rms for p in weights} == {0.1}


def test_published_scales_are_those_of_the_paper(graph):
    plan = planned(graph, WeightScale(is_published=True))
    rms = {name: p.unfolded.rms for name, p in plan.items() if isinstance(p, Predicted)}
    assert rms["conv.weight"] == pytest.approx(math.sqrt(1 / 45))  # wider than high
    assert rms["grouped.weight"] == pytest.approx(math.sqrt(1 / 9))
    assert rms["query.weight"] == pytest.approx(math.sqrt(2 / 6))
    assert rms["position"] == 1


def test_unfolded_sizes_multiply_to_the_tensor(graph):
    for p in planned(graph).values():
        if isinstance(p, Predicted):
            rows, columns = p.unfolded.rows, p.unfolded.columns
            assert math.prod(rows) * math.prod(columns) == p.tensor.numel
    conv = planned(graph)["conv.weight"]
    assert isinstance(conv, Predicted) and (conv.unfolded.rows, conv.unfolded.columns) == ((8, 3), (3, 5))
    assert conv.how == "low rank 24 x 15" and conv.longest == 24


def test_query_key_and_value_are_told_apart(graph):
    twins = count_twins(graph)
    nodes = [graph.owner[f"{name}.weight"] for name in ("query", "key", "value")]
    assert sorted(twins[nodes].tolist()) == [0, 1, 2]


def test_inputs_of_the_encoder_stand_for_the_tensors_asked_for(graph):
    names = ["conv.weight", "conv.bias", "position"]
    inputs = graph_inputs(graph, names, max_distance=4)
    assert inputs.shapes.tolist() == [list(graph.shape_code(name)) for name in names]
    assert inputs.owners.tolist() == [graph.owner[name] for name in names]
    assert inputs.distances.max() <= 4
    assert len(inputs.ops) == len(inputs.twins) == len(graph.nodes)


def test_matrices_stored_the_other_way_round_are_unfolded_so():
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(4, 7))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    (p,) = plan_weights(build_graph(Stored(), torch.zeros(2, 4)), WeightScale())
    assert isinstance(p, Predicted) and p.unfolded.is_transposed
    assert p.unfolded.rms == pytest.approx(0.5) and p.unfolded.rows == (7, 1)


def test_buffers_are_kept_whatever_reads_them():
    class Positions(nn.Module):
        table: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)
            self.register_buffer("table", torch.ones(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) + self.table

    kept = [
        p for p in plan_weights(build_graph(Positions(), torch.zeros(1, 3, 4)), WeightScale()) if isinstance(p, Kept)
    ]
    assert [(p.tensor.name, p.why) for p in kept] == [("table", "a buffer: training does not change it")]


class Decaying(nn.Module):
    """A state that decays at rates of its own, as in Mamba, beside a gate and positions of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.rate_log, self.gate, self.position = (nn.Parameter(torch.zeros(3, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x) + self.position
        return torch.exp(x * -torch.exp(self.rate_log)) * torch.sigmoid(self.gate)


def test_matrices_that_scale_are_kept_and_those_that_are_added_are_not():
    plan = planned(build_graph(Decaying(), torch.zeros(1, 3, 4)))
    kept = {name: p.why for name, p in plan.items() if isinstance(p, Kept)}
    assert kept == dict.fromkeys(["rate_log", "gate"], "a raw matrix that scales something element by element")


def test_rates_of_a_mamba_are_kept():
    transformers = pytest.importorskip("transformers", reason="needs the extra 'transformers'")
    config = transformers.MambaConfig(vocab_size=20, hidden_size=8, state_size=4, num_hidden_layers=1)
    plan = planned(build_graph(transformers.MambaForCausalLM(config)))
    mixer = "backbone.layers.0.mixer"
    assert {name for name, p in plan.items() if isinstance(p, Kept)} == {f"{mixer}.A_log", f"{mixer}.D"}
