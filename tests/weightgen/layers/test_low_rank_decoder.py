import pytest
import torch

from weightgen.layers.low_rank_decoder import (
    Factors,
    LowRankDecoder,
    WeightShape,
    mean_square,
    multiply,
    multiply_into,
)

SHAPES = [
    WeightShape.of_kernel((10, 7), rms=0.5),
    WeightShape.of_kernel((7, 5, 3), rms=0.5),
    WeightShape.of_kernel((6, 3, 5, 3), rms=0.2),
    WeightShape.of_kernel((4, 1, 3, 3), rms=1.0),
    WeightShape.of_kernel((4, 3, 2, 3, 5), rms=0.1),
    WeightShape.of_transposed_matrix((5, 9), rms=0.3),
    WeightShape.of_table((1, 1, 9), rms=0.02),
    WeightShape.of_table((2, 3, 4), rms=0.02),
    WeightShape.of_table((5,), rms=0.1),
    WeightShape.of_table((), rms=0.1),
    WeightShape.of_kernel((1, 1), rms=0.1),
    WeightShape.of_kernel((333, 1), rms=0.1),
    WeightShape.of_kernel((3, 100, 3), rms=0.1),
]


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    return LowRankDecoder(dim=16, rank=8)


@pytest.fixture
def tokens():
    return torch.randn(len(SHAPES), 16, generator=torch.Generator().manual_seed(1))


def test_the_mean_square_told_by_the_factors_is_that_of_the_product():
    rng = torch.Generator().manual_seed(0)
    for m, n in ((1, 1), (3, 50), (400, 7)):
        left, right = torch.rand(m, 8, generator=rng), torch.randn(8, n, generator=rng)
        product = left @ right
        assert torch.allclose(mean_square(left, right), product.square().mean(), rtol=1e-4)


def test_weights_have_the_shape_asked_for_and_the_size_that_their_factors_say(decoder, tokens):
    for shape, factors in zip(SHAPES, decoder(tokens, SHAPES), strict=True):
        weight = multiply(factors, shape)
        assert weight.shape == shape.shape
        assert torch.allclose(weight.square().mean().sqrt(), factors.rms, rtol=1e-3)
        assert 0.5 < factors.rms.item() / shape.rms < 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_writing_in_place_is_the_product_rounded_once(decoder, tokens, dtype):
    for shape, factors in zip(SHAPES, decoder(tokens, SHAPES), strict=True):
        target = torch.full(shape.shape, torch.nan, dtype=dtype)
        multiply_into(target, factors, shape)
        expected = multiply(factors, shape).to(dtype)
        assert torch.allclose(target, expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-4, atol=1e-6)


def test_targets_of_any_layout_are_written(decoder, tokens):
    shape = SHAPES[2]
    factors = next(decoder(tokens[2:3], [shape]))
    target = torch.empty(shape.shape).contiguous(memory_format=torch.channels_last)
    multiply_into(target, factors, shape)
    assert target.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(target, multiply(factors, shape))


@pytest.mark.parametrize("rank", [4, 50])
def test_large_kernels_are_made_in_one_product_or_block_by_block(rank):
    rng = torch.Generator().manual_seed(0)
    shape = WeightShape.of_kernel((300, 200, 3, 3), rms=1.0)
    factors = Factors(torch.randn(900, rank, generator=rng), torch.randn(rank, 600, generator=rng), torch.ones(()))
    target = torch.empty(shape.shape)
    multiply_into(target, factors, shape)
    assert torch.allclose(target, multiply(factors, shape), atol=1e-4)


def test_a_transposed_matrix_is_the_transpose(decoder, tokens):
    stored = WeightShape.of_transposed_matrix((5, 9), rms=0.3)
    plain = WeightShape.of_kernel((9, 5), rms=0.3)
    first, second = (next(decoder(tokens[:1], [shape])) for shape in (stored, plain))
    assert torch.equal(multiply(first, stored), multiply(second, plain).T)


def test_every_parameter_gets_a_gradient_from_a_few_shapes(decoder, tokens):
    weights = [multiply(f, s) for f, s in zip(decoder(tokens, SHAPES), SHAPES, strict=True)]
    vectors = decoder.vectors(tokens[:4], [5, 9, 5, 1])
    rng = torch.Generator().manual_seed(2)
    torch.stack([(t * torch.randn(t.shape, generator=rng)).sum() for t in (*weights, *vectors)]).sum().backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
        if parameter.ndim == 2 and not name.startswith(("trunk", "vector_trunk")):  # a ReLU may be off for all of these
            rows = parameter.grad.any(1)
            assert rows.all(), f"{name} has dead rows: {rows.logical_not().nonzero()[:, 0].tolist()}"
        else:
            assert parameter.grad.any(), name


def test_rows_of_a_tall_table_are_all_different(decoder, tokens):
    shape = WeightShape.of_table((50_257, 6), rms=0.02)
    factors = next(decoder(tokens[:1], [shape]))
    table = multiply(factors, shape)
    assert len(table.unique(dim=0)) == 50_257
    nearest = (table[:-1] - table[1:]).norm(dim=1) / table.norm(dim=1)[:-1]
    assert nearest.median() > 0.5


def test_a_product_begins_with_many_directions(tokens):
    torch.manual_seed(0)
    shape = WeightShape.of_kernel((384, 384), rms=1.0)
    singular = torch.linalg.svdvals(multiply(next(LowRankDecoder(16, 32)(tokens[:1], [shape])), shape))
    assert singular.square().sum() ** 2 / singular.pow(4).sum() > 8  # of 32; features with a mean leave 1 or 2


def test_vectors_of_one_size_are_made_together_and_come_in_order(decoder, tokens):
    sizes = [5, 9, 5, 1]
    vectors = decoder.vectors(tokens[:4], sizes)
    assert [len(v) for v in vectors] == sizes
    for i, size in enumerate(sizes):
        assert torch.allclose(vectors[i], decoder.vectors(tokens[i : i + 1], [size])[0], atol=1e-6)


def test_more_weights_than_are_made_at_once_come_in_order(decoder):
    tokens = torch.randn(70, 16, generator=torch.Generator().manual_seed(3))
    shapes = [WeightShape.of_kernel((4, 3), rms=1.0)] * 70
    together = [multiply(f, s) for f, s in zip(decoder(tokens, shapes), shapes, strict=True)]
    alone = multiply(next(decoder(tokens[65:66], shapes[:1])), shapes[0])
    assert len(together) == 70 and torch.allclose(together[65], alone, atol=1e-5)
