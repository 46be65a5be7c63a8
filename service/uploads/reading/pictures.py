"""Reads zips of folders of pictures: one folder for each class, with or without train/ and test/ above them.

A folder around everything and the hidden files of file managers may be there too. The bytes of a picture decide its
format, not its name.
"""

import io
import struct
import warnings
import zipfile
from typing import Any, BinaryIO

import numpy as np
import PIL.Image
from numpy.typing import NDArray

from service.uploads.reading import Limits, Raw, Texts, Unusable, check_bytes, check_num_examples, number, show
from service.uploads.reading.archives import open_archive, read_entry

PICTURE_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MIN_SIDE, MAX_SIDE = 2, 4096
"""Height and width, in pixels."""
PARTS = ("train", "test")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, OverflowError, struct.error)
"""What Pillow's decoders raise for damaged pictures."""


def read_pictures(file: BinaryIO, limits: Limits) -> Raw:
    """The pictures of a zip, those of train/ first."""
    archive, entries = open_archive(file, limits)
    files, has_parts = _sort_files(entries)
    check_num_examples(len(files), limits)
    texts, labels, pictures, num_pixels = Texts(limits), [], [], 0
    for _, class_name, entry in files:
        labels.append(texts.label(class_name))
        picture = _read_picture(read_entry(archive, entry), show(entry.filename), limits)
        num_pixels += picture.size
        check_bytes(num_pixels, limits)
        pictures.append(picture)
    return Raw(
        "pictures",
        {
            "pixels": np.concatenate([p.ravel() for p in pictures]),
            "sizes": np.array([p.shape for p in pictures], dtype=np.int64),
            "y": number(labels),
        },
        texts=texts.all(),
        num_train=sum(part == "train" for part, *_ in files) if has_parts else None,
    )


def _sort_files(entries: list[zipfile.ZipInfo]) -> tuple[list[tuple[str, str, zipfile.ZipInfo]], bool]:
    """(part, class, entry) in order, train before test, and whether there are parts."""
    paths = [(entry.filename.split("/"), entry) for entry in entries]
    paths = [
        (path, entry)
        for path, entry in paths
        if not any(part.startswith(".") for part in path) and path[0] != "__MACOSX"
    ]
    if not paths:
        raise Unusable("the archive holds no pictures; expected class/picture.png and the like")
    while len({path[0] for path, _ in paths}) == 1 and all(len(path) > 2 for path, _ in paths):
        if paths[0][0][0] in PARTS:
            raise Unusable(
                f"the archive holds only {paths[0][0][0]}/; expected train/ and test/, or folders of classes"
            )
        paths = [(path[1:], entry) for path, entry in paths]
    has_parts = {path[0] for path, _ in paths} == set(PARTS) and all(len(path) == 3 for path, _ in paths)
    files = []
    for path, entry in paths:
        if len(path) != (3 if has_parts else 2):
            raise Unusable(f"{show(entry.filename)} lies in no folder of a class; expected class/picture.png, or "
                           "train/class/picture.png and test/class/picture.png")  # fmt: skip
        files.append((path[0] if has_parts else "", path[-2], entry))
    return sorted(files, key=lambda f: (f[0] == "test", f[1], f[2].filename)), has_parts


def _read_picture(data: bytes, name: str, limits: Limits) -> NDArray:
    """(h, w, 1) or (h, w, 3) uint8."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `_check_picture` decides what is refused
            with PIL.Image.open(io.BytesIO(data), formats=PICTURE_FORMATS) as picture:
                _check_picture(picture, name, limits)
                converted = np.asarray(picture.convert("L" if picture.mode in ("1", "L") else "RGB"))
    except PIL.UnidentifiedImageError as error:
        raise Unusable(f"{name} is no picture; expected {', '.join(PICTURE_FORMATS)}") from error
    except PIL.Image.DecompressionBombError as error:
        raise Unusable(f"{name} has more pixels than the {limits.max_image_pixels} that are taken") from error
    except _UNREADABLE as error:
        raise Unusable(f"{name} is a damaged picture, or one that is cut short") from error
    return converted if converted.ndim == 3 else converted[..., None]


def _check_picture(picture: Any, name: str, limits: Limits) -> None:
    """Refuse by the picture's header, before its pixels are unpacked; as `model_zoo.data.image_folder` does."""
    width, height = picture.size
    if width * height > limits.max_image_pixels:
        raise Unusable(f"{name} has {height}x{width} pixels, at most {limits.max_image_pixels} are taken")
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in picture.size):
        raise Unusable(f"{name} has {height}x{width} pixels; expected {MIN_SIDE} to {MAX_SIDE} a side")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        raise Unusable(f"{name} has a transparency channel; save it without")
    if picture.mode.startswith(("I", "F")):
        raise Unusable(f"{name} has pixels of kind {picture.mode!r}; expected 8 bits a channel")
    if getattr(picture, "n_frames", 1) != 1:
        raise Unusable(f"{name} is animated; expected one picture")
