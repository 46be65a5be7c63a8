import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from weightgen.canonical_json import parse_json
from weightgen.errors import CorruptFile, NotFound, StorageFailed
from weightgen.files.storage import new_file, new_folder, read_json, sha256_file, write_file, write_json


def run_until_killed(program: str, folder: Path) -> None:
    """Run a program in `folder` and kill it, with SIGKILL, once it has printed a line."""
    with subprocess.Popen([sys.executable, "-c", program], cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half written\n"
        process.send_signal(signal.SIGKILL)


def test_write_file_replaces_the_old_bytes_and_leaves_nothing_else(tmp_path):
    for data in (b"old and longer", b"new"):
        write_file(tmp_path / "a" / "b.bin", data)
        assert (tmp_path / "a" / "b.bin").read_bytes() == data
        assert os.listdir(tmp_path / "a") == ["b.bin"]


def test_files_have_the_permissions_of_the_umask(tmp_path):
    write_file(tmp_path / "ours", b"")
    (tmp_path / "plain").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_error_in_the_block_keeps_the_old_file(tmp_path):
    write_file(tmp_path / "a", b"old")
    with pytest.raises(KeyError), new_file(tmp_path / "a") as file:  # noqa: PT012, both lines are the point
        file.write(b"half")
        raise KeyError
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("unnamed_files", [True, False])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_old_file_and_is_named(tmp_path, monkeypatch, call, unnamed_files):
    if not unnamed_files:  # as on file systems that have none
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    write_file(tmp_path / "a", b"old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(StorageFailed, match=r"/a: cannot be written: No space left on device$"):
        write_file(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_refused_write_keeps_the_old_file(tmp_path):
    """With a real refusal by the system: files of this process may not grow over 1000 bytes."""
    write_file(tmp_path / "a", b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(StorageFailed, match="/a: cannot be written: File too large"):
            write_file(tmp_path / "a", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="only Linux has files without a name")
def test_a_killed_writer_leaves_the_old_file_alone(tmp_path):
    write_file(tmp_path / "a", b"old")
    run_until_killed(
        "import time\n"
        "from weightgen.files.storage import new_file\n"
        "with new_file('a') as file:\n"
        "    file.write(b'half' * 100_000)\n"
        "    print('half written', flush=True)\n"
        "    time.sleep(60)\n",
        tmp_path,
    )
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_killed_folder_never_takes_its_place_and_its_leftovers_go_with_the_next(tmp_path):
    run_until_killed(
        "import time\n"
        "from weightgen.files.storage import new_folder, write_file\n"
        "with new_folder('out') as folder:\n"
        "    write_file(folder / 'sub' / 'half', b'half')\n"
        "    print('half written', flush=True)\n"
        "    time.sleep(60)\n",
        tmp_path,
    )
    assert not (tmp_path / "out").exists()
    with new_folder(tmp_path / "out") as folder:
        assert os.listdir(folder) == []
        write_file(folder / "whole", b"")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["whole"]


def test_a_failed_folder_is_removed(tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "out") as folder:  # noqa: PT012, both lines are the point
        write_file(folder / "half", b"")
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_a_folder_with_something_in_it_is_refused_before_any_work(tmp_path):
    write_file(tmp_path / "out" / "old", b"old")
    with (
        pytest.raises(StorageFailed, match=r"/out: cannot be written: the folder exists and is not empty"),
        new_folder(tmp_path / "out"),
    ):
        pytest.fail("the block was entered")
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["old"]


def test_replace_exchanges_a_folder_as_a_whole(tmp_path):
    write_file(tmp_path / "out" / "old", b"old")
    with new_folder(tmp_path / "out", replace=True) as folder:
        write_file(folder / "new", b"new")
        assert os.listdir(tmp_path / "out") == ["old"]
    assert os.listdir(tmp_path) == ["out"]
    assert os.listdir(tmp_path / "out") == ["new"]


def test_an_exchange_killed_half_way_is_taken_back(tmp_path):
    write_file(tmp_path / ".out.replaced" / "old", b"old")
    with (
        pytest.raises(StorageFailed, match="the folder exists and is not empty"),
        new_folder(tmp_path / "out"),
    ):
        pytest.fail("the block was entered")
    assert os.listdir(tmp_path) == ["out"]


def test_a_second_writer_of_a_folder_is_refused(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        write_file(folder / "first", b"")
        with (
            pytest.raises(StorageFailed, match="another process is writing it"),
            new_folder(tmp_path / "out"),
        ):
            pytest.fail("the block was entered")
    assert os.listdir(tmp_path / "out") == ["first"]


def test_a_folder_where_a_file_should_be_is_named(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageFailed, match=r"/out: cannot be written: a folder of this name exists"):
        write_file(tmp_path / "out", b"")
    with pytest.raises(CorruptFile, match=r"/out: is a folder, expected a file"):
        sha256_file(tmp_path / "out")


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
    write_file(tmp_path / "out", b"")
    with pytest.raises(StorageFailed, match=r"/out/a: cannot be written: .*exists"):
        write_file(tmp_path / "out" / "a", b"")
    with (
        pytest.raises(StorageFailed, match=r"/out: cannot be written: a file of this name exists"),
        new_folder(tmp_path / "out"),
    ):
        pytest.fail("the block was entered")


def test_what_cannot_be_opened_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"/none: no such file"):
        read_json(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorruptFile, match=r"/pipe: is not a regular file, expected a file"):
        read_json(tmp_path / "pipe")
    with pytest.raises(StorageFailed, match="cannot be read: embedded null byte"):
        read_json("a\0b")
    with pytest.raises(StorageFailed, match="a name cannot hold a NUL character"):
        write_file("a\0b", b"")


def test_json_has_one_spelling(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, 2.5], "a": {"ö": None}})
    text = '{\n  "a": {\n    "ö": null\n  },\n  "b": [\n    1,\n    2.5\n  ]\n}\n'
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == text
    assert read_json(tmp_path / "a.json") == {"a": {"ö": None}, "b": [1, 2.5]}


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {1, 2}, {"a": b""}, "\ud800"])
def test_what_json_cannot_say_is_refused(tmp_path, value):
    with pytest.raises(StorageFailed, match=r"/a.json: the value cannot be written as JSON"):
        write_json(tmp_path / "a.json", value)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "not valid JSON"),
        (b"\xff", "not valid JSON"),
        (b"[1,]", "not valid JSON"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b'{"a": 1, "a": 1}', "the key 'a' stands twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "not valid JSON"),
    ],
)
def test_loose_json_is_refused(text, reason):
    with pytest.raises(CorruptFile, match=f"^x.json: .*{reason}"):
        parse_json(text, name="x.json")


def test_sha256_of_a_file(tmp_path):
    write_file(tmp_path / "abc", b"abc")
    assert sha256_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
