"""InitReport: where every tensor of a module got its numbers from, and why.

Nothing is skipped in silence: a tensor that a generator does not predict stands in the report with its reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Source = Literal["predicted", "own", "tied"]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """Where the numbers of one tensor come from."""

    name: str
    shape: tuple[int, ...]
    source: Source
    """"predicted"; "own": the module's own initialisation; "tied": the numbers are those of another tensor."""
    how: str
    """What made the numbers: a way of predicting, an initialiser, the name of the tensor it is tied to."""
    why: str = ""
    """Why it is not predicted; empty where it is."""
    is_parameter: bool = True
    """Whether training changes it: buffers do not count towards coverage."""

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True, slots=True)
class InitReport:
    """One row for every entry of a module's state_dict, in its order."""

    rows: tuple[TensorReport, ...]
    notes: tuple[str, ...] = ()
    """What had to be guessed while the module was traced."""

    @property
    def predicted(self) -> tuple[TensorReport, ...]:
        return tuple(row for row in self.rows if row.source == "predicted")

    @property
    def kept(self) -> tuple[TensorReport, ...]:
        """The rows that are not predicted nor tied to another."""
        return tuple(row for row in self.rows if row.source == "own")

    @property
    def tensor_coverage(self) -> float:
        """Share of the parameter tensors that are predicted; a tie counts once. 1 where there are none."""
        return _share([1 for r in self.predicted if r.is_parameter], [1 for r in self._counted])

    @property
    def number_coverage(self) -> float:
        """Share of the parameters' numbers that are predicted."""
        return _share([r.numel for r in self.predicted if r.is_parameter], [r.numel for r in self._counted])

    @property
    def _counted(self) -> list[TensorReport]:
        return [row for row in self.rows if row.is_parameter and row.source != "tied"]

    def to_json(self) -> dict[str, Any]:
        return {
            "tensor_coverage": self.tensor_coverage,
            "number_coverage": self.number_coverage,
            "notes": list(self.notes),
            "tensors": [
                {"name": r.name, "shape": list(r.shape), "source": r.source, "how": r.how}
                | ({"why": r.why} if r.why else {})
                for r in self.rows
            ],
        }

    def __str__(self) -> str:
        """A table of all rows under one line that sums them up."""
        head = (
            f"predicted {self.tensor_coverage:.1%} of the parameter tensors, "
            f"{self.number_coverage:.1%} of their numbers"
        )
        cells = [("tensor", "shape", "from", "how")]
        cells += [
            (r.name, "x".join(map(str, r.shape)) or "scalar", r.source, f"{r.how}: {r.why}" if r.why else r.how)
            for r in self.rows
        ]
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        lines = ["  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in cells]
        return "\n".join([head, *(line.rstrip() for line in lines), *(f"note: {note}" for note in self.notes)])


def _share(part: Sequence[int], whole: Sequence[int]) -> float:
    return sum(part) / sum(whole) if sum(whole) else 1.0
