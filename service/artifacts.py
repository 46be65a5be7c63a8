"""Artifacts by content: a flat folder of files, named by the sha256 of their canonical list.

    <root>/<first two digits>/<sha>.json   the list [{name, sha256, size}], the very bytes whose sha256 is the name
    <root>/<first two digits>/<sha>/       the files

A finished folder is renamed into place, so an artifact is there whole or not at all, and the same content is there once
however many processes add it.
"""

import errno
import hashlib
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from weightgen.errors import BadData, NotFound, StorageFailed, UnsupportedTask
from weightgen.storage import encode_json, read_json, sha256_file, write_file

FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """One file of an artifact."""

    name: str
    sha256: str
    size: int
    """Bytes."""


class ArtifactStore:
    """The artifacts below one local folder, which any number of processes may use."""

    def __init__(self, root: str | Path, *, max_bytes: int = 2**30) -> None:
        """`max_bytes` is the largest artifact, all its files together."""
        self.root = Path(root).absolute()
        self.max_bytes = max_bytes

    def add(self, folder: str | Path) -> str:
        """Take the files of a folder, which is gone afterwards, and return the artifact's sha256, hex.

        The folder has to lie on the file system of the store. BadData for what is no flat folder of plainly named
        files, UnsupportedTask for one over `max_bytes`; then the folder stays.
        """
        folder = Path(folder)
        listing = encode_json([asdict(file) for file in self._examine(folder)], name=str(folder))
        sha = hashlib.sha256(listing).hexdigest()
        place = self._folder(sha)
        write_file(place.with_suffix(".json"), listing)
        try:
            os.rename(folder, place)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise StorageFailed(f"{folder}: cannot be moved to {place}: {error.strerror}") from error
            shutil.rmtree(folder)  # the same content is there already
        _flush_folder(place.parent)
        return sha

    def exists(self, sha: str) -> bool:
        """Whether there is an artifact of this sha256; False for what is no sha256."""
        return _SHA256.fullmatch(sha) is not None and self._folder(sha).is_dir()

    def files(self, sha: str) -> list[ArtifactFile]:
        """The files of an artifact by name; NotFound if there is none of this sha256."""
        if not self.exists(sha):
            raise NotFound(f"there is no artifact {sha[:80]!r}")
        listing: list[dict[str, Any]] = read_json(self._folder(sha).with_suffix(".json"))
        return [ArtifactFile(**file) for file in listing]

    def find(self, sha: str, name: str) -> ArtifactFile:
        """One file of an artifact; NotFound if there is none of this name."""
        files = {file.name: file for file in self.files(sha)}
        if name not in files:
            raise NotFound(f"artifact {sha[:12]}… has no file {name[:80]!r}; it has {', '.join(files)}")
        return files[name]

    def path(self, sha: str, name: str) -> Path:
        """Where a file of an artifact lies; NotFound as `find`. Nobody may change it."""
        return self._folder(sha) / self.find(sha, name).name

    def open(self, sha: str, name: str) -> BinaryIO:
        """A file of an artifact, open for reading; NotFound as `find`."""
        return self.path(sha, name).open("rb")

    def _folder(self, sha: str) -> Path:
        return self.root / sha[:2] / sha

    def _examine(self, folder: Path) -> list[ArtifactFile]:
        files = []
        for path in sorted(folder.iterdir()):
            if path.is_symlink() or not path.is_file() or not FILE_NAME.fullmatch(path.name):
                raise BadData(f"{path.name!r} cannot be in an artifact; expected files with plain names, no folders")
            files.append(path)
        if not files:
            raise BadData("the folder is empty, expected the files of an artifact")
        size = sum(path.stat().st_size for path in files)
        if size > self.max_bytes:
            raise UnsupportedTask(f"the artifact has {size} bytes, at most {self.max_bytes} may be stored")
        return [ArtifactFile(path.name, sha256_file(path), path.stat().st_size) for path in files]


def _flush_folder(folder: Path) -> None:
    """See to it that a rename inside the folder survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
