"""The PCA codec inverts itself at full rank, keeps what it says it keeps, and refuses what it cannot fit."""

import math

import pytest
import torch

from model_zoo.architectures import build_target
from weightgen.errors import BadData, BadOption, SpecMismatch
from weightgen.weightspace.codecs.pca import PcaCodec, token_groups
from weightgen.weightspace.tokens import chunk_layout, neuron_layout

GROUPS = [[0, 1, 2], [3, 4]]


def make_tokens(rng, *, networks=40, dim=6):
    """Tokens (b, 5, 6) of two groups with means of their own; the second group's last two columns are padding."""
    mask = torch.ones(5, dim, dtype=torch.bool)
    mask[3:, 4:] = False
    mixing = torch.randn(5, dim, dim, generator=rng)
    mixing[1] = mixing[2] = mixing[0]
    mixing[4] = mixing[3]
    tokens = torch.einsum("bnd,nde->bne", torch.randn(networks, 5, dim, generator=rng), mixing)
    return (tokens + 3 * torch.randn(5, dim, generator=rng)) * mask, mask


def test_decode_inverts_encode_at_full_rank(rng):
    tokens, mask = make_tokens(rng)
    codec = PcaCodec.fit(tokens, mask, GROUPS, rank=6)
    unseen, _ = make_tokens(rng)
    for x in (tokens, unseen):
        torch.testing.assert_close(codec.decode(codec.encode(x)), x, rtol=1e-4, atol=1e-4)
    assert codec.explained == pytest.approx(1, abs=1e-6)
    assert codec.latent_shape == (5, 6)


def test_latents_have_zero_mean_and_unit_variance_and_padding_decodes_to_zero(rng):
    tokens, mask = make_tokens(rng)
    codec = PcaCodec.fit(tokens, mask, GROUPS, rank=3)
    latents = codec.encode(tokens)
    torch.testing.assert_close(latents.mean(0), torch.zeros(5, 3), rtol=0, atol=1e-5)
    torch.testing.assert_close(latents.var(0, correction=0), torch.ones(5, 3), rtol=1e-4, atol=1e-4)
    assert bool((codec.decode(torch.randn(7, 5, 3, generator=rng))[:, ~mask] == 0).all())


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_explained_is_what_reconstruction_keeps(rng, rank):
    tokens, mask = make_tokens(rng)
    codec = PcaCodec.fit(tokens, mask, GROUPS, rank=rank)
    lost = (codec.decode(codec.encode(tokens)) - tokens).square().sum()
    total = (tokens - tokens.mean(0)).square().sum()
    assert codec.explained == pytest.approx(1 - float(lost / total), abs=1e-5)


def test_no_other_subspace_of_its_rank_keeps_more(rng):
    tokens, mask = make_tokens(rng)
    codec = PcaCodec.fit(tokens, mask, GROUPS, rank=2)
    centred = (tokens - tokens.mean(0))[:, :3].flatten(0, 1)
    best = torch.linalg.svdvals(centred)[:2].square().sum()
    kept = (centred @ codec.components[0].T).square().sum()
    torch.testing.assert_close(kept, best, rtol=1e-4, atol=0)


def test_latents_beyond_what_the_data_hold_are_zero(rng):
    tokens, mask = make_tokens(rng, networks=3)
    codec = PcaCodec.fit(tokens, mask, [[i] for i in range(5)], rank=6)
    latents = codec.encode(tokens)
    assert bool((latents[..., 2:] == 0).all())  # three networks less their mean span two directions
    torch.testing.assert_close(codec.decode(latents), tokens, rtol=1e-4, atol=1e-4)


def test_tokens_that_never_vary_are_kept(rng):
    tokens, mask = make_tokens(rng)
    tokens = tokens[:1].expand(8, -1, -1).contiguous()
    codec = PcaCodec.fit(tokens, mask, GROUPS, rank=2)
    assert bool((codec.encode(tokens).abs() < 1e-5).all())
    torch.testing.assert_close(codec.decode(codec.encode(tokens)), tokens)
    assert codec.explained == 1


def test_a_state_dict_holds_all_of_it(rng):
    tokens, mask = make_tokens(rng)
    codec = PcaCodec.fit(tokens, mask, GROUPS, rank=3)
    loaded = PcaCodec(num_tokens=5, token_dim=6, num_groups=2, rank=3)
    loaded.load_state_dict(codec.state_dict())
    assert torch.equal(loaded.decode(loaded.encode(tokens)), codec.decode(codec.encode(tokens)))
    assert loaded.explained == codec.explained


def test_bits_of_white_noise_are_the_gaussian_rate(rng):
    tokens = torch.randn(20_000, 1, 4, generator=rng)
    codec = PcaCodec.fit(tokens, torch.ones(1, 4, dtype=torch.bool), [[0]], rank=4)
    assert codec.bits_per_weight(0.25) == pytest.approx(math.log2(1 / 0.25), abs=0.01)
    assert codec.bits_per_weight(1.0) == pytest.approx(0, abs=1e-6)


def test_fewer_components_need_fewer_bits_until_they_cannot_reach(rng):
    tokens, mask = make_tokens(rng)
    full, small = (PcaCodec.fit(tokens, mask, GROUPS, rank=r) for r in (6, 3))
    left = (1 - small.explained) ** 0.5
    assert small.bits_per_weight((1 + left) / 2) > full.bits_per_weight((1 + left) / 2) > 0
    with pytest.raises(BadOption, match="what rank 3 leaves, and at most 1"):
        small.bits_per_weight(left / 2)


@pytest.mark.parametrize("layout", [neuron_layout, chunk_layout])
def test_groups_of_a_layout_hold_every_token_once_and_share_their_columns(layout):
    plan = layout(build_target("cnn-tiny").spec, 16)
    groups = token_groups(plan)
    assert sorted(i for members in groups for i in members) == list(range(plan.num_tokens))
    for members in groups:
        assert bool((plan.mask[members] == plan.mask[members[0]]).all())
        assert len({(tensor, chunk) for tensor, _, chunk, _ in plan.positions[members].tolist()}) == 1


def test_what_cannot_be_fitted_is_refused(rng):
    tokens, mask = make_tokens(rng)
    with pytest.raises(BadOption, match="rank is 0, expected 1 to 6, the width of a token"):
        PcaCodec.fit(tokens, mask, GROUPS, rank=0)
    with pytest.raises(BadOption, match="rank is 7, expected 1 to 6"):
        PcaCodec.fit(tokens, mask, GROUPS, rank=7)
    with pytest.raises(BadOption, match="components of 1 networks, expected 2 or more"):
        PcaCodec.fit(tokens[:1], mask, GROUPS, rank=2)
    with pytest.raises(SpecMismatch, match="do not hold each of the 5 tokens once"):
        PcaCodec.fit(tokens, mask, [[0, 1], [1, 2, 3, 4]], rank=2)
    with pytest.raises(BadData, match="hold NaN or infinite numbers"):
        PcaCodec.fit(tokens.where(tokens > tokens.amin(), math.nan), mask, GROUPS, rank=2)


@pytest.mark.wrong_types
def test_tokens_of_another_shape_than_their_mask_are_refused(rng):
    tokens, mask = make_tokens(rng)
    with pytest.raises(SpecMismatch, match=r"tokens have shape \[40, 4, 6\], the mask \[5, 6\]"):
        PcaCodec.fit(tokens[:, :4], mask, GROUPS, rank=2)


def test_tokens_and_latents_of_another_shape_are_refused(rng):
    tokens, mask = make_tokens(rng)
    codec = PcaCodec.fit(tokens, mask, GROUPS, rank=2)
    with pytest.raises(SpecMismatch, match=r"tokens have shape \[40, 5, 3\], expected \(b, 5, 6\)"):
        codec.encode(tokens[..., :3])
    with pytest.raises(SpecMismatch, match=r"latents have shape \[40, 5, 6\], expected \(b, 5, 2\)"):
        codec.decode(tokens)
