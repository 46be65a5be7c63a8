"""Labelled data on its way to the service: a file as it is, a folder of pictures as a zip, arrays as an .npz."""

import contextlib
import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tqdm import tqdm

from weightgen.errors import BadData, NotFound

if TYPE_CHECKING:
    import numpy as np

BLOCK_BYTES = 2**18
MEDIA_TYPES = {
    ".npz": "application/x-npz",
    ".zip": "application/zip",
    ".csv": "text/csv",
    ".parquet": "application/vnd.apache.parquet",
}
"""Suffix of a file -> media type of the request."""


@dataclass(frozen=True)
class Upload:
    """A body that can be sent, and sent again."""

    file: BinaryIO
    size: int
    media_type: str

    def content(self, *, progress: bool) -> Callable[[], Iterator[bytes]]:
        """A function that returns the body from its start, each time it is called."""

        def read() -> Iterator[bytes]:
            self.file.seek(0)
            with tqdm(total=self.size, unit="B", unit_scale=True, desc="upload", disable=not progress) as bar:
                while block := self.file.read(BLOCK_BYTES):
                    yield block
                    bar.update(len(block))

        return read


@contextlib.contextmanager
def pack(data: "str | Path | Mapping[str, np.ndarray]") -> Iterator[Upload]:
    """The body for a file, for a folder of folders of pictures, or for arrays by name (x and y, or x_train, …).

    Raises NotFound for a path that does not exist, BadData for a folder without files.
    """
    if isinstance(data, str | Path):
        path = Path(data)
        if not path.exists():
            raise NotFound(f"{path}: no such file or folder; expected labelled data to upload")
        packed = _zip_folder(path) if path.is_dir() else _open_file(path)
    else:
        packed = _pack_arrays(data)
    with packed as (file, media_type):
        yield Upload(file, file.seek(0, io.SEEK_END), media_type)


@contextlib.contextmanager
def _open_file(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    if path.suffix.lower() not in MEDIA_TYPES:
        kinds = ", ".join(MEDIA_TYPES)
        raise BadData(f"{path}: expected a file of labelled data ({kinds}) or a folder of pictures")
    with path.open("rb") as file:
        yield file, MEDIA_TYPES[path.suffix.lower()]


@contextlib.contextmanager
def _zip_folder(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """A zip of every file below the folder except hidden ones; links are not followed."""
    names = [found.relative_to(path) for found in sorted(path.rglob("*")) if found.is_file() and not found.is_symlink()]
    names = [name for name in names if not any(part.startswith(".") for part in name.parts)]
    if not names:
        raise BadData(f"{path}: there is no file in this folder; expected class/picture.png")
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(file, "w") as archive:  # pictures are compressed already
            for name in names:
                archive.writestr(zipfile.ZipInfo(name.as_posix()), (path / name).read_bytes())
        yield file, MEDIA_TYPES[".zip"]


@contextlib.contextmanager
def _pack_arrays(arrays: "Mapping[str, np.ndarray]") -> Iterator[tuple[BinaryIO, str]]:
    import numpy as np

    if not arrays:
        raise BadData("no arrays were given; expected x and y, or x_train, y_train, x_test and y_test")
    converted: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    if objects := [name for name, array in converted.items() if array.dtype == object]:
        raise BadData(f"array {objects[0]!r} holds Python objects, expected numbers or texts")
    with tempfile.TemporaryFile() as file:
        np.savez_compressed(file, allow_pickle=False, **converted)
        yield file, MEDIA_TYPES[".npz"]
