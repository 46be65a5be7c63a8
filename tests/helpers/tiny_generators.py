"""Untrained generators that are small enough for tests."""

import torch

from model_zoo.architectures import build_target
from weightgen.generators.d2nwg.generator import D2nwgConfig
from weightgen.generators.logah.generator import LogahConfig
from weightgen.generators.mip.generator import Mip
from weightgen.generators.mip.hypernet import MipConfig, new_hypernet

TINY_D2NWG = D2nwgConfig(
    num_latents=2, latent_dim=4, codec_dim=16, codec_depth=1, encoder_dim=16, denoiser_dim=16, denoiser_depth=1
)
TINY_LOGAH = LogahConfig(rank=4, num_layers=2, dim=16, num_heads=4, max_distance=8)
TINY_MIP = MipConfig(encoding_dim=16, encoder_width=4, rank=2, refinements=1)


def make_mip(*archs: str) -> Mip:
    """Untrained, but moved off its start: the condition has an effect."""
    hypernets = {}
    for arch in archs:
        hypernet = new_hypernet(build_target(arch, num_classes=2, in_channels=3), TINY_MIP, seed=0)
        with torch.no_grad():
            rng = torch.Generator().manual_seed(1)
            hypernet.coefficients.weight.copy_(torch.randn(hypernet.coefficients.weight.shape, generator=rng) * 0.1)
        hypernets[arch] = hypernet
    return Mip(hypernets).requires_grad_(False)
