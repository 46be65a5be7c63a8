import pytest
import torch

from model_zoo.architectures import build_target
from weightgen.target.trunk import trunk_features
from weightgen.weightspace.normal_form import fit_to_data, fitted_features, normalised_layers, to_normal_form


def complete(target, state):
    return target.spec.complete({**state, **{n: torch.zeros(target.spec.by_name[n].shape) for n in target.spec.head}})


def make_images(count: int = 64) -> torch.Tensor:
    return torch.rand(count, 1, 28, 28, generator=torch.Generator().manual_seed(3)).round()


@pytest.mark.parametrize("arch", ["cnn-tiny", "mlp-w16-d2"])
def test_on_its_own_data_a_trunk_comes_back_up_to_its_units_scales(arch):
    target, images = build_target(arch), make_images()
    state = target.init_state(0)
    state = {n: 20 * t if n.endswith("weight") else t for n, t in state.items()}  # far above the eps of variances
    fitted, features = fit_to_data(target, to_normal_form(target, state, images), images)
    before = trunk_features(target, state, images)
    scales = (features * before).sum(0) / before.square().sum(0).clamp_min(1e-12)
    assert torch.allclose(features, scales * before, atol=1e-3)
    assert torch.allclose(trunk_features(target, complete(target, fitted), images), features, atol=1e-4)


def test_units_that_differ_in_scale_alone_have_one_normal_form():
    target, images = build_target("cnn-tiny"), make_images()
    state = {n: 20 * t for n, t in target.init_state(0).items()}
    scaled = dict(state)
    factor = torch.tensor([0.5, 2, 3, 1, 1, 1, 1, 4.0])
    scaled["conv1.weight"] = state["conv1.weight"] * factor[:, None, None, None]
    scaled["conv1.bias"] = state["conv1.bias"] * factor
    scaled["conv2.weight"] = state["conv2.weight"] / factor[None, :, None, None]
    a, b = (to_normal_form(target, s, images) for s in (state, scaled))
    assert all(torch.allclose(a[name], b[name], atol=1e-4) for name in a)


@pytest.mark.parametrize("arch", ["cnn-w4-d2", "resnet8"])
def test_batchnorm_is_measured_on_the_data(arch):
    target, images = build_target(arch), make_images()
    state = target.init_state(0)
    trunk = to_normal_form(target, state, images)
    assert all(torch.equal(trunk[name], state[name]) for name in trunk)
    fitted, features = fit_to_data(target, trunk, images)
    layer = next(iter(normalised_layers(target)))
    assert not torch.equal(fitted[f"{layer}.running_mean"], state[f"{layer}.running_mean"])
    assert torch.allclose(trunk_features(target, complete(target, fitted), images), features, atol=1e-4)


def test_features_do_not_feel_brightness_and_contrast_and_gradients_flow():
    target, images = build_target("cnn-tiny"), make_images()
    trunk = {n: t.clone().requires_grad_() for n, t in to_normal_form(target, target.init_state(0), images).items()}
    _, features = fit_to_data(target, trunk, images)
    _, dimmed = fit_to_data(target, trunk, 0.2 + 0.6 * images)
    assert torch.allclose(features, dimmed, atol=0.05 * float(features.detach().abs().max()))
    features.square().mean().backward()
    assert all(t.grad is not None and torch.isfinite(t.grad).all() for t in trunk.values())


@pytest.mark.parametrize("arch", ["cnn-tiny", "cnn-w4-d2"])
def test_fitted_states_run_on_other_images_as_torch_runs_them_with_gradients(arch):
    target, images, others = build_target(arch), make_images(), make_images(80)[64:]
    trunk = {n: t.requires_grad_() for n, t in to_normal_form(target, target.init_state(0), images).items()}
    state, _ = fit_to_data(target, trunk, images)
    features = fitted_features(target, state, others)
    expected = trunk_features(target, complete(target, {n: t.detach() for n, t in state.items()}), others)
    assert torch.allclose(features, expected, atol=1e-4)
    features.square().sum().backward()
    first = next(iter(trunk.values()))
    assert first.grad is not None and first.grad.abs().max() > 0


def test_layernorm_networks_normalise_only_what_reads_the_images():
    target = build_target("vit-tiny")
    assert len(normalised_layers(target)) == 1
