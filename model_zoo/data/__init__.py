"""Data sources. A new kind is a file here, and an entry in DATA_SOURCES.

`load_data` takes a registered name (scikit-learn's sets, the image sets of the shared folder), a file or folder, or
`hf:NAME`. A registered name wins over a file of that name; write ./NAME for the file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_zoo.data.hf import load_hf
from model_zoo.data.image_folder import load_image_folder
from model_zoo.data.npz import DEFAULT_MAX_BYTES, load_npz
from model_zoo.data.shared import (
    EVALUATION_SETS,
    TRAIN_SETS,
    describe_image_set,
    find_evaluation_files,
    image_set_files,
    list_image_sets,
    load_image_set,
    shared_folder,
)
from model_zoo.data.sklearn import SKLEARN_SETS, load_sklearn
from model_zoo.data.table import TABLE_SUFFIXES, load_table
from weightgen.errors import BadData, BadOption, NotFound, UnknownName
from weightgen.labelled_data import LabelledData

__all__ = [
    "DATA_SOURCES",
    "EVALUATION_SETS",
    "TRAIN_SETS",
    "DataSource",
    "data_files",
    "data_licence",
    "describe_image_set",
    "find_evaluation_files",
    "list_data",
    "load_data",
    "shared_folder",
]


@dataclass(frozen=True)
class DataSource:
    """One kind of source: a check whether it takes a name, and a loader."""

    takes: Callable[[str], bool]
    load: Callable[[str, int | None, int], LabelledData]
    """(name or path, image_size, max_bytes) -> data."""


DATA_SOURCES: dict[str, DataSource] = {
    "sklearn": DataSource(lambda s: s in SKLEARN_SETS, lambda s, size, _: load_sklearn(s, image_size=size)),
    "shared": DataSource(
        lambda s: s in list_image_sets(), lambda s, size, limit: load_image_set(s, image_size=size, max_bytes=limit)
    ),
    "hf": DataSource(
        lambda s: s.startswith("hf:"), lambda s, size, limit: load_hf(s[3:], image_size=size, max_bytes=limit)
    ),
    "npz": DataSource(
        lambda s: Path(s).is_file() and s.lower().endswith(".npz"),
        lambda s, size, limit: load_npz(Path(s), image_size=size, max_bytes=limit),
    ),
    "table": DataSource(
        lambda s: Path(s).is_file() and s.lower().endswith(TABLE_SUFFIXES),
        lambda s, _, limit: load_table(Path(s), max_bytes=limit),
    ),
    "image_folder": DataSource(
        lambda s: Path(s).is_dir(), lambda s, size, limit: load_image_folder(Path(s), image_size=size, max_bytes=limit)
    ),
}
"""Kind -> source, tried in this order."""


def load_data(name_or_path: str, *, image_size: int | None = 28, max_bytes: int = DEFAULT_MAX_BYTES) -> LabelledData:
    """The labelled data of a registered name, a file, a folder or `hf:NAME`; images at image_size x image_size.

    Raises UnknownName or NotFound if it does not exist, BadData or CorruptFile if it cannot be used.
    """
    name = str(name_or_path)
    if image_size is not None and not 1 <= image_size <= 1024:
        raise BadOption(f"image_size is {image_size}, expected 1 to 1024")
    for source in DATA_SOURCES.values():
        if source.takes(name):
            return source.load(name, image_size, max_bytes)
    if Path(name).exists():
        known = ", ".join((".npz", *TABLE_SUFFIXES))
        raise BadData(f"{name!r} is no data file; expected one of {known}, or a folder of images")
    if "/" in name or Path(name).suffix.lower() in (".npz", *TABLE_SUFFIXES):
        raise NotFound(f"data file {name!r} does not exist")
    if name in EVALUATION_SETS or name in TRAIN_SETS:
        describe_image_set(name)  # its error names the searched folder
    raise UnknownName("data set", name, list_data())


def data_licence(name_or_path: str) -> str:
    """The known licence of a data set, for cards and provenance."""
    if name_or_path in SKLEARN_SETS:
        return "CC BY 4.0 (UCI Machine Learning Repository, as scikit-learn ships it)"
    if name_or_path in list_image_sets():
        return str(describe_image_set(name_or_path)["licence"])
    return "not stated"


def data_files(name: str) -> tuple[Path, ...]:
    """The files that a registered data set is read from; none for scikit-learn's, which come with the package."""
    return () if name in SKLEARN_SETS else image_set_files(name)


def list_data() -> list[str]:
    """Every registered name that can be loaded here."""
    return sorted({*SKLEARN_SETS, *list_image_sets()})
