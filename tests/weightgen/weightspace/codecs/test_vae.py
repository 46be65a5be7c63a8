import pytest
import torch

from weightgen.errors import SpecMismatch
from weightgen.weightspace.codecs.vae import TokenVae, kl_divergence

MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)


def make_vae() -> TokenVae:
    torch.manual_seed(0)
    return TokenVae(mask=MASK, group_sizes=[2, 1], num_latents=2, latent_dim=3, dim=32, depth=1, heads=2)


def make_tokens(count: int, rng: torch.Generator) -> torch.Tensor:
    """Tokens of which two numbers decide everything, at very different scales."""
    causes = torch.randn(count, 2, generator=rng)
    mixing = torch.randn(2, 12, generator=torch.Generator().manual_seed(5))
    scale = torch.tensor([1.0, 1.0, 100.0])[:, None]
    return scale * ((causes @ mixing).reshape(count, 3, 4) + 2) * MASK


def test_it_learns_to_give_back_tokens_it_has_not_seen(rng):
    vae, tokens = make_vae(), make_tokens(512, rng)
    vae.set_scaling(tokens)
    assert vae.weight_loss(tokens, vae.mean.expand_as(tokens)) == pytest.approx(1, abs=0.01)
    optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
    for _ in range(300):
        batch = tokens[torch.randint(512, (64,), generator=rng)]
        mean, log_var = vae.encode_distribution(batch)
        loss = vae.weight_loss(batch, vae.decode_raw(mean)) + 1e-5 * kl_divergence(mean, log_var)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    vae.set_latent_scaling(tokens)
    latents = vae.encode(tokens)
    assert latents.mean(0).abs().max() < 1e-3 and (latents.std(0) - 1).abs().max() < 1e-2
    unseen = make_tokens(64, rng)
    assert vae.weight_loss(unseen, vae.decode(vae.encode(unseen))) < 0.05


def test_padding_stays_zero_and_the_start_is_near_the_mean(rng):
    vae, tokens = make_vae(), make_tokens(64, rng)
    vae.set_scaling(tokens)
    decoded = vae.decode(torch.randn(5, 2, 3, generator=rng))
    assert decoded[:, ~MASK].abs().max() == 0
    assert vae.weight_loss(vae.mean.expand_as(decoded), decoded) < 0.2


def test_what_does_not_fit_is_refused():
    with pytest.raises(SpecMismatch, match="groups of 4 tokens, the layout has 3"):
        TokenVae(mask=MASK, group_sizes=[3, 1])
    with pytest.raises(SpecMismatch, match=r"tokens \[2, 4\], this codec takes \[3, 4\]"):
        make_vae().encode(torch.zeros(1, 2, 4))


def test_a_standard_normal_has_no_divergence():
    assert kl_divergence(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3)) == 0
    assert kl_divergence(torch.ones(1, 2, 3), torch.zeros(1, 2, 3)) == pytest.approx(0.5)
