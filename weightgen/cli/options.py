"""Flags of the command line for the options that methods declare (`weightgen.method`)."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from weightgen.generators import METHODS
from weightgen.method import Option, describe_options


def declared_options() -> dict[str, tuple[Option, list[str]]]:
    """Every option that a method declares: name -> the option and the names of the methods that take it."""
    found: dict[str, tuple[Option, list[str]]] = {}
    for method in METHODS.values():
        for each in describe_options(method.options):
            first, takers = found.setdefault(each.name, (each, []))
            assert first == each, f"{each.name!r} is declared in two ways, by {takers[0]} and {method.name}"
            takers.append(method.name)
    return found


def takes_method_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add a flag for every declared option to a command; the given ones reach it as the dict `options`."""
    declared = declared_options()

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = {name: given.pop(name) for name in declared}
        command(**given, options={name: value for name, value in options.items() if value is not None})

    own = [p for p in inspect.signature(command).parameters.values() if p.name != "options"]
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=_annotate(each, takers))
        for name, (each, takers) in declared.items()
    ]
    as_keywords = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
    run.__signature__ = inspect.Signature([*as_keywords, *added])  # pyright: ignore
    run.__annotations__ = {p.name: p.annotation for p in [*own, *added]}
    return run


def _annotate(option: Option, methods: list[str]) -> Any:
    default = "" if option.default is None else f" {option.default} if not given."
    choices = f" One of {', '.join(option.choices)}." if option.choices else ""
    kind: Any = option.kind
    return Annotated[kind | None, typer.Option(help=f"For {' and '.join(methods)}: {option.help}{choices}{default}")]
