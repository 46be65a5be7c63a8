import torch

from tests.helpers.standins import make_support
from weightgen.layers.augment import augment_images


def test_augmentation_of_nothing_changes_nothing(rng):
    images = make_support().inputs
    same = augment_images(images, rng=rng, max_shift=0.0, max_degrees=0.0, max_scaling=0.0)
    torch.testing.assert_close(same, images, atol=1e-5, rtol=0)


def test_augmentation_shifts_by_whole_pixels_up_to_the_bound(rng):
    image = torch.zeros(200, 1, 28, 28)
    image[:, :, 14, 14] = 1
    moved = augment_images(image, rng=rng, max_degrees=0.0, max_scaling=0.0)
    rows = (moved.sum((1, 3)) * torch.arange(28)).sum(1) / moved.sum((1, 2, 3))
    assert 2.5 < float((rows - 14).abs().max()) <= 3.001
    assert moved.min() >= 0
    assert moved.max() <= 1 + 1e-6
