"""Small networks are made on one thread, whatever the process uses otherwise."""

import pytest
import torch

from model_zoo.lookup import target_for
from tests.helpers.standins import StandIn, make_data
from weightgen.pipeline import Job, make_weights
from weightgen.runtime.threads import one_thread


@pytest.fixture(autouse=True)
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_the_number_of_threads_comes_back_also_after_an_error():
    seen = []

    @one_thread()
    def fail():
        seen.append(torch.get_num_threads())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert seen == [1] and torch.get_num_threads() == 2


def test_weights_are_made_on_one_thread():
    seen = []

    class Watched(StandIn):
        def generate(self, request):
            seen.append(torch.get_num_threads())
            return super().generate(request)

    job = Job(Watched(), "stand-in", make_data(), lambda data: target_for("cnn-tiny", data))
    make_weights(job, job.order(support_per_class=4))
    assert set(seen) == {1} and torch.get_num_threads() == 2
