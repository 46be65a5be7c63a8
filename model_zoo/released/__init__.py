"""The released generators and the reference zoos they are compared with, by name.

The files are in this folder, each with a card and a JSON of its figures that `make report` writes. SHA256SUMS holds
their hashes in the format of `sha256sum`. After a release:
`cd model_zoo/released && sha256sum *.safetensors references/*/*.safetensors > SHA256SUMS`.
"""

from pathlib import Path
from typing import Any

from weightgen.errors import CorruptFile, NotFound, UnknownName
from weightgen.files.storage import read_json

RELEASED: dict[str, str] = {name: f"{name}.safetensors" for name in ("d2nwg", "logah", "mip")}
"""Name of a released generator -> its file in this folder."""

FOLDER = Path(__file__).parent


def released_generator(name: str) -> Path:
    """The file of a released generator.

    Raises UnknownName for a name that was never released, NotFound if its file is missing here.
    """
    if name not in RELEASED:
        raise UnknownName("released generator", name, RELEASED)
    path = FOLDER / RELEASED[name]
    if not path.is_file():
        raise NotFound(f"generator {name!r} has no file {path.name} in this copy of model_zoo; give a generator file")
    return path


def released_references(generator: str, arch: str, in_channels: int) -> Path | None:
    """The reference zoo of this architecture and number of channels, embedded by this generator; None if missing."""
    path = FOLDER / "references" / generator / f"{arch}-c{in_channels}.safetensors"
    return path if path.is_file() else None


def released_facts(name: str) -> dict[str, Any]:
    """Facts and scores of a released generator: the JSON of `benchmarks.reports.generator_facts`."""
    return read_json(released_generator(name).with_suffix(".json"))


def generator_file(name_or_path: str) -> Path:
    """The generator file for the name of a released generator or for a path."""
    if name_or_path in RELEASED:
        return released_generator(name_or_path)
    path = Path(name_or_path)
    if path.exists():
        return path
    if path.suffix or len(path.parts) > 1:
        raise NotFound(f"no generator file {name_or_path!r}; released generators: {', '.join(sorted(RELEASED))}")
    return released_generator(name_or_path)


def expected_hashes() -> dict[str, str]:
    """File name, relative to this folder -> sha256 at release."""
    sums = FOLDER / "SHA256SUMS"
    if not sums.is_file():
        return {}
    hashes = {}
    for line in sums.read_text().splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise CorruptFile(f"SHA256SUMS of the released generators: cannot read the line {line[:80]!r}")
        hashes[name] = digest
    return hashes
