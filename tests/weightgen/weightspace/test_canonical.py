import time

import pytest
import torch
from torch import Tensor

from model_zoo.architectures import ARCHITECTURES, build_target
from tests.helpers.states import assert_states_equal
from weightgen.errors import BadOption, SpecMismatch, UnknownName
from weightgen.spec import State, StateSpec
from weightgen.target.network import Target
from weightgen.weightspace.canonical import align, balance, canonicalize, permutation_of

ALL = pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
NORMED = {"running_mean", "running_var"}


def trained_like_state(target: Target, seed: int) -> State:
    """A state whose biases, norms and statistics are far from their initial zeros and ones."""
    rng = torch.Generator().manual_seed(seed)
    state = target.init_state(seed)
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=rng)
        if name.endswith("running_var"):
            state[name] = torch.exp(2 * noise)
        elif tensor.ndim == 1 and name.endswith("weight"):
            state[name] = 1 + 0.3 * noise
        elif tensor.dtype.is_floating_point:
            state[name] = tensor + 0.1 * noise
    return state


def random_permutations(spec: StateSpec, seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {word: torch.randperm(n, generator=rng) for word, n in spec.hidden.items()}


def scalable_words(target: Target) -> tuple[str, ...]:
    return target.skeleton.SCALABLE  # pyright: ignore


def assert_same_function(target: Target, got: State, expected: State) -> None:
    x = torch.rand(16, *target.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y, y_expected = target.run(got, x), target.run(expected, x)
    assert (y - y_expected).abs().max() <= 1e-5 * y_expected.abs().max()
    assert y_expected.std(dim=0).min() > 1e-3 * y_expected.abs().max()  # the inputs matter: the law is not empty


@ALL
@pytest.mark.parametrize("in_channels", [1, 3])
def test_align_undoes_a_random_permutation_bit_for_bit(arch, in_channels):
    target = build_target(arch, in_channels=in_channels)
    state = trained_like_state(target, 0)
    for seed in range(3):
        shuffled = target.spec.permute(state, random_permutations(target.spec, seed))
        assert_states_equal(align(shuffled, state, target.spec), state)


@pytest.mark.parametrize("arch", ["cnn-w64-d6", "mlp-w128-d4", "cnn-w4-d2"])
def test_align_undoes_a_random_permutation_across_the_families(arch):
    target = build_target(arch, num_classes=3)
    state = trained_like_state(target, 1)
    shuffled = target.spec.permute(state, random_permutations(target.spec, 1))
    assert_states_equal(align(shuffled, state, target.spec), state)


@ALL
def test_align_undoes_a_permutation_of_the_default_initialisation(arch):
    target = build_target(arch)
    state = target.init_state(0)
    shuffled = target.spec.permute(state, random_permutations(target.spec, 0))
    assert_states_equal(align(shuffled, state, target.spec), state)


def test_align_undoes_a_permutation_when_half_of_the_units_are_dead():
    target = build_target("cnn-tiny")
    state = trained_like_state(target, 0)
    state["conv1.weight"][::2] = 0
    state["conv1.bias"][::2] = 0
    shuffled = target.spec.permute(state, random_permutations(target.spec, 0))
    assert_states_equal(align(shuffled, state, target.spec), state)


@ALL
def test_align_undoes_a_permutation_under_noise(arch):
    target = build_target(arch)
    state = trained_like_state(target, 0)
    rng = torch.Generator().manual_seed(5)
    permutations = random_permutations(target.spec, 0)
    shuffled = target.spec.permute(state, permutations)
    noisy = {
        n: t * (1 + 0.1 * torch.randn(t.shape, generator=rng)) if t.dtype.is_floating_point else t
        for n, t in shuffled.items()
    }
    found = permutation_of(noisy, state, target.spec)
    assert found.keys() == permutations.keys()
    assert all(torch.equal(permutations[w][found[w]], torch.arange(n)) for w, n in target.spec.hidden.items())


@ALL
def test_align_keeps_the_function_and_comes_closer_to_another_network(arch):
    target = build_target(arch)
    state, reference = trained_like_state(target, 0), trained_like_state(target, 1)
    aligned = align(state, reference, target.spec)
    assert_same_function(target, aligned, state)

    def agreement(s: State) -> float:
        weights = [t.name for t in target.spec.generated if t.name.rpartition(".")[2] not in NORMED]
        return sum(float((s[name] * reference[name]).sum() / s[name].norm()) for name in weights)

    assert agreement(aligned) > agreement(state)


@ALL
def test_align_is_deterministic_and_does_nothing_the_second_time(arch):
    target = build_target(arch)
    state, reference = trained_like_state(target, 0), trained_like_state(target, 1)
    first = align(state, reference, target.spec)
    assert_states_equal(align(state, reference, target.spec), first)
    assert_states_equal(align(reference, reference, target.spec), reference)


@ALL
def test_permutation_of_is_what_align_applies(arch):
    target = build_target(arch)
    state, reference = trained_like_state(target, 0), trained_like_state(target, 1)
    found = permutation_of(state, reference, target.spec)
    assert all(torch.equal(found[w].sort().values, torch.arange(n)) for w, n in target.spec.hidden.items())
    assert_states_equal(align(state, reference, target.spec), target.spec.permute(state, found))


def test_networks_with_different_heads_are_matched_on_their_trunks():
    target, other = build_target("cnn", num_classes=4), build_target("cnn", num_classes=9)
    state = trained_like_state(target, 0)
    reference = trained_like_state(other, 7) | {n: t for n, t in state.items() if n not in target.spec.head}
    shuffled = target.spec.permute(state, random_permutations(target.spec, 0))
    trunk = [t.name for t in target.spec.generated if t.name not in target.spec.head]
    assert_states_equal(align(shuffled, reference, target.spec, compared=trunk), state)


def test_a_recurrent_matrix_moves_on_both_of_its_axes():
    cell = torch.nn.RNN(5, 12)
    axes = {"weight_ih_l0": "h INPUT", "weight_hh_l0": "h h", "bias_ih_l0": "h", "bias_hh_l0": "h"}
    spec = StateSpec.from_module(cell, axes, arch="rnn")
    state = {name: t.detach() for name, t in cell.state_dict().items()}
    shuffled = spec.permute(state, random_permutations(spec, 0))
    assert_states_equal(align(shuffled, state, spec), state)


def test_tied_tensors_share_storage_after_align_and_balance():
    first, second = torch.nn.Linear(6, 6, bias=False), torch.nn.Linear(6, 6, bias=False)
    second.weight = first.weight
    module = torch.nn.Sequential(first, second)
    spec = StateSpec.from_module(module, {"0.weight": "a 6", "1.weight": "a 6"}, arch="tied")
    state = {name: t.detach() for name, t in module.state_dict().items()}
    for done in (align(state, state, spec), balance(state, spec, scalable=())):
        assert done["0.weight"].data_ptr() == done["1.weight"].data_ptr()


@ALL
def test_integer_tensors_are_carried_through(arch):
    target = build_target(arch)
    state = trained_like_state(target, 0)
    state |= {n: torch.full_like(t, 77) for n, t in state.items() if not t.dtype.is_floating_point}
    done = canonicalize(state, target.spec, reference=state, scalable=scalable_words(target))
    assert all(torch.equal(done[n], t) for n, t in state.items() if not t.dtype.is_floating_point)


@ALL
@pytest.mark.parametrize("in_channels", [1, 3])
def test_balance_keeps_the_function(arch, in_channels):
    target = build_target(arch, in_channels=in_channels)
    for seed in range(3):
        state = trained_like_state(target, seed)
        assert_same_function(target, balance(state, target.spec, scalable=scalable_words(target)), state)


@ALL
def test_canonicalize_keeps_the_function(arch):
    target = build_target(arch)
    state, reference = trained_like_state(target, 0), trained_like_state(target, 1)
    done = canonicalize(state, target.spec, reference=reference, scalable=scalable_words(target))
    target.spec.check(done)
    assert_same_function(target, done, state)


@pytest.mark.parametrize("variance", [0.0, 1e-12, 1e-5, 1e6])
def test_balance_keeps_the_function_at_extreme_variances(variance):
    target = build_target("cnn")
    state = trained_like_state(target, 0)
    state["blocks.1.norm.running_var"][::3] = variance
    if variance < 1e-4:  # a channel that never varied is constant; its input is as well
        state["blocks.1.conv.weight"][::3] = 0
        state["blocks.1.norm.running_mean"][::3] = 0
    assert_same_function(target, balance(state, target.spec, scalable=scalable_words(target)), state)


@ALL
def test_balanced_units_have_equal_norms_before_and_behind(arch):
    target = build_target(arch)
    done = balance(trained_like_state(target, 0), target.spec, scalable=scalable_words(target))
    for word in scalable_words(target):
        made, read = torch.zeros(1), torch.zeros(1)
        for t in target.spec.generated:
            dims = [d for d, axis in enumerate(t.axes) if any(w.name == word for w in axis)]
            if not dims or t.name.rpartition(".")[2] in NORMED:
                continue
            norm = done[t.name].unflatten(dims[0], (target.spec.hidden[word], -1)).transpose(0, dims[0])
            norm = norm.flatten(1).square().sum(1)
            if dims[0] > 0:
                read = read + norm
            elif t.name.endswith(("conv.weight", "conv1.weight", "conv2.weight")) and arch != "cnn-tiny":
                torch.testing.assert_close(norm, torch.ones_like(norm))  # a BatchNorm follows
            else:
                made = made + norm
        torch.testing.assert_close(made, read, rtol=1e-3, atol=1e-6)


@ALL
def test_states_that_differ_in_scale_alone_balance_to_one(arch):
    target = build_target(arch)
    state = trained_like_state(target, 0)
    rng = torch.Generator().manual_seed(3)
    scaled = dict(state)
    for word in scalable_words(target):
        factor = torch.exp(torch.randn(target.spec.hidden[word], generator=rng))
        scaled = scale_word(target, scaled, word, factor)
    assert_same_function(target, scaled, state)
    scalable = scalable_words(target)
    expected, got = (balance(s, target.spec, scalable=scalable) for s in (state, scaled))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-3, atol=1e-4)


def scale_word(target: Target, state: State, word: str, factor: Tensor) -> State:
    """Every unit of a word times its factor, undone where it is read; a BatchNorm scales at its own weight and bias."""
    scaled = dict(state)
    for t in target.spec.generated:
        for dim, axis in enumerate(t.axes):
            if all(w.name != word for w in axis) or t.name.rpartition(".")[2] in NORMED:
                continue
            before_norm = dim == 0 and len(t.axes) > 1 and arch_normalises(target, t.name)
            per_unit = torch.ones_like(factor) if before_norm else factor if dim == 0 else 1 / factor
            per_unit = per_unit.repeat_interleave(t.shape[dim] // len(factor))
            scaled[t.name] = scaled[t.name] * per_unit.reshape([-1 if d == dim else 1 for d in range(len(t.shape))])
    return scaled


def arch_normalises(target: Target, name: str) -> bool:
    norm = name.replace("conv", "norm").replace(".weight", ".running_var")
    return norm in target.spec.by_name


def test_canonical_form_undoes_order_and_scale_together():
    target = build_target("resnet8")
    state = trained_like_state(target, 0)
    scalable = scalable_words(target)
    reference = balance(state, target.spec, scalable=scalable)
    factor = torch.exp(torch.randn(16, generator=torch.Generator().manual_seed(1)))
    changed = target.spec.permute(scale_word(target, state, "b0", factor), random_permutations(target.spec, 0))
    done = canonicalize(changed, target.spec, reference=reference, scalable=scalable)
    for name in reference:
        torch.testing.assert_close(done[name], reference[name], rtol=1e-3, atol=1e-4)


def test_dead_units_keep_their_scale():
    target = build_target("mlp")
    state = trained_like_state(target, 0)
    state["layers.0.weight"][3], state["layers.0.bias"][3] = 0, 0
    state["layers.1.weight"][:, 5] = 0
    done = balance(state, target.spec, scalable=["h1"])
    assert torch.equal(done["layers.1.weight"][:, 3], state["layers.1.weight"][:, 3])
    assert torch.equal(done["layers.0.weight"][5], state["layers.0.weight"][5])


def test_balance_changes_nothing_that_is_not_declared():
    target = build_target("resnet8")
    state = trained_like_state(target, 0)
    assert_states_equal(balance(state, target.spec, scalable=()), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype):
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2)).to(dtype)
    axes = {"0.weight": "a X", "0.bias": "a", "2.weight": "CLASSES a", "2.bias": "CLASSES"}
    spec = StateSpec.from_module(module, axes, arch="two-layers")
    state = {name: t.detach() for name, t in module.state_dict().items()}
    spec.check(canonicalize(state, spec, reference=state, scalable=["a"]))


def test_errors_name_what_is_wrong():
    target = build_target("cnn-tiny")
    state = target.init_state(0)
    with pytest.raises(UnknownName, match="no hidden axis of 'cnn-tiny' is called 'c9'"):
        balance(state, target.spec, scalable=["c9"])
    with pytest.raises(SpecMismatch, match=r"missing 'conv1.bias'"):
        align({n: t for n, t in state.items() if n != "conv1.bias"}, state, target.spec)
    with pytest.raises(SpecMismatch, match=r"'fc.bias' holds NaN"):
        align(state | {"fc.bias": torch.full((20,), torch.nan)}, state, target.spec)
    with pytest.raises(SpecMismatch, match=r"'fc.bias' holds NaN"):
        balance(state | {"fc.bias": torch.full((20,), torch.nan)}, target.spec, scalable=["f"])
    with pytest.raises(UnknownName, match=r"no tensor of 'cnn-tiny' is called 'fc.wieght'; did you mean 'fc.weight'"):
        align(state, state, target.spec, compared=["fc.wieght"])
    with pytest.raises(SpecMismatch, match=r"has no 'fc.weight', which was to be compared"):
        align(state, {}, target.spec, compared=["fc.weight"])
    with pytest.raises(SpecMismatch, match=r"'fc.weight' of the reference: expected shape \[20, 36\], got \[1\]"):
        align(state, {"fc.weight": torch.ones(1)}, target.spec, compared=["fc.weight"])


def test_a_word_that_one_tensor_makes_and_reads_is_refused():
    cell = torch.nn.RNN(5, 12)
    spec = StateSpec.from_module(cell, {"weight_ih_l0": "h INPUT", "weight_hh_l0": "h h"}, arch="rnn")
    with pytest.raises(BadOption, match="'weight_hh_l0' both makes and reads it"):
        balance(dict(cell.state_dict()), spec, scalable=["h"])


def test_the_tiny_network_is_aligned_in_milliseconds():
    target = build_target("cnn-tiny")
    state, reference = trained_like_state(target, 0), trained_like_state(target, 1)
    align(state, reference, target.spec)
    start = time.perf_counter()
    for _ in range(10):
        align(state, reference, target.spec)
    assert (time.perf_counter() - start) / 10 < 0.1  # measured: about 2 ms on an idle core
