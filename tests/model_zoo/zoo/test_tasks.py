from collections import Counter

import pytest
import torch

from model_zoo.zoo.tasks import Task, held_out, sample_task, sample_tasks
from tests.helpers.toy_data import make_data
from weightgen.errors import BadData, BadOption

DATA = {"three": make_data(), "five": make_data((4, 4, 4, 4, 4))}


def test_a_task_is_the_subset_and_the_label_map_in_one(rng):
    task = Task("five", (3, 1))
    data = DATA["five"]
    assert task.select(data).class_names == ("d", "b")
    assert task.draw_support(data, 2, rng=rng).class_names == ("d", "b")


@pytest.mark.parametrize("classes", [(), (1,), (1, 1), (-1, 2)])
def test_impossible_tasks_are_refused(classes):
    with pytest.raises(BadOption, match="at least 2 different ones"):
        Task("x", classes)


def test_tasks_are_spread_evenly_over_the_data_sets(rng):
    tasks = sample_tasks(DATA, num_tasks=11, ways=(2, 4), rng=rng)
    assert sorted(Counter(t.dataset for t in tasks).values()) == [5, 6]
    assert {t.ways for t in tasks if t.dataset == "five"} <= {2, 3, 4}
    assert all(len(t.select(DATA[t.dataset]).class_names) == t.ways for t in tasks)


def test_the_same_rng_gives_the_same_tasks(make_rng):
    first, second = (sample_tasks(DATA, num_tasks=6, ways=2, rng=make_rng(1)) for _ in range(2))
    assert first == second
    assert first != sample_tasks(DATA, num_tasks=6, ways=2, rng=make_rng(2))


def test_without_ways_a_task_is_the_data_set_itself(rng):
    assert sample_task("five", 5, ways=None, rng=rng).classes == (0, 1, 2, 3, 4)


def test_data_sets_with_too_few_classes_are_left_out_or_refused(rng):
    assert {t.dataset for t in sample_tasks(DATA, num_tasks=4, ways=4, rng=rng)} == {"five"}
    with pytest.raises(BadOption, match=r"no data set has 6 classes; they have 3 \(three\), 5 \(five\)"):
        sample_tasks(DATA, num_tasks=4, ways=6, rng=rng)
    with pytest.raises(BadData, match="has 3 classes, a task of 4 is asked for"):
        sample_task("three", 3, ways=4, rng=rng)


@pytest.mark.parametrize("ways", [1, (1, 3), (4, 3)])
def test_impossible_ways_are_refused(ways, rng):
    with pytest.raises(BadOption, match="2 or more classes"):
        sample_tasks(DATA, num_tasks=1, ways=ways, rng=rng)


def test_every_set_is_held_out_exactly_once():
    names = [f"set{i}" for i in range(7)]
    folds = [held_out(names, fold=i, num_folds=3) for i in range(3)]
    assert sorted(n for _, out in folds for n in out) == names
    assert all(sorted([*kept, *out]) == names for kept, out in folds)
    with pytest.raises(BadOption, match="fold 3 of 3"):
        held_out(names, fold=3, num_folds=3)


def test_torch_stays_as_it_was(rng):
    before = torch.random.get_rng_state()
    sample_tasks(DATA, num_tasks=4, ways=2, rng=rng)
    assert torch.equal(before, torch.random.get_rng_state())
