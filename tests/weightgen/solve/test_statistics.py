import pytest
import torch
import torch.nn.functional as F

from model_zoo.architectures import build_target
from tests.helpers.standins import make_support
from tests.helpers.states import assert_states_equal
from weightgen.solve.statistics import recalibrate_batchnorm

WITH_BATCHNORM = ["cnn-w4-d3", "resnet8"]


@pytest.mark.parametrize("arch", WITH_BATCHNORM)
def test_recalibrated_statistics_are_those_of_the_inputs(arch):
    target, support = build_target(arch, num_classes=3), make_support()
    state = recalibrate_batchnorm(target, target.init_state(0), support.inputs)
    target.spec.check(state)
    first = next(n.removesuffix(".running_mean") for n in state if n.endswith("running_mean"))
    conv = next(t for n, t in state.items() if t.ndim == 4)
    seen = F.conv2d(support.inputs, conv, padding=1)
    torch.testing.assert_close(state[f"{first}.running_mean"], seen.mean((0, 2, 3)), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(state[f"{first}.running_var"], seen.var((0, 2, 3)), atol=1e-5, rtol=1e-3)
    assert_states_equal(state, recalibrate_batchnorm(target, state, support.inputs))


def test_recalibration_leaves_networks_without_batchnorm_alone():
    target, state = build_target("cnn-tiny"), build_target("cnn-tiny").init_state(0)
    assert recalibrate_batchnorm(target, state, make_support().inputs) is state
