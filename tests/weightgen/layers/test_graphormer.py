import pytest
import torch

from tests.helpers.graph_inputs import chain, permute
from weightgen.layers.graphormer import DistanceBias, GraphEncoder, GraphInputs, GraphormerLayer


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return GraphEncoder(num_ops=4, num_roles=3, dim=16, num_layers=2, num_heads=4, max_distance=5)


def test_the_order_of_nodes_changes_nothing(encoder):
    graph = chain(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(encoder(graph), encoder(permute(graph, order)), atol=1e-5)


def test_the_order_of_tensors_changes_the_order_of_tokens_alone(encoder):
    graph = chain(9)
    order = torch.randperm(len(graph.owners), generator=torch.Generator().manual_seed(1))
    other = graph._replace(**{name: getattr(graph, name)[order] for name in ("roles", "shapes", "siblings", "owners")})
    assert torch.allclose(encoder(graph)[order], encoder(other), atol=1e-5)


def test_every_parameter_trains_on_a_graph_that_holds_every_op_and_role(encoder):
    graph = chain(12)
    graph = graph._replace(ops=torch.arange(12) % 4, roles=torch.arange(len(graph.roles)) % 3)
    (encoder(graph) * torch.randn(12, 16, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.flatten(1 if parameter.ndim > 1 else 0).any(-1).all(), name


def test_tensors_of_one_node_have_tokens_of_their_own(encoder):
    tokens = encoder(chain(6))
    assert len(tokens.detach().unique(dim=0)) == len(tokens)


def test_nodes_alike_are_told_apart_by_their_number_among_twins(encoder):
    distances = torch.tensor([[0, 1, 1], [-1, 0, -1], [-1, -1, 0]])
    same = torch.tensor([0, 0])
    graph = GraphInputs(
        ops=torch.tensor([0, 1, 1]),
        degrees=torch.tensor([[0, 2], [1, 0], [1, 0]]),
        depth=torch.tensor([0, 1, 1]),
        distances=distances,
        twins=torch.tensor([0, 0, 1]),
        roles=same,
        shapes=torch.ones(2, 4, dtype=torch.long),
        siblings=same,
        owners=torch.tensor([1, 2]),
    )
    first, second = encoder(graph)
    assert not torch.allclose(first, second, atol=1e-2)
    first, second = encoder(graph._replace(twins=torch.zeros(3, dtype=torch.long)))
    assert torch.allclose(first, second, atol=1e-5)


def test_ways_along_and_against_the_arrows_and_no_way_have_biases_of_their_own():
    torch.manual_seed(0)
    bias = DistanceBias(2, max_distance=3)(torch.tensor([[0, 1, 3], [-1, 0, -1], [-1, -1, 0]]))
    assert bias.shape == (2, 3, 3)
    pairs = {"self": (0, 0), "one on": (0, 1), "three on": (0, 2), "one back": (1, 0), "three back": (2, 0)}
    values = torch.stack([bias[:, i, j] for i, j in (*pairs.values(), (1, 2))]).detach()
    assert len(values.unique(dim=0)) == 6
    assert torch.equal(bias[:, 1, 2], bias[:, 2, 1]) and torch.equal(bias[:, 0, 0], bias[:, 2, 2])


def test_a_layer_attends_as_written_out():
    torch.manual_seed(0)
    layer, nodes, bias = GraphormerLayer(8, 2), torch.randn(5, 8), torch.randn(2, 5, 5)
    q, k, v = (part.unflatten(1, (2, 4)).transpose(0, 1) for part in layer.qkv(layer.norm1(nodes)).chunk(3, 1))
    mixed = (q @ k.transpose(1, 2) / 2 + bias).softmax(-1) @ v
    expected = nodes + layer.out(mixed.transpose(0, 1).flatten(1))
    expected = expected + layer.mlp(layer.norm2(expected))
    assert torch.allclose(layer(nodes, bias), expected, atol=1e-5)
