"""The batching benchmark's arithmetic, and its rounds in this process."""

from functools import partial

import pytest

from benchmarks.service.batching import BATCH, compare_rounds, measure_here
from model_zoo.lookup import target_for
from tests.helpers.standins import StandIn, make_data
from weightgen.pipeline import Job


def test_ratios_are_medians_over_rounds_of_one_by_one_over_together():
    found = compare_rounds({"together": [(1.0, 2.0), (2.0, 2.0), (4.0, 2.0)],
                            "one_by_one": [(3.0, 2.0), (4.0, 4.0), (4.0, 6.0)]}, requests=8)  # fmt: skip
    assert (found["ratio"], found["processor_ratio"]) == (2.0, 2.0)
    assert found["requests_per_second"] == {"together": 4.0, "one_by_one": 2.0}
    assert found["processor_ms_per_request"] == {"together": 250.0, "one_by_one": 500.0}


def test_both_sides_make_the_same_requests():
    job = Job(generator=StandIn(), generator_sha256="0" * 64, data=make_data(),
              target_for=partial(target_for, "cnn-tiny"))  # fmt: skip
    found = measure_here(job, shots=2, rounds=1)
    assert all(value > 0 for value in found["requests_per_second"].values())
    assert BATCH > 1


@pytest.mark.parametrize("rounds", [1, 2])
def test_as_many_rounds_as_are_asked_for_are_compared(rounds):
    found = compare_rounds({"together": [(1.0, 1.0)] * rounds, "one_by_one": [(2.0, 3.0)] * rounds}, requests=1)
    assert (found["ratio"], found["processor_ratio"]) == (2.0, 3.0)
