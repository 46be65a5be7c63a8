"""Aligned soup: the mean of the trunks of the nearest tasks, refitted on the support set.

Uniform soup (Wortsman et al. 2022, "Model soups", arXiv:2203.05482) of networks of different tasks. Hidden units are
matched first (Ainsworth et al. 2022, "Git Re-Basin", arXiv:2209.04836): the mean of unmatched trunks would be noise.
"""

from weightgen.errors import BadOption
from weightgen.references.zoo import ReferenceZoo, require_one
from weightgen.request import GenerationRequest, TaskEmbedding, require_support
from weightgen.solve.refit import refit
from weightgen.spec import State


class Soup:
    """The mean of the `size` trunks whose tasks are most like this one under `embed`, or of all in a smaller zoo."""

    name = "soup"

    def __init__(self, zoo: ReferenceZoo, *, embed: TaskEmbedding, size: int = 16) -> None:
        if size < 1:
            raise BadOption(f"a soup of {size} trunks, expected at least 1")
        self.zoo = zoo
        self.embed = embed
        self.size = size

    def check(self, request: GenerationRequest) -> None:
        require_one(request)
        self.zoo.check(request.target)

    def trunks(self, request: GenerationRequest) -> list[State]:
        self.check(request)
        return [self.zoo.mean_trunk(self.zoo.nearest(request, self.embed)[: self.size])]

    def generate(self, request: GenerationRequest) -> list[State]:
        support = require_support(request)
        return [refit(request.target, trunk, support) for trunk in self.trunks(request)]
