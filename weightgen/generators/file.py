"""What all generator files share: their format, and the method and version that wrote them."""

from pathlib import Path
from typing import Any

from weightgen.errors import CorruptFile, UnsupportedTask
from weightgen.files.checkpoint import read_manifest

FORMAT = "weightgen.generator"


def read_method(path: Path) -> str:
    """Name of the method that wrote a generator file; CorruptFile if it is not one."""
    manifest = read_manifest(path)
    if manifest.get("format") != FORMAT:
        raise CorruptFile(f"{path}: format {manifest.get('format')!r}, expected a generator file ({FORMAT!r})")
    return str(manifest.get("method"))


def read_generator_manifest(path: Path, *, method: str, version: int) -> dict[str, Any]:
    """The manifest of a file of this method; CorruptFile for another method, UnsupportedTask for another version."""
    manifest = read_manifest(path)
    if manifest.get("format") != FORMAT or manifest.get("method") != method:
        raise CorruptFile(f"{path}: expected a generator file of method {method!r}")
    if manifest.get("version") != version:
        raise UnsupportedTask(
            f"{path}: written in version {manifest.get('version')} of the format, this weightgen reads {version}"
        )
    return dict(manifest)
