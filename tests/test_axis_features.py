import pytest
import torch

from weightgen.layers.axis_features import NUM_WAVES, AxisFeatures, modulate, number_features, wave_features


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
        features.angles(size, 3).sin().square().sum().backward()
        for name, parameter in features.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum(0).count_nonzero() > 0, name
            assert parameter.grad.flatten(1 if parameter.ndim > 1 else 0).any(-1).all(), name


def test_positions_of_a_kernel_are_told_apart_and_one_position_is_none():
    torch.manual_seed(0)
    features = AxisFeatures(16)
    assert torch.equal(features.angles(5, 1), features.angles(5))
    assert len(features.angles(5, 3).unique(dim=0)) == 15
    assert torch.allclose(features.angles(5, 3).unflatten(0, (5, 3)).mean(1), features.angles(5), atol=1e-5)


def test_modulation_by_zero_is_the_sine_of_the_angles():
    angles = torch.randn(4, 3)
    assert torch.equal(modulate(angles, torch.zeros(3), torch.zeros(3)), angles.sin())
