"""The mean of all trunks of a reference zoo, aligned to one another, refitted on the support set."""

from weightgen.references.zoo import ReferenceZoo
from weightgen.request import GenerationRequest, check_support
from weightgen.solve.refit import refit
from weightgen.spec import State


class ZooMean:
    """The same trunk for every task."""

    name = "zoo_mean"

    def __init__(self, zoo: ReferenceZoo) -> None:
        self.zoo = zoo

    def check(self, request: GenerationRequest) -> None:
        check_support(request, samples=1)
        self.zoo.check(request.target)

    def generate(self, request: GenerationRequest) -> list[State]:
        self.check(request)
        return [refit(request.target, self.zoo.mean_trunk(), check_support(request))]
