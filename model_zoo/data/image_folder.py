"""Folders of images: one folder per class, inside train/ and test/ or not.

    pictures/train/cat/1.png  pictures/test/cat/2.png        or        pictures/cat/1.png

Without them, a fifth of each class is kept for testing (`model_zoo.data.split`). Needs Pillow: the extra `images`.
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
"""Height and width, in pixels, to which pictures are resized by default: their sizes may differ."""


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
    parts = [part for part in ("train", "test", "all") if part in files]
    pictures, sizes = _read_pictures([f for part in parts for _, f in files[part]], size)
    classes = [c for part in parts for c, _ in files[part]]
    num_train = len(files["train"]) if "train" in files else None
    return label_pictures(str(path), pictures, classes, num_train=num_train, sizes=sizes)


def label_pictures(
    name: str, pictures: NDArray, classes: list[str], *, num_train: int | None, sizes: set[tuple[int, int]]
) -> LabelledData:
    """The labelled data of pictures (n, size, size, 3) uint8; `sizes` holds their heights and widths before resizing.

    The first `num_train` are the train part; if None, a fifth of each class is kept for testing.
    """
    labels, names = number_classes(classes)
    size, notes = pictures.shape[1], []
    if num_train is None:
        train, test = split_stratified(name, np.array(classes), test_fraction=TEST_FRACTION)
        notes.append(f"split into {len(train)} train and {len(test)} test examples (seeded, stratified)")
    else:
        train, test = np.arange(num_train), np.arange(num_train, len(pictures))
        absent = sorted(set(classes[num_train:]) - set(classes[:num_train]))
        if absent:
            raise BadData(f"{name!r}: class {absent[0]!r} is in test/ but not in train/")
    if (pictures[..., :1] == pictures).all():
        pictures = pictures[..., 0]  # grey
    other = sorted(s for s in sizes if s != (size, size))
    if other:
        shown = ", ".join(f"{h}x{w}" for h, w in other[:3]) + (f" and {len(other) - 3} more sizes" if other[3:] else "")
        notes.append(f"resized from {shown} to {size}x{size}")
    arrays = {
        "x_train": pictures[train],
        "y_train": labels[train],
        "x_test": pictures[test],
        "y_test": labels[test],
    }
    return convert_arrays(name, arrays, image_size=size, class_names=names).with_notes(notes)


def import_pillow(what: str) -> ModuleType:
    """The module PIL.Image; raises WeightgenError with the install command if it is missing."""
    try:
        import PIL.Image
    except ImportError as error:
        raise WeightgenError(f"{what} needs Pillow; install it with: pip install 'weightgen[images]'") from error
    return PIL.Image


def convert_picture(picture: Any, size: int) -> NDArray:
    """One PIL picture as (size, size, 3) uint8.

    Transparency is refused: the colour behind it is unknown.
    """
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        raise BadData("it has a transparency channel; save it without, for example with picture.convert('RGB')")
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in picture.size):
        width, height = picture.size
        raise BadData(f"it has {height}x{width} pixels; expected {MIN_SIDE} to {MAX_SIDE} a side")
    if picture.mode.startswith(("I", "F")):
        raise BadData(f"its pixels are of kind {picture.mode!r}; expected 8 bits a channel")
    return resize_picture(np.array(picture.convert("RGB")), size)


def resize_picture(pixels: NDArray, size: int) -> NDArray:
    """A picture (h, w, 3) uint8 resized to (size, size, 3) uint8."""
    rgb = torch.from_numpy(pixels.astype(np.float32))
    rgb = resize_images(rgb.permute(2, 0, 1)[None], size)[0].permute(1, 2, 0)
    return rgb.round().clamp(0, 255).to(torch.uint8).numpy()


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


def _read_pictures(files: list[Path], size: int) -> tuple[NDArray, set[tuple[int, int]]]:
    """Pictures (n, size, size, 3) uint8, and the set of their original heights and widths."""
    image = import_pillow("a folder of images")
    pictures, sizes = [], set()
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", image.DecompressionBombWarning)
                with image.open(file) as picture:
                    sizes.add((picture.height, picture.width))
                    pictures.append(convert_picture(picture, size))
        except BadData as error:
            raise BadData(f"image {str(file)!r}: {error}") from error
        except (image.DecompressionBombError, image.DecompressionBombWarning) as error:
            raise BadData(
                f"image {str(file)!r} unpacks to more pixels than are safe to read; make it smaller"
            ) from error
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            raise CorruptFile(f"image {str(file)!r} cannot be read: {type(error).__name__}") from error
    return np.stack(pictures), sizes
