import torch

from weightgen.generators.d2nwg.window_denoiser import WindowDenoiser


def make_denoiser() -> WindowDenoiser:
    """Moved off its start, where it returns nothing but a share of its input."""
    torch.manual_seed(0)
    denoiser = WindowDenoiser(latent_dim=3, place_dim=5, condition_dim=4, dim=16, depth=2).requires_grad_(False)
    for name, parameter in denoiser.named_parameters():
        if "modulation" in name or name.startswith("out."):
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return denoiser


def run(denoiser: WindowDenoiser, **changed: torch.Tensor) -> torch.Tensor:
    rng = torch.Generator().manual_seed(0)
    given = {
        name: torch.randn(shape, generator=rng)
        for name, shape in (
            ("noisy", (2, 6, 3)), ("condition", (2, 4)), ("places", (2, 6, 5)), ("tail", (2, 3, 3)),
            ("tail_places", (2, 3, 5)),
        )
    }  # fmt: skip
    given |= {"log_snr": torch.zeros(2), "has_tail": torch.ones(2), **changed}
    return denoiser(given.pop("noisy"), given.pop("log_snr"), given.pop("condition"), **given)


def test_without_noise_it_returns_its_input():
    noisy = torch.randn(2, 6, 3)
    assert torch.allclose(run(make_denoiser(), noisy=noisy, log_snr=torch.full((2,), 40.0)), noisy, atol=1e-4)


def test_places_tail_and_condition_each_matter():
    denoiser = make_denoiser()
    for name, shape in (("places", (2, 6, 5)), ("tail", (2, 3, 3)), ("tail_places", (2, 3, 5)), ("condition", (2, 4))):
        assert not torch.allclose(run(denoiser), run(denoiser, **{name: torch.randn(shape)}), atol=1e-4)


def test_a_tail_that_is_not_there_is_not_looked_at():
    denoiser, nothing = make_denoiser(), torch.zeros(2)
    other = run(denoiser, has_tail=nothing, tail=torch.full((2, 3, 3), torch.inf), tail_places=torch.ones(2, 3, 5))
    assert torch.equal(run(denoiser, has_tail=nothing), other)
    one = run(denoiser, has_tail=torch.tensor([1.0, 0.0]))
    assert torch.allclose(one[0], run(denoiser)[0], atol=1e-6) and torch.allclose(one[1], other[1], atol=1e-6)


def test_latents_are_known_by_their_places_and_not_by_their_order():
    denoiser, order = make_denoiser(), torch.tensor([3, 1, 5, 0, 2, 4])
    rng = torch.Generator().manual_seed(3)
    noisy, places = torch.randn(2, 6, 3, generator=rng), torch.randn(2, 6, 5, generator=rng)
    turned = run(denoiser, noisy=noisy[:, order], places=places[:, order])
    assert torch.allclose(run(denoiser, noisy=noisy, places=places)[:, order], turned, atol=1e-5)
