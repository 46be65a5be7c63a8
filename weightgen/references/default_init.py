"""The two references without any learning: default initialisation, and a random trunk under a solved class head."""

import torch

from weightgen.request import GenerationRequest, require_support
from weightgen.solve.refit import refit
from weightgen.spec import State
from weightgen.target.trunk import take_trunk


class DefaultInit:
    """The architecture's default initialisation; ignores the condition."""

    name = "default_init"

    def check(self, request: GenerationRequest) -> None:
        pass

    def generate(self, request: GenerationRequest) -> list[State]:
        return [request.target.spec.complete(request.target.init_state(seed)) for seed in draw_seeds(request)]


class RandomTrunkRidge:
    """A trunk at default initialisation; BatchNorm's statistics and the class head are refitted on the support set."""

    name = "random_trunk_ridge"

    def check(self, request: GenerationRequest) -> None:
        require_support(request)

    def trunks(self, request: GenerationRequest) -> list[State]:
        target = request.target
        return [take_trunk(target.init_state(seed), target.spec) for seed in draw_seeds(request)]

    def generate(self, request: GenerationRequest) -> list[State]:
        support = require_support(request)
        return [refit(request.target, trunk, support) for trunk in self.trunks(request)]


def draw_seeds(request: GenerationRequest) -> list[int]:
    """A seed for every sample; the first is the request's own."""
    rng = torch.Generator().manual_seed(request.seed)
    return [request.seed, *torch.randint(2**62, (request.num_samples - 1,), generator=rng).tolist()]
