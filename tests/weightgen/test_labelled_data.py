import dataclasses

import pytest
import torch

from tests.helpers.toy_data import make_data
from weightgen.errors import BadData, BadOption
from weightgen.labelled_data import draw_support, match_channels, resize_images, select_classes


def test_support_is_drawn_from_the_train_part_in_class_order_without_replacement(rng):
    data = make_data()
    support = draw_support(data, 3, rng=rng)
    assert support.shots == [3, 3, 3]
    assert support.class_names == ("a", "b", "c")
    for x, y in zip(support.inputs, support.labels, strict=True):
        assert any(torch.equal(x, t) for t in data.x_train[data.y_train == y])
    assert len(torch.unique(support.inputs.flatten(1), dim=0)) == 9


def test_support_of_chosen_classes_is_labelled_in_their_order(rng):
    data = make_data()
    support = draw_support(data, 2, rng=rng, classes=[2, 0])
    assert support.class_names == ("c", "a")
    assert all(any(torch.equal(x, t) for t in data.x_train[data.y_train == 2]) for x in support.inputs[:2])


def test_the_same_rng_draws_the_same_support(make_rng):
    data = make_data()
    assert draw_support(data, 2, rng=make_rng(3)).digest() == draw_support(data, 2, rng=make_rng(3)).digest()


@pytest.mark.parametrize("per_class", [0, -1, 51])
def test_shots_out_of_range_are_refused(per_class, rng):
    with pytest.raises(BadOption, match="expected 1 to 50"):
        draw_support(make_data(), per_class, rng=rng)


def test_too_many_shots_say_which_class_has_how_many(rng):
    with pytest.raises(BadData, match=r"'b' has 3, 'c' has 4; ask for at most 3"):
        draw_support(make_data(), 5, rng=rng)


@pytest.mark.parametrize(
    ("classes", "message"), [([0, 3], "got 3"), ([1, 1], "chosen twice"), ([1], "expected at least 2")]
)
def test_impossible_classes_are_refused(classes, message, rng):
    with pytest.raises(BadOption, match=message):
        draw_support(make_data(), 1, rng=rng, classes=classes)
    with pytest.raises(BadOption, match=message):
        select_classes(make_data(), classes)


def test_selected_classes_are_renumbered_in_the_given_order():
    data = make_data()
    chosen = select_classes(data, [2, 0])
    assert chosen.class_names == ("c", "a")
    assert torch.equal(chosen.x_train[chosen.y_train == 0], data.x_train[data.y_train == 2])
    assert torch.equal(chosen.x_test[chosen.y_test == 1], data.x_test[data.y_test == 0])


def test_selecting_classes_absent_from_the_test_part_is_refused():
    data = make_data(x_test=torch.zeros(1, 1, 6, 6), y_test=torch.tensor([0]))
    with pytest.raises(BadData, match="test part has no example of the classes 'b', 'c'"):
        select_classes(data, [1, 2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_train": torch.tensor([0, 2, 2, 5])}, "without gaps, got 0, 2, 5"),
        ({"y_train": torch.tensor([1, 2, 3, 1])}, "without gaps"),
        ({"y_train": torch.zeros(4, dtype=torch.int64)}, "every train label is 0"),
        ({"y_test": torch.tensor([7, 0, 1])}, "test label 7 is not among"),
        ({"y_train": torch.tensor([0, 1])}, r"y_train is int64 \[2\], expected int64 \[4\]"),
        ({"x_train": torch.full((4, 1, 6, 6), torch.nan)}, "NaN or infinite values in 4 of 4"),
        ({"x_train": torch.full((4, 1, 6, 6), 1.5)}, r"expected images in \[0, 1\]"),
        ({"x_train": torch.zeros(4, 1, 6, 6, dtype=torch.uint8)}, "expected float32"),
        ({"x_train": torch.zeros(4, 1, 5, 6)}, "different shapes"),
        ({"x_test": torch.zeros(0, 1, 6, 6), "y_test": torch.zeros(0, dtype=torch.int64)}, "test part is empty"),
        ({"class_names": ("a", "b", "a")}, "class names repeat: 'a'"),
        ({"class_names": ("a", "b")}, "2 class names for 3 classes"),
    ],
)
def test_unusable_data_are_refused(changes, message):
    good = make_data(counts=(2, 1, 1))
    with pytest.raises(BadData, match=message):
        dataclasses.replace(good, **changes)


def test_digest_follows_content_not_name():
    data = make_data()
    assert data.digest() == dataclasses.replace(data, name="other", notes=("x",)).digest()
    assert data.digest() != dataclasses.replace(data, y_train=data.y_train.flip(0)).digest()
    assert data.digest() != dataclasses.replace(data, class_names=("a", "b", "d")).digest()


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (3, 3, 32, 17), (0, 1, 8, 8), (1, 1, 1, 1)])
def test_resizing_keeps_the_batch_and_the_range(shape, rng):
    x = torch.rand(shape, generator=rng)
    resized = resize_images(x, 28)
    assert resized.shape == (*shape[:2], 28, 28)
    if len(x):
        assert x.min() <= resized.min()
        assert resized.max() <= x.max()


def test_resizing_a_flat_picture_keeps_it_flat():
    assert torch.allclose(resize_images(torch.full((2, 1, 9, 31), 0.3), 28), torch.tensor(0.3))


def test_channels_match_what_is_asked_for():
    grey, colour = make_data(), make_data(channels=3)
    assert match_channels(grey, 1) is grey
    repeated = match_channels(grey, 3)
    assert repeated.in_channels == 3
    assert torch.equal(repeated.x_train[:, 2], grey.x_train[:, 0])
    assert torch.allclose(match_channels(repeated, 1).x_train, grey.x_train)
    assert match_channels(colour, 1).notes == ("colour reduced to 1 grey channel",)
    with pytest.raises(BadOption, match="expected 1 or 3"):
        match_channels(grey, 4)


def test_features_have_no_channels():
    data = make_data(x_train=torch.rand(12, 5), x_test=torch.rand(3, 5))
    assert (data.in_channels, data.in_features) == (None, 5)
    with pytest.raises(BadData, match="features, not images"):
        match_channels(data, 3)
