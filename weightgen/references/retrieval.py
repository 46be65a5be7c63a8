"""Nearest-task retrieval: the trunk of the zoo whose task is most like this one, refitted on the support set."""

from weightgen.references.zoo import ReferenceZoo, require_one
from weightgen.request import GenerationRequest, TaskEmbedding, require_support
from weightgen.solve.refit import refit
from weightgen.spec import State


class Retrieval:
    """The reference `retrieval`; likeness is the inner product of task embeddings, which `embed` makes."""

    name = "retrieval"

    def __init__(self, zoo: ReferenceZoo, *, embed: TaskEmbedding) -> None:
        self.zoo = zoo
        self.embed = embed

    def check(self, request: GenerationRequest) -> None:
        require_one(request)
        self.zoo.check(request.target)

    def nearest(self, request: GenerationRequest) -> int:
        """Index of the trunk that is retrieved."""
        return self.zoo.nearest(request, self.embed)[0]

    def trunks(self, request: GenerationRequest) -> list[State]:
        self.check(request)
        return [self.zoo.trunk(self.nearest(request))]

    def generate(self, request: GenerationRequest) -> list[State]:
        support = require_support(request)
        return [refit(request.target, trunk, support) for trunk in self.trunks(request)]
