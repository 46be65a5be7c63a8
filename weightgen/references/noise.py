"""Noise around the nearest: the retrieved trunk plus Gaussian noise, refitted on the support set.

It imitates a generator that memorised its zoo and blurs it.
"""

import torch
from torch import Tensor

from weightgen.errors import BadOption
from weightgen.references.zoo import ReferenceZoo
from weightgen.request import GenerationRequest, TaskEmbedding, require_support
from weightgen.solve.refit import refit
from weightgen.spec import State


class Noise:
    """The reference `noise`; its standard deviation is `sigma` times the root mean square of each tensor."""

    name = "noise"

    def __init__(self, zoo: ReferenceZoo, *, embed: TaskEmbedding, sigma: float = 0.1) -> None:
        if not sigma > 0:
            raise BadOption(f"sigma is {sigma}, expected more than 0")
        self.zoo = zoo
        self.embed = embed
        self.sigma = sigma

    def check(self, request: GenerationRequest) -> None:
        require_support(request)
        self.zoo.check(request.target)

    def generate(self, request: GenerationRequest) -> list[State]:
        self.check(request)
        support = require_support(request)
        trunk = self.zoo.trunk(self.zoo.nearest(request, self.embed)[0])
        learnt = {name for name, _ in request.target.skeleton.named_parameters()}
        rng = torch.Generator().manual_seed(request.seed)
        samples = []
        for _ in range(request.num_samples):
            blurred = {n: self._blur(t, rng) if n in learnt else t for n, t in trunk.items()}
            samples.append(refit(request.target, blurred, support))
        return samples

    def _blur(self, tensor: Tensor, rng: torch.Generator) -> Tensor:
        scale = self.sigma * tensor.square().mean().sqrt()
        return tensor + scale * torch.randn(tensor.shape, generator=rng)
