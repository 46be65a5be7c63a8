from dataclasses import replace

import pytest
import torch

from tests.helpers.standins import make_support
from weightgen.condition import Condition, SupportSet
from weightgen.errors import BadData, BadOption


def test_the_first_shots_of_every_class_stay_in_order():
    support = make_support(num_classes=3, shots=5)
    order = torch.tensor([0, 5, 10, 11, 1, 6, 2, 12, 7, 3, 8, 13, 4, 9, 14])
    mixed = replace(support, inputs=support.inputs[order], labels=support.labels[order])
    first = mixed.first_shots(2)
    assert torch.equal(first.inputs, support.inputs[[0, 5, 10, 11, 1, 6]])
    assert torch.equal(first.labels, support.labels[[0, 5, 10, 11, 1, 6]]) and first.shots == [2, 2, 2]
    assert mixed.first_shots(9).digest() == mixed.digest()


def test_a_digest_tells_examples_labels_names_and_wishes_apart():
    support = make_support(num_classes=3, shots=2)
    others = [
        replace(support, inputs=support.inputs.flip(0)),
        replace(support, labels=support.labels.flip(0)),
        replace(support, class_names=("a", "b", "c")),
    ]
    assert len({s.digest() for s in (support, *others)}) == 4
    wishes = [Condition(support), Condition(support, text="digits"), Condition(support, target_accuracy=0.9)]
    assert len({c.digest() for c in wishes}) == 3


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"inputs": torch.zeros(6, 1, 28, 28, dtype=torch.float64)}, "expected float32 .* got float64"),
        ({"inputs": torch.full((6, 1, 28, 28), float("nan"))}, "NaN or infinite"),
        ({"labels": torch.zeros(5, dtype=torch.int64)}, r"expected int64 \[6\], got \[5\]"),
        ({"labels": torch.tensor([0, 0, 0, 2, 2, 2])}, "no example of class 1"),
        ({"labels": torch.tensor([0, 1, 2, 3, 2, 2])}, "got label 3"),
        ({"class_names": ("a", "b", "a")}, "class names repeat"),
    ],
)
def test_what_is_no_support_set_is_refused(change, sentence):
    support = make_support(num_classes=3, shots=2)
    assert isinstance(support, SupportSet)
    with pytest.raises(BadData, match=sentence):
        replace(support, **change)


@pytest.mark.parametrize("accuracy", [1.5, -0.1, float("nan")])
def test_an_accuracy_that_is_no_fraction_is_refused(accuracy):
    with pytest.raises(BadOption, match="target accuracy is .*, expected a fraction from 0 to 1"):
        Condition(target_accuracy=accuracy)


def test_the_parts_of_a_condition_are_those_that_are_given():
    assert Condition().parts == frozenset()
    assert Condition(text="digits", target_accuracy=0.5).parts == {"text", "target_accuracy"}
