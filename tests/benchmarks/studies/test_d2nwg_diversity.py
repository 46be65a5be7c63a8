"""The arithmetic of diversity and of the accuracy asked for; `test_d2nwg` runs both sections."""

import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from benchmarks.studies.d2nwg_diversity import compare_networks, rank_correlation


def sure_of(*rows: list[int], num_classes: int = 2) -> torch.Tensor:
    """Probabilities of networks that are sure of these classes."""
    return F.one_hot(torch.tensor(rows), num_classes).float()


def test_copies_agree_in_all_and_gain_nothing_by_voting():
    found = compare_networks(sure_of([0, 1, 1, 0], [0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
    assert found == {"accuracy": 0.75, "disagreement": 0, "ensemble_gain": 0, "error_overlap": 1}


def test_networks_that_err_in_different_places_vote_each_other_right():
    found = compare_networks(sure_of([1, 0, 0], [0, 1, 0], [0, 0, 1]), torch.tensor([0, 0, 0]))
    expected = {"accuracy": 2 / 3, "disagreement": 2 / 3, "ensemble_gain": 1 / 3, "error_overlap": 0}
    assert found == pytest.approx(expected)


def test_networks_without_errors_have_no_overlap_of_errors():
    assert compare_networks(sure_of([0, 1], [0, 1]), torch.tensor([0, 1]))["error_overlap"] is None


def test_rank_correlation_is_scipys_and_zero_for_what_never_changes():
    asked, reached = [0.3, 0.3, 0.5, 0.7, 0.9, 0.9], [0.2, 0.6, 0.4, 0.8, 0.6, 0.9]
    assert rank_correlation(asked, reached) == pytest.approx(spearmanr(asked, reached)[0])
    assert rank_correlation(asked, [0.5] * 6) == 0
