"""The mean of all trunks of a reference zoo, aligned to one another, refitted on the support set."""

from weightgen.references.zoo import ReferenceZoo, require_one
from weightgen.request import GenerationRequest, require_support
from weightgen.solve.refit import refit
from weightgen.spec import State


class ZooMean:
    """The reference `zoo_mean`: the same trunk for every task."""

    name = "zoo_mean"

    def __init__(self, zoo: ReferenceZoo) -> None:
        self.zoo = zoo

    def check(self, request: GenerationRequest) -> None:
        require_one(request)
        self.zoo.check(request.target)

    def generate(self, request: GenerationRequest) -> list[State]:
        self.check(request)
        return [refit(request.target, self.zoo.mean_trunk(), require_support(request))]
