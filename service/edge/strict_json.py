"""Refuses JSON that parsers read in different ways: duplicate names, NaN, too large numbers, deep nesting."""

import json
import re
from typing import Any

MAX_DEPTH = 32
"""How deep arrays and objects may nest; the requests that this service answers have one or two levels."""
# Matches whole strings, closed or not, so that the scan takes linear time, and brackets outside of them.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)


class NotStrict(ValueError):
    """The text is not strict JSON; the message says why in one sentence, which quotes nothing but names."""


def check_json(content: bytes) -> None:
    """Raise NotStrict unless the bytes are one JSON value in UTF-8 that every parser reads alike."""
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise NotStrict("the body is not valid JSON: it is not UTF-8") from error
    _check_depth(text)
    try:
        json.loads(text, object_pairs_hook=_refuse_twice, parse_constant=_refuse_constant, parse_float=_read_float)
    except NotStrict:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of more digits than Python reads
        raise NotStrict("the body is not valid JSON") from error


def _check_depth(text: str) -> None:
    depth = 0
    for match in _TOKENS.finditer(text):
        token = match[0]
        depth += (token in "[{") - (token in "]}")
        if depth > MAX_DEPTH:
            raise NotStrict(f"the body is not read: its arrays and objects nest more than {MAX_DEPTH} deep")


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1) if len(names) < 1000 else "a name"
        raise NotStrict(f"the body is not read: an object has {twice[:80]!r} twice")
    return read


def _refuse_constant(name: str) -> None:
    raise NotStrict(f"the body is not valid JSON: {name} is no JSON number")


def _read_float(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise NotStrict("the body is not read: a number is too large")
    return number
