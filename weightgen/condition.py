"""Condition: what the weights are for."""

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from weightgen.canonical_json import digest_json, encode_json
from weightgen.errors import BadData, BadOption


@dataclass(frozen=True, eq=False)
class SupportSet:
    """Labelled examples in class order: label i is the i-th of `class_names`."""

    inputs: Tensor
    """(n, c, h, w) images in [0, 1], or (n, d) features; float32."""
    labels: Tensor
    """(n,) int64 in 0 .. num_classes - 1; every class has at least one example."""
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.inputs.dtype != torch.float32 or self.inputs.ndim not in (2, 4):
            got = f"{str(self.inputs.dtype).removeprefix('torch.')} {list(self.inputs.shape)}"
            raise BadData(f"support inputs: expected float32 (n, c, h, w) or (n, d), got {got}")
        if self.labels.shape != self.inputs.shape[:1] or self.labels.dtype != torch.int64:
            raise BadData(f"support labels: expected int64 [{len(self.inputs)}], got {list(self.labels.shape)}")
        if len(set(self.class_names)) != len(self.class_names):
            raise BadData(f"class names repeat: {', '.join(self.class_names[:20])}")
        if not torch.isfinite(self.inputs).all():
            raise BadData("support inputs hold NaN or infinite values; expected finite numbers")
        present = torch.unique(self.labels)
        if not torch.equal(present, torch.arange(self.num_classes)):
            missing = sorted(set(range(self.num_classes)) - set(present.tolist()))
            raise BadData(
                f"support labels must be 0 .. {self.num_classes - 1} with at least one example each; "
                + (f"no example of class {missing[0]}" if missing else f"got label {int(present[-1])}")
            )

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def shots(self) -> list[int]:
        """Examples of each class."""
        return torch.bincount(self.labels, minlength=self.num_classes).tolist()

    def first_shots(self, most: int) -> "SupportSet":
        """The first `most` examples of every class, or all there are, in their order."""
        place = torch.zeros_like(self.labels)
        for label in range(self.num_classes):
            here = self.labels == label
            place[here] = torch.arange(int(here.sum()))
        return SupportSet(self.inputs[place < most], self.labels[place < most], self.class_names)

    def digest(self) -> str:
        """sha256 over shape, inputs, labels and class names, hex."""
        about = {"shape": list(self.inputs.shape), "class_names": list(self.class_names)}
        sha = hashlib.sha256(encode_json(about, name="a support set"))
        sha.update(self.inputs.contiguous().numpy().tobytes())
        sha.update(self.labels.contiguous().numpy().tobytes())
        return sha.hexdigest()


@dataclass(frozen=True, eq=False)
class Condition:
    """What a generator knows about the task. Each generator declares which parts it needs and which it can use."""

    support: SupportSet | None = None
    text: str | None = None
    target_accuracy: float | None = None
    """The accuracy to aim for, a fraction."""

    def __post_init__(self) -> None:
        if self.target_accuracy is not None and not 0 <= self.target_accuracy <= 1:  # False for NaN too
            raise BadOption(f"target accuracy is {self.target_accuracy}, expected a fraction from 0 to 1")

    @property
    def parts(self) -> frozenset[str]:
        """Names of the parts that are given."""
        return frozenset(f.name for f in fields(self) if getattr(self, f.name) is not None)

    def digest(self) -> str:
        """sha256 over all parts, hex."""
        support = self.support.digest() if self.support else None
        return digest_json({"support": support, "text": self.text, "target_accuracy": self.target_accuracy})
