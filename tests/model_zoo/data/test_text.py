"""Texts of the shared folder."""

import gzip

import pytest

from model_zoo.data.text import load_text
from tests.helpers.paths import shared_path
from weightgen.errors import CorruptFile, NotFound

ROWS = '{"text": "one é", "split": "train"}\n{"text": "two", "split": "test"}\n{"text": "three"}\n'


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the text set `own` of a shared folder made for the test."""
    (tmp_path / "text").mkdir()
    monkeypatch.setenv("WEIGHTGEN_SHARED", str(tmp_path))
    return (tmp_path / "text" / "own.jsonl.gz").write_bytes


def test_a_part_is_the_bytes_of_its_texts_a_line_each(write):
    write(gzip.compress(ROWS.encode()))
    assert bytes(load_text("own").tolist()).decode() == "one é\nthree"
    assert bytes(load_text("own", "test").tolist()) == b"two"


def test_a_set_or_a_part_that_is_absent_is_named(write, tmp_path, monkeypatch):
    write(gzip.compress(ROWS.encode()))
    with pytest.raises(NotFound, match="text set 'own' has no part 'val'; it has test, train"):
        load_text("own", "val")
    with pytest.raises(NotFound, match="text set 'other' is not there; set WEIGHTGEN_SHARED"):
        load_text("other")
    monkeypatch.setenv("WEIGHTGEN_SHARED", str(tmp_path / "nowhere"))
    with pytest.raises(NotFound, match="text set 'own' is not there; set WEIGHTGEN_SHARED"):
        load_text("own")


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(ROWS.encode())[:-12], gzip.compress(b"{"), gzip.compress(b"[]"), gzip.compress(b"{}")],
    ids=["not gzip", "cut short", "no JSON", "a list", "nothing in it"],  # gzip writes the time: no name of a test
)
def test_what_is_no_text_set_is_told(write, content):
    write(content)
    with pytest.raises(CorruptFile, match="text set 'own': expected gzipped lines"):
        load_text("own")


def test_the_parts_of_a_shared_set_differ():
    shared_path("text/banking77.jsonl.gz")
    learnt, tested = (load_text("banking77", part) for part in ("train", "test"))
    assert len(learnt) > len(tested) > 10_000 and 0 < int(learnt.max()) < 256
