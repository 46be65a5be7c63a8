"""The study of texture automata: how textures are compared, what counts as sound, and that its denoiser learns."""

import torch

from benchmarks.studies.texture_distance import describe_texture, make_filters, typical_distance
from benchmarks.studies.texture_nca import is_sound, train_denoiser


def test_a_texture_is_nearer_to_its_shift_than_to_another(rng):
    filters = make_filters(rng=rng)
    stripes = torch.zeros(1, 3, 32, 32)
    stripes[..., ::4] = 1
    described = torch.stack([describe_texture(t, filters) for t in (stripes, stripes.roll(1, -1), stripes.mT)])
    unit = typical_distance(described)
    assert float((described[0] - described[1]).norm()) < 1e-4 * unit
    assert float((described[0] - described[2]).norm()) > 0.5 * unit


def test_a_flat_painting_is_not_sound(rng):
    colours = torch.tensor([-1.0, 0.0, 1.0])[:, None, None] * torch.ones(1, 3, 8, 8)
    assert not is_sound(colours)
    assert not is_sound(colours.where(colours > -1, float("nan")) + torch.rand(1, 3, 8, 8, generator=rng))
    assert is_sound(colours + torch.rand(1, 3, 8, 8, generator=rng) - 0.5)


def test_a_denoiser_trained_on_one_point_finds_it_in_noise(rng):
    latents = torch.randn(1, 2, 3, generator=rng)
    torch.manual_seed(0)
    denoiser = train_denoiser(latents, dim=16, depth=1, steps=150, learning_rate=1e-2)
    with torch.no_grad():
        found = denoiser(torch.randn(4, 2, 3, generator=rng), torch.full((4,), -8.0), torch.zeros(4, 1))
    assert float((found - latents).abs().mean()) < 0.3
