import fcntl
import hashlib
import os
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.helpers.live_servers import ScriptedServer, answer
from weightgen.canonical_json import encode_json
from weightgen.client.download import RemoteFile, download_artifact, parse_files
from weightgen.client.http import Connection
from weightgen.errors import CorruptFile, ServiceFailed, StorageFailed

CONTENT = bytes(range(256)) * 20
SHA = hashlib.sha256(CONTENT).hexdigest()


def artifact_of(*files: tuple[str, bytes]) -> tuple[str, tuple[RemoteFile, ...]]:
    listed = [RemoteFile(name, hashlib.sha256(data).hexdigest(), len(data)) for name, data in files]
    listing = encode_json([asdict(file) for file in listed], name="files")
    return hashlib.sha256(listing).hexdigest(), tuple(listed)


ARTIFACT, FILES = artifact_of(("model.safetensors", CONTENT))


def bring(server: ScriptedServer, folder: Path, *, patience: float = 10, files: tuple[RemoteFile, ...] = FILES) -> None:
    download_artifact(Connection(server.url, patience_seconds=patience), ARTIFACT, files, folder, progress=False)


def ranges(server: ScriptedServer) -> list[str]:
    return [re.search("range: (.*?)\r|$", request.lower())[1] or "" for request in server.requests]  # pyright: ignore


def rest(start: int) -> bytes:
    told = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    return answer(CONTENT[start:], status="206 Partial Content", Content_Range=told)


def test_the_files_arrive_as_they_were_listed(tmp_path):
    artifact, files = artifact_of(("a.json", b"{}"), ("empty", b""))
    with ScriptedServer(answer(b"{}")) as server:
        download_artifact(Connection(server.url), artifact, files, tmp_path / "new" / "out", progress=True)
    assert {p.name: p.read_bytes() for p in (tmp_path / "new" / "out").iterdir()} == {"a.json": b"{}", "empty": b""}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["out"]


def test_a_connection_that_breaks_is_resumed_by_range(tmp_path):
    with ScriptedServer(answer(CONTENT[:1000], length=len(CONTENT)), b"", rest(1000)) as server:
        bring(server, tmp_path / "out")
        assert ranges(server) == ["", "bytes=1000-", "bytes=1000-"]
        assert f'if-range: "{SHA}"' in server.requests[2].lower()
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == CONTENT


def test_a_download_that_was_given_up_is_taken_up_by_the_next(tmp_path):
    broken = answer(CONTENT[:2000], length=len(CONTENT))
    with ScriptedServer(broken, *[b""] * 50) as server, pytest.raises(ServiceFailed, match="was lost"):
        bring(server, tmp_path / "out", patience=0.3)
    assert not (tmp_path / "out").exists()
    with ScriptedServer(rest(2000)) as server:
        bring(server, tmp_path / "out")
        assert ranges(server) == ["bytes=2000-"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_server_that_knows_no_ranges_sends_the_whole_file_once_more(tmp_path):
    with ScriptedServer(answer(CONTENT[:1000], length=len(CONTENT)), answer(CONTENT)) as server:
        bring(server, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == CONTENT


def test_other_bytes_than_listed_are_refused_and_not_kept(tmp_path):
    with ScriptedServer(answer(CONTENT[::-1])) as server, pytest.raises(CorruptFile, match="came with sha256 .*again"):
        bring(server, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("model.safetensors"))
    with ScriptedServer(answer(CONTENT)) as server:
        bring(server, tmp_path / "out")


def test_more_bytes_than_listed_are_refused_as_they_come(tmp_path):
    with ScriptedServer(answer(CONTENT * 2)) as server, pytest.raises(ServiceFailed, match="more of model.safetensors"):
        bring(server, tmp_path / "out")


def test_fewer_bytes_than_listed_are_asked_for_until_patience_ends(tmp_path):
    with ScriptedServer(*[answer(b"")] * 50) as server, pytest.raises(ServiceFailed, match="was lost"):
        bring(server, tmp_path / "out", patience=0.3)


def test_a_folder_with_something_in_it_is_refused_before_anything_is_asked(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with ScriptedServer(answer(CONTENT)) as server:
        for folder in (tmp_path, tmp_path / "mine"):
            with pytest.raises(StorageFailed, match="it exists and is not an empty folder"):
                bring(server, folder)
        assert server.requests == []
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_filled(tmp_path):
    with ScriptedServer(answer(CONTENT)) as server:
        bring(server, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_two_downloads_into_one_folder_exclude_each_other(tmp_path):
    partial = tmp_path / f".out.{ARTIFACT[:16]}.partial"
    partial.mkdir()
    other = os.open(partial, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with (
        ScriptedServer(answer(CONTENT)) as server,
        pytest.raises(StorageFailed, match="another process downloads"),
    ):
        bring(server, tmp_path / "out")
    os.close(other)


def test_a_link_in_the_place_of_a_file_is_not_followed(tmp_path):
    partial = tmp_path / f".out.{ARTIFACT[:16]}.partial"
    partial.mkdir()
    (partial / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with ScriptedServer(answer(CONTENT)) as server, pytest.raises(StorageFailed, match="out: cannot be written"):
        bring(server, tmp_path / "out")
    assert not (tmp_path / "elsewhere").exists()


def test_the_list_of_files_has_to_be_the_artifacts():
    listed = [asdict(file) for file in FILES]
    assert parse_files(ARTIFACT, listed) == FILES
    with pytest.raises(ServiceFailed, match="are not those of artifact"):
        parse_files("0" * 64, listed)
    with pytest.raises(ServiceFailed, match="expected a sha256"):
        parse_files("../" + ARTIFACT[3:], listed)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "a/b", ".hidden", "", "a\\b", "a\n", "..", "nul\0", "a" * 97, "é"]
)
def test_a_name_that_would_leave_the_folder_is_refused(name):
    with pytest.raises(ServiceFailed, match="that no artifact could hold"):
        parse_files(ARTIFACT, [{"name": name, "sha256": SHA, "size": 1}])


@pytest.mark.parametrize(
    ("listed", "sentence"),
    [
        ([], "lists no files"),
        (None, "lists no files"),
        ([{"name": "a", "sha256": SHA}], "has no 'size'"),
        ([{"name": "a", "sha256": "x", "size": 1}], "that no artifact could hold"),
        ([{"name": "a", "sha256": SHA, "size": -1}], "that no artifact could hold"),
        ([{"name": n, "sha256": SHA, "size": 1} for n in "aA"], "two files of one name"),
    ],
    ids=["empty", "none", "size", "sha256", "negative", "twice"],
)
def test_a_list_that_makes_no_sense_is_refused(listed, sentence):
    with pytest.raises(ServiceFailed, match=sentence):
        parse_files(ARTIFACT, listed)
