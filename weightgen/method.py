"""A method of making weights, declared once: its name, what it needs, what it can use, and its own options.

The command line, the HTTP interface, the page and the client offer exactly what is declared here. Nothing in this
file or in a method's `method.py` imports torch, so that a wrong name or option is refused at once.

An options class is a frozen dataclass. Each field is declared with `option`, which holds its help and its limits:

    @dataclass(frozen=True, slots=True)
    class D2nwgOptions(Options):
        steps: int = option(2, help="Steps of the scheduler.", low=1, high=1000)
"""

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_args, get_type_hints

from weightgen.errors import BadOption, UnknownName, UnsupportedTask

PARTS = {
    "support": "a support set of labelled examples",
    "text": "a description in words",
    "target_accuracy": "an accuracy to aim for",
}
"""The parts of a condition (`weightgen.condition.Condition`), each with a phrase that describes it."""


@dataclass(frozen=True, slots=True)
class Options:
    """A method's own options; this class is for methods that have none."""

    def __post_init__(self) -> None:
        for each in describe_options(type(self)):
            each.check(getattr(self, each.name))

    def to_json(self) -> dict[str, Any]:
        """Every option by name, without those that have no value."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a method."""

    name: str
    kind: type
    """int, float, str or bool."""
    default: Any
    """None if leaving the option out has a meaning of its own, which no value has."""
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> None:
        """Raise BadOption or UnknownName unless the option can have this value."""
        if value is None and self.default is None:
            return
        allowed = (int, float) if self.kind is float else (self.kind,)
        if not isinstance(value, allowed) or isinstance(value, bool) != (self.kind is bool):
            raise BadOption(f"{self.name} is {value!r}, expected {_KINDS[self.kind]}")
        if self.choices and value not in self.choices:
            raise UnknownName(self.name, str(value), self.choices)
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        if isinstance(value, int | float) and not low <= value <= high:  # False for NaN too
            raise BadOption(f"{self.name} is {value}, expected {self.describe_range()}")

    def to_json(self) -> dict[str, Any]:
        """The declaration as JSON values."""
        return {**asdict(self), "kind": self.kind.__name__, "choices": list(self.choices)}

    def describe_range(self) -> str:
        """The limits as a phrase."""
        if self.low is None and self.high is None:
            return _KINDS[self.kind]
        if self.high is None:
            return f"{self.low:g} or more"
        return f"at most {self.high:g}" if self.low is None else f"{self.low:g} to {self.high:g}"


_KINDS = {int: "a whole number", float: "a number", str: "a word", bool: "true or false"}


def option(
    default: Any, *, help: str, low: float | None = None, high: float | None = None, choices: tuple[str, ...] = ()
) -> Any:
    """A field of an options class; `low` and `high` are both allowed values."""
    return field(default=default, metadata={"help": help, "low": low, "high": high, "choices": choices})


def describe_options(options: type[Options]) -> tuple[Option, ...]:
    """The options that a class declares, in its order."""
    hints = get_type_hints(options)
    found = []
    for f in fields(options):
        kind = next((k for k in get_args(hints[f.name]) if k is not type(None)), hints[f.name])
        assert f.default is not MISSING and kind in _KINDS, f"{options.__name__}.{f.name} is not declared by `option`"
        found.append(Option(f.name, kind, f.default, **f.metadata))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Method:
    """A method, as its `method.py` declares it."""

    name: str
    title: str
    """What it does, one sentence."""
    code: str
    """Where its class is, "package.module:Class"; imported when a file of the method is loaded."""
    options: type[Options] = Options
    needs: frozenset[str] = frozenset({"support"})
    """Parts of a condition that it needs."""
    uses: frozenset[str] = frozenset()
    """Other parts of a condition that it can use."""
    samples: bool = False
    """Whether another seed gives other weights, so that several samples can be asked for."""

    @property
    def takes(self) -> frozenset[str]:
        """All parts of a condition that it accepts."""
        return self.needs | self.uses

    def to_json(self) -> dict[str, Any]:
        """The declaration for remote clients, JSON values; without `code`."""
        return {
            "name": self.name,
            "title": self.title,
            "needs": sorted(self.needs),
            "uses": sorted(self.uses),
            "samples": self.samples,
            "options": [each.to_json() for each in describe_options(self.options)],
        }

    def read_options(self, values: Mapping[str, Any]) -> Options:
        """The options of this method with these values; UnsupportedTask for a name that it does not declare."""
        known = describe_options(self.options)
        self._refuse_options([name for name in values if name not in {each.name for each in known}])
        for each in known:
            if each.name in values:
                each.check(values[each.name])
        return self.options(**values)

    def check_parts(self, given: frozenset[str]) -> None:
        """Raise UnsupportedTask if this method needs a part that is not given, or does not accept a given one."""
        missing, extra = sorted(self.needs - given), sorted(given - self.takes)
        if missing:
            raise UnsupportedTask(f"{self.name!r} needs {_name_parts(missing)}")
        if extra:
            raise UnsupportedTask(
                f"{self.name!r} cannot use {_name_parts(extra)}; it takes {_name_parts(sorted(self.takes))}"
            )

    def check_samples(self, num_samples: int) -> None:
        """Raise UnsupportedTask if more samples are asked for than the method can make."""
        if num_samples != 1 and not self.samples:
            raise UnsupportedTask(
                f"{self.name!r} makes one set of weights for a request: num_samples must be 1, got {num_samples}"
            )

    def check_options(self, options: Options | None) -> None:
        """Raise UnsupportedTask for another method's options."""
        if options is None or type(options) is self.options:
            return
        self._refuse_options([each.name for each in describe_options(type(options))])

    def _refuse_options(self, names: list[str]) -> None:
        if not names:
            return
        known = [each.name for each in describe_options(self.options)]
        has = f"its options are {', '.join(known)}" if known else "it has no options of its own"
        raise UnsupportedTask(f"{self.name!r} does not take {', '.join(names)}; {has}")


def _name_parts(names: list[str]) -> str:
    return " and ".join(PARTS[name] for name in names) or "nothing"
