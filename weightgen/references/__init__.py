"""References: rules that need no generator, and the zoo of trained trunks that they use.

`references_for` gives those that a generator is compared with.
"""

from weightgen.references.default_init import RandomTrunkRidge
from weightgen.references.retrieval import Retrieval
from weightgen.references.soup import Soup
from weightgen.references.zoo import ReferenceZoo
from weightgen.request import EmbedsTasks, TaskEmbedding, WeightGenerator


def references_for(generator: WeightGenerator, arch: str, zoo: ReferenceZoo | None) -> list[WeightGenerator]:
    """The references that a generator's weights are compared with when they are made.

    Retrieval and soup need a zoo whose tasks this generator has embedded; a random trunk needs nothing.
    """
    embed, _ = task_embedding(generator, arch, zoo)
    if zoo is None or embed is None:
        return [RandomTrunkRidge()]
    return [Retrieval(zoo, embed=embed), Soup(zoo, embed=embed), RandomTrunkRidge()]


def task_embedding(generator: WeightGenerator, arch: str, zoo: ReferenceZoo | None) -> tuple[TaskEmbedding | None, str]:
    """The embedding that compares the zoo's tasks with others, and ""; or None, and the reason why there is none."""
    if zoo is None:
        return None, "there is no reference zoo for this architecture and these inputs"
    if not isinstance(generator, EmbedsTasks):
        return None, "this generator has no task embedding"
    if generator.digest_of(arch) != zoo.embedder:
        return None, "the reference zoo was embedded by another generator"
    return generator.embed, ""
