"""Flags of the command line that make an order: names, terms, and the options that methods declare.

`takes_order` gives a command these flags. The options of methods come from their declarations (`weightgen.method`), so
that a new method needs no new flag here.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from weightgen.generators import METHODS
from weightgen.method import Option, describe_options
from weightgen.order import Order

NAMES = {
    "generator": typer.Option(help="A released generator or a generator file.", metavar="NAME_OR_FILE"),
    "arch": typer.Option(help="The architecture of the target network."),
    "data": typer.Option(help="A data set, a file or a folder of images.", metavar="NAME_OR_FILE"),
}
"""Flag -> how it is shown. An order has all three names."""
TERMS: dict[str, tuple[str, Any, Any]] = {
    "support_per_class": (
        "support_per_class",
        Annotated[int, typer.Option("--support-per-class", help="Labelled examples of each class, 1 to 50.")],
        20,
    ),
    "samples": ("num_samples", Annotated[int, typer.Option(help="How many sets of weights to make.")], 1),
    "seed": (
        "seed",
        Annotated[int, typer.Option(help="Decides which examples are drawn, and every other random number.")],
        0,
    ),
    "target_accuracy": (
        "target_accuracy",
        Annotated[float | None, typer.Option(help="The accuracy to ask for, 0 to 1, of a generator that can use it.")],
        None,
    ),
    "no_fallback": (
        "fallback",
        Annotated[bool, typer.Option("--no-fallback", help="Fail when a reference beats the generated weights.")],
        False,
    ),
}
"""Flag -> field of an order, annotation, default. `no_fallback` is the opposite of its field."""


def takes_order(*terms: str, names: dict[str, Any] = NAMES) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A command with flags for an order's names, for these of its TERMS and for all options of methods.

    The command gets them as its first argument, `order`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        declared = declared_options()

        @functools.wraps(command)
        def run(**given: Any) -> None:
            options = {name: given.pop(name) for name in declared}
            fields = {TERMS[flag][0]: given.pop(flag) for flag in terms}
            if "fallback" in fields:
                fields["fallback"] = not fields["fallback"]
            order = Order(
                generator=given.pop("generator"),
                architecture=given.pop("arch"),
                dataset=given.pop("data"),
                options={name: value for name, value in options.items() if value is not None},
                **fields,
            )
            command(order, **given)

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "order"]
        flags = [_flag(name, Annotated[str, shown]) for name, shown in names.items()]
        flags += [_flag(flag, TERMS[flag][1], TERMS[flag][2]) for flag in terms]
        added = [_flag(name, _annotate(each, takers), None) for name, (each, takers) in declared.items()]
        parameters = [*flags, *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *added]
        run.__signature__ = inspect.Signature(parameters)  # pyright: ignore
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def declared_options() -> dict[str, tuple[Option, list[str]]]:
    """Every option that a method declares: name -> the option and the names of the methods that take it."""
    found: dict[str, tuple[Option, list[str]]] = {}
    for method in METHODS.values():
        for each in describe_options(method.options):
            first, takers = found.setdefault(each.name, (each, []))
            assert first == each, f"{each.name!r} is declared in two ways, by {takers[0]} and {method.name}"
            takers.append(method.name)
    return found


def _flag(name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _annotate(option: Option, methods: list[str]) -> Any:
    default = "" if option.default is None else f" {option.default} if not given."
    choices = f" One of {', '.join(option.choices)}." if option.choices else ""
    kind: Any = option.kind
    return Annotated[kind | None, typer.Option(help=f"For {' and '.join(methods)}: {option.help}{choices}{default}")]
