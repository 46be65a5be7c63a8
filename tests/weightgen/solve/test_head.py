from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from model_zoo.architectures import ARCHITECTURES, build_target
from tests.helpers.standins import make_support
from weightgen.errors import UnsupportedTask
from weightgen.solve.head import ridge_head, solve_head, step_to_softmax
from weightgen.target.network import Target
from weightgen.target.trunk import head_names, trunk_features


def blobs(*, n: int, d: int, k: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % k
    centres = torch.randn(k, d, generator=rng, dtype=torch.float64)
    return centres[labels] + torch.randn(n, d, generator=rng, dtype=torch.float64), labels


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_solving_the_head_lowers_the_loss_of_every_architecture(arch):
    support = make_support(shots=10)
    target = build_target(arch, num_classes=3)
    before = target.init_state(0)
    after = solve_head(target, before, support)
    target.spec.check(after)
    losses = [float(F.cross_entropy(target.run(s, support.inputs), support.labels)) for s in (before, after)]
    assert losses[1] < losses[0]
    assert all(torch.equal(before[name], after[name]) for name in before if name not in target.spec.head)


@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 12)])  # dual and primal form
def test_left_out_logits_are_those_of_a_head_that_never_saw_the_example(n, d):
    features, labels = blobs(n=n, d=d)
    penalty_of = lambda f: 0.1 * (f - f.mean(0)).square().sum() / len(f) + 1e-6  # noqa: E731
    head = ridge_head(features, labels, num_classes=3, ridge=0.1)
    scale = float(head.weight.norm() / unscaled(features, labels, penalty_of(features))[0].norm())
    onehot = F.one_hot(labels, 3).double()
    for i in range(n):
        rest = torch.arange(n) != i
        weight, bias = unscaled(features[rest], labels[rest], penalty_of(features))
        # Class weights are those of the whole set in the fast form: exact for equally many examples a class only.
        slow = scale * (features[i] @ weight.T + bias)
        assert torch.allclose(head.left_out_logits[i], slow, atol=0.35 * scale * float(onehot.std()))
        assert head.left_out_logits[i].argmax() == slow.argmax()


def unscaled(features: torch.Tensor, labels: torch.Tensor, penalty: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Ridge regression on one-hot targets by the normal equations."""
    mean, onehot = features.mean(0), F.one_hot(labels, 3).double()
    x, y = features - mean, onehot - onehot.mean(0)
    weight = torch.linalg.solve(x.T @ x + penalty * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y).T
    return weight, onehot.mean(0) - weight @ mean


def test_dual_and_primal_forms_agree():
    features, labels = blobs(n=30, d=30)
    dual = ridge_head(features, labels, num_classes=3)
    wide = torch.cat([features, torch.zeros(30, 1).double()], dim=1)
    primal = ridge_head(features[:, :29], labels, num_classes=3)
    padded = ridge_head(torch.cat([features[:, :29], torch.zeros(30, 9).double()], 1), labels, num_classes=3)
    assert torch.allclose(primal.weight, padded.weight[:, :29], atol=1e-6)
    assert torch.allclose(dual.weight, ridge_head(wide, labels, num_classes=3).weight[:, :30], atol=1e-6)


def test_head_is_calibrated_for_cross_entropy():
    features, labels = blobs(n=60, d=200, seed=3)
    unseen, unseen_labels = blobs(n=300, d=200, seed=3)
    unseen = unseen + 0.5 * torch.randn(unseen.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    head = ridge_head(features, labels, num_classes=3)

    def loss(factor: float) -> float:
        return float(F.cross_entropy(factor * (unseen @ head.weight.T + head.bias), unseen_labels))

    assert loss(1.0) < 0.5 * loss(0.05)


def test_classes_count_equally_whatever_their_size():
    features, labels = blobs(n=30, d=5)
    few = torch.cat([(labels == 0).nonzero()[:2, 0], (labels > 0).nonzero()[:, 0]])
    repeated = torch.cat([few, few[:2].repeat(4)])
    a = ridge_head(features[few], labels[few], num_classes=3, ridge=1e-9)
    b = ridge_head(features[repeated], labels[repeated], num_classes=3, ridge=1e-9)
    assert torch.allclose(F.normalize(a.weight, dim=1), F.normalize(b.weight, dim=1), atol=1e-3)


def test_one_example_a_class_is_enough():
    features, labels = blobs(n=3, d=10)
    head = ridge_head(features, labels, num_classes=3)
    assert ((features @ head.weight.T + head.bias).argmax(1) == labels).all()


def masked(*, n: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes side by side on a line: the two outer ones mask the middle one from least squares."""
    labels = torch.arange(n) % 3
    rng = torch.Generator().manual_seed(0)
    return labels[:, None] + 0.1 * torch.randn(n, 1, generator=rng, dtype=torch.float64), labels


def test_steps_to_softmax_find_a_class_that_least_squares_masks():
    features, labels = masked()
    ridge = ridge_head(features, labels, num_classes=3)
    softmax = step_to_softmax(ridge, features, labels, steps=torch.full((60,), 4.0))
    hits = [((features @ h.weight.T + h.bias).argmax(1) == labels).double().mean() for h in (ridge, softmax)]
    assert hits[0] < 0.8
    assert hits[1] > 0.97


@pytest.mark.parametrize(("n", "d"), [(12, 40), (90, 12)])  # dual and primal form
def test_every_step_to_softmax_lowers_the_loss(n, d):
    features, labels = blobs(n=n, d=d)
    ridge = ridge_head(features, labels, num_classes=3, ridge=0.01)
    heads = [step_to_softmax(ridge, features, labels, steps=torch.full((t,), 1.0)) for t in range(8)]
    losses = [float(F.cross_entropy(features @ h.weight.T + h.bias, labels)) for h in heads]
    assert losses == sorted(losses, reverse=True)
    assert torch.allclose(heads[0].weight, ridge.weight)
    assert torch.allclose(heads[0].bias, ridge.bias)


def test_in_softmax_regression_too_classes_count_equally_whatever_their_size():
    features, labels = blobs(n=30, d=5)
    few = torch.cat([(labels == 0).nonzero()[:2, 0], (labels > 0).nonzero()[:, 0]])
    repeated = torch.cat([few, few[:2].repeat(4)])
    found = []
    for rows in (few, repeated):
        ridge = ridge_head(features[rows], labels[rows], num_classes=3, ridge=1e-9)
        # The calibration of the two differs: the few are left out one at a time.
        start = replace(ridge, weight=F.normalize(ridge.weight, dim=1), bias=torch.zeros(3).double())
        found.append(step_to_softmax(start, features[rows], labels[rows], steps=torch.full((5,), 1.0)).weight)
    assert torch.allclose(F.normalize(found[0], dim=1), F.normalize(found[1], dim=1), atol=0.02)


def test_gradients_reach_the_features():
    features, labels = blobs(n=12, d=20)
    features.requires_grad_()
    head = ridge_head(features, labels, num_classes=3)
    F.cross_entropy(head.left_out_logits, labels).backward()
    assert features.grad is not None
    assert features.grad.abs().sum() > 0


def test_trunk_features_are_what_the_head_sees():
    target = build_target("cnn-tiny", num_classes=3)
    state, support = target.init_state(0), make_support()
    logits = trunk_features(target, state, support.inputs) @ state["head.weight"].T + state["head.bias"]
    assert torch.allclose(logits, target.run(state, support.inputs), atol=1e-6)


def test_a_target_without_a_linear_head_is_refused():
    target = build_target("mlp")
    axes = {name: axis.replace("CLASSES", "OUT") for name, axis in target.skeleton.AXES.items()}  # pyright: ignore
    headless = Target.from_module(target.make, axes, arch="mlp", config=target.spec.config, input_shape=(1, 28, 28))
    with pytest.raises(UnsupportedTask, match="expected one linear layer"):
        head_names(headless)
