import pytest
import torch

from model_zoo.published.cifar_resnets import resnet_target
from weightgen.errors import BadData, BadOption
from weightgen.weightspace.codecs.window_vae import WindowVae
from weightgen.weightspace.windows import measure_statistics, split_windows

TARGET = resnet_target(8)
STATE = TARGET.init_state(0)
STATISTICS = measure_statistics([(TARGET.spec, STATE)])
WINDOWS = split_windows(TARGET.spec, STATISTICS, token_dim=144)
EVERY = range(WINDOWS.num_tokens)
TOKENS, KINDS, PLACES, MASK = (
    f(EVERY)[None] for f in (lambda w: WINDOWS.read(STATE, w), WINDOWS.kind_indices, WINDOWS.places, WINDOWS.mask)
)


def make_codec(latent_dim: int = 24) -> WindowVae:
    torch.manual_seed(0)
    codec = WindowVae(num_kinds=len(STATISTICS), latent_dim=latent_dim, dim=16, depth=1).requires_grad_(False)
    codec.set_components(TOKENS[0], KINDS[0])
    return codec


def error_of(codec: WindowVae) -> float:
    decoded = codec.decode(codec.encode(TOKENS, KINDS, PLACES), KINDS, PLACES, MASK)
    return float((decoded - TOKENS).square().sum() / TOKENS.square().sum())


def test_untrained_it_is_the_linear_codec_of_principal_components():
    expected = 0.0
    for kind in KINDS[0].unique():
        sizes = torch.linalg.svdvals(TOKENS[0, KINDS[0] == kind].double())
        expected += float(sizes[24:].square().sum())
    assert error_of(make_codec()) == pytest.approx(expected / float(TOKENS.square().sum()), abs=1e-3)


def test_with_a_base_a_place_alone_decodes_to_weights_of_its_deviation():
    torch.manual_seed(0)
    codec = WindowVae(num_kinds=len(STATISTICS), latent_dim=4, dim=64, base=1.0).requires_grad_(False)
    tokens = codec.decode(torch.zeros(1, WINDOWS.num_tokens, 4), KINDS, PLACES, MASK)
    assert float(tokens[MASK].std()) == pytest.approx(1, abs=0.15)
    rows = torch.corrcoef(tokens[0, 60:100])
    assert float(rows.abs().mean()) < 0.5


def test_with_as_many_latents_as_numbers_decode_inverts_encode():
    assert error_of(make_codec(144)) < 1e-6


def test_latents_have_mean_zero_and_unit_variance_once_scaled():
    codec = make_codec()
    codec.into.weight.add_(torch.randn(codec.into.weight.shape))
    codec.to_latents.weight.add_(0.3 * torch.randn(codec.to_latents.weight.shape))
    before = error_of(codec)
    codec.set_latent_scaling(codec.encode(TOKENS, KINDS, PLACES)[0], KINDS[0])
    latents = codec.encode(TOKENS, KINDS, PLACES)[0]
    for kind in KINDS[0].unique():
        rows = latents[KINDS[0] == kind]
        assert float(rows.mean(0).abs().max()) < 1e-3 and float(rows.std(0, correction=0).max()) < 1.01
    assert error_of(codec) == pytest.approx(before, rel=1e-3)


def test_windows_do_not_see_each_other_and_padding_is_zero():
    codec = make_codec()
    codec.out_of.weight.add_(torch.randn(codec.out_of.weight.shape))
    pair = [torch.cat([x[:, :20], x[:, 20:40]]) for x in (TOKENS, KINDS, PLACES, MASK)]
    latents = codec.encode(*pair[:3])
    for i in range(2):
        alone = [x[i : i + 1] for x in pair]
        torch.testing.assert_close(latents[i : i + 1], codec.encode(*alone[:3]))
        decoded = codec.decode(latents[i : i + 1], *alone[1:])
        torch.testing.assert_close(decoded[0], codec.decode(latents, *pair[1:])[i])
        assert not decoded[~alone[3]].any()


def test_impossible_sizes_and_tokens_are_refused():
    with pytest.raises(BadOption, match="latent_dim is 200, expected 1 to 144, the width of a token"):
        WindowVae(num_kinds=1, latent_dim=200)
    with pytest.raises(BadData, match="the tokens hold NaN or infinite numbers"):
        make_codec().set_components(TOKENS[0] * float("nan"), KINDS[0])
