import math

import pytest
import torch

from weightgen.errors import BadOption, UnknownName
from weightgen.generators.d2nwg.diffusion import add_noise, draw_noise_levels, guide, sample_latents
from weightgen.generators.d2nwg.method import SCHEDULERS, D2nwgOptions


def tell_sign(latents: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
    """The exact denoiser where every latent is -1 or 1, as likely as not."""
    kept = torch.sigmoid(log_snr)[:, None, None]
    return torch.tanh(kept.sqrt() * latents / (1 - kept))


def draw(sampling: D2nwgOptions, seed: int = 0, denoise=tell_sign) -> torch.Tensor:
    return sample_latents(denoise, (400, 2, 3), sampling, rng=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_samples_the_distribution_that_the_denoiser_knows(scheduler):
    latents = draw(D2nwgOptions(scheduler, steps=20))
    assert (latents.abs() - 1).abs().max() < 0.05
    assert abs(float(latents.mean())) < 0.1


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_equal_seeds_give_equal_latents_and_others_do_not(scheduler):
    sampling = D2nwgOptions(scheduler, steps=4)
    assert torch.equal(draw(sampling), draw(sampling))
    assert not torch.equal(draw(sampling), draw(sampling, seed=1))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_one_step_is_the_mean_of_all_there_is(scheduler):
    assert draw(D2nwgOptions(scheduler, steps=1)).abs().max() < 0.1


def test_guidance_goes_past_the_condition():
    def plain(z, level):
        return torch.zeros_like(z)

    def told(z, level):
        return torch.ones_like(z)

    z, level = torch.zeros(1, 1, 1), torch.zeros(1)
    assert [float(guide(told, plain, g)(z, level)) for g in (0.0, 1.0, 2.5)] == [0, 1, 2.5]


def test_noise_levels_cover_the_schedule_and_noise_keeps_the_variance(rng):
    levels = draw_noise_levels(2000, rng=rng)
    assert levels.min() < -10 and levels.max() > 10 and abs(float(levels.median())) < 0.2
    noisy = add_noise(torch.randn(2000, 2, 2, generator=rng), levels, rng=rng)
    assert abs(float(noisy.var()) - 1) < 0.05
    clean = torch.randn(5, 2, 2, generator=rng)
    assert torch.allclose(add_noise(clean, torch.full((5,), 30.0), rng=rng), clean, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 10_000])
def test_impossible_numbers_of_steps_are_refused(steps):
    with pytest.raises(BadOption, match=f"steps is {steps}, expected 1 to 1000"):
        D2nwgOptions(steps=steps)


@pytest.mark.parametrize("guidance", [math.nan, math.inf, -1.0, 21.0])
def test_impossible_guidance_is_refused(guidance):
    with pytest.raises(BadOption, match="expected 0 to 20"):
        D2nwgOptions(guidance=guidance)


def test_an_unknown_scheduler_is_refused_with_those_there_are():
    with pytest.raises(UnknownName, match="ddim, dpm, flow"):
        D2nwgOptions("euler-ancestral")


def test_negative_refinements_are_refused():
    with pytest.raises(BadOption, match="refinements is -1, expected 0 or more"):
        D2nwgOptions(refinements=-1)
