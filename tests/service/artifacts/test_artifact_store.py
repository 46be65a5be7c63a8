import contextlib
import hashlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from service.artifacts.artifact_store import ArtifactFile, ArtifactStore, open_store
from service.errors import StoreFull
from tests.helpers.s3_server import new_bucket, running_s3
from weightgen.errors import BadData, BadOption, NotFound, UnsupportedTask

CONTENT = {"model.safetensors": b"\0" * 100, "config.json": b"{}"}


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    pytest.importorskip("s3fs", reason="the extra s3 is not installed")
    pytest.importorskip("moto", reason="the extra dev is not installed")
    with running_s3() as url:
        yield url


@pytest.fixture(params=["folder", "s3"])
def open_empty(request, tmp_path) -> Callable[..., ArtifactStore]:
    """Opens the same store, empty at first, each time it is called."""
    if request.param == "folder":
        return partial(open_store, tmp_path / "artifacts")
    url = request.getfixturevalue("s3")
    return partial(open_store, f"s3://{new_bucket(url)}/some/where", s3_endpoint_url=url)


@pytest.fixture
def store(open_empty) -> ArtifactStore:
    return open_empty(max_bytes=1000)


def fill(folder: Path, content: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def test_what_is_added_is_read_back_and_the_folder_is_gone(store, tmp_path):
    folder = fill(tmp_path / "made", CONTENT)
    sha = store.add(folder)
    assert not folder.exists() and store.exists(sha)
    read = {}
    for file in store.files(sha):
        with store.open(sha, file.name) as stream:
            read[file.name] = stream.read()
        assert file == ArtifactFile(file.name, hashlib.sha256(read[file.name]).hexdigest(), len(read[file.name]))
    assert read == CONTENT


def test_an_artifact_is_named_by_the_sha256_of_its_list(tmp_path):
    sha = open_store(tmp_path / "artifacts").add(fill(tmp_path / "made", CONTENT))
    assert hashlib.sha256(next((tmp_path / "artifacts").rglob("*.json")).read_bytes()).hexdigest() == sha


def test_the_same_content_is_one_artifact_in_whatever_order_it_was_written(store, tmp_path):
    first = store.add(fill(tmp_path / "first", CONTENT))
    second = store.add(fill(tmp_path / "second", dict(reversed(CONTENT.items()))))
    assert first == second and not (tmp_path / "second").exists()
    assert [stored.sha for stored in store.list_all()] == [first]


@pytest.mark.parametrize("change", [{"config.json": b"[]"}, {"more.json": b"{}"}, {"Config.json": b"{}"}])
def test_other_content_is_another_artifact(store, tmp_path, change):
    first = store.add(fill(tmp_path / "first", CONTENT))
    assert store.add(fill(tmp_path / "second", {**CONTENT, **change})) != first


def test_many_that_add_the_same_content_at_once_all_succeed(store, tmp_path):
    folders = [fill(tmp_path / f"made-{i}", CONTENT) for i in range(16)]
    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(store.add, folders))) == 1
    assert {p.name for p in tmp_path.iterdir()} <= {"artifacts"}


@pytest.mark.parametrize("name", [".hidden", "a b", "ä", "-rf", "a\nb", "x" * 97])
def test_odd_names_are_refused_and_the_folder_stays(store, tmp_path, name):
    folder = fill(tmp_path / "made", {name: b""})
    with pytest.raises(BadData, match="plain names"):
        store.add(folder)
    assert folder.exists() and store.list_all() == []


def test_folders_links_and_nothing_at_all_are_refused(store, tmp_path):
    nested = fill(tmp_path / "nested", CONTENT)
    (nested / "more").mkdir()
    linked = fill(tmp_path / "linked", CONTENT)
    (linked / "link").symlink_to("/etc/passwd")
    for folder in (nested, linked):
        with pytest.raises(BadData, match="no folders"):
            store.add(folder)
    with pytest.raises(BadData, match="empty"):
        store.add(fill(tmp_path / "empty", {}))


def test_an_artifact_that_is_too_large_is_refused(store, tmp_path):
    with pytest.raises(UnsupportedTask, match="1001 bytes, at most 1000"):
        store.add(fill(tmp_path / "made", {"a": b"\0" * 1001}))


@pytest.mark.parametrize("sha", ["", "..", "0" * 64, "0" * 63 + "\n", "../" * 20, "A" * 64])
def test_what_is_no_artifact_is_not_found(store, tmp_path, sha):
    store.add(fill(tmp_path / "made", CONTENT))
    assert not store.exists(sha)
    with pytest.raises(NotFound, match="no artifact"):
        store.files(sha)


@pytest.mark.parametrize("name", ["", "..", "../config.json", "/etc/passwd", "./config.json", "config.json/", "none"])
def test_only_names_of_the_list_are_opened(store, tmp_path, name):
    sha = store.add(fill(tmp_path / "made", CONTENT))
    with pytest.raises(NotFound, match=r"it has config.json, model.safetensors"):
        store.open(sha, name)


@pytest.mark.parametrize(("start", "end"), [(0, None), (0, 0), (0, 1), (5, 90), (99, 100), (100, 100)])
def test_a_range_of_a_file_is_those_bytes(store, tmp_path, start, end):
    data = bytes(range(100))
    sha = store.add(fill(tmp_path / "made", {"a": data}))
    assert b"".join(store.read(sha, store.find(sha, "a"), start, end)) == data[start:end]


def test_a_large_file_comes_in_blocks_of_which_the_first_is_read_at_once(open_empty, tmp_path):
    store = open_empty(max_bytes=2**24)
    sha = store.add(fill(tmp_path / "made", {"a": b"abcd" * 2**21 + b"end"}))
    file = store.find(sha, "a")
    blocks = list(store.read(sha, file))
    assert b"".join(blocks) == b"abcd" * 2**21 + b"end" and len(blocks) in (2, 9)
    store.delete(sha)
    with pytest.raises(NotFound, match="just been removed"):
        store.read(sha, file)


def test_what_is_deleted_is_gone_and_can_be_added_again(store, tmp_path):
    kept = store.add(fill(tmp_path / "kept", {"a": b""}))
    sha = store.add(fill(tmp_path / "made", CONTENT))
    assert {stored.sha for stored in store.list_all()} == {kept, sha}
    store.delete(sha)
    assert {stored.sha for stored in store.list_all()} == {kept} and not store.exists(sha)
    for use in (store.files, store.delete):
        with pytest.raises(NotFound, match="no artifact"):
            use(sha)
    assert store.add(fill(tmp_path / "made", CONTENT)) == sha and store.exists(sha)


def test_some_add_and_some_delete_one_artifact_and_it_is_whole_or_gone(store, tmp_path):
    def add(number: int) -> None:
        store.add(fill(tmp_path / f"made-{number}", CONTENT))

    def delete(number: int) -> None:
        with contextlib.suppress(NotFound):
            store.delete(sha)

    sha = store.add(fill(tmp_path / "made", CONTENT))
    with ThreadPoolExecutor(8) as threads:
        for done in [threads.submit(delete if number % 2 else add, number) for number in range(60)]:
            done.result()
    store.add(fill(tmp_path / "made", CONTENT))
    assert {file.name for file in store.files(sha)} == set(CONTENT)
    assert {p.name for p in tmp_path.iterdir()} <= {"artifacts"}


@pytest.mark.parametrize("location", ["ftp://host/x", "s4://bucket", "://", "S3://bucket"])
def test_a_url_of_another_kind_is_refused(location):
    with pytest.raises(BadOption, match="expected a folder or s3://"):
        open_store(location)


def test_what_is_used_is_newer_than_what_is_not(store, tmp_path):
    shas = [store.add(fill(tmp_path / name, {name: b""})) for name in ("a", "b")]
    used = {stored.sha: stored.used for stored in store.list_all()}
    assert store.note_use(shas[0]) and not store.note_use("0" * 64) and not store.note_use("..")
    again = {stored.sha: stored.used for stored in store.list_all()}
    assert again[shas[0]] >= used[shas[0]] and again[shas[1]] == used[shas[1]]


def test_an_artifact_goes_only_if_nobody_has_used_it_since(store, tmp_path):
    sha = store.add(fill(tmp_path / "made", CONTENT))
    assert not store.delete_unused(sha, since=time.time() - 3600) and store.exists(sha)
    assert store.delete_unused(sha, since=time.time() + 3600) and not store.exists(sha)
    assert not store.delete_unused(sha, since=time.time() + 3600) and not store.note_use(sha)


def test_more_than_may_be_stored_is_refused_and_the_folder_stays(open_empty, tmp_path):
    store = open_empty(max_stored_bytes=250)
    sha = store.add(fill(tmp_path / "first", CONTENT))
    store.add(fill(tmp_path / "second", {"a": b"\0" * 100}))
    store.refuse_when_full(48)
    folder = fill(tmp_path / "third", {"b": b"\0" * 49})
    with pytest.raises(StoreFull, match="202 of 250 bytes are stored, which leaves no room for 49 more"):
        store.add(folder)
    assert folder.exists() and store.size() == 202
    assert store.add(fill(tmp_path / "again", CONTENT)) == sha  # takes no room
    store.delete(sha)
    assert store.exists(store.add(folder))


def test_a_full_store_is_told_before_work_begins_and_asks_for_room(open_empty, tmp_path):
    store = open_empty(max_stored_bytes=102)
    store.refuse_when_full()
    sha = store.add(fill(tmp_path / "made", CONTENT))
    with pytest.raises(StoreFull, match="102 of 102 bytes are stored; ask again later"):
        store.refuse_when_full()
    store.make_room = lambda: store.delete(sha)
    store.refuse_when_full()


def test_many_that_add_at_once_do_not_pass_the_limit_of_a_folder(tmp_path):
    def add(number: int) -> bool:
        try:
            open_store(tmp_path / "artifacts", max_stored_bytes=1000).add(folders[number])
        except StoreFull:
            return False
        return True

    folders = [fill(tmp_path / f"made-{number}", {f"a{number}": b"\0" * 100}) for number in range(24)]
    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(add, range(24))) == 10
