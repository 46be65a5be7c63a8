"""The declaration of logah: it reads a graph and, for a classifier, labelled examples."""

from weightgen.method import Method

LOGAH = Method(
    name="logah",
    title="A graph hypernetwork: weights for any architecture, read from its graph.",
    code="weightgen.generators.logah.generator:Logah",
)
