"""Nearest-task retrieval: the trunk of the zoo whose task is most like this one, refitted on the support set."""

from weightgen.references.zoo import ReferenceZoo
from weightgen.request import GenerationRequest, TaskEmbedding, check_support
from weightgen.solve.refit import refit
from weightgen.spec import State


class Retrieval:
    """Likeness is the inner product of task embeddings under `embed`, the generator's own."""

    name = "retrieval"

    def __init__(self, zoo: ReferenceZoo, *, embed: TaskEmbedding) -> None:
        self.zoo = zoo
        self.embed = embed

    def check(self, request: GenerationRequest) -> None:
        check_support(request, samples=1)
        self.zoo.check(request.target)

    def nearest(self, request: GenerationRequest) -> int:
        """Number of the trunk that is retrieved."""
        return self.zoo.nearest(request, self.embed)[0]

    def trunks(self, request: GenerationRequest) -> list[State]:
        self.check(request)
        return [self.zoo.trunk(self.nearest(request))]

    def generate(self, request: GenerationRequest) -> list[State]:
        support = check_support(request)
        return [refit(request.target, trunk, support) for trunk in self.trunks(request)]
