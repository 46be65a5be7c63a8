"""Data sets that were uploaded: read apart, kept as artifacts, called `up-<sha256>` by what they hold.

The same data in another format has the same name. They are data alone; nothing of what their sender called them becomes
a file name. torch is imported when one is read.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from weightgen.canonical_json import parse_json

from service.artifacts.artifact_store import ArtifactStore
from service.artifacts.scratch import Scratch
from service.problems import Problem
from service.uploads.reader_process import read_apart
from service.uploads.reading import Limits, Unusable
from weightgen.errors import NotFound, UnknownName

if TYPE_CHECKING:
    from weightgen.labelled_data import LabelledData

PREFIX = "up-"
ABOUT, TENSORS = "about.json", "data.safetensors"
"""The files of one, as `service.uploads.upload_data` writes them."""
_NAME = re.compile(f"{PREFIX}([0-9a-f]{{64}})")


def is_upload(name: str) -> bool:
    """Whether a data set of this name is an uploaded one, if there is one."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Sent:
    """What the sender says of a file."""

    declared: str | None = None
    """Its format; None: as it looks."""
    label: str | None = None
    """The column of the classes, of a table."""
    shape: tuple[int, ...] | None = None
    """Height, width and channels of images whose pixels are the other columns."""


class Uploads:
    """The uploaded data sets of one store."""

    def __init__(self, store: ArtifactStore, scratch: Scratch, limits: Limits) -> None:
        """`scratch` has to lie on the file system of the store."""
        self.store, self._limits, self.scratch = store, limits, scratch

    def add(self, file: BinaryIO, sent: Sent) -> tuple[str, bool]:
        """The name of the data set in a file, and whether it is new; Problem says why it cannot be used."""
        from service.uploads.upload_data import label_upload, write_data

        try:
            raw = read_apart(
                file,
                declared=sent.declared,
                label=sent.label,
                is_pixels=sent.shape is not None,
                limits=self._limits,
                scratch=self.scratch.folder,
            )
            data = label_upload(raw, shape=sent.shape, limits=self._limits)
        except Unusable as error:
            raise Problem("unusable-data", f"the upload cannot be used: {error}") from error
        with self.scratch.new_place() as place:
            write_data(place, data)
            name = PREFIX + self.store.sha_of(place)
            is_new = not self.exists(name)
            self.store.add(place)
        return name, is_new

    def exists(self, name: str) -> bool:
        """Whether there is an uploaded data set of this name."""
        return is_upload(name) and self.store.exists(name.removeprefix(PREFIX))

    def check(self, name: str) -> None:
        """Raise UnknownName unless there is an uploaded data set of this name; it counts as used."""
        if not is_upload(name) or not self.store.note_use(name.removeprefix(PREFIX)):
            raise GoneUpload(name)

    def describe(self, name: str) -> dict[str, Any]:
        """What `service.uploads.upload_data.describe_data` says of one; UnknownName if there is none."""
        return parse_json(self._read(name, ABOUT), name=f"data set {name}")

    def load(self, name: str) -> "LabelledData":
        """The data; UnknownName if there is none of this name."""
        from service.uploads.upload_data import read_data

        return read_data(name, self.describe(name), self._read(name, TENSORS))

    def delete(self, name: str) -> None:
        """Forget one; UnknownName if there is none of this name."""
        try:
            self.store.delete(name.removeprefix(PREFIX))
        except NotFound as error:
            raise GoneUpload(name) from error

    def _read(self, name: str, file: str) -> bytes:
        try:
            with self.store.open(name.removeprefix(PREFIX), file) as opened:
                return opened.read()
        except (NotFound, FileNotFoundError) as error:  # it may go from a bucket while it is read
            raise GoneUpload(name) from error


class GoneUpload(UnknownName):
    """No uploaded data set has this name, or none has it any more."""

    def __init__(self, name: str) -> None:
        super().__init__("data set", name[:80], ())
        self.args = (f"no data set is called {name[:80]!r}: it was not uploaded here, or has been forgotten; upload it "
                     "again",)  # fmt: skip
