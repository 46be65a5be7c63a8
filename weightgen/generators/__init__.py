"""The learnt generators by the name of their method; a new one is a file beside this one and a line in GENERATORS.

The references (default_init, zoo_mean, soup, retrieval, noise) speak the same protocol, but are built from a
ReferenceZoo rather than loaded from a generator file.
"""

from pathlib import Path

from weightgen.checkpoint import read_manifest
from weightgen.errors import CorruptFile, UnknownName
from weightgen.generator import WeightGenerator
from weightgen.generators.latent_diffusion import LatentDiffusion
from weightgen.generators.mip_hypernet import MipHypernet

FORMAT = "weightgen.generator"

GENERATORS = {"d2nwg": LatentDiffusion, "mip": MipHypernet}


def load_generator(path: str | Path) -> WeightGenerator:
    """The learnt generator in a file; its manifest says which method it belongs to, which checks the version."""
    manifest = read_manifest(path)
    if manifest.get("format") != FORMAT:
        raise CorruptFile(f"{path}: format {manifest.get('format')!r}, expected a generator file ({FORMAT!r})")
    method = manifest.get("method")
    if method not in GENERATORS:
        raise UnknownName("generator method", str(method), GENERATORS)
    return GENERATORS[method].load(Path(path))
