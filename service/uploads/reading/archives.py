"""Opens zip archives with care: every entry is checked by the archive's directory before any is unpacked."""

import os
import re
import stat
import struct
import zipfile
import zlib
from typing import BinaryIO

from service.uploads.reading import Limits, Unusable, check_bytes, show

_END = struct.Struct("<4s4H2LH")
"""The end of the directory: signature, two disks, entries here and in all, size and place of the directory, comment."""
_LOCAL = struct.Struct("<4s5H3L2H")
"""The header before an entry's data, up to the lengths of its name and of its extra field."""
MAX_ENTRY_BYTES = 1024
"""Most bytes of the directory for one entry: its name and what packers add."""
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OSError, ValueError)
"""What zipfile raises for archives that are damaged or made to confuse."""


def open_archive(file: BinaryIO, limits: Limits) -> tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]:
    """The archive and its entries without the folders; Unusable for one that is damaged, unsafe or too large."""
    _check_end(file, limits)
    try:
        archive = zipfile.ZipFile(file)
        entries = archive.infolist()
        for entry in entries:
            _check_entry(entry)
        _check_overlap(file, archive, entries)
    except _DAMAGED as error:
        raise Unusable("the archive is damaged or cut short") from error
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise Unusable(f"two entries of the archive are called {show(twice)}")
    check_bytes(sum(entry.file_size for entry in entries), limits)
    return archive, [entry for entry in entries if not entry.is_dir()]


def read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The data of an entry; Unusable if it is not what the directory says."""
    try:
        data = archive.read(entry)
    except _DAMAGED as error:
        raise Unusable(f"{show(entry.filename)} in the archive is damaged or cut short") from error
    if len(data) != entry.file_size:
        raise Unusable(f"{show(entry.filename)} has {len(data)} bytes, the archive says {entry.file_size}")
    return data


def ends_with_arrays(entries: list[zipfile.ZipInfo]) -> bool:
    """Whether the archive is an .npz: arrays outside of any folder, as numpy.savez writes them."""
    return any(entry.filename.endswith(".npy") and "/" not in entry.filename for entry in entries)


def _check_end(file: BinaryIO, limits: Limits) -> None:
    """Refuse a directory that is too large to be read: zipfile makes an object for every entry."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _END.size - 0xFFFF))
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    file.seek(0)
    if place < 0 or len(tail) - place < _END.size:
        raise Unusable("the archive is cut short: its directory is missing")
    _, _, _, _, num_entries, directory_bytes, start, _ = _END.unpack_from(tail, place)
    has_locator = tail[max(0, place - 20) : place].startswith(b"PK\x06\x07")
    if has_locator or num_entries == 0xFFFF or 0xFFFFFFFF in (directory_bytes, start):
        raise Unusable("the archive is a Zip64 archive, which is for large ones; pack fewer files")
    if num_entries > limits.max_archive_entries or directory_bytes > limits.max_archive_entries * MAX_ENTRY_BYTES:
        raise Unusable(f"the archive has {num_entries} entries in a directory of {directory_bytes} bytes, at most "
                       f"{limits.max_archive_entries} entries are taken; pack fewer files")  # fmt: skip


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name = show(entry.orig_filename)
    parts = entry.orig_filename.rstrip("/").split("/")
    is_odd = re.search(r"[\\\0]|^[A-Za-z]:", entry.orig_filename) is not None
    if is_odd or any(part in ("", ".", "..") for part in parts):
        raise Unusable(f"an entry of the archive is called {name}; expected a relative name such as class/picture.png")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise Unusable(f"{name} in the archive is a link or a device; expected files and folders")
    if entry.flag_bits & 0x1:
        raise Unusable(f"{name} in the archive is encrypted; pack it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Unusable(f"{name} in the archive is packed by method {entry.compress_type}; expected stored or deflated")


def _check_overlap(file: BinaryIO, archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> None:
    """Refuse entries that share bytes: with them a small archive can unpack to any size."""
    end = 0
    for entry in sorted(entries, key=lambda e: e.header_offset):
        file.seek(entry.header_offset)
        header = _LOCAL.unpack(file.read(_LOCAL.size))
        if entry.header_offset < end or header[0] != b"PK\x03\x04":
            raise Unusable(f"{show(entry.filename)} in the archive overlaps another entry")
        end = entry.header_offset + _LOCAL.size + header[-2] + header[-1] + entry.compress_size
    if end > archive.start_dir:
        raise Unusable("the last entry of the archive overlaps its directory")
    file.seek(0)
