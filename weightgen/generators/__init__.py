"""The learnt generators by the name of their method; a new one is a file beside this one and a line in GENERATORS.

The references (default_init, zoo_mean, soup, retrieval, noise) speak the same protocol, but are built from a
ReferenceZoo rather than loaded from a generator file.
"""

from pathlib import Path

from weightgen.errors import UnknownName
from weightgen.generators.d2nwg.generator import D2nwg
from weightgen.generators.d2nwg.layerwise import D2nwgLayerwise
from weightgen.generators.file import read_method
from weightgen.generators.logah.generator import Logah
from weightgen.generators.mip.generator import Mip
from weightgen.request import WeightGenerator

GENERATORS = {
    "d2nwg": D2nwg,
    "d2nwg-layerwise": D2nwgLayerwise,
    "logah": Logah,
    "mip": Mip,
}


def load_generator(path: str | Path) -> WeightGenerator:
    """The learnt generator in a file; its manifest says which method it belongs to, which checks the version."""
    method = read_method(Path(path))
    if method not in GENERATORS:
        raise UnknownName("generator method", method, GENERATORS)
    return GENERATORS[method].load(Path(path))
