"""Statistics against numpy's on all numbers at once, and scaling as an inverse pair."""

import json

import numpy as np
import pytest
import torch

from model_zoo.architectures import build_target
from weightgen.errors import BadData, CorruptFile, SpecMismatch
from weightgen.weightspace.scaling import Moments, MomentsByTensor, TokenScaling
from weightgen.weightspace.tokens import LAYOUTS, bare_spec, build_layout, chunk_layout, neuron_layout, stack_states

TARGET = build_target("cnn-tiny", num_classes=4)


@pytest.fixture
def stacked():
    states = [TARGET.init_state(seed) for seed in range(5)]
    for seed, state in enumerate(states):
        state["conv1.weight"] = state["conv1.weight"] * 100 + seed
        state["fc.bias"] = torch.full_like(state["fc.bias"], 0.1)  # no variance
        state["head.bias"] = state["head.bias"] * 0
    return stack_states(states)


@pytest.mark.parametrize("layout_name", LAYOUTS)
@pytest.mark.parametrize("token_dim", [1, 7, 64])
def test_scaled_training_tokens_have_mean_zero_and_variance_one(layout_name, token_dim, stacked):
    layout = build_layout(layout_name, TARGET.spec, token_dim=token_dim)
    tokens = layout.encode_batch(stacked)
    found = MomentsByTensor(TARGET.spec)
    found.add_tokens(tokens, layout)
    scaled = layout.decode_batch(found.fit().scale(tokens, layout))
    for name, tensor in scaled.items():
        constant = name in ("fc.bias", "head.bias")
        assert float(tensor.double().mean()) == pytest.approx(0, abs=1e-5), name
        assert float(tensor.double().std(correction=0)) == pytest.approx(0 if constant else 1, abs=1e-5), name


@pytest.mark.parametrize("layout_name", LAYOUTS)
@pytest.mark.parametrize("arch", ["cnn-tiny", "resnet8", "vit-tiny"])
def test_unscale_inverts_scale_and_leaves_padding_zero(layout_name, arch):
    target = build_target(arch)
    layout = build_layout(layout_name, target.spec, token_dim=50)
    tokens = torch.stack([layout.encode(target.init_state(seed)) for seed in range(3)])
    found = MomentsByTensor(target.spec)
    found.add_tokens(tokens, layout)
    scaling = found.fit()
    back = scaling.unscale(scaling.scale(tokens, layout), layout)
    assert torch.allclose(back, tokens, rtol=1e-6, atol=1e-6)
    assert not back[:, ~layout.mask].any()
    assert not scaling.scale(tokens, layout)[:, ~layout.mask].any()
    assert torch.equal(scaling.scale(tokens[0], layout), scaling.scale(tokens, layout)[0])


def test_numbers_far_from_zero_lose_nothing_beyond_their_own_rounding():
    state = {"w": 1000 + 0.01 * torch.randn(40, 30, generator=torch.Generator().manual_seed(0))}
    layout = chunk_layout(bare_spec(state, "far"), 16)
    tokens = layout.encode(state)
    found = MomentsByTensor(layout.spec)
    found.add_tokens(tokens, layout)
    scaling = found.fit()
    assert scaling.moments["w"].std == pytest.approx(float(state["w"].double().std(correction=0)), rel=1e-9)
    assert torch.allclose(scaling.unscale(scaling.scale(tokens, layout), layout), tokens, rtol=1e-6, atol=0)


def test_merging_pieces_in_any_order_equals_one_pass():
    rng = np.random.default_rng(0)
    samples = [rng.normal(1e4, 1e-2, size=n) for n in (1, 0, 500, 3, 2000)]
    whole = np.concatenate(samples)
    for order in (samples, samples[::-1]):
        found = Moments()
        for sample in order:
            found = found.merge(Moments.of(torch.from_numpy(sample)))
        assert found.count == len(whole)
        assert found.mean == pytest.approx(whole.mean(), rel=1e-14)
        assert found.std == pytest.approx(whole.std(), rel=1e-6)


def test_accumulators_merge_to_the_same_statistics(stacked):
    layout = neuron_layout(TARGET.spec, 32)
    tokens = layout.encode_batch(stacked)
    whole, left, right = (MomentsByTensor(TARGET.spec) for _ in range(3))
    whole.add_tokens(tokens, layout)
    left.add_tokens(tokens[:2], layout)
    right.add_tokens(tokens[2:], layout)
    left.merge(right)
    for name, found in left.fit().moments.items():
        expected = whole.moments[name]
        assert (found.count, found.mean, found.std) == pytest.approx((expected.count, expected.mean, expected.std))


def test_statistics_do_not_depend_on_the_layout(stacked):
    fits = []
    for layout in (neuron_layout(TARGET.spec, 7), chunk_layout(TARGET.spec, 64)):
        found = MomentsByTensor(TARGET.spec)
        found.add_tokens(layout.encode_batch(stacked), layout)
        fits.append(found.fit())
    for name in fits[0].moments:
        assert fits[0].moments[name].mean == pytest.approx(fits[1].moments[name].mean, rel=1e-12, abs=1e-15)


def test_a_scaling_is_read_back_from_json_exactly(stacked):
    layout = neuron_layout(TARGET.spec, 32)
    tokens = layout.encode_batch(stacked)
    found = MomentsByTensor(TARGET.spec)
    found.add_tokens(tokens, layout)
    scaling = found.fit()
    again = TokenScaling.from_json(TARGET.spec, json.loads(json.dumps(scaling.to_json())))
    assert again.moments == scaling.moments
    assert torch.equal(again.scale(tokens, layout), scaling.scale(tokens, layout))


def test_what_cannot_be_used_is_refused(stacked):
    layout = neuron_layout(TARGET.spec, 32)
    found = MomentsByTensor(TARGET.spec)
    with pytest.raises(BadData, match="is the training split empty"):
        found.fit()
    stacked["fc.weight"][0, 0, 0] = float("nan")
    with pytest.raises(BadData, match=r"'fc\.weight' of 'cnn-tiny' holds NaN"):
        found.add_tokens(layout.encode_batch(stacked), layout)
    other = build_target("cnn-tiny", num_classes=5)
    with pytest.raises(SpecMismatch, match="the layout is for 'cnn-tiny'"):
        found.add_tokens(torch.zeros(3, 32), neuron_layout(other.spec, 32))
    with pytest.raises(SpecMismatch, match="do not merge"):
        found.merge(MomentsByTensor(other.spec))
    with pytest.raises(SpecMismatch, match=r"tokens have shape \[3, 32\]"):
        found.add_tokens(torch.zeros(3, 32), layout)
    with pytest.raises(CorruptFile, match="expected one entry for each of its 10 tensors"):
        TokenScaling.from_json(TARGET.spec, {"w": {}})
    entry = {"count": 3, "mean": 0.0, "sum_of_squares": -1.0}
    with pytest.raises(CorruptFile, match="expected a count and finite moments"):
        TokenScaling.from_json(TARGET.spec, {t.name: entry for t in TARGET.spec.generated})
    with pytest.raises(CorruptFile, match="expected count, mean and sum_of_squares"):
        TokenScaling.from_json(TARGET.spec, {t.name: {"count": 3} for t in TARGET.spec.generated})
