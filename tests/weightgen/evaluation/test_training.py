import pytest
import torch
import torch.nn.functional as F

from model_zoo.architectures import ARCHITECTURES, build_target
from tests.helpers.standins import make_support
from tests.helpers.states import assert_states_equal
from weightgen.condition import SupportSet
from weightgen.errors import BadOption
from weightgen.evaluation.training import (
    FinetuneConfig,
    ScratchConfig,
    finetune,
    sweep_from_scratch,
    train_from_scratch,
)
from weightgen.solve.statistics import recalibrate_batchnorm
from weightgen.target.predict import accuracy, predict

QUICK = ScratchConfig(learning_rates=(1e-3, 1e-2), max_steps=60, max_steps_augmented=6)


def make_rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_fine_tuning_lowers_the_loss_and_keeps_step_0(arch):
    target, support = build_target(arch, num_classes=3), make_support()
    start = target.spec.complete(target.init_state(0))
    before = {name: t.clone() for name, t in start.items()}
    config = FinetuneConfig(learning_rate=3e-3, record_at=(0, 1, 12), augment=False)
    states = finetune(target, start, support, config, rng=make_rng())
    assert list(states) == [0, 1, 12]
    assert_states_equal(states[0], before)

    def loss(state):
        return F.cross_entropy(predict(target, state, support.inputs), support.labels)

    for state in states.values():
        target.spec.check(state)
    assert loss(states[12]) < loss(recalibrate_batchnorm(target, start, support.inputs)) - 1e-3


def test_fine_tuning_is_decided_by_its_rng():
    target, support = build_target("cnn-w4-d2", num_classes=3), make_support()
    config = FinetuneConfig(record_at=(3,), batch_size=8)
    ends = [finetune(target, target.init_state(0), support, config, rng=make_rng(s))[3] for s in (0, 0, 1)]
    assert_states_equal(ends[0], ends[1])
    assert not torch.equal(ends[0]["head.weight"], ends[2]["head.weight"])


def test_a_longer_fine_tuning_passes_through_the_states_of_a_shorter_one():
    target, support = build_target("cnn-tiny", num_classes=3), make_support()
    start = target.init_state(0)
    short = finetune(target, start, support, FinetuneConfig(record_at=(0, 5)), rng=make_rng())
    longer = finetune(target, start, support, FinetuneConfig(record_at=(5, 9)), rng=make_rng())
    assert_states_equal(short[5], longer[5])


@pytest.mark.parametrize("record_at", [(), (5, 1), (-1, 3), (2, 2)])
def test_steps_to_record_have_to_increase(record_at):
    with pytest.raises(BadOption, match="expected increasing step counts"):
        FinetuneConfig(record_at=record_at)


@pytest.mark.parametrize("arch", ["cnn-w4-d3", "mlp"])
def test_training_from_scratch_converges_and_stops_early(arch):
    target, support = build_target(arch, num_classes=3), make_support()
    config = ScratchConfig(max_steps=300, converged_loss=0.05)
    run = train_from_scratch(target, support, config, learning_rate=3e-3, augment=False, seed=0)
    assert accuracy(target, run.state, support.inputs, support.labels) == 1.0
    assert run.steps < 300
    assert run.train_loss < 0.05
    target.spec.check(run.state)


def test_the_sweep_covers_every_rate_with_and_without_augmentation():
    target, support = build_target("cnn-w4-d2", num_classes=3), make_support()
    runs = sweep_from_scratch(target, support, QUICK, seed=0)
    assert [(r.learning_rate, r.augmented) for r in runs] == [(1e-3, False), (1e-2, False), (1e-3, True), (1e-2, True)]
    assert all(r.seconds > 0 for r in runs)


def test_features_are_never_augmented():
    rng = make_rng()
    labels = torch.arange(2).repeat_interleave(5)
    support = SupportSet(torch.randn(10, 4, generator=rng) + 3 * labels[:, None], labels, ("a", "b"))
    target = build_target("mlp", num_classes=2, in_features=4)
    assert {r.augmented for r in sweep_from_scratch(target, support, QUICK, seed=0)} == {False}


def test_impossible_settings_are_refused():
    with pytest.raises(BadOption, match="expected at least one rate"):
        ScratchConfig(learning_rates=())
    with pytest.raises(BadOption, match="expected at least 1"):
        ScratchConfig(max_steps=0)
    with pytest.raises(BadOption, match="learning_rate 0.0"):
        FinetuneConfig(learning_rate=0.0)
