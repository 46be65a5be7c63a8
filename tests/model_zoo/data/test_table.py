"""Tables of numbers and words: what they become, and what is refused with one clear sentence."""

import sys

import pytest
import torch

from model_zoo.data import (
    load_data,
)
from model_zoo.data.table import load_table
from weightgen.errors import BadData, BadOption, CorruptFile, WeightgenError


def write_table(path, rows=40):
    pandas = pytest.importorskip("pandas", reason="needs the extra 'table'")
    frame = pandas.DataFrame(
        {
            "size": [float(i) if i % 10 else None for i in range(rows)],
            "colour": [("red", "green", None)[i % 3] for i in range(rows)],
            "kind": [("cat", "dog")[i % 2] for i in range(rows)],
        }
    )
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz", "t.parquet"])
def test_tables_become_standardised_and_one_hot_features(tmp_path, name):
    data = load_data(str(write_table(tmp_path / name)))
    assert data.class_names == ("cat", "dog")
    assert data.x_train.shape == (32, 4)  # one number, three categories: green, red, missing
    assert torch.isclose(data.x_train[:, 0].mean(), torch.tensor(0.0), atol=1e-6)
    assert set(data.x_train[:, 1:].unique().tolist()) == {0, 1}
    assert torch.equal(data.x_train[:, 1:].sum(1), torch.ones(32))
    told = " / ".join(data.notes)
    for note in ("class column: 'kind'", "4 missing numbers", "13 missing categories", "seeded"):
        assert note in told


def test_the_class_column_can_be_named(tmp_path):
    path = write_table(tmp_path / "t.csv")
    assert load_table(path, target="colour").num_classes == 2
    with pytest.raises(BadOption, match="no column 'taste'; it has size, colour, kind"):
        load_table(path, target="taste")


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", CorruptFile, "cannot be read as a table"),
        ("a,b\n1,2\n3,4,5,6\n", CorruptFile, "cannot be read as a table"),
        ("a\n1\n2\n", BadData, "expected at least 2 of each"),
        ("a,b\n" + "".join(f"{i},{i}.5\n" for i in range(50)), BadData, "so it is no class"),
        ("a,b\n1,x\n2,x\n3,x\n", BadData, "at least two classes"),
        ("a,b\n1,\n2,\n", BadData, "is empty"),
    ],
)
def test_unusable_tables_are_refused(tmp_path, content, error, message):
    pytest.importorskip("pandas", reason="needs the extra 'table'")
    path = tmp_path / "t.csv"
    path.write_text(content)
    with pytest.raises(error, match=message):
        load_data(str(path))


@pytest.mark.parametrize("name", ["t.csv.gz", "t.parquet"])
def test_damaged_tables_are_corrupt(tmp_path, name):
    path = write_table(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(CorruptFile, match="cannot be read as a table"):
        load_data(str(path))


def test_tables_past_the_limit_are_refused(tmp_path):
    path = write_table(tmp_path / "t.csv.gz", rows=2000)
    with pytest.raises(BadData, match="the limit of 20,000"):
        load_data(str(path), max_bytes=20_000)


def test_without_pandas_the_way_out_is_told(tmp_path, monkeypatch):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(WeightgenError, match=r"weightgen\[table\]"):
        load_data(str(path))
