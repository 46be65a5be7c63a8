import pytest
import torch

from model_zoo.architectures import build_target
from tests.helpers.standins import make_support
from weightgen.errors import BadData
from weightgen.target.predict import accuracy, predict, predict_each


def test_accuracy_is_the_fraction_of_right_answers():
    target, support = build_target("cnn-tiny", num_classes=3), make_support()
    state = target.init_state(0)
    expected = (target.load(state)(support.inputs).argmax(1) == support.labels).float().mean()
    assert accuracy(target, state, support.inputs, support.labels) == pytest.approx(float(expected))
    assert predict(target, state, support.inputs).shape == (18, 3)


def test_accuracy_refuses_what_cannot_be_scored():
    target, support = build_target("cnn-tiny", num_classes=3), make_support()
    with pytest.raises(BadData, match="18 inputs and 17 labels"):
        accuracy(target, target.init_state(0), support.inputs, support.labels[:17])


@pytest.mark.parametrize("arch", ["cnn-tiny", "vit-tiny"])
def test_each_of_several_states_says_what_it_says_alone(arch):
    target, support = build_target(arch, num_classes=3), make_support()
    states = [target.init_state(seed) for seed in range(3)]
    together = predict_each(target, states, support.inputs)
    alone = torch.stack([predict(target, state, support.inputs) for state in states])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
