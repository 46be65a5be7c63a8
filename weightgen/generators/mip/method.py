"""The declaration of mip: it reads labelled examples and nothing else."""

from weightgen.method import Method

MIP = Method(
    name="mip",
    title="A hypernetwork that reads labelled examples: one set of weights, the best it can make.",
    code="weightgen.generators.mip.generator:Mip",
)
