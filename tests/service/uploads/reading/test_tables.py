"""CSV and Parquet give the same table; what is missing, no number or a bomb is refused by row and column."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from service.uploads.reading import Unusable
from service.uploads.reading.tables import MAX_CELL, read_csv, read_parquet
from tests.helpers.upload_samples import LIMITS, csv_bytes, is_sentence, parquet_bytes, refusal

X = np.random.default_rng(0).normal(size=(8, 3)) * [1, 1e-30, 1e6]
Y = np.array(["a", "b"] * 4)
CSV = csv_bytes(X, Y)
PARQUET = parquet_bytes({"f0": X[:, 0], "label": Y, "f1": X[:, 1], "f2": X[:, 2]})


def read(data: bytes, *, label: str | None = None, is_pixels: bool = False, **limits: int):
    reader = read_parquet if data.startswith(b"PAR1") else read_csv
    return reader(io.BytesIO(data), label=label, is_pixels=is_pixels, limits=replace(LIMITS, **limits))


@pytest.mark.parametrize("data", [CSV, b"\xef\xbb\xbf" + CSV, CSV.replace(b"\n", b"\r\n"), CSV + b"\n\n", PARQUET],
                         ids=["csv", "with a mark", "of Windows", "with empty rows", "parquet"])  # fmt: skip
def test_rows_become_numbers_and_labels_to_the_last_bit(data):
    raw = read(data)
    assert np.array_equal(raw.arrays["x"], X)
    assert (raw.texts, raw.arrays["y"].tolist()) == (["a", "b"], [0, 1] * 4)


@pytest.mark.parametrize(("head", "label", "found"), [
    ("u,v,w", None, ["3", "6"]), ("u,Target,w", None, ["2", "5"]), ("Class,v,w", None, ["1", "4"]),
    ("u,LABEL,w", None, ["2", "5"]), ("label,v,w", "w", ["3", "6"]), ('"u",v,"w w"', "w w", ["3", "6"]),
])  # fmt: skip
def test_the_label_is_the_column_that_is_named_or_named_like_one_or_last(head, label, found):
    assert read(f"{head}\n1,2,3\n4,5,6\n".encode(), label=label).texts == found


@pytest.mark.parametrize("column", [
    pyarrow.array([1, 2, 2, 1]), pyarrow.array([1.0, 2.0, 2.0, 1.0]), pyarrow.array(["1", "2", "2", "1"]),
    pyarrow.array(["1", "2", "2", "1"], pyarrow.large_string()),
    pyarrow.array(["1", "2", "2", "1"]).dictionary_encode(),
], ids=["int", "float", "text", "long text", "dictionary"])  # fmt: skip
def test_labels_of_any_plain_type_are_the_same_classes(column):
    raw = read(parquet_bytes({"v": [0.5, 1, 2, 3], "label": column}))
    assert (raw.texts, raw.arrays["y"].tolist()) == (["1", "2"], [0, 1, 1, 0])


def test_pixels_become_bytes_if_they_reach_into_the_upper_half():
    pixels = np.arange(8).reshape(2, 4)
    assert read(csv_bytes(pixels * 36, np.array([0, 1])), is_pixels=True).arrays["x"].dtype == np.uint8
    assert read(csv_bytes(pixels * 2, np.array([0, 1])), is_pixels=True).arrays["x"].dtype == np.float64
    assert read(csv_bytes(pixels * 36, np.array([0, 1]))).arrays["x"].dtype == np.float64


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("", "its first row has 0 columns"),
        ("a\n1\n", "its first row has 1 columns"),
        ("a;b;label\n1;2;x\n", "parted by ';'"),
        ("a\tlabel\n1\tx\n", r"parted by '\\t'"),
        ("1,2,3\n4,5,6\n", "its first row is numbers"),
        ("a,label\n", "it has no rows"),
        ("a,label\n1,x\n2\n", "row 2 has 1 cells, expected 2"),
        ("a,label\n1,x\n2,y,3\n", "row 2 has 3 cells, expected 2"),
        ("a,label\n1,x\n,y\n", "row 2 has nothing in column 'a'"),
        ("a,label\n1,x\nNA,y\n", "row 2 has nothing in column 'a'"),
        ("a,label\nnan,x\n", "row 1 has nothing in column 'a'"),
        ("a,label\ninf,x\n", "row 1 has 'inf' in column 'a'; expected a finite number"),
        ("a,label\n-1e999,x\n", "expected a finite number"),
        ("a,label\n1_000,x\n", "row 1 has '1_000'"),
        ("a,label\nred,x\n", "row 1 has 'red' in column 'a'"),
        ("a,label\n0x10,x\n", "expected a finite number"),
        ("a,label\n=1+1,x\n", "expected a finite number"),
        ("a,label\n1,x\n2,\n", "row 2 has no label in column 'label'"),
        ("a,label\n1,?\n", "row 1 has no label"),
        ("a,label,class\n1,x,y\n", "the columns 'label', 'class' could all be the label"),
        ("label,label\n1,x\n", "could all be the label"),
        ('a,label\n"1,x\n', "cannot be read as CSV"),
        ('a,label\n"1"2,x\n', "cannot be read as CSV"),
        ("a,label\n1,x\ry\n", "row 2 has 1 cells"),
        (f"a,label\n{'1' * (MAX_CELL + 1)},x\n", f"a cell has more than {MAX_CELL} characters"),
        (f"a,label\n1,{'x' * 101}\n", "cannot be the name of a class"),
        ("a,label\n1,\x1b[31m\n", "cannot be the name of a class"),
        ("a,label\n" + "1,x\n" * 9, "9 examples, at most 8"),
        (",".join(f"c{i}" for i in range(1002)) + "\n", "1001 columns of numbers, at most 1000"),
        ("a,label\n" + "".join(f"1,{i}\n" for i in range(7)), "more than 6 classes"),
        ('{"a": [1, 2]}', "it has no rows"),
        ("<html><body>404</body></html>", "its first row has 1 columns"),
    ],
)  # fmt: skip
def test_a_table_that_is_none_is_refused_by_row_and_column(table, sentence):
    with pytest.raises(Unusable, match=sentence):
        read(table.encode(), max_examples=8, max_classes=6)


def test_text_that_is_not_utf8_is_refused():
    with pytest.raises(Unusable, match="neither CSV in UTF-8 nor"):
        read("a,label\n1,é\n".encode("latin-1"))


def test_a_column_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(Unusable, match="has no column 'species'; it has 'f0', 'label', 'f1', 'f2'"):
        read(PARQUET, label="species")


@pytest.mark.parametrize(
    ("column", "sentence"),
    [
        (["a", "b"], "column 'v' is string; expected numbers"),
        ([[1.0], [2.0]], "column 'v' is list"),
        ([{"a": 1}, {"a": 2}], "column 'v' is struct"),
        ([b"1", b"2"], "column 'v' is binary"),
        (np.array(["2020", "2021"], "M8[s]"), "column 'v' is timestamp"),
        ([1.0, None], "row 2 has nothing in column 'v'"),
        ([1.0, float("nan")], "row 2 has nothing in column 'v'"),
        ([1.0, float("inf")], "row 2 has 'inf' in column 'v'"),
    ],
)
def test_a_parquet_column_that_is_no_plain_numbers_is_refused(column: Any, sentence):
    with pytest.raises(Unusable, match=sentence):
        read(parquet_bytes({"v": column, "label": [0, 1]}))


@pytest.mark.parametrize("label", [None, [b"a", b"b"], [[1], [2]], [1.5, None], ["a", None]])
def test_parquet_labels_that_are_none_are_refused(label):
    with pytest.raises(Unusable, match=r"expected numbers or texts|has no label|expected at least two"):
        read(parquet_bytes({"v": [1.0, 2.0]} | ({"label": label} if label is not None else {})))


def test_a_parquet_file_is_judged_by_its_footer_first():
    rows = parquet_bytes({"v": np.zeros(2001), "label": np.zeros(2001)})
    with pytest.raises(Unusable, match="2001 examples, at most 2000"):
        read(rows)
    columns = parquet_bytes({f"c{i}": [0.0] for i in range(1002)})
    with pytest.raises(Unusable, match="1001 columns"):
        read(columns)
    text = parquet_bytes({"v": [1.0] * 2000, "label": ["x" * 100_000] * 2000})
    assert len(text) < 50_000
    with pytest.raises(Unusable, match=r"cannot be the name of a class|unpacks to"):
        read(text)


def test_a_parquet_file_cut_short_anywhere_is_refused():
    for length in range(4, len(PARQUET), 7):
        with pytest.raises(Unusable, match=r"damaged Parquet file"):
            read(PARQUET[:length])


def test_a_parquet_file_with_any_byte_changed_is_read_or_refused_in_a_sentence():
    data = parquet_bytes({"v": [1.0, 2.0], "label": [0, 1]})
    for at in range(4, len(data)):
        assert is_sentence(refusal(read, data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]))
