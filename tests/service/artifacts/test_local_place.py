import errno
import os

import pytest

from service.artifacts.local_place import LocalPlace
from weightgen.errors import StorageFailed

SHA = "ab" + "0" * 62


def test_an_artifact_lies_below_the_first_two_digits_of_its_name(tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "a").write_bytes(b"1")
    LocalPlace(tmp_path / "root").put(SHA, b"[]", tmp_path / "made")
    assert (tmp_path / "root" / "ab" / SHA / "a").read_bytes() == b"1"
    assert (tmp_path / "root" / "ab" / f"{SHA}.json").read_bytes() == b"[]"


def test_a_folder_of_another_file_system_is_copied_whole(tmp_path, monkeypatch):
    place, rename = LocalPlace(tmp_path / "root"), os.rename

    def refuse_across(source, target):
        if (tmp_path / "root") not in source.parents:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse_across)
    for _ in range(2):
        (tmp_path / "made").mkdir()
        (tmp_path / "made" / "a").write_bytes(b"1")
        place.put(SHA, b"[]", tmp_path / "made")
        assert not (tmp_path / "made").exists()
        with place.open(SHA, "a") as file:
            assert file.read() == b"1"
    assert sorted(p.name for p in (tmp_path / "root" / "ab").iterdir()) == [SHA, f"{SHA}.json"]


def test_a_deletion_leaves_nothing(tmp_path):
    (tmp_path / "made").mkdir()
    place = LocalPlace(tmp_path / "root")
    place.put(SHA, b"[]", tmp_path / "made")
    place.delete(SHA)
    place.delete(SHA)
    assert list((tmp_path / "root" / "ab").iterdir()) == [] and list(place.stored()) == []


def test_a_root_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "root").write_bytes(b"")
    (tmp_path / "made").mkdir()
    with pytest.raises(StorageFailed, match="artifacts cannot be kept there: "):
        LocalPlace(tmp_path / "root").put(SHA, b"[]", tmp_path / "made")
