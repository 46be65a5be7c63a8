from dataclasses import replace

import pytest
import torch

from model_zoo.architectures import build_target
from tests.helpers.standins import make_support
from weightgen.solve.head import ridge_head
from weightgen.solve.refinement import refine, refine_trunk, shots_scale
from weightgen.solve.refit import refit
from weightgen.target.trunk import take_trunk, trunk_features

RATES = torch.tensor([0.1, 0.2])


def make_trunk() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {"a": torch.randn(4, 3, generator=rng), "b": 10 * torch.randn(5, generator=rng)}


def loss_of(trunk):
    return (trunk["a"] - 1).square().sum() + (trunk["b"] + 2).square().sum()


def test_a_step_goes_down_by_the_rate_relative_to_the_size_of_each_tensor():
    trunk = make_trunk()
    refined = refine(trunk, loss_of, RATES)
    assert loss_of(refined) < loss_of(trunk)
    for (name, before), rate in zip(trunk.items(), RATES, strict=True):
        step = (refined[name] - before).square().mean().sqrt() / before.square().mean().sqrt()
        assert step == pytest.approx(float(rate), rel=1e-4)


def test_the_scale_of_the_loss_means_nothing_and_zero_rates_move_nothing():
    trunk = make_trunk()
    one, other = refine(trunk, loss_of, RATES), refine(trunk, lambda t: 1000 * loss_of(t), RATES)
    assert all(torch.allclose(one[name], other[name], rtol=1e-4) for name in trunk)
    still = refine(trunk, loss_of, torch.zeros(2))
    assert all(torch.equal(still[name], trunk[name]) for name in trunk)


def test_tensors_that_the_loss_does_not_read_stay():
    trunk = make_trunk()
    refined = refine(trunk, lambda t: t["a"].square().sum(), RATES)
    assert torch.equal(refined["b"], trunk["b"]) and not torch.equal(refined["a"], trunk["a"])


def test_trunk_and_rates_learn_through_a_step_and_it_works_without_gradients():
    trunk = {name: t.requires_grad_() for name, t in make_trunk().items()}
    rates = RATES.clone().requires_grad_()
    torch.stack([t.sum() for t in refine(trunk, loss_of, rates).values()]).sum().backward()
    assert rates.grad is not None and bool((rates.grad != 0).all())
    assert trunk["a"].grad is not None and torch.equal(trunk["a"].grad, torch.ones(4, 3))
    with torch.no_grad():
        assert not refine(trunk, loss_of, RATES)["a"].requires_grad


@pytest.mark.parametrize("arch", ["cnn-w8-d2", "cnn-tiny"])
def test_a_refined_trunk_suits_its_support_set_better(arch):
    support, target = make_support(num_classes=4, shots=5), build_target(arch, num_classes=4)
    rng = torch.Generator().manual_seed(0)  # much noise: clear squares would leave nothing to gain
    support = replace(support, inputs=0.3 * support.inputs + 0.7 * torch.rand(20, 1, 28, 28, generator=rng))
    state = target.init_state(0)
    refined = refine_trunk(target, state, support, rates=(0.005,) * 4)

    def left_out_loss(trunk):
        solved = refit(target, take_trunk(trunk, target.spec), support)
        features = trunk_features(target, solved, support.inputs)
        logits = ridge_head(features, support.labels, num_classes=4).left_out_logits
        return float(torch.nn.functional.cross_entropy(logits, support.labels))

    assert left_out_loss(refined) < left_out_loss(state)
    assert refined.keys() == state.keys() and not any(t.requires_grad for t in refined.values())
    changed = {name for name in state if not torch.equal(state[name], refined[name])}
    parameters = {name for name, _ in target.skeleton.named_parameters()}
    assert changed == parameters - set(target.spec.head)
    assert not target.skeleton.training and not refine_trunk(target, state, support, rates=()).keys() - state.keys()


def test_augmented_steps_are_those_of_their_seed():
    support, target = make_support(num_classes=4, shots=5), build_target("cnn-tiny", num_classes=4)
    state = target.init_state(0)

    def moved(seed: int | None) -> torch.Tensor:
        rng = None if seed is None else torch.Generator().manual_seed(seed)
        return refine_trunk(target, state, support, rates=(0.05,), rng=rng)["conv1.weight"]

    assert torch.equal(moved(1), moved(1))
    assert not torch.equal(moved(1), moved(2)) and not torch.equal(moved(1), moved(None))


def test_the_scale_of_shots_is_zero_at_about_twelve_a_class():
    assert shots_scale(torch.arange(5).repeat(12), 5) == pytest.approx(0, abs=0.02)
