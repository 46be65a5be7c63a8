import sys
from typing import Any

import pytest
import torch

from model_zoo.architectures import ARCHITECTURES, FAMILIES, build_target
from tests.helpers.hub_loader import hub_class
from weightgen.errors import BadOption, UnknownName, UnsupportedTask
from weightgen.spec import State
from weightgen.target.network import Target

ALL = pytest.mark.parametrize(
    "arch", [*sorted(ARCHITECTURES), "cnn-w8", "cnn-d2", "cnn-w12-d6", "mlp-w16-d4", "mlp-d1"]
)
CHANNELS = pytest.mark.parametrize("in_channels", [1, 3])


def trained_like_state(target: Target) -> State:
    """A state whose biases, norms and statistics are away from the zeros and ones they start with."""
    rng = torch.Generator().manual_seed(0)
    state = target.init_state(0)
    for name, t in state.items():
        if t.dtype.is_floating_point:
            noise = torch.randn(t.shape, generator=rng)
            state[name] = torch.exp(noise) if name.endswith("running_var") else t + 0.1 * noise
    return state


def example(target: Target, n: int) -> torch.Tensor:
    return torch.rand(n, *target.input_shape, generator=torch.Generator().manual_seed(1))


@ALL
@CHANNELS
@pytest.mark.parametrize("num_classes", [2, 7, 64])
def test_every_input_gets_one_logit_a_class_from_the_head_on_its_features(arch, in_channels, num_classes):
    target = build_target(arch, in_channels=in_channels, num_classes=num_classes)
    module = target.load(target.init_state(0))
    for n in (1, 3):
        x = example(target, n)
        features = module.features(x)  # pyright: ignore
        assert features.shape == (n, module.head.in_features)  # pyright: ignore
        assert module(x).shape == (n, num_classes)
        assert torch.equal(module(x), module.head(features))  # pyright: ignore


@ALL
@CHANNELS
def test_any_order_of_any_hidden_units_computes_the_same(arch, in_channels):
    target = build_target(arch, in_channels=in_channels)
    state = trained_like_state(target)
    x = example(target, 4)
    rng = torch.Generator().manual_seed(2)
    orders = {word: torch.randperm(n, generator=rng) for word, n in target.spec.hidden.items()}
    with torch.no_grad():
        expected = target.run(state, x)
        assert expected.std(dim=0).max() > 0
        for moved in ([word] for word in orders) if arch in ARCHITECTURES else [list(orders)]:
            got = target.run(target.spec.permute(state, {word: orders[word] for word in moved}), x)
            assert (got - expected).abs().max() <= 1e-5 * expected.abs().max(), moved


@ALL
def test_a_word_left_out_of_one_tensor_changes_the_function(arch):
    target = build_target(arch)
    state = trained_like_state(target)
    x = example(target, 4)
    word = next(iter(target.spec.hidden))
    moved = target.spec.permute(state, {word: torch.arange(target.spec.hidden[word]).flip(0)})
    name = next(name for name in reversed(moved) if not torch.equal(moved[name], state[name]))
    broken = moved | {name: state[name]}
    assert not torch.allclose(target.run(broken, x), target.run(state, x), rtol=1e-3, atol=1e-3)


@ALL
def test_every_tensor_has_axes_and_only_the_head_knows_classes(arch):
    target = build_target(arch, num_classes=11)
    skeleton: Any = target.skeleton
    assert [skeleton.get_parameter(name) for name in target.spec.head] == [skeleton.head.weight, skeleton.head.bias]
    axes: dict[str, str] = target.skeleton.AXES  # pyright: ignore
    assert axes.keys() == target.spec.by_name.keys()
    for t in target.spec.generated:
        assert any(w.is_hidden or w.name == "CLASSES" for axis in t.axes for w in axis), t.name
        assert t.name in target.spec.head or 11 not in t.shape


@ALL
def test_what_may_be_scaled_is_a_hidden_word(arch):
    target = build_target(arch)
    assert set(target.skeleton.SCALABLE) <= target.spec.hidden.keys()  # pyright: ignore


@ALL
@CHANNELS
def test_pretrained_folders_round_trip(arch, in_channels, tmp_path):
    target = build_target(arch, in_channels=in_channels, num_classes=3)
    module = target.load(trained_like_state(target))
    module.save_pretrained(tmp_path)  # pyright: ignore
    back: Any = hub_class(module).from_pretrained(tmp_path)
    state = module.state_dict()
    assert list(back.state_dict()) == list(state)
    assert all(torch.equal(t, state[name]) for name, t in back.state_dict().items())
    x = example(target, 2)
    logits = back.eval()(x)
    assert torch.equal(getattr(logits, "logits", logits), module(x))


@ALL
def test_running_a_state_is_running_the_loaded_module(arch):
    target = build_target(arch)
    state = trained_like_state(target)
    x = example(target, 3)
    assert torch.equal(target.run(state, x), target.load(state)(x))


@ALL
def test_initial_states_follow_the_seed_and_leave_the_global_rng_alone(arch):
    before = torch.random.get_rng_state()
    target = build_target(arch)
    first, same, other = (target.init_state(seed) for seed in (0, 0, 1))
    target.load(first)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)
    target.spec.check(first)


def test_the_tiny_cnn_has_the_published_number_of_parameters():
    assert build_target("cnn-tiny", in_channels=1).spec.num_parameters == 2464
    assert build_target("cnn-tiny", in_channels=3).spec.num_parameters == 2864


def test_depth_and_width_are_what_the_name_says():
    assert build_target("cnn-w8-d6").spec.hidden == {"c1": 8} | {f"c{i}": 16 for i in range(2, 7)}
    assert build_target("mlp-w16-d3").spec.hidden == {"h1": 16, "h2": 16, "h3": 16}
    assert build_target("mlp-d1").spec.hidden == {"h1": 64}
    for arch, depth in (("resnet8", 8), ("resnet20", 20)):
        weights = [t for t in build_target(arch).spec.tensors if len(t.shape) > 1 and "shortcut" not in t.name]
        assert len(weights) == depth


@pytest.mark.parametrize("num_features", [1, 4, 300])
def test_mlps_take_feature_vectors(num_features):
    target = build_target("mlp", in_features=num_features, num_classes=3)
    assert target.input_shape == (num_features,)
    assert target.run(target.init_state(0), torch.rand(5, num_features)).shape == (5, 3)


@pytest.mark.parametrize(
    ("arch", "near"),
    [("resnet9", "resnet8"), ("cnn_tiny", "cnn-tiny"), ("vit", "vit-tiny"), ("cnn-d3-w8", "cnn"), ("mlp-16", "mlp")],
)
def test_an_unknown_name_is_answered_with_the_nearest(arch, near):
    with pytest.raises(UnknownName, match=f"no architecture is called '{arch}'; did you mean '{near}'") as fault:
        build_target(arch)
    assert fault.value.nearest == near and fault.value.exit_code == 5


def test_a_name_like_no_other_is_answered_with_all():
    with pytest.raises(
        UnknownName, match="no architecture is called 'transformer'; known: cnn, cnn-tiny, mlp, resnet20"
    ):
        build_target("transformer")


@pytest.mark.parametrize(
    ("arch", "options", "message"),
    [
        ("cnn", {"num_classes": 1}, "num_classes is 1, expected 2 to 4096"),
        ("cnn", {"num_classes": 5000}, "num_classes is 5000, expected 2 to 4096"),
        ("cnn", {"in_channels": 2}, "in_channels is 2, expected 1 or 3"),
        ("cnn", {"in_features": 4}, "architecture 'cnn' takes images, the data are vectors of 4; use 'mlp'"),
        ("cnn-w0", {}, "width of 'cnn-w0' is 0, expected 1 to 4096"),
        ("mlp-w9999", {}, "width of 'mlp-w9999' is 9999, expected 1 to 4096"),
        ("mlp-d65", {}, "depth of 'mlp-d65' is 65, expected 1 to 64"),
    ],
)
def test_options_out_of_range_are_refused(arch, options, message):
    with pytest.raises(BadOption, match=message) as fault:
        build_target(arch, **options)
    assert fault.value.exit_code == 2


@pytest.mark.parametrize("arch", ["", "cnn-w", "cnn-wx", "resnet8-w4", "cnn-w8-d2-x", " cnn", "../cnn"])
def test_names_that_only_look_right_are_unknown(arch):
    with pytest.raises(UnknownName):
        build_target(arch)


def test_families_are_registered():
    assert set(FAMILIES) <= ARCHITECTURES.keys()


def test_a_network_of_transformers_says_what_it_needs_where_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "model_zoo.architectures.vit_hf", None)
    with pytest.raises(UnsupportedTask, match=r"pip install 'weightgen\[transformers\]'"):
        build_target("vit-hf-tiny")
