"""Zip archives that are damaged, lie or would fill the machine are refused before anything is unpacked."""

import io
import stat
import struct
import zipfile
from dataclasses import replace

import pytest

from service.uploads.reading import Unusable
from service.uploads.reading.archives import open_archive, read_entry
from tests.helpers.upload_samples import LIMITS, is_sentence, refusal, zip_bytes

PLAIN = zip_bytes({"a/1": b"one" * 50, "b/2": b"two" * 50})
DIRECTORY = b"PK\x01\x02"
END = b"PK\x05\x06"


def read_all(data: bytes, **limits: int) -> dict[str, bytes]:
    archive, entries = open_archive(io.BytesIO(data), replace(LIMITS, **limits))
    return {entry.filename: read_entry(archive, entry) for entry in entries}


def with_entry(name: str = "a/1", data: bytes = b"data", **changes: int) -> bytes:
    """An archive of one entry with changed attributes."""
    file, info = io.BytesIO(), zipfile.ZipInfo(name)
    for attribute, value in changes.items():
        setattr(info, attribute, value)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, data)
    return file.getvalue()


def patch(data: bytes, signature: bytes, offset: int, form: str, value: int) -> bytes:
    """The archive with a number changed at an offset behind the first such signature."""
    at = data.index(signature) + offset
    return data[:at] + struct.pack(form, value) + data[at + struct.calcsize(form) :]


def test_entries_are_read_as_they_were_packed():
    assert read_all(PLAIN) == {"a/1": b"one" * 50, "b/2": b"two" * 50}


def test_folders_are_no_entries():
    assert list(read_all(zip_bytes({"a/": b"", "a/1": b"x"}))) == ["a/1"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "a//b", "./a", "C:/x", "c:x", "a\\b", "..\\x"])
def test_a_name_that_leads_elsewhere_is_refused(name):
    with pytest.raises(Unusable, match="expected a relative name such as class/picture.png"):
        read_all(with_entry(name))


def test_a_name_with_a_nul_is_refused():
    data = with_entry("a/1x").replace(b"a/1x", b"a/1\0")
    with pytest.raises(Unusable, match=r"is called 'a/1\\x00'"):
        read_all(data)


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_link_or_device_is_refused(kind):
    with pytest.raises(Unusable, match="'a/1' in the archive is a link or a device"):
        read_all(with_entry(data=b"/etc/passwd", external_attr=(kind | 0o777) << 16))


def test_an_encrypted_entry_is_refused():
    data = patch(patch(PLAIN, DIRECTORY, 8, "<H", 1), b"PK\x03\x04", 6, "<H", 1)
    with pytest.raises(Unusable, match="'a/1' in the archive is encrypted"):
        read_all(data)


@pytest.mark.parametrize("compression", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_method_that_browsers_and_numpy_never_use_is_refused(compression):
    with pytest.raises(Unusable, match="expected stored or deflated"):
        read_all(zip_bytes({"a/1": b"x"}, compression=compression))


def test_a_bomb_is_refused_by_what_it_says_it_unpacks_to():
    bomb = zip_bytes({f"a/{i}": bytes(2**20) for i in range(8)})
    assert len(bomb) < 20_000
    with pytest.raises(Unusable, match="unpacks to 8388608 bytes, at most 1000000 are taken"):
        read_all(bomb, max_uncompressed_bytes=1_000_000)


def test_a_bomb_that_lies_about_its_size_is_refused_when_it_unpacks_to_more():
    bomb = patch(zip_bytes({"a/1": bytes(2**20)}), DIRECTORY, 24, "<L", 1000)
    with pytest.raises(Unusable, match="'a/1' in the archive is damaged or cut short"):
        read_all(bomb, max_uncompressed_bytes=100_000)


def test_an_entry_that_unpacks_to_less_than_it_says_is_refused():
    with pytest.raises(Unusable, match=r"'a/1' (in the archive is damaged|has 150 bytes, the archive says 9000)"):
        read_all(patch(PLAIN, DIRECTORY, 24, "<L", 9000))


def test_entries_that_share_their_data_are_refused():
    """As in David Fifield's "A better zip bomb": many entries of the directory, one piece of data."""
    first = PLAIN.index(DIRECTORY)
    second = PLAIN.index(DIRECTORY, first + 4)
    doubled = PLAIN[:second] + PLAIN[first:second] + PLAIN[second:]
    end = doubled.index(END)
    sizes = struct.pack("<HHL", 3, 3, end - first)
    doubled = doubled[: end + 8] + sizes + doubled[end + 16 :]
    with pytest.raises(Unusable, match=r"overlaps another entry|two entries of the archive are called"):
        read_all(doubled)


def test_an_entry_that_reaches_into_the_next_is_refused():
    with pytest.raises(Unusable, match="overlaps"):
        read_all(patch(PLAIN, DIRECTORY, 20, "<L", 60))


def test_two_entries_of_one_name_are_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/1", b"x")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/1", b"y")
    with pytest.raises(Unusable, match="two entries of the archive are called 'a/1'"):
        read_all(file.getvalue())


def test_too_many_entries_are_refused_before_they_are_read():
    with pytest.raises(Unusable, match="the archive has 50 entries .* at most 20 entries are taken"):
        read_all(zip_bytes({f"a/{i}": b"" for i in range(50)}), max_archive_entries=20)


def test_a_directory_that_says_it_has_few_entries_is_judged_by_its_size():
    data = zip_bytes({f"a/{'n' * 200}{i}": b"" for i in range(200)})
    lying = patch(patch(data, END, 8, "<H", 1), END, 10, "<H", 1)
    with pytest.raises(Unusable, match="at most 20 entries are taken"):
        read_all(lying, max_archive_entries=20)


def test_a_zip64_archive_is_refused():
    at = PLAIN.index(END)
    locator = b"PK\x06\x07" + bytes(16)
    for data in (patch(PLAIN, END, 12, "<L", 0xFFFFFFFF), PLAIN[:at] + locator + PLAIN[at:]):
        with pytest.raises(Unusable, match="Zip64"):
            read_all(data)


def test_an_archive_cut_short_anywhere_is_refused():
    for length in range(len(PLAIN)):
        with pytest.raises(Unusable, match="cut short"):
            read_all(PLAIN[:length])


def test_an_archive_with_any_byte_changed_is_read_or_refused_in_a_sentence():
    for at in range(len(PLAIN)):
        changed = PLAIN[:at] + bytes([PLAIN[at] ^ 0xFF]) + PLAIN[at + 1 :]
        assert is_sentence(refusal(read_all, changed))
