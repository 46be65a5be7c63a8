"""Which source a name or a file is read by; and the sets that every user has or may have."""

import pytest
import torch

from model_zoo.data import (
    DATA_SOURCES,
    EVALUATION_SETS,
    TRAIN_SETS,
    describe_image_set,
    find_evaluation_files,
    list_data,
    load_data,
)
from model_zoo.data.sklearn import SKLEARN_SETS
from tests.helpers.paths import shared_path
from weightgen.errors import BadData, BadOption, NotFound, UnknownName


def test_the_three_lists_of_sets_do_not_overlap():
    assert not set(TRAIN_SETS) & EVALUATION_SETS
    assert (len(TRAIN_SETS), len(EVALUATION_SETS)) == (14, 8)


@pytest.mark.parametrize("name", SKLEARN_SETS)
def test_sklearn_sets_load_the_same_every_time(name):
    data = load_data(name)
    assert data.digest() == load_data(name).digest()
    assert torch.unique(data.y_test).tolist() == list(range(data.num_classes))


def test_digits_are_resized_and_reach_from_black_to_white():
    data = load_data("digits")
    assert data.x_train.shape[1:] == (1, 28, 28)
    assert (data.x_train.min(), data.x_train.max()) == (0, 1)
    assert any("resized from 8x8 to 28x28" in note for note in data.notes)
    assert load_data("digits", image_size=None).x_train.shape[1:] == (1, 8, 8)


def test_shared_sets_hold_what_their_description_says():
    shared_path("images")
    for name in ("gtsrb", "coil20"):
        data, about = load_data(name), describe_image_set(name)
        assert list(data.class_names) == about["classes"]
        assert torch.bincount(data.y_train).tolist() == about["train_counts"]
        assert data.x_train.shape[2:] == (28, 28)


def test_omniglot_is_divided_by_alphabet():
    shared_path("images/omniglot_small.npz")
    train, held_out = load_data("omniglot"), load_data("omniglot_held_out")
    assert {c.split("/")[0] for c in held_out.class_names} == {"Sanskrit", "Tagalog"}
    assert not set(train.class_names) & set(held_out.class_names)
    assert train.num_classes + held_out.num_classes == 242
    assert len(train.y_train) + len(held_out.y_train) == 3630


def test_every_listed_set_has_a_part_to_play():
    shared_path("images/mnist.npz")
    known = {*TRAIN_SETS, *EVALUATION_SETS, "omniglot_held_out", *SKLEARN_SETS}
    assert set(list_data()) == known
    assert set(find_evaluation_files().values()) >= (EVALUATION_SETS - {"digits"}) | {"omniglot_held_out"}


def test_unknown_names_suggest_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'digits'"):
        load_data("digitz")


def test_missing_files_are_not_found(tmp_path):
    for name in ("nothing.npz", str(tmp_path / "nothing"), "nothing.csv"):
        with pytest.raises(NotFound, match="nothing"):
            load_data(name)


def test_files_of_another_kind_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadData, match="is no data file"):
        load_data(str(tmp_path / "notes.txt"))


def test_image_sizes_out_of_range_are_refused():
    with pytest.raises(BadOption, match="expected 1 to 1024"):
        load_data("digits", image_size=0)


def test_without_a_shared_folder_its_sets_say_so(monkeypatch, tmp_path):
    monkeypatch.setenv("WEIGHTGEN_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(NotFound, match="set WEIGHTGEN_SHARED"):
        load_data("mnist")
    assert set(list_data()) == set(SKLEARN_SETS)


def test_registered_names_win_over_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris").mkdir()
    assert load_data("iris").num_classes == 3
    with pytest.raises(BadData, match="no images"):
        load_data("./iris")


def test_every_source_is_chosen_by_what_it_takes():
    assert list(DATA_SOURCES) == ["sklearn", "shared", "hf", "npz", "table", "image_folder"]
