import os

import pytest

from model_zoo.data import list_data
from model_zoo.data.sklearn import SKLEARN_SETS
from model_zoo.released import RELEASED
from service.work.contents import Contents
from tests.helpers.paths import shared_path
from weightgen.errors import NotFound
from weightgen.files.storage import sha256_file


def test_a_file_is_told_by_its_content_and_again_when_it_changes(tmp_path):
    contents, path = Contents(), tmp_path / "a"
    path.write_bytes(b"one")
    first = contents.of_file(path)
    assert first == contents.of_file(path) == sha256_file(path)
    path.write_bytes(b"other")
    assert contents.of_file(path) == sha256_file(path) != first


def test_a_file_that_stays_as_it_is_is_read_once(tmp_path):
    contents, path = Contents(), tmp_path / "a"
    path.write_bytes(b"one")
    first, status = contents.of_file(path), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert contents.of_file(path) == first != sha256_file(path)


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(NotFound, match="no such file"):
        Contents().of_file(tmp_path / "a")


def test_every_registered_set_stands_for_something():
    contents = Contents()
    assert {contents.of_dataset(name) for name in SKLEARN_SETS} == {contents.of_dataset("digits")}
    names = [name for name in list_data() if name not in SKLEARN_SETS and not name.startswith("omniglot")]
    assert len({contents.of_dataset(name) for name in names}) == len(names)


def test_an_image_set_is_told_by_its_arrays_and_its_description():
    folder = shared_path("images")
    files = [folder / "mnist.npz", folder / "mnist.json"]
    assert Contents().of_dataset("mnist") == "+".join(sha256_file(file) for file in files)


@pytest.mark.parametrize("generator", RELEASED)
def test_the_reference_zoos_of_both_numbers_of_channels_count(generator):
    contents = Contents()
    assert contents.of_references(generator, "no-such") == "-+-"
    assert len(set(contents.of_references(generator, "cnn-tiny").split("+"))) == 2
