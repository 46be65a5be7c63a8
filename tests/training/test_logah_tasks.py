"""What architectures of spaces are shown: tasks, the classes of one set, texts."""

import pytest
import torch

from model_zoo.spaces import CnnMember, GptMember, MlpMember
from tests.helpers.paths import shared_path
from training.logah.tasks import Classes, Sources, Tasks, Texts
from weightgen.errors import BadOption, NotFound


def test_every_class_of_a_task_has_two_examples_or_more(rng):
    shared_path("images/cifar100.npz")
    tasks = Tasks(["cifar100"], most=36, is_transformed=True)
    for channels in (1, 3) * 6:
        batch = tasks.draw(channels, rng=rng)
        counts = torch.bincount(batch.answers, minlength=batch.num_classes)
        assert batch.inputs.shape == (len(batch.answers), channels, 28, 28)
        assert len(counts) == batch.num_classes <= 12 and int(counts.min()) >= 2
        assert float(batch.inputs.min()) >= 0 and float(batch.inputs.max()) <= 1


def test_untransformed_tasks_are_as_large_as_fits(rng):
    shared_path("images/mnist.npz")
    tasks = Tasks(["mnist"], most=60, is_transformed=False)
    for _ in range(5):
        assert torch.bincount(tasks.draw(1, rng=rng).answers).tolist() == [7] * 10


def test_the_classes_of_one_set_keep_their_numbers(rng):
    shared_path("images/mnist.npz")
    classes = Classes("mnist")
    batch = classes.draw(1, 16, rng=rng)
    for image, label in zip(batch.inputs, batch.answers, strict=True):
        same = (classes.images[1] == image).flatten(1).all(1).nonzero()[:, 0]
        assert int(classes.labels[same[0]]) == int(label)
    assert batch.num_classes == 10


def test_texts_ask_for_the_byte_that_follows(rng):
    shared_path("text/banking77.jsonl.gz")
    shared_path("text/clinc150.jsonl.gz")
    texts = Texts(["banking77", "clinc150"])
    assert len(texts.ids) > len(Texts(["banking77"]).ids) > 100_000
    batch = texts.draw(20, 3, rng=rng)
    assert batch.inputs.shape == (3, 20) and torch.equal(batch.inputs[:, 1:], batch.answers[:, :-1])
    with pytest.raises(NotFound, match="text set 'banking78' is not there"):
        Texts(["banking78"])


def test_members_get_what_they_take(rng):
    shared_path("images/mnist.npz")
    sources = Sources(Classes("mnist"), Texts([]))
    assert sources.draw(MlpMember((8,), in_features=3 * 784), size=5, texts=2, rng=rng).inputs.shape == (5, 3, 28, 28)
    assert sources.draw(CnnMember((8,)), size=5, texts=2, rng=rng).inputs.shape == (5, 1, 28, 28)
    with pytest.raises(BadOption, match="language models need texts"):
        sources.draw(GptMember(72, 3, 4), size=5, texts=2, rng=rng)
