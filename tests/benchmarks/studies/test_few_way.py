from argparse import Namespace
from dataclasses import replace

from benchmarks.studies.few_way import group_classes, score_arch
from tests.helpers.standins import make_data
from tests.helpers.tiny_generators import make_mip


def test_classes_are_grouped_by_the_first_part_of_their_names():
    data = replace(make_data(num_classes=4), class_names=("a/1", "b/1", "a/2", "b/2"))
    assert group_classes(data) == [[0, 2], [1, 3]]
    assert group_classes(make_data(num_classes=3)) == [[0, 1, 2]]


def test_every_arm_is_scored_over_all_tasks():
    data = make_data(num_classes=4)
    options = Namespace(ways=2, shots=5, tasks=3, seed=0)
    scores = score_arch(make_mip("cnn-tiny"), "cnn-tiny", data, options)
    assert set(scores) == {"generated", "unconditioned_trunk", "random_trunk_ridge"}
    assert all(0 <= arm["p10"] <= arm["mean"] + arm["sd"] for arm in scores.values())
