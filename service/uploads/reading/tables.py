"""Reads CSV and Parquet: every row is an example, one column is its class, the others are numbers. No gaps."""

import csv
import io
import math
from array import array
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from service.uploads.reading import Limits, Raw, Texts, Unusable, check_bytes, check_num_examples, number, show

LABEL_NAMES = ("target", "class", "label")
"""Names of the column with the classes, in lower or upper case, if the sender names none; else it is the last."""
MISSING = ("", "?", "NA", "NaN", "nan", "null", "None")
MAX_CELL = 1000
"""Most characters in a cell."""
_BATCH_ROWS = 1024
_MAX_PARQUET_STRINGS = _MAX_PARQUET_ITEMS = 2**20
"""Limits of the footer, which is read whole."""


def read_csv(file: BinaryIO, *, label: str | None, is_pixels: bool, limits: Limits) -> Raw:
    """A table of text with commas between the cells; its first row holds the names of the columns."""
    csv.field_size_limit(MAX_CELL)
    lines = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    try:
        return _read_rows(csv.reader(lines, strict=True), label, is_pixels, limits)
    except UnicodeDecodeError as error:
        raise Unusable("it is neither CSV in UTF-8 nor any other format that is read here") from error
    except csv.Error as error:
        way = f"a cell has more than {MAX_CELL} characters" if "field larger" in str(error) else str(error)[:100]
        raise Unusable(f"it cannot be read as CSV: {way}") from error


def read_parquet(file: BinaryIO, *, label: str | None, is_pixels: bool, limits: Limits) -> Raw:
    """A Parquet table of flat columns."""
    import pyarrow
    import pyarrow.parquet

    pyarrow.set_cpu_count(1)
    pyarrow.set_io_thread_count(1)
    try:
        with pyarrow.parquet.ParquetFile(
            file,
            thrift_string_size_limit=_MAX_PARQUET_STRINGS,
            thrift_container_size_limit=_MAX_PARQUET_ITEMS,
            pre_buffer=False,
        ) as table:
            _check_parquet(table, is_pixels, limits)
            titles = list(table.schema_arrow.names)
            column = _find_label(titles, label)
            _check_types(table.schema_arrow, column)
            rows = (
                row
                for batch in table.iter_batches(batch_size=_BATCH_ROWS, use_threads=False)
                for row in zip(*(c.to_pylist() for c in batch.columns), strict=True)
            )
            return _collect(rows, titles, column, is_pixels, limits)
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise Unusable("it is a damaged Parquet file, or one that is cut short or of a kind not read here") from error


def _read_rows(rows: Iterator[list[str]], label: str | None, is_pixels: bool, limits: Limits) -> Raw:
    titles = [title.strip() for title in next(rows, [])]
    if len(titles) < 2:
        parted = next((c for c in ";\t|" if titles and c in titles[0]), None)
        hint = f"; it seems to be parted by {parted!r}" if parted else ""
        raise Unusable(
            f"its first row has {len(titles)} columns{hint}; expected the names of at least two, with commas"
        )
    _check_width(len(titles) - 1, is_pixels, limits)
    if all(_as_number(title) is not None for title in titles):
        raise Unusable("its first row is numbers; expected the names of the columns")
    return _collect((row for row in rows if row), titles, _find_label(titles, label), is_pixels, limits)


def _check_parquet(table: Any, is_pixels: bool, limits: Limits) -> None:
    """Refuse by the footer, before any data is unpacked."""
    about = table.metadata
    check_num_examples(about.num_rows, limits)
    _check_width(about.num_columns - 1, is_pixels, limits)
    check_bytes(sum(about.row_group(i).total_byte_size for i in range(about.num_row_groups)), limits)
    if len(table.schema_arrow.names) < 2:
        raise Unusable(f"it has {about.num_columns} columns; expected at least two: a label and a feature")


def _check_types(schema: Any, column: int) -> None:
    from pyarrow import types

    for i, field in enumerate(schema):
        kind = field.type.value_type if types.is_dictionary(field.type) else field.type
        is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
        if not is_number and not (i == column and (types.is_string(kind) or types.is_large_string(kind))):
            expected = "numbers or texts" if i == column else "numbers"
            raise Unusable(f"column {show(field.name)} is {str(field.type)[:60]}; expected {expected}")


def _check_width(num_features: int, is_pixels: bool, limits: Limits) -> None:
    most = 3 * limits.max_image_pixels if is_pixels else limits.max_features
    if num_features > most:
        raise Unusable(f"it has {num_features} columns of numbers, at most {most} are taken")


def _find_label(titles: list[str], label: str | None) -> int:
    wanted = (label,) if label is not None else LABEL_NAMES
    found = [i for i, title in enumerate(titles) if title == label or (label is None and title.lower() in wanted)]
    if len(found) > 1:
        raise Unusable(f"the columns {', '.join(show(titles[i]) for i in found[:4])} could all be the label; name one "
                       "with label=…, and each column differently")  # fmt: skip
    if label is not None and not found:
        held = ", ".join(show(title) for title in titles[:8]) + (", …" if len(titles) > 8 else "")
        raise Unusable(f"it has no column {show(label)}; it has {held}")
    return found[0] if found else len(titles) - 1


def _collect(rows: Iterator[Any], titles: list[str], column: int, is_pixels: bool, limits: Limits) -> Raw:
    texts, labels, numbers = Texts(limits), [], array("d")
    features = [title for i, title in enumerate(titles) if i != column]
    for at, row in enumerate(rows, start=1):
        if len(row) != len(titles):
            raise Unusable(f"row {at} has {len(row)} cells, expected {len(titles)}, as many as the first row")
        check_num_examples(at, limits)
        check_bytes(at * 8 * len(titles), limits)
        label = _as_label(row[column])
        if label in MISSING:
            raise Unusable(f"row {at} has no label in column {show(titles[column])}; fill it in or leave the row out")
        labels.append(texts.label(label))
        numbers.extend(_as_numbers([*row[:column], *row[column + 1 :]], at, features))
    if not labels:
        raise Unusable("it has no rows; expected an example a row")
    x = np.frombuffer(numbers, dtype=np.float64).reshape(len(labels), len(titles) - 1)
    return Raw("table", {"x": _as_bytes(x) if is_pixels else x, "y": number(labels)}, texts=texts.all())


def _as_numbers(cells: list[Any], at: int, titles: list[str]) -> list[float]:
    try:
        values = [float(cell) for cell in cells]
        if math.isfinite(sum(values)) and not any(type(cell) is str and "_" in cell for cell in cells):
            return values
    except (TypeError, ValueError, OverflowError):
        pass
    return [_as_finite(cell, at, title) for cell, title in zip(cells, titles, strict=True)]  # says which one is wrong


def _as_label(cell: Any) -> str:
    """A cell as the name of a class; 3.0 becomes 3, because some tables have no integers."""
    if cell is None or (isinstance(cell, float) and not math.isfinite(cell)):
        return ""
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell).strip()


def _as_number(cell: Any) -> float | None:
    if isinstance(cell, str) and "_" in cell:  # only Python reads 1_000 as a number
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def _as_finite(cell: Any, at: int, title: str) -> float:
    value = _as_number(cell)
    if value is not None:
        return value
    if cell is None or str(cell).strip() in MISSING:
        raise Unusable(f"row {at} has nothing in column {show(title)}; fill in every number or leave the row out")
    raise Unusable(f"row {at} has {show(str(cell))} in column {show(title)}; expected a finite number")


def _as_bytes(x: NDArray) -> NDArray:
    """Pixels as bytes, if they are whole numbers from 0 to 255 and one of them is at least 128."""
    is_whole = (x >= 0).all() and (x <= 255).all() and (x == np.floor(x)).all()
    return x.astype(np.uint8) if is_whole and x.max() >= 128 else x
