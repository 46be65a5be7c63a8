import torch

from weightgen.generators.d2nwg.denoiser import Denoiser
from weightgen.generators.d2nwg.diffusion import add_noise, draw_noise_levels


def make_denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(num_latents=2, latent_dim=3, condition_dim=4, dim=32, depth=1, heads=2)


def test_without_noise_it_returns_what_it_sees(rng):
    noisy = torch.randn(4, 2, 3, generator=rng)
    clean = make_denoiser()(noisy, torch.full((4,), 25.0), torch.zeros(4, 4))
    assert torch.allclose(clean, noisy, atol=1e-4)


def test_it_learns_latents_that_the_condition_decides(rng):
    denoiser = make_denoiser()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    for _ in range(150):
        condition = torch.randn(32, 4, generator=rng).sign()
        clean = condition[:, :1, None] * torch.ones(32, 2, 3)
        level = draw_noise_levels(32, rng=rng)
        loss = (denoiser(add_noise(clean, level, rng=rng), level, condition) - clean).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    asked = torch.tensor([[1.0, 1, 1, 1], [-1, 1, 1, 1]])
    told = denoiser(torch.randn(2, 2, 3, generator=rng), torch.full((2,), -12.0), asked)
    assert told[0].min() > 0.5 and told[1].max() < -0.5
