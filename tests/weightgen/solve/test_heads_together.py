"""Heads solved together are those solved one by one, and the same to the bit in whatever company."""

import pytest
import torch

from weightgen.solve.head import left_out_cross_entropy, ridge_head, step_to_softmax
from weightgen.solve.heads_together import HeadsTogether, solve_heads

RIDGE, STEPS = torch.tensor(0.1), torch.tensor([1.0, 0.5, 2.0])
SIZES = [(20, 10, 4), (20, 5, 1), (7, 3, 5), (31, 2, 8), (64, 4, 3)]
"""(features, classes, shots): numbers that fill no vector, more features than examples, and fewer."""


def draw(d: int, k: int, shots: int, number: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.arange(k).repeat_interleave(shots)
    rng = torch.Generator().manual_seed(0)
    return torch.randn(number, k, d, generator=rng)[:, labels] + torch.randn(
        number, len(labels), d, generator=rng
    ), labels


def solve(features: torch.Tensor, labels: torch.Tensor) -> tuple[HeadsTogether, torch.Tensor]:
    """The heads, and the slope of the sum of their losses."""
    features = features.clone().requires_grad_()
    heads = solve_heads(features, labels, num_classes=int(labels.max()) + 1, ridge=RIDGE, steps=STEPS)
    (slope,) = torch.autograd.grad(heads.left_out_loss.sum(), [features], retain_graph=True)
    return heads, slope


@pytest.mark.parametrize(("d", "k", "shots"), SIZES)
def test_heads_solved_together_are_those_solved_one_by_one(d, k, shots):
    features, labels = draw(d, k, shots)
    heads, slopes = solve(features, labels)
    for i, alone in enumerate(features):
        alone = alone.clone().requires_grad_()
        ridge = ridge_head(alone, labels, num_classes=k, ridge=RIDGE)
        head = step_to_softmax(ridge, alone, labels, steps=STEPS)
        loss = left_out_cross_entropy(ridge, head, alone, labels)
        (slope,) = torch.autograd.grad(loss, [alone])
        for ours, theirs in ((heads.weight[i], head.weight), (heads.bias[i], head.bias), (slopes[i], slope),
                             (heads.left_out_loss[i], loss)):  # fmt: skip
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("d", "k", "shots"), SIZES)
@pytest.mark.parametrize(
    "chosen", [[1, 0], [2, 4, 0], [4, 3, 2, 1, 0], [3, 3, 3, 3], [0, 1, 2, 3, 4, 0, 1, 2, 3]], ids=str
)
def test_a_head_is_the_same_to_the_bit_in_any_company(d, k, shots, chosen):
    features, labels = draw(d, k, shots)
    together, slopes = solve(features[chosen], labels)
    for place, i in enumerate(chosen):
        alone, slope = solve(features[i : i + 1], labels)
        assert torch.equal(together.weight[place], alone.weight[0])
        assert torch.equal(together.bias[place], alone.bias[0])
        assert torch.equal(together.left_out_loss[place], alone.left_out_loss[0])
        assert torch.equal(slopes[place], slope[0])
