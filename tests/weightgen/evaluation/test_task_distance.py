import pytest
import torch
from torch.nn.functional import normalize

from weightgen.errors import UnsupportedTask
from weightgen.evaluation.task_distance import RESOLUTION, calibrate, measure_task
from weightgen.references.zoo import ReferenceZoo


def zoo_of(embeddings: torch.Tensor, names: list[str]) -> ReferenceZoo:
    return ReferenceZoo(
        arch="cnn-tiny",
        trunks={},
        embeddings=normalize(embeddings, dim=1),
        leave_one_out=torch.zeros(len(names)),
        runs=tuple({"dataset": name, "classes": [0, 1]} for name in names),
        embedder="",
    )


@pytest.fixture
def zoo(rng) -> ReferenceZoo:
    return zoo_of(torch.tensor([1.0, 0, 0]) + 0.1 * torch.randn(40, 3, generator=rng), [f"set-{i}" for i in range(40)])


def test_most_tasks_of_the_zoo_are_inside_by_the_others_and_a_stranger_is_not(zoo):
    inside = [
        measure_task(zoo_of(zoo.embeddings[torch.arange(40) != i], [f"{j}" for j in range(39)]), zoo.embeddings[i])
        for i in range(40)
    ]
    assert sum(found.is_outside is False for found in inside) >= 36
    assert measure_task(zoo, torch.tensor([0.0, 1.0, 0.0])).is_outside is True


def test_the_nearest_task_is_named_and_lies_at_its_distance(zoo):
    found = measure_task(zoo, zoo.embeddings[7])
    assert found.nearest == "set-7" and found.distance == pytest.approx(0, abs=1e-6) and found.is_outside is False


def test_several_runs_of_one_task_do_not_narrow_the_threshold(zoo):
    twice = zoo_of(zoo.embeddings.repeat(2, 1), 2 * [str(run["dataset"]) for run in zoo.runs])
    assert calibrate(twice) == pytest.approx(calibrate(zoo), abs=1e-6) and calibrate(zoo) > RESOLUTION


def test_an_embedding_that_puts_all_tasks_into_one_point_cannot_tell(zoo):
    one_point = zoo_of(torch.ones(5, 3), list("abcde"))
    assert measure_task(one_point, torch.tensor([0.0, 1.0, 0.0])).is_outside is None


def test_a_zoo_of_one_task_is_refused():
    with pytest.raises(UnsupportedTask, match="holds one task"):
        calibrate(zoo_of(torch.ones(3, 3), ["a", "a", "a"]))
