import hashlib
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.artifacts.s3_place import S3Place
from tests.helpers.s3_server import new_bucket, running_s3
from weightgen.errors import BadOption, StorageFailed

s3fs = pytest.importorskip("s3fs", reason="the extra s3 is not installed")
pytest.importorskip("moto", reason="the extra dev is not installed")

SHA = hashlib.sha256(b"[]").hexdigest()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running_s3() as url:
        yield url


@pytest.fixture
def bucket(server) -> str:
    return new_bucket(server)


@pytest.fixture
def place(server, bucket) -> S3Place:
    return S3Place(f"s3://{bucket}/some/where", endpoint_url=server)


def keys(server: str, bucket: str) -> list[str]:
    return s3fs.S3FileSystem(endpoint_url=server, skip_instance_cache=True).find(bucket)


def fill(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    (folder / "b").write_bytes(b"22")
    return folder


def test_the_files_and_their_list_lie_below_the_prefix(place, server, bucket, tmp_path):
    place.put(SHA, b"[]", fill(tmp_path / "made"))
    listing, first, second = keys(server, bucket)
    token = listing.removesuffix(".json")
    assert token.rpartition("/")[0] == f"{bucket}/some/where/{SHA[:2]}/{SHA}"
    assert [first, second] == [f"{token}/a", f"{token}/b"]


def test_half_an_upload_is_seen_by_nobody_and_goes_when_it_is_old(place, server, bucket, tmp_path, monkeypatch):
    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(place.filesystem, "pipe_file", die)
        with pytest.raises(KeyboardInterrupt):
            place.put(SHA, b"[]", fill(tmp_path / "made"))
    assert (tmp_path / "made").exists() and len(keys(server, bucket)) == 2
    assert not place.has(SHA) and list(place.stored()) == [] and not place.touch(SHA) and not place.delete(SHA)
    with pytest.raises(FileNotFoundError):
        place.read_listing(SHA)
    assert place.sweep(before=time.time() - 3600) == 0 and len(keys(server, bucket)) == 2
    assert place.sweep(before=time.time() + 3600) == 2 and keys(server, bucket) == []


def test_of_two_uploads_of_one_artifact_the_older_goes_when_it_is_old(place, server, bucket, tmp_path):
    for name in ("first", "second"):
        place.put(SHA, b"[]", fill(tmp_path / name))
    assert len(keys(server, bucket)) == 6
    assert place.sweep(before=time.time() + 3600) == 3
    assert place.has(SHA) and b"".join(place.read(SHA, "b", 0, 2)) == b"22" and len(keys(server, bucket)) == 3


def test_an_upload_that_ends_while_its_artifact_is_removed_stays(place, server, bucket, tmp_path, monkeypatch):
    place.put(SHA, b"[]", fill(tmp_path / "first"))
    other = S3Place(f"s3://{bucket}/some/where", endpoint_url=server)
    remove = place.filesystem.rm

    def remove_late(*args):
        if not (tmp_path / "second").exists():
            other.put(SHA, b"[]", fill(tmp_path / "second"))
            (tmp_path / "second").touch()
        return remove(*args)

    monkeypatch.setattr(place.filesystem, "rm", remove_late)
    assert place.delete(SHA)
    assert place.has(SHA) and b"".join(place.read(SHA, "b", 0, 2)) == b"22"


def test_an_upload_half_done_while_its_artifact_is_removed_ends_whole(place, server, bucket, tmp_path, monkeypatch):
    place.put(SHA, b"[]", fill(tmp_path / "first"))
    other = S3Place(f"s3://{bucket}/some/where", endpoint_url=server)
    put_list = other.filesystem.pipe_file

    def remove_first(*args):
        assert place.delete(SHA) and not place.has(SHA)
        put_list(*args)

    monkeypatch.setattr(other.filesystem, "pipe_file", remove_first)
    other.put(SHA, b"[]", fill(tmp_path / "second"))
    assert place.has(SHA) and len(keys(server, bucket)) == 3
    assert [b"".join(place.read(SHA, name, 0, size)) for name, size in (("a", 1), ("b", 2))] == [b"1", b"22"]


def test_a_reader_finds_what_another_process_removed_and_put_again(place, server, bucket, tmp_path):
    place.put(SHA, b"[]", fill(tmp_path / "first"))
    other = S3Place(f"s3://{bucket}/some/where", endpoint_url=server)
    assert other.delete(SHA)
    with pytest.raises(FileNotFoundError):
        list(place.read(SHA, "a", 0, 1))
    other.put(SHA, b"[]", fill(tmp_path / "second"))
    assert list(place.read(SHA, "a", 0, 1)) == [b"1"]
    with place.open(SHA, "b") as file:
        file.seek(1)
        assert file.read() == b"2"


def test_a_deletion_leaves_nothing(place, server, bucket, tmp_path):
    place.put(SHA, b"[]", fill(tmp_path / "made"))
    assert place.touch(SHA) and place.delete(SHA) and not place.delete(SHA)
    assert keys(server, bucket) == []


def test_parts_of_large_files_whose_upload_never_ended_go_when_they_are_old(place, server, bucket):
    keys = [f"some/where/{SHA[:2]}/{SHA}/0/model", "elsewhere/model"]
    for key in keys:
        place.filesystem.call_s3("create_multipart_upload", Bucket=bucket, Key=key)
    assert place.sweep(before=0) == 0  # moto says of every one that it was begun in 2010
    assert place.sweep(before=time.time()) == 1
    assert [upload["Key"] for upload in place.filesystem.list_multipart_uploads(bucket)] == [keys[1]]


def test_a_prefix_that_fills_while_it_is_looked_through_is_no_artifact(place, bucket, tmp_path, monkeypatch):
    place.put(SHA, b"[]", fill(tmp_path / "made"))
    prefix = f"{bucket}/some/where"
    told = {prefix: {"name": prefix, "size": 0, "type": "directory", "StorageClass": "DIRECTORY"}}
    monkeypatch.setattr(
        place.filesystem, "find", lambda path, detail: told
    )  # as s3fs does where it found nothing first
    assert place.sweep(before=time.time() + 60) == 0


def test_what_others_keep_in_the_bucket_is_left_alone(place, server, bucket):
    place.filesystem.pipe_file(f"{bucket}/some/where/notes.txt", b"")
    place.filesystem.pipe_file(f"{bucket}/some/whereabouts/ab/{SHA}/0/a", b"")
    assert place.sweep(before=time.time() + 3600) == 0 and len(keys(server, bucket)) == 2


def test_a_bucket_or_server_that_is_not_there_is_told(server, tmp_path, monkeypatch):
    absent = S3Place("s3://absent/x", endpoint_url=server)
    for use in (absent.check, lambda: absent.put(SHA, b"[]", fill(tmp_path / "made")), lambda: absent.has(SHA)):
        with pytest.raises(StorageFailed, match="s3://absent/x: the bucket does not exist"):
            use()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setattr("service.artifacts.s3_place.MAX_ATTEMPTS", 1)
        away = S3Place("s3://bucket", endpoint_url=f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(StorageFailed, match="s3://bucket: Could not connect"):
            away.check()


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://bucket//x", "s3://bucket/../x", "http://bucket/x"])
def test_a_url_that_names_no_bucket_and_prefix_is_refused(url):
    with pytest.raises(BadOption, match="expected s3://<bucket>/<prefix>"):
        S3Place(url)


def test_an_endpoint_that_is_no_url_is_refused():
    with pytest.raises(BadOption, match="s3_endpoint_url is 'localhost:9000', expected http://"):
        S3Place("s3://bucket", endpoint_url="localhost:9000")


def test_without_s3fs_the_way_out_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(BadOption, match=r"pip install 'weightgen\[s3\]'"):
        S3Place("s3://bucket/x")
