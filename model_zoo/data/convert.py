"""Converts raw arrays to tensors for targets: labels int64, images (n, c, size, size) in [0, 1]."""

from collections.abc import Mapping

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from weightgen.errors import BadData
from weightgen.labelled_data import LabelledData, resize_images

MIN_SIDE, MAX_SIDE = 2, 4096
"""Smallest and largest height and width of images, in pixels."""
PARTS = ("train", "test")
_BATCH = 2048


def convert_arrays(
    name: str, arrays: Mapping[str, NDArray], *, image_size: int | None, class_names: tuple[str, ...] | None = None
) -> LabelledData:
    """Labelled data of the arrays x_train, y_train, x_test and y_test; its notes say what was changed.

    `image_size` None leaves images at their own size. Raises BadData for anything that is neither images nor features.
    """
    labels = {part: _convert_labels(name, f"y_{part}", arrays[f"y_{part}"]) for part in PARTS}
    for part in PARTS:
        check_shape(name, f"x_{part}", arrays[f"x_{part}"].shape, arrays[f"x_{part}"].dtype)
    shapes = [arrays[f"x_{part}"].shape[1:] for part in PARTS]
    if shapes[0] != shapes[1]:
        shown = f"train {list(shapes[0])}, test {list(shapes[1])}"
        raise BadData(f"{name!r}: train and test examples have different shapes: {shown}")
    if len(shapes[0]) == 1:
        inputs, notes = {part: _convert_features(name, f"x_{part}", arrays[f"x_{part}"]) for part in PARTS}, []
    else:
        inputs, notes = _convert_images(name, {part: arrays[f"x_{part}"] for part in PARTS}, image_size)
    return LabelledData(
        name=name,
        x_train=inputs["train"],
        y_train=labels["train"],
        x_test=inputs["test"],
        y_test=labels["test"],
        class_names=class_names or tuple(str(i) for i in range(int(labels["train"].max()) + 1)),
        notes=tuple(notes),
    )


def check_shape(name: str, array: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Raise BadData unless an array of this shape and dtype can be images or features; reads no data."""
    got = f"{name!r}: {array} is {dtype} {list(shape)}"
    if len(shape) not in (2, 3, 4):
        raise BadData(f"{got}; expected images (n, h, w) or (n, h, w, c), or features (n, d)")
    if dtype.kind not in "fuib":
        raise BadData(f"{got}; expected uint8 or float numbers")
    if shape[0] == 0:
        raise BadData(f"{got}; expected at least one example")
    if len(shape) == 2:
        if shape[1] == 0:
            raise BadData(f"{got}; expected at least one feature")
        return
    if len(shape) == 4 and shape[3] not in (1, 3):
        way_out = "grey (1) or RGB (3) images as (n, h, w, c)"
        if shape[3] == 4:
            way_out += f"; drop the alpha channel with {array}[..., :3]"
        elif shape[1] in (1, 3):
            way_out += f"; move the channels to the end with numpy.moveaxis({array}, 1, -1)"
        raise BadData(f"{got}, which has {shape[3]} channels; expected {way_out}")
    if not all(MIN_SIDE <= side <= MAX_SIDE for side in shape[1:3]):
        raise BadData(f"{got}; expected images of {MIN_SIDE} to {MAX_SIDE} pixels a side, got {shape[1]}x{shape[2]}")


def _convert_labels(name: str, array: str, labels: NDArray) -> Tensor:
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise BadData(
            f"{name!r}: {array} is {labels.dtype} {list(labels.shape)}; expected one integer label an example, (n,)"
        )
    if len(labels) == 0:
        raise BadData(f"{name!r}: {array} is empty; expected at least one example")
    largest, smallest = int(labels.max()), int(labels.min())
    if largest >= 2**31 or smallest < 0:
        wrong = smallest if smallest < 0 else largest
        raise BadData(f"{name!r}: {array} holds the label {wrong}; labels must be 0 to k-1")
    return torch.from_numpy(labels.astype(np.int64))


def _convert_features(name: str, array: str, features: NDArray) -> Tensor:
    with np.errstate(over="ignore"):
        converted = torch.from_numpy(features.astype(np.float32))
    if not torch.isfinite(converted).all():
        bad = int((~torch.isfinite(converted).all(1)).sum())
        raise BadData(f"{name!r}: {array} holds NaN or infinite values, or some too large for float32, in {bad} of "
                      f"{len(converted)} examples")  # fmt: skip
    return converted


def _convert_images(
    name: str, arrays: Mapping[str, NDArray], image_size: int | None
) -> tuple[dict[str, Tensor], list[str]]:
    scale, notes = _find_scale(name, arrays)
    height, width = arrays["train"].shape[1:3]
    if image_size is not None and (height, width) != (image_size, image_size):
        notes.append(f"resized from {height}x{width} to {image_size}x{image_size}"
                     + ("; proportions changed" if height != width else ""))  # fmt: skip
    return {part: _scale_and_resize(images, scale, image_size) for part, images in arrays.items()}, notes


def _scale_and_resize(images: NDArray, scale: float, image_size: int | None) -> Tensor:
    """Images (n, h, w) or (n, h, w, c) as float32 (n, c, size, size); works in batches to save memory."""
    parts = []
    for start in range(0, len(images), _BATCH):
        x = torch.from_numpy(images[start : start + _BATCH].astype(np.float32)) / scale
        x = rearrange(x, "n h w -> n 1 h w") if x.ndim == 3 else rearrange(x, "n h w c -> n c h w")
        parts.append((resize_images(x, image_size) if image_size is not None else x).contiguous())
    return torch.cat(parts)


def _find_scale(name: str, arrays: Mapping[str, NDArray]) -> tuple[float, list[str]]:
    """The divisor that brings images to [0, 1], found on train and test together, and notes about it."""
    if any(a.dtype.kind == "f" and not np.isfinite(a).all() for a in arrays.values()):
        part = next(p for p, a in arrays.items() if a.dtype.kind == "f" and not np.isfinite(a).all())
        raise BadData(f"{name!r}: x_{part} holds NaN or infinite values; expected finite numbers")
    kinds = {a.dtype.kind for a in arrays.values()}
    if kinds & set("iu") and len(kinds) > 1:
        raise BadData(
            f"{name!r}: x_train is {arrays['train'].dtype} and x_test {arrays['test'].dtype}; expected the same"
        )
    low = min(float(a.min()) for a in arrays.values())
    high = max(float(a.max()) for a in arrays.values())
    dtype = arrays["train"].dtype
    if kinds == {"b"}:
        return 1.0, ["images of False and True taken as 0 and 1"]
    if low < 0 or high > 255:
        expected = "0 to 255" if kinds & set("iu") else "[0, 1] or 0 to 255"
        raise BadData(f"{name!r}: images ({dtype}) reach from {low:.6g} to {high:.6g}; expected values in {expected}")
    if kinds & set("iu"):
        return 255.0, [f"{dtype} images divided by 255"] if dtype != np.uint8 else []
    if high <= 1:
        return 1.0, []
    highs = {part: float(a.max()) for part, a in arrays.items()}
    if min(highs.values()) <= 1:
        raise BadData(f"{name!r}: x_train reaches up to {highs['train']:.6g} and x_test up to {highs['test']:.6g}; "
                      "expected both in [0, 1] or both in 0 to 255")  # fmt: skip
    if high < 128:
        # Dividing 0 .. 16 by 255 would silently give black pictures.
        raise BadData(f"{name!r}: float images reach up to {high:.6g}, neither [0, 1] nor 0 to 255; "
                      f"divide them by their largest possible value first")  # fmt: skip
    return 255.0, [f"{dtype} images in 0 to 255 divided by 255"]
