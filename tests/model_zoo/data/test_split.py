import numpy as np
import pytest

from model_zoo.data.split import number_classes, split_stratified
from weightgen.errors import BadData


def test_every_class_is_split_alike():
    labels = np.repeat([0, 1, 2], [10, 20, 1])
    train, test = split_stratified("x", labels, test_fraction=0.2)
    assert np.bincount(labels[test], minlength=3).tolist() == [2, 4, 0]
    assert sorted([*train, *test]) == list(range(31))
    with pytest.raises(BadData, match="every class has a single example"):
        split_stratified("x", np.arange(4), test_fraction=0.2)


def test_classes_that_are_numbers_are_in_order_of_number():
    assert number_classes(["10", "9", "10", "-1"])[1] == ("-1", "9", "10")
    assert number_classes(["10", "9", "b"])[1] == ("10", "9", "b")
