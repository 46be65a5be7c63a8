"""Canonical JSON: every value has one spelling, so that it can be hashed and compared."""

import hashlib
import json
from typing import Any

from weightgen.errors import CorruptFile, StorageFailed


def encode_json(value: Any, *, name: str, indent: int | None = None) -> bytes:
    """UTF-8 bytes of a value as JSON; raises StorageFailed, which begins with `name`, for NaN and what is no JSON."""
    separators = (",", ":") if indent is None else (",", ": ")
    try:
        return json.dumps(
            value, sort_keys=True, indent=indent, separators=separators, ensure_ascii=False, allow_nan=False
        ).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StorageFailed(f"{name}: the value cannot be written as JSON: {error}") from error


def digest_json(value: Any) -> str:
    """sha256 of the canonical JSON of a value, hex."""
    return hashlib.sha256(encode_json(value, name="a digest")).hexdigest()


def parse_json(data: bytes, *, name: str) -> Any:
    """The value of strict JSON text; raises CorruptFile, which begins with `name`, for anything else."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_refuse_repeats, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise CorruptFile(f"{name}: the JSON is nested too deeply") from error
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise CorruptFile(f"{name}: not valid JSON: {error}") from error


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {repeated[:80]!r} stands twice")
    return value


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
