"""Folders of images: one folder a class, with train/ and test/ on top of them or without.

    pictures/train/cat/1.png  pictures/test/cat/2.png        or        pictures/cat/1.png

Without, a fifth of each class is kept for testing (`model_zoo.data.split`). Needs Pillow: the extra `images`.
"""

import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_zoo.data.convert import MAX_SIDE, MIN_SIDE, convert_arrays
from model_zoo.data.npz import DEFAULT_MAX_BYTES
from model_zoo.data.split import number_classes, split_stratified
from weightgen.errors import BadData, CorruptFile, WeightgenError
from weightgen.labelled_data import LabelledData, resize_images

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
TEST_FRACTION = 0.2
DEFAULT_SIDE = 28
"""Pictures of one folder may differ in size, so they have to be brought to one."""


def load_image_folder(path: Path, *, image_size: int | None = 28, max_bytes: int = DEFAULT_MAX_BYTES) -> LabelledData:
    """The labelled data of a folder of class folders; class names are the folders' names.

    Raises BadData if there are no pictures, CorruptFile for a picture that cannot be read.
    """
    files = _list_files(path)
    size = image_size or DEFAULT_SIDE
    total = sum(len(part) for part in files.values())
    if 12 * total * size**2 > max_bytes:
        raise BadData(f"{str(path)!r}: {total} images of {size}x{size} take {12 * total * size**2:,} bytes, the limit "
                      f"is {max_bytes:,}; use fewer images or raise max_bytes")  # fmt: skip
    notes = []
    if "all" in files:
        everything = files["all"]
        train, test = split_stratified(str(path), np.array([c for c, _ in everything]), test_fraction=TEST_FRACTION)
        files = {"train": [everything[i] for i in train], "test": [everything[i] for i in test]}
        notes.append(f"split into {len(train)} train and {len(test)} test examples (seeded, stratified)")
    labels, names = number_classes([c for part in ("train", "test") for c, _ in files[part]])
    absent = sorted({c for c, _ in files["test"]} - {c for c, _ in files["train"]})
    if absent:
        raise BadData(f"{str(path)!r}: class {absent[0]!r} is in test/ but not in train/")
    pictures, sizes, is_grey = _read_pictures([f for part in ("train", "test") for _, f in files[part]], size)
    if is_grey:
        pictures = pictures[..., 0]
    other = sorted(s for s in sizes if s != (size, size))
    if other:
        shown = ", ".join(f"{h}x{w}" for w, h in other[:3]) + (f" and {len(other) - 3} more sizes" if other[3:] else "")
        notes.append(f"resized from {shown} to {size}x{size}")
    n = len(files["train"])
    arrays = {"x_train": pictures[:n], "y_train": labels[:n], "x_test": pictures[n:], "y_test": labels[n:]}
    return convert_arrays(str(path), arrays, image_size=size, class_names=names).with_notes(notes)


def import_pillow(what: str) -> ModuleType:
    """PIL.Image, or a sentence that says how to install it."""
    try:
        import PIL.Image
    except ImportError as error:
        raise WeightgenError(f"{what} needs Pillow; install it with: pip install 'weightgen[images]'") from error
    return PIL.Image


def convert_picture(picture: Any, size: int) -> tuple[NDArray, bool]:
    """One PIL picture as (size, size, 3) uint8, and whether its three channels are the same.

    Transparency is refused: what is behind it is not known.
    """
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        raise BadData("it has a transparency channel; save it without, for example with picture.convert('RGB')")
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in picture.size):
        width, height = picture.size
        raise BadData(f"it has {height}x{width} pixels; expected {MIN_SIDE} to {MAX_SIDE} a side")
    if picture.mode.startswith(("I", "F")):
        raise BadData(f"its pixels are of kind {picture.mode!r}; expected 8 bits a channel")
    rgb = torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32))
    rgb = resize_images(rgb.permute(2, 0, 1)[None], size)[0].permute(1, 2, 0)
    pixels = rgb.round().clamp(0, 255).to(torch.uint8).numpy()
    return pixels, picture.mode in ("1", "L") or bool((pixels[..., :1] == pixels).all())


def _list_files(path: Path) -> dict[str, list[tuple[str, Path]]]:
    """Part ("train" and "test", or "all") -> (class name, file), sorted."""
    folders = {p.name: p for p in path.iterdir() if p.is_dir() and not p.name.startswith(".")}
    if "train" in folders and "test" in folders:
        parts = {"train": folders["train"], "test": folders["test"]}
    elif len({"train", "test"} & folders.keys()) == 1 and len(folders) == 1:
        raise BadData(f"{str(path)!r} holds only {next(iter(folders))}/; expected train/ and test/, or class folders")
    else:
        parts = {"all": path}
    listed = {part: _list_classes(folder) for part, folder in parts.items()}
    for part, files in listed.items():
        if not files:
            where = str(parts[part])
            raise BadData(
                f"{where!r} holds no images in class folders; expected {where}/CLASS/PICTURE.png and the like"
            )
    return listed


def _list_classes(folder: Path) -> list[tuple[str, Path]]:
    return [
        (c.name, file)
        for c in sorted(folder.iterdir())
        if c.is_dir() and not c.name.startswith(".")
        for file in sorted(c.iterdir())
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    ]


def _read_pictures(files: list[Path], size: int) -> tuple[NDArray, set[tuple[int, int]], bool]:
    """(n, size, size, 3) uint8, the sizes (width, height) met, and whether all are grey."""
    image = import_pillow("a folder of images")
    pictures, sizes, is_grey = [], set(), True
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", image.DecompressionBombWarning)
                with image.open(file) as picture:
                    sizes.add(picture.size)
                    pixels, grey = convert_picture(picture, size)
        except BadData as error:
            raise BadData(f"image {str(file)!r}: {error}") from error
        except (image.DecompressionBombError, image.DecompressionBombWarning) as error:
            raise BadData(
                f"image {str(file)!r} unpacks to more pixels than are safe to read; make it smaller"
            ) from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise CorruptFile(f"image {str(file)!r} cannot be read: {type(error).__name__}") from error
        pictures.append(pixels)
        is_grey = is_grey and grey
    return np.stack(pictures), sizes, is_grey
