import pytest
import torch

from tests.helpers.graph_inputs import chain, permute
from weightgen.generators.logah.published import MAX_ROWS, PRIMITIVES, PublishedDecoder, PublishedEncoder
from weightgen.layers.low_rank_decoder import WeightShape, multiply


@pytest.mark.parametrize(
    ("rank", "num_layers", "dim", "num_heads", "count"),
    [
        pytest.param(32, 3, 64, 8, 2_540_380, id="T"),
        pytest.param(90, 5, 128, 16, 21_412_794, id="S"),
        pytest.param(128, 5, 256, 16, 78_231_892, id="B"),
        pytest.param(256, 12, 256, 16, 289_423_316, id="L"),
    ],
)
def test_sizes_have_as_many_parameters_as_published(rank, num_layers, dim, num_heads, count):
    with torch.device("meta"):
        networks = PublishedEncoder(dim=dim, num_layers=num_layers, num_heads=num_heads), PublishedDecoder(dim, rank)
    assert len(PRIMITIVES) == 15
    assert sum(p.numel() for network in networks for p in network.parameters()) == count


def test_rows_are_those_of_the_whole_factors_cut():
    torch.manual_seed(0)
    decoder, tokens = PublishedDecoder(8, 4), torch.randn(3, 8)
    shapes = [WeightShape.of_kernel(s, rms=0.5) for s in ((5, 7), (3, 2, 3, 3), (20_000, 3))]
    with torch.no_grad():
        halves = decoder.square(decoder.trunk(tokens).unflatten(1, (8, 4))).relu()
        whole = decoder.table(halves).reshape(3, 2 * MAX_ROWS, 4)
        for i, (shape, factors) in enumerate(zip(shapes, decoder(tokens, shapes), strict=True)):
            m, n = shape.rows[0] * shape.rows[1], shape.columns[0] * shape.columns[1]
            product = 0.5 * whole[i, :m] @ whole[i, MAX_ROWS : MAX_ROWS + n].T
            expected = product.reshape(*shape.rows, *shape.columns).transpose(1, 2).reshape(shape.shape)
            assert torch.allclose(multiply(factors, shape), expected, atol=1e-6)
        vector = decoder.vectors(tokens[:1], [11])[0]
        assert torch.allclose(vector, whole[0, :11] @ whole[0, MAX_ROWS], atol=1e-6)


def test_most_of_the_table_is_dead_as_the_paper_has_it():
    torch.manual_seed(0)
    decoder, shape = PublishedDecoder(8, 4), WeightShape.of_kernel((64, 64), rms=1.0)
    multiply(next(decoder(torch.randn(1, 8), [shape])), shape).sum().backward()
    assert decoder.table.weight.grad is not None
    assert decoder.table.weight.grad.any(1).sum() <= 64 * 4


def test_the_order_of_nodes_changes_nothing():
    torch.manual_seed(0)
    encoder, graph = PublishedEncoder(dim=16, num_layers=2, num_heads=4), chain(9)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert torch.allclose(encoder(graph), encoder(permute(graph, order)), atol=1e-5)


def test_sizes_beyond_the_tables_count_as_the_nearest():
    torch.manual_seed(0)
    encoder, graph = PublishedEncoder(dim=16, num_layers=1, num_heads=4), chain(3)
    large = graph._replace(shapes=torch.full_like(graph.shapes, 50_257))
    largest = graph._replace(shapes=torch.tensor([[8192, 8192, 16, 16]]).expand_as(graph.shapes))
    assert torch.equal(encoder(large), encoder(largest))
