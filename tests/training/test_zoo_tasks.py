from tests.helpers.paths import shared_path
from training.zoo_tasks import Images


def test_support_and_queries_of_a_task_do_not_overlap(rng):
    shared_path("images/devnum.npz")
    task = Images("train").draw("devnum", (4, 2), 1, shots=5, queries=3, rng=rng)
    assert (len(task.support), len(task.query), task.num_classes) == (10, 6, 2)
    assert task.support_labels.tolist() == [0] * 5 + [1] * 5
    seen = {x.numpy().tobytes() for x in task.support}
    assert not any(x.numpy().tobytes() in seen for x in task.query)
