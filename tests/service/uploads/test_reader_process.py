"""Another process reads what nobody knows: what ends that one is told in a sentence, and harms nothing here."""

import io
import logging
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.uploads.reader_process import read_apart, reader_environment
from service.uploads.reading import Raw, Unusable
from service.uploads.reading.formats import read_file
from tests.helpers.upload_samples import (
    LIMITS,
    class_folders,
    csv_bytes,
    npz_bytes,
    parquet_bytes,
    some_images,
    zip_bytes,
)

IMAGES, LABELS = some_images()
FILES = {
    "npz": npz_bytes(x=IMAGES, y=LABELS, class_names=np.array(["a", "b", "c"])),
    "npz of texts": npz_bytes(x=IMAGES, y=np.array(["a", "b", "c"])[LABELS]),
    "zip": zip_bytes(class_folders(IMAGES, LABELS, above="train/") | class_folders(IMAGES, LABELS, above="test/")),
    "csv": csv_bytes(IMAGES[:, 0] / 3, LABELS),
    "parquet": parquet_bytes({"f": IMAGES[:, 0, 0], "label": LABELS}),
}


def read(data: bytes, folder: Path, **limits: int) -> Raw:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        return read_apart(
            file, declared=None, label=None, is_pixels=False, limits=replace(LIMITS, **limits), scratch=folder
        )


@pytest.mark.parametrize("kind", FILES)
def test_it_reads_what_would_be_read_here(kind, tmp_path):
    apart = read(FILES[kind], tmp_path)
    here = read_file(io.BytesIO(FILES[kind]), declared=None, label=None, is_pixels=False, limits=LIMITS)
    assert replace(apart, arrays={}) == replace(here, arrays={})
    assert apart.arrays.keys() == here.arrays.keys()
    for name, array in here.arrays.items():
        assert np.array_equal(apart.arrays[name], array) and apart.arrays[name].dtype == array.dtype
    assert list(tmp_path.iterdir()) == []


def test_a_refusal_is_told_in_its_own_words(tmp_path):
    with pytest.raises(Unusable, match="row 1 has 'red' in column 'f0'"):
        read(b"f0,label\nred,1\n", tmp_path)


def test_what_takes_too_much_memory_is_refused(tmp_path):
    columns = b"," * 80_000_000
    with pytest.raises(Unusable, match="it takes more memory than an upload may"):
        read(columns, tmp_path, max_uncompressed_bytes=1)


def test_what_takes_too_much_time_is_refused(tmp_path, caplog):
    row = b"a" + b",0.25" * 900 + b"\n"
    rows = b"label" + b",f" * 900 + b"\n" + row * 12_000
    with caplog.at_level(logging.WARNING), pytest.raises(Unusable, match="in the memory and time that an upload may"):
        read(rows, tmp_path, max_reading_seconds=1, max_examples=10**6, max_uncompressed_bytes=2**30)
    assert "an upload was not read" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_it_knows_nothing_of_the_server(tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTGEN_DATABASE_URL", "postgresql://user:secret@host/db")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    environment = reader_environment()
    assert not any("secret" in value for value in environment.values())
    assert set(environment) == {
        "PYTHONPATH",
        "OPENBLAS_NUM_THREADS",
        "OMP_NUM_THREADS",
        "ARROW_DEFAULT_MEMORY_POOL",
    }
