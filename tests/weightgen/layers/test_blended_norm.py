import pytest
import torch
from torch.nn import functional as F

from weightgen.layers.blended_norm import EPS, blended_norm


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def inputs(*shape: int) -> tuple[torch.Tensor, ...]:
    z, width = 1 + 2 * draw(*shape), shape[1]
    gain, bias, mean = (draw(width, seed=i) for i in (1, 2, 3))
    var, blend = draw(width, seed=4).exp(), torch.tensor(0.3, dtype=torch.float64)
    return tuple(t.requires_grad_() for t in (z, gain, bias, mean, var, blend))


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6), (4, 3, 2, 5)])
def test_slopes_are_right_in_everything(shape):
    assert torch.autograd.gradcheck(blended_norm, inputs(*shape))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_without_blending_it_is_batch_normalisation(layout):
    z, gain, bias, mean, var, _ = (t.detach() for t in inputs(4, 3, 6, 6))
    found, seen_mean, seen_var = blended_norm(
        z.contiguous(memory_format=layout), gain, bias, mean, var, torch.tensor(0.0)
    )
    assert torch.allclose(found, F.batch_norm(z, None, None, gain, bias, training=True, eps=EPS))
    assert torch.allclose(seen_mean, z.mean((0, 2, 3)))
    assert torch.allclose(seen_var, z.var((0, 2, 3), correction=0))


def test_wholly_blended_it_takes_the_given_statistics():
    z, gain, bias, mean, var, _ = (t.detach() for t in inputs(4, 3, 6, 6))
    found, used_mean, used_var = blended_norm(z, gain, bias, mean, var, torch.tensor(1.0))
    assert torch.allclose(found, F.batch_norm(z, mean, var, gain, bias, eps=EPS))
    assert torch.equal(used_mean, mean)
    assert torch.equal(used_var, var)
