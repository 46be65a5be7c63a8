"""The learnt generators by the name of their method; a new one is a file beside this one and a line in GENERATORS.

The references (default_init, zoo_mean, soup, retrieval, noise) speak the same protocol, but are built from a
ReferenceZoo rather than loaded from a generator file.
"""

from pathlib import Path

from weightgen.errors import UnknownName
from weightgen.generator import WeightGenerator
from weightgen.generator_file import read_method
from weightgen.generators.graph_hypernet import GraphHypernet
from weightgen.generators.latent_diffusion import LatentDiffusion
from weightgen.generators.layerwise_diffusion import LayerwiseDiffusion
from weightgen.generators.mip_hypernet import MipHypernet

GENERATORS = {
    "d2nwg": LatentDiffusion,
    "d2nwg-layerwise": LayerwiseDiffusion,
    "logah": GraphHypernet,
    "mip": MipHypernet,
}


def load_generator(path: str | Path) -> WeightGenerator:
    """The learnt generator in a file; its manifest says which method it belongs to, which checks the version."""
    method = read_method(Path(path))
    if method not in GENERATORS:
        raise UnknownName("generator method", method, GENERATORS)
    return GENERATORS[method].load(Path(path))
