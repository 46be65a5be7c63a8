"""Networks side by side compute what each computes alone, and the same to the bit in whatever company."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from model_zoo.architectures import build_target
from weightgen.errors import UnsupportedTask
from weightgen.target.side_by_side import (
    can_run_side_by_side,
    join_inputs,
    join_states,
    run_each,
    run_halves,
    split_features,
    split_state,
    sum_channels,
    widen,
)

TARGET = build_target("cnn-tiny", num_classes=3)
STATES = [TARGET.init_state(seed) for seed in range(5)]


def draw_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


IMAGES = [draw_images(7, 1, 28, 28, seed=seed) for seed in range(5)]


def run_together(chosen: list[int]) -> torch.Tensor:
    """Logits (b, n, 3) of the chosen networks on their own images."""
    wide = widen(TARGET.skeleton, len(chosen))
    inputs = join_inputs([IMAGES[i] for i in chosen])
    logits = functional_call(wide, join_states([STATES[i] for i in chosen]), (inputs,))
    return split_features(logits, len(chosen))


def test_networks_side_by_side_compute_what_each_computes_alone():
    for i, logits in enumerate(run_together([0, 1, 2, 3, 4])):
        assert torch.allclose(logits, TARGET.run(STATES[i], IMAGES[i]), atol=1e-5)


@pytest.mark.parametrize(
    "chosen", [[1, 0], [2, 4, 0], [4, 3, 2, 1, 0], [3, 3, 3, 3], [0, 1, 2, 3, 4, 0, 1, 2, 3]], ids=str
)
def test_a_networks_numbers_are_the_same_to_the_bit_in_any_company(chosen):
    for i, logits in zip(chosen, run_together(chosen), strict=True):
        assert torch.equal(logits, run_together([i, i])[0])


def test_splitting_inverts_joining():
    for state, again in zip(STATES, split_state(join_states(STATES), len(STATES)), strict=True):
        assert all(torch.equal(state[name], again[name]) for name in state)


@pytest.mark.parametrize("number", [1, 2, 7, 300])
def test_halves_give_every_input_its_logits(number):
    images = draw_images(number, 1, 28, 28)
    assert torch.allclose(run_halves(TARGET.skeleton, STATES[0], images), TARGET.run(STATES[0], images), atol=1e-5)


@pytest.mark.parametrize("number", [1, 3])
def test_each_network_gives_its_own_logits_of_the_same_inputs(number):
    images = draw_images(200, 1, 28, 28)
    for state, logits in zip(STATES, run_each(TARGET.skeleton, STATES[:number], images), strict=False):
        assert torch.allclose(logits, TARGET.run(state, images), atol=1e-5)


def test_without_its_last_layer_a_network_gives_what_that_layer_reads():
    (features,) = run_each(TARGET.skeleton, STATES[:1], IMAGES[0], without="head")
    logits = features @ STATES[0]["head.weight"].T + STATES[0]["head.bias"]
    assert torch.allclose(logits, TARGET.run(STATES[0], IMAGES[0]), atol=1e-5)


@pytest.mark.parametrize("shape", [(9, 6, 5, 5), (33, 20)], ids=["images", "features"])
def test_sums_of_channels_do_not_depend_on_how_many_there_are(shape):
    parts = [draw_images(*shape, seed=seed) for seed in range(5)]
    alone = torch.cat([sum_channels(join(part, 1)) for part in parts])
    assert torch.equal(sum_channels(join(torch.cat(parts, 1), 1)), alone)
    expected = torch.cat([part.double().sum([0, *range(2, part.ndim)]) for part in parts])
    assert torch.allclose(alone.double(), expected, rtol=1e-5)


def join(x: torch.Tensor, number: int) -> torch.Tensor:
    return join_inputs([x] * number) if x.ndim == 4 else x


def test_networks_that_do_not_say_so_do_not_run_side_by_side():
    assert can_run_side_by_side(TARGET.skeleton)
    assert not can_run_side_by_side(build_target("vit-tiny", num_classes=3).skeleton)
    with pytest.raises(UnsupportedTask, match="Linear does not say that it can run side by side with others"):
        widen(nn.Linear(2, 2, device="meta"), 2)
