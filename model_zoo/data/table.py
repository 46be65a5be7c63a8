"""CSV and Parquet tables: each row is an example, one column is the class. Needs pandas: the extra `table`.

The class column is the one called "target", "class" or "label" (in any case), else the last. Numbers are standardised
by the train part; other columns become one 0/1 feature for each category. A missing number becomes the train part's
median, a missing category becomes a category of its own; the notes say how many. A fifth of each class is kept for
testing.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_zoo.data.convert import convert_arrays
from model_zoo.data.npz import DEFAULT_MAX_BYTES
from model_zoo.data.split import number_classes, split_stratified
from model_zoo.data.standardize import standardize
from weightgen.errors import BadData, BadOption, CorruptFile, WeightgenError
from weightgen.labelled_data import LabelledData

TABLE_SUFFIXES = (".csv", ".csv.gz", ".parquet")
TARGET_NAMES = ("target", "class", "label")
MISSING = ("", "?", "NA", "NaN", "nan", "null")
"""Texts that mean a missing value in a CSV."""
TEST_FRACTION = 0.2
MAX_CATEGORIES = 1000
"""Most categories of one column: a column with more holds free text or identifiers."""


def load_table(path: Path, *, target: str | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> LabelledData:
    """The labelled data of a table; `target` names the class column.

    Raises CorruptFile for a file that cannot be parsed, BadData for a table without features or classes.
    """
    name = str(path)
    pandas = _import_pandas()
    if path.stat().st_size > max_bytes:
        raise BadData(f"{name!r} has {path.stat().st_size:,} bytes, the limit is {max_bytes:,}; use fewer rows")
    frame = _read_frame(pandas, path, max_bytes)
    if frame.shape[0] < 2 or frame.shape[1] < 2:
        raise BadData(f"{name!r} has {frame.shape[0]} rows and {frame.shape[1]} columns; expected at least 2 of each")
    column = _find_target(name, frame, target)
    notes = [f"class column: {column!r}"]
    unlabelled = int(frame[column].isna().sum())
    if unlabelled:
        frame = frame[frame[column].notna()].reset_index(drop=True)
        notes.append(f"{unlabelled} rows without a class left out")
        if frame.empty:
            raise BadData(f"{name!r}: the class column {column!r} is empty")
    labels, names = number_classes([_show(v) for v in frame[column].tolist()])
    if len(names) > max(20, len(frame) // 2):
        raise BadData(f"{name!r}: column {column!r} has {len(names)} different values in {len(frame)} rows, so it is "
                      "no class; name the class column 'target'")  # fmt: skip
    train, test = split_stratified(name, labels, test_fraction=TEST_FRACTION)
    notes.append(f"split into {len(train)} train and {len(test)} test examples (seeded, stratified)")
    features, changes = _convert_columns(pandas, name, frame.drop(columns=column), train, max_bytes)
    parts = standardize_numbers(features, train, test)
    arrays = {f"x_{part}": x for part, x in parts.items()} | {"y_train": labels[train], "y_test": labels[test]}
    return convert_arrays(name, arrays, image_size=None, class_names=names).with_notes(notes + changes)


def standardize_numbers(features: list[tuple[NDArray, bool]], train: NDArray, test: NDArray) -> dict[str, NDArray]:
    """Parts (n, d) from columns (values, whether they are numbers): numbers standardised, 0/1 features unchanged."""
    columns = []
    for values, is_number in features:
        column = {"train": values[train], "test": values[test]}
        columns.append(standardize(column) if is_number else column)
    return {part: np.concatenate([c[part] for c in columns], axis=1).astype(np.float32) for part in ("train", "test")}


def _import_pandas() -> ModuleType:
    try:
        import pandas
    except ImportError as error:
        raise WeightgenError("CSV and Parquet need pandas; install it with: pip install 'weightgen[table]'") from error
    return pandas


def _read_frame(pandas: Any, path: Path, max_bytes: int) -> Any:
    try:
        if path.name.lower().endswith(".parquet"):
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(path) as file:
                meta = file.metadata
                size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
                if size > max_bytes or 4 * meta.num_rows * meta.num_columns > max_bytes:
                    raise BadData(
                        f"{str(path)!r} unpacks to more than the limit of {max_bytes:,} bytes; use fewer rows"
                    )
                return file.read().to_pandas()
        chunks, rows, size = [], 0, 0
        with pandas.read_csv(path, na_values=list(MISSING), keep_default_na=False, chunksize=50_000) as reader:
            for chunk in reader:
                rows, size = rows + len(chunk), size + int(chunk.memory_usage(deep=True).sum())
                if size > max_bytes:
                    raise BadData(f"{str(path)!r} takes more than the limit of {max_bytes:,} bytes; use fewer rows")
                chunks.append(chunk)
        return pandas.concat(chunks, ignore_index=True)
    except ImportError as error:
        raise WeightgenError("Parquet needs pyarrow; install it with: pip install 'weightgen[table]'") from error
    except (ValueError, EOFError, OSError) as error:
        # pandas' ParserError, UnicodeDecodeError and pyarrow's ArrowInvalid are ValueErrors.
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CorruptFile(f"{str(path)!r} cannot be read as a table: {first}") from error


def _find_target(name: str, frame: Any, target: str | None) -> Any:
    if target is not None:
        if target not in frame.columns:
            raise BadOption(f"{name!r} has no column {target!r}; it has {', '.join(map(str, frame.columns[:20]))}")
        return target
    named = [c for c in frame.columns if str(c).lower() in TARGET_NAMES]
    return named[-1] if named else frame.columns[-1]


def _convert_columns(
    pandas: Any, name: str, frame: Any, train: NDArray, max_bytes: int
) -> tuple[list[tuple[NDArray, bool]], list[str]]:
    """Every column as ((n, d) float64, whether it is a number), and notes."""
    columns: list[tuple[NDArray, bool]] = []
    num_categorical = missing_numbers = missing_categories = 0
    width = 0
    for title in frame.columns:
        series = frame[title]
        missing = int(series.isna().sum())
        is_number = pandas.api.types.is_numeric_dtype(series) and not pandas.api.types.is_bool_dtype(series)
        if is_number:
            values = series.to_numpy(dtype=np.float64, na_value=np.nan)
            known = values[train][~np.isnan(values[train])]
            missing_numbers += missing
            values = np.where(np.isnan(values), np.median(known) if len(known) else 0.0, values)
            columns.append((values[:, None], True))
        else:
            texts = np.array([_show(v) for v in series.astype(object).where(series.notna(), "(missing)").tolist()])
            categories = sorted(set(texts[train]))
            if len(categories) > MAX_CATEGORIES:
                raise BadData(f"{name!r}: column {title!r} has {len(categories)} different values, the limit is "
                              f"{MAX_CATEGORIES}; leave it out")  # fmt: skip
            num_categorical += 1
            missing_categories += missing
            columns.append(((texts[:, None] == np.array(categories)).astype(np.float64), False))
        width += columns[-1][0].shape[1]
        if 8 * width * len(frame) > max_bytes:
            raise BadData(f"{name!r}: its features take more than the limit of {max_bytes:,} bytes; use fewer rows")
    notes = []
    if any(is_number for _, is_number in columns):
        notes.append("numbers standardised by the train part's mean and deviation")
    if num_categorical:
        notes.append(f"{num_categorical} categorical columns turned into one 0/1 feature a category of the train part")
    if missing_numbers:
        notes.append(f"{missing_numbers} missing numbers set to the train part's median")
    if missing_categories:
        notes.append(f"{missing_categories} missing categories kept as a category of their own")
    return columns, notes


def _show(value: Any) -> str:
    """A cell as text; 3.0 as 3, because one missing cell turns a column of integers into floats."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
