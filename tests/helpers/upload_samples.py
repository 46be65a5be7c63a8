"""Files that people upload, and limits small enough to be passed, for the tests of uploads."""

import io
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from service.artifacts.artifact_store import open_store
from service.process.scratch import Scratch
from service.uploads.reading import Limits, Unusable
from service.uploads.upload_store import Sent, Uploads

LIMITS = Limits(
    max_uncompressed_bytes=64 * 2**20,
    max_examples=2000,
    max_features=1000,
    max_classes=20,
    max_image_pixels=10_000,
    max_archive_entries=3000,
    max_reading_seconds=30,
)


def some_images(per_class: int = 6, *, num_classes: int = 3, size: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Grey images (n, size, size) uint8 and labels (n,), class after class."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(num_classes), per_class)
    return rng.integers(0, 256, (len(labels), size, size), dtype=np.uint8), labels


def npz_bytes(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def zip_bytes(files: Mapping[str, bytes], *, compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def picture_bytes(pixels: np.ndarray, picture_format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, picture_format, **options)
    return file.getvalue()


def class_folders(images: np.ndarray, labels: np.ndarray, *, above: str = "") -> dict[str, bytes]:
    """Path -> PNG, a folder a class."""
    return {f"{above}{y}/{i:04}.png": picture_bytes(x) for i, (x, y) in enumerate(zip(images, labels, strict=True))}


def csv_bytes(features: np.ndarray, labels: np.ndarray, *, label: str = "label") -> bytes:
    """A table with the label first."""
    lines = [",".join([label, *(f"f{i}" for i in range(features.shape[1]))])]
    lines += [",".join([str(y), *(repr(value) for value in x.tolist())]) for x, y in zip(features, labels, strict=True)]
    return ("\n".join(lines) + "\n").encode()


def parquet_bytes(columns: Mapping[str, object]) -> bytes:
    import pyarrow
    import pyarrow.parquet

    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(dict(columns)), file)
    return file.getvalue()


def some_uploads(folder: Path, **limits: int) -> Uploads:
    """An empty store of uploads."""
    return Uploads(open_store(folder / "datasets"), Scratch(folder / "scratch"), replace(LIMITS, **limits))


def upload(uploads: Uploads, data: bytes, **sent: Any) -> str:
    """The name of the data set in a file of these bytes, which comes without a name, as over HTTP."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        return uploads.add(file, Sent(**sent))[0]


def refusal(read: Callable[[bytes], object], data: bytes) -> str | None:
    """Why a file is refused; None if it is read. Any other error is not caught."""
    try:
        read(data)
    except Unusable as refused:
        return str(refused)
    return None


def is_sentence(refused: str | None) -> bool:
    """Whether a refusal is one line that prints anywhere, if there is one."""
    return refused is None or (refused.isprintable() and refused.isascii() and len(refused) < 600)
