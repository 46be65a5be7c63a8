import pytest
import torch

from weightgen.layers.axis_features import NUM_WAVES, AxisFeatures, number_features, wave_features


@pytest.mark.parametrize("size", [1, 2, 7, 50_257])
def test_no_two_units_have_the_same_waves(size):
    waves = wave_features(size)
    assert waves.shape == (size, NUM_WAVES)
    assert len(waves.unique(dim=0)) == size


def test_waves_of_far_units_are_as_exact_as_those_of_near_ones():
    far = wave_features(50_257)[50_000:50_003]
    # Neighbours turn by the same angles wherever they stand, in all columns but the shares of the axis.
    near = wave_features(50_257)[:3]
    assert torch.allclose(far @ far.T, near @ near.T, atol=1e-3)


def test_numbers_of_any_size_have_features_of_order_one():
    numbers = torch.tensor([0, 1, 2, 1000, 50_257, 2**40])
    features = number_features(numbers)
    assert features.shape == (6, 16)
    assert features.abs().max() <= 1
    assert len(features.unique(dim=0)) == 6


def test_every_parameter_trains_at_every_width():
    torch.manual_seed(0)
    for size in (2, 3, 64, 1000):
        features = AxisFeatures(16)
        (features(size, 3) * torch.randn(3 * size, 16)).sum().backward()
        for name, parameter in features.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum(0).count_nonzero() > 0, name
            assert parameter.grad.flatten(1 if parameter.ndim > 1 else 0).any(-1).all(), name


def test_positions_of_a_kernel_are_told_apart_and_one_position_is_none():
    torch.manual_seed(0)
    features = AxisFeatures(16)
    assert torch.equal(features(5, 1), features(5))
    assert len(features(5, 3).detach().unique(dim=0)) == 15


def test_features_are_the_same_with_and_without_a_gradient():
    torch.manual_seed(0)
    features = AxisFeatures(16)
    with torch.no_grad():
        without = features(300, 3)
    assert torch.equal(features(300, 3), without)
