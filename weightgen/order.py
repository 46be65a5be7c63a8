"""The order: what a command line, an HTTP body, a Hub name or a line of a file asks for, with names not yet loaded.

An order holds names and numbers. `weightgen.pipeline` loads the names and turns it into a request. Nothing here imports
torch.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from weightgen.errors import BadOption
from weightgen.method import Method

MAX_SHOTS = 50
"""Most support examples of one class."""


@dataclass(frozen=True, slots=True)
class Order:
    """Weights of one architecture for the classes of one data set, from one generator.

    generator            a released generator, or a generator file
    dataset              a registered data set, an uploaded one, a file or a folder
    support_per_class    labelled examples of each class, 1 to MAX_SHOTS
    num_samples          sets of weights to make
    seed                 decides which examples are drawn, and every other random number
    fallback             whether a reference that does better is returned in place of the generated weights
    target_accuracy      the accuracy to ask for, a fraction
    options              the method's own options by name; the method reads them (`Method.read_options`)
    """

    generator: str
    architecture: str
    dataset: str
    support_per_class: int = 20
    num_samples: int = 1
    seed: int = 0
    fallback: bool = True
    target_accuracy: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Every field by name, JSON values."""
        return {**asdict(self), "options": dict(self.options)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Order":
        """The order from the value of `to_json`; fields that are missing, as in older versions, get their defaults."""
        known = {f.name for f in fields(cls)}
        unknown = sorted(set(value) - known)
        if unknown:
            raise BadOption(f"an order has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
        return cls(**value)


def check_terms(order: Order, method: Method) -> None:
    """Raise BadOption, UnknownName or UnsupportedTask for terms that a method cannot serve; loads nothing."""
    for check in TERM_CHECKS.values():
        check(order, method)


def _check_accuracy(order: Order, method: Method) -> None:
    aim = order.target_accuracy
    if aim is not None and not 0 <= aim <= 1:  # False for NaN too
        raise BadOption(f"target accuracy is {aim}, expected a fraction from 0 to 1")
    method.check_parts(frozenset({"support"} if aim is None else {"support", "target_accuracy"}))


TERM_CHECKS: dict[str, Callable[[Order, Method], object]] = {
    "target_accuracy": _check_accuracy,
    "num_samples": lambda order, method: method.check_samples(order.num_samples),
    "options": lambda order, method: method.read_options(order.options),
}
"""Field of an order -> its check: raises BadOption, UnknownName or UnsupportedTask if the method cannot serve it."""
