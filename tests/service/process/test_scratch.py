"""Unfinished work vanishes with the block, with its process, or with the next process that starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.process.scratch import Scratch
from tests.helpers.paths import ROOT
from weightgen.errors import StorageFailed

PROGRAM = """
import os, sys
from service.process.scratch import Scratch

scratch = Scratch(sys.argv[1])
with scratch.new_place() as place:
    place.write_text("unfinished")
    if sys.argv[2] == "killed":
        os.kill(os.getpid(), 9)
    os.link(place, scratch.folder / "left")
"""


def folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()]


@pytest.mark.parametrize("fault", [None, KeyError])
def test_a_place_is_gone_after_its_block(tmp_path, fault):
    scratch = Scratch(tmp_path)
    try:
        with scratch.new_place() as place:
            assert not place.exists()
            place.mkdir()
            (place / "file").write_text("unfinished")
            if fault is not None:
                raise fault
    except KeyError:
        pass
    assert list(scratch.folder.iterdir()) == []


def test_places_are_never_shared(tmp_path):
    scratch = Scratch(tmp_path)
    with scratch.new_place() as one, scratch.new_place() as other:
        assert one != other


def test_what_a_killed_process_left_goes_when_the_next_one_starts(tmp_path):
    done = subprocess.run([sys.executable, "-c", PROGRAM, tmp_path, "killed"], cwd=ROOT)
    assert done.returncode == -9
    (left,) = folders(tmp_path)
    assert [path.name for path in left.rglob("work")] == ["work"]
    scratch = Scratch(tmp_path)
    assert folders(tmp_path) == [scratch.folder]


def test_a_process_that_ends_leaves_nothing(tmp_path):
    assert subprocess.run([sys.executable, "-c", PROGRAM, tmp_path, "well"], cwd=ROOT).returncode == 0
    assert folders(tmp_path) == []


def test_folders_of_living_owners_stay(tmp_path):
    one = Scratch(tmp_path)
    other = Scratch(tmp_path)
    assert sorted(folders(tmp_path)) == sorted([one.folder, other.folder])


def test_a_root_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match="unfinished work cannot be kept there"):
        Scratch(tmp_path / "file")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_that_goes_while_it_is_swept_disturbs_nobody(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    opened = os.open

    def open_late(path, flags, *rest):
        if Path(path).name == "gone":
            Path(path).rmdir()
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", open_late)
    scratch = Scratch(tmp_path)
    assert folders(tmp_path) == [scratch.folder]


def test_a_folder_can_be_removed_before_its_process_ends(tmp_path):
    scratch = Scratch(tmp_path)
    with scratch.new_place() as place:
        place.mkdir()
        scratch.remove()
    scratch.remove()
    assert folders(tmp_path) == []
