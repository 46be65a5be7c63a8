"""InitReport: where the numbers of every tensor of a module come from, and why.

A tensor that a generator does not predict is in the report too, with the reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from weightgen.generators.logah.plan import Kept, Predicted
from weightgen.graph.arch_graph import ArchGraph

Source = Literal["predicted", "own", "tied"]


@dataclass(frozen=True, slots=True)
class TensorReport:
    """Where the numbers of one tensor come from."""

    name: str
    shape: tuple[int, ...]
    source: Source
    """"predicted"; "own": the module's own initialisation; "tied": it shares the numbers of another tensor."""
    how: str
    """What made the numbers: a kind of prediction, an initialiser, or the name of the tensor it is tied to."""
    why: str = ""
    """Why it is not predicted; empty if it is."""
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
    """Remarks of the tracing, such as values that had to be guessed."""

    @property
    def predicted(self) -> tuple[TensorReport, ...]:
        return tuple(row for row in self.rows if row.source == "predicted")

    @property
    def kept(self) -> tuple[TensorReport, ...]:
        """The rows of tensors that are neither predicted nor tied."""
        return tuple(row for row in self.rows if row.source == "own")

    @property
    def tensor_coverage(self) -> float:
        """Share of the parameter tensors that are predicted; a tie counts once. 1 if there are none."""
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
        """A table of all rows below one line with the coverage."""
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


def report_of(
    graph: ArchGraph, plan: tuple[Predicted | Kept, ...], module: nn.Module, *, own: Mapping[str, str] | None = None
) -> InitReport:
    """A row for every entry of the module's state_dict; `own` says how the tensors it names got their numbers."""
    own = own or {}
    parameters = {name for name, tensor in graph.owned.items() if not tensor.is_buffer}
    parameters |= {name for name, _ in module.named_parameters()}  # those that were left out too
    found: dict[str, TensorReport] = {}
    for p in plan:
        name, shape = p.tensor.name, p.tensor.shape
        if isinstance(p, Predicted):
            found[name] = TensorReport(name, shape, "predicted", p.how, is_parameter=name in parameters)
        else:
            how = own.get(name, "the value it has")
            found[name] = TensorReport(name, shape, "own", how, p.why, is_parameter=name in parameters)
    for tensor in graph.spec.tensors:
        if tensor.tied_to is not None:
            is_parameter = tensor.name in parameters
            found[tensor.name] = TensorReport(
                tensor.name, tensor.shape, "tied", tensor.tied_to, is_parameter=is_parameter
            )
    for name, why in graph.left_out.items():
        found[name] = TensorReport(name, (), "own", "the value it has", why, is_parameter=name in parameters)
    order = [*(tensor.name for tensor in graph.spec.tensors), *graph.left_out]
    return InitReport(tuple(found[name] for name in order), notes=graph.notes)
