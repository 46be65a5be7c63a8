import pytest
import torch
import torch.nn.functional as F

from model_zoo.architectures import ARCHITECTURES, build_target
from model_zoo.zoo.group_training import Job, Rows, is_stacked, train_group

CPU = torch.device("cpu")
LIGHT = {"cnn": "cnn-w4-d2", "resnet20": None, "mlp": "mlp-w16"}
"""Names of the same code, smaller: a test wants seconds."""


def make_jobs(count=3, *, augment=False, num_classes=3, rate=2e-3):
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % num_classes
    images = 0.2 * torch.rand(40, 1, 28, 28, generator=rng)
    for image, label in zip(images, labels, strict=True):
        image[:, 9 * label : 9 * label + 9] += 0.7
    rows = torch.randperm(40, generator=rng)
    train, test = (Rows(images, r, labels[r]) for r in (rows[:30], rows[30:]))
    return [
        Job(train, test, seed=i, learning_rate=rate * (i + 1), weight_decay=0.1 * i + 0.01, augment=augment)
        for i in range(count)
    ]


def train(target, jobs, *, steps=(1, 4), batch_size=8, stacked=None):
    return list(
        train_group(
            target,
            jobs,
            batch_size=batch_size,
            checkpoint_steps=steps,
            eval_examples=100,
            device=CPU,
            stacked=stacked,
        )
    )


def train_plainly(target, job, *, steps, batch_size):
    """A loop anyone would write, on the batches the docstring promises: permutations of the examples, end to end."""
    module = target.load(target.init_state(job.seed)).train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=job.learning_rate, weight_decay=job.weight_decay)
    rng = torch.Generator().manual_seed(job.seed)
    count = len(job.train.rows)
    order = torch.cat([torch.randperm(count, generator=rng) for _ in range(-(-steps * batch_size // count))])
    for rows in order[: steps * batch_size].split(batch_size):
        loss = F.cross_entropy(module(job.train.pool[job.train.rows[rows]]), job.train.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.state_dict()


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("arch", [LIGHT.get(a, a) for a in ARCHITECTURES if LIGHT.get(a, a)])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_training_a_group_agrees_with_a_plain_loop(arch, stacked):
    target = build_target(arch, num_classes=3)
    jobs = make_jobs(2)
    trained = train(target, jobs, steps=(2,), stacked=stacked)
    for job, snapshots in zip(jobs, trained, strict=True):
        state = snapshots[-1].state
        target.spec.check(state)
        expected = train_plainly(target, job, steps=2, batch_size=8)
        # Outputs, not weights: a bias of attention's keys changes nothing, so AdamW moves it by rounding errors.
        inputs = job.test.pool
        before, found, wanted = (target.run(s, inputs) for s in (target.init_state(job.seed), state, expected))
        assert (found - wanted).abs().max() < 0.05 * (wanted - before).abs().max()


def test_in_turn_a_network_does_not_depend_on_its_group():
    target = build_target("cnn-tiny", num_classes=3)
    jobs = make_jobs(3, augment=True)
    together, alone = train(target, jobs), train(target, jobs[1:2])
    for name, tensor in alone[0][-1].state.items():
        assert torch.equal(tensor, together[1][-1].state[name])


def test_training_is_scored_and_learns():
    target = build_target("mlp", num_classes=3)
    for first, last in train(target, make_jobs(3, rate=1e-3), steps=(1, 60)):
        assert (first.step, last.step) == (1, 60)
        assert last.train_loss < first.train_loss
        assert last.test_accuracy == 1
        assert last.train_accuracy == 1


def test_jobs_may_draw_from_different_pools():
    target = build_target("mlp-w16", num_classes=3)
    first, second = make_jobs(1)[0], make_jobs(1)[0]
    assert first.train.pool is not second.train.pool
    mixed = train(target, [first, second], stacked=True)
    assert all(torch.equal(mixed[0][-1].state[n], mixed[1][-1].state[n]) for n in target.spec.by_name)


def test_a_network_that_diverges_keeps_only_what_came_before():
    target = build_target("mlp-w16", num_classes=3)
    calm, wild = make_jobs(1)[0], make_jobs(1, rate=1e30)[0]
    assert [len(s) for s in train(target, [calm, wild], steps=(1, 3, 9))] == [3, 1]


def test_states_own_their_memory():
    target = build_target("cnn-tiny", num_classes=3)
    (first, last), *_ = train(target, make_jobs(1))
    storages = {t.untyped_storage().data_ptr() for s in (first, last) for t in s.state.values()}
    assert len(storages) == 2 * len(target.spec.tensors)


def test_networks_with_convolutions_train_in_turn_on_a_cpu():
    assert is_stacked(build_target("mlp"), CPU)
    assert not is_stacked(build_target("cnn-tiny"), CPU)
    assert is_stacked(build_target("cnn-tiny"), torch.device("cuda"))
