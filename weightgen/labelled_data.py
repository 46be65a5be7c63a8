"""Labelled data from a data source, ready for a target network; support sets are drawn from it.

Shapes: images (n, c, h, w), features (n, d), labels (n,).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from weightgen.canonical_json import encode_json
from weightgen.condition import SupportSet
from weightgen.errors import BadData, BadOption

MAX_SHOTS = 50
"""Most support examples of one class."""
_RESIZE_BATCH = 2048


@dataclass(frozen=True, eq=False)
class LabelledData:
    """A data set with its own train and test part, both with labels 0 .. num_classes - 1."""

    name: str
    x_train: Tensor
    """float32: images in [0, 1], or features."""
    y_train: Tensor
    """int64; every class has at least one example."""
    x_test: Tensor
    y_test: Tensor
    """int64; a class may be absent."""
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    """One sentence for each change that was made to the data when they were loaded."""

    def __post_init__(self) -> None:
        for part, x, y in (("train", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            _check_part(self.name, part, x, y)
        if self.x_train.shape[1:] != self.x_test.shape[1:]:
            shapes = f"{list(self.x_train.shape[1:])}, test {list(self.x_test.shape[1:])}"
            raise BadData(f"{self.name!r}: train and test examples have different shapes: train {shapes}")
        _check_labels(self.name, self.y_train, self.y_test)
        repeated = sorted({c for c in self.class_names if self.class_names.count(c) > 1})
        if repeated:
            raise BadData(f"{self.name!r}: class names repeat: {', '.join(map(repr, repeated[:8]))}")
        if len(self.class_names) != int(self.y_train.max()) + 1:
            names, labels = len(self.class_names), int(self.y_train.max()) + 1
            raise BadData(f"{self.name!r}: {names} class names for {labels} classes in the train labels")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def in_channels(self) -> int | None:
        """Channels of the images; None for features."""
        return self.x_train.shape[1] if self.x_train.ndim == 4 else None

    @property
    def in_features(self) -> int | None:
        """Numbers in one example; None for images."""
        return self.x_train.shape[1] if self.x_train.ndim == 2 else None

    def with_notes(self, notes: Sequence[str]) -> "LabelledData":
        """The same data with `notes` before its own."""
        return replace(self, notes=(*notes, *self.notes))

    def digest(self) -> str:
        """sha256 over shapes, class names and every example and label, hex; without notes and name."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        about = {"train": list(self.x_train.shape), "test": len(self.x_test), "class_names": list(self.class_names)}
        sha = hashlib.sha256(encode_json(about, name=self.name))
        for tensor in (self.x_train, self.y_train, self.x_test, self.y_test):
            sha.update(tensor.contiguous().numpy().data)
        return sha.hexdigest()


def draw_support(
    data: LabelledData, per_class: int, *, rng: torch.Generator, classes: Sequence[int] | None = None
) -> SupportSet:
    """`per_class` train examples of each class, without replacement, in class order.

    With `classes`, only examples of those are drawn, and label i is classes[i].
    """
    if not 1 <= per_class <= MAX_SHOTS:
        raise BadOption(f"{per_class} support examples a class: expected 1 to {MAX_SHOTS}")
    chosen = _check_classes(data, classes)
    counts = torch.bincount(data.y_train, minlength=data.num_classes).tolist()
    short = [c for c in chosen if counts[c] < per_class]
    if short:
        have = ", ".join(f"{data.class_names[c]!r} has {counts[c]}" for c in short[:8])
        more = f" and {len(short) - 8} more classes have too few" if len(short) > 8 else ""
        most = min(counts[c] for c in chosen)
        raise BadData(f"{data.name!r}: {per_class} support examples a class are asked for, but class {have}{more}; "
                      f"ask for at most {most}")  # fmt: skip
    drawn = []
    for c in chosen:
        members = torch.nonzero(data.y_train == c).flatten()
        drawn.append(members[torch.randperm(len(members), generator=rng)[:per_class]])
    return SupportSet(
        inputs=data.x_train[torch.cat(drawn)],
        labels=torch.arange(len(chosen)).repeat_interleave(per_class),
        class_names=tuple(data.class_names[c] for c in chosen),
    )


def select_classes(data: LabelledData, classes: Sequence[int]) -> LabelledData:
    """The data of these classes only; class classes[i] becomes label i."""
    chosen = _check_classes(data, classes)
    label_of = torch.full((data.num_classes,), -1)
    label_of[torch.tensor(chosen)] = torch.arange(len(chosen))
    train, test = label_of[data.y_train], label_of[data.y_test]
    if not (test >= 0).any():
        names = ", ".join(repr(data.class_names[c]) for c in chosen[:8])
        raise BadData(f"{data.name!r}: the test part has no example of the classes {names}")
    return replace(
        data,
        x_train=data.x_train[train >= 0],
        y_train=train[train >= 0],
        x_test=data.x_test[test >= 0],
        y_test=test[test >= 0],
        class_names=tuple(data.class_names[c] for c in chosen),
    )


def match_channels(data: LabelledData, in_channels: int) -> LabelledData:
    """The same images with 1 or 3 channels: grey ones are repeated (without memory), colour ones become their luma."""
    if data.in_channels is None:
        raise BadData(f"{data.name!r} holds features, not images; they have no channels")
    if in_channels not in (1, 3):
        raise BadOption(f"in_channels is {in_channels}, expected 1 or 3")
    if data.in_channels == in_channels:
        return data
    if in_channels == 3:
        parts, note = [x.expand(-1, 3, -1, -1) for x in (data.x_train, data.x_test)], "grey repeated to 3 channels"
    else:
        # ITU-R BT.601, like Pillow's "L".
        luma = torch.tensor([0.299, 0.587, 0.114])[None, :, None, None]
        parts = [(x * luma).sum(1, keepdim=True).clamp(0, 1) for x in (data.x_train, data.x_test)]
        note = "colour reduced to 1 grey channel"
    return replace(data, x_train=parts[0], x_test=parts[1], notes=(*data.notes, note))


def resize_images(x: Float[Tensor, "n c h w"], size: int) -> Float[Tensor, "n c size size"]:
    """Images stretched to size x size, bilinear, antialiased where they shrink."""
    if x.shape[2:] == (size, size):
        return x
    resized = [F.interpolate(part, (size, size), mode="bilinear", antialias=True) for part in x.split(_RESIZE_BATCH)]
    return torch.cat(resized).clamp(x.amin(), x.amax()) if len(x) else x.new_zeros(0, x.shape[1], size, size)


def _check_classes(data: LabelledData, classes: Sequence[int] | None) -> list[int]:
    if classes is None:
        return list(range(data.num_classes))
    chosen = [int(c) for c in classes]
    wrong = [c for c in chosen if not 0 <= c < data.num_classes]
    if wrong:
        raise BadOption(f"{data.name!r} has classes 0 to {data.num_classes - 1}, got {wrong[0]}")
    if len(set(chosen)) < len(chosen):
        raise BadOption(f"{data.name!r}: a class is chosen twice: {chosen[:20]}")
    if len(chosen) < 2:
        raise BadOption(f"{data.name!r}: {len(chosen)} class chosen, expected at least 2")
    return chosen


def _check_part(name: str, part: str, x: Tensor, y: Tensor) -> None:
    if x.dtype != torch.float32 or x.ndim not in (2, 4):
        got = f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
        raise BadData(f"{name!r}: x_{part} is {got}, expected float32 (n, c, h, w) or (n, d)")
    if y.dtype != torch.int64 or y.shape != x.shape[:1]:
        got = f"{str(y.dtype).removeprefix('torch.')} {list(y.shape)}"
        raise BadData(f"{name!r}: y_{part} is {got}, expected int64 [{len(x)}], a label for each of x_{part}")
    if len(x) == 0:
        raise BadData(f"{name!r}: the {part} part is empty")
    bad = int((~torch.isfinite(x).flatten(1).all(1)).sum())
    if bad:
        raise BadData(f"{name!r}: x_{part} holds NaN or infinite values in {bad} of {len(x)} examples")
    if x.ndim == 4 and not (x.min() >= 0 and x.max() <= 1):
        raise BadData(f"{name!r}: x_{part} reaches from {x.min():.3g} to {x.max():.3g}; expected images in [0, 1]")


def _check_labels(name: str, y_train: Tensor, y_test: Tensor) -> None:
    train = torch.unique(y_train).tolist()
    if len(train) == 1:
        raise BadData(f"{name!r}: every train label is {train[0]}; expected at least two classes")
    if train != list(range(len(train))):
        shown = ", ".join(map(str, train[:12])) + (", …" if len(train) > 12 else "")
        raise BadData(f"{name!r}: train labels must be 0 to k-1 without gaps, got {shown}; "
                      "renumber them, for example with numpy.unique(y, return_inverse=True)")  # fmt: skip
    unseen = [c for c in torch.unique(y_test).tolist() if not 0 <= c < len(train)]
    if unseen:
        raise BadData(f"{name!r}: test label {unseen[0]} is not among the train labels 0 to {len(train) - 1}")
