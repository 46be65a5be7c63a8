import torch

from weightgen.layers.transformer import Block, embed_scalar


def test_a_modulated_block_is_the_identity_before_training(rng):
    x = torch.randn(2, 5, 8, generator=rng)
    assert torch.equal(Block(8, 2, condition_dim=3)(x, torch.ones(2, 3)), x)


def test_a_block_does_not_know_the_order_of_its_tokens(rng):
    block, x, order = Block(8, 2), torch.randn(1, 6, 8, generator=rng), torch.randperm(6, generator=rng)
    assert torch.allclose(block(x)[:, order], block(x[:, order]), atol=1e-6)


def test_embedded_scalars_tell_small_differences():
    near = embed_scalar(torch.tensor([0.5, 0.51, 1.0]), 32)
    assert near.shape == (3, 32) and near.abs().max() <= 1
    assert (near[0] - near[1]).norm() > 0.1
