"""The overhead benchmark's arithmetic."""

import math

import pytest

from benchmarks.service.overhead import Found, summarize


@pytest.mark.parametrize(("added", "is_met"), [(0.004, True), (0.012, False)])
def test_the_aim_is_about_the_difference_of_the_medians(added, is_met):
    seconds = [(here + added, here) for here in (0.1, 0.2, 0.9)]
    summary = summarize(Found(seconds, processor_seconds=(0.6, 0.3)))
    assert summary["over_http_ms"] == pytest.approx(200 + 1000 * added)
    assert summary["added_ms"] == summary["median_of_differences_ms"] == pytest.approx(1000 * added)
    assert summary["processor_ms"] == {"server": 200.0, "in_process": 100.0}
    assert list(summary["met"].values()) == [is_met]


def test_requests_that_were_not_inline_count_as_endless():
    summary = summarize(Found([(math.inf, 0.1), (math.inf, 0.1), (0.1, 0.1)], processor_seconds=(0.3, 0.3)))
    assert list(summary["met"].values()) == [False]
