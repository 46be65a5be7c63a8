"""Uploaded data sets: read by a separate process, stored as artifacts, named `up-<sha256>` by their content.

The same data in another format has the same name. Names that a sender gave to files are not stored. torch is imported
when a data set is read.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from service.artifacts.artifact_store import ArtifactStore
from service.problems import Problem
from service.process.scratch import Scratch
from service.uploads.names import ABOUT, PREFIX, TENSORS, is_upload
from service.uploads.reader_process import read_apart
from service.uploads.reading import Limits, Unusable
from weightgen.canonical_json import parse_json
from weightgen.errors import NotFound, UnknownName

if TYPE_CHECKING:
    from weightgen.labelled_data import LabelledData


@dataclass(frozen=True)
class Sent:
    """What the sender says about a file."""

    declared: str | None = None
    """Its format; None: found by its content."""
    label: str | None = None
    """The column of a table with the classes."""
    shape: tuple[int, ...] | None = None
    """Height, width and channels of images whose pixels are the other columns."""


class Uploads:
    """The uploaded data sets of one store."""

    def __init__(self, store: ArtifactStore, scratch: Scratch, limits: Limits) -> None:
        """`scratch` must be on the same file system as the store."""
        self.store, self._limits, self.scratch = store, limits, scratch

    def add(self, file: BinaryIO, sent: Sent) -> tuple[str, bool]:
        """Store the data set in a file; returns its name and whether it is new. Problem if it cannot be used."""
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
        """Raise UnknownName unless there is an uploaded data set of this name; notes that it is used."""
        if not is_upload(name) or not self.store.note_use(name.removeprefix(PREFIX)):
            raise GoneUpload(name)

    def describe(self, name: str) -> dict[str, Any]:
        """A data set as `service.uploads.upload_data.describe_data` describes it; UnknownName if there is none."""
        return parse_json(self._read(name, ABOUT), name=f"data set {name}")

    def load(self, name: str) -> "LabelledData":
        """The data of a data set; UnknownName if there is none of this name."""
        from service.uploads.upload_data import read_data

        return read_data(name, self.describe(name), self._read(name, TENSORS))

    def delete(self, name: str) -> None:
        """Delete a data set; UnknownName if there is none of this name."""
        try:
            self.store.delete(name.removeprefix(PREFIX))
        except NotFound as error:
            raise GoneUpload(name) from error

    def _read(self, name: str, file: str) -> bytes:
        try:
            with self.store.open(name.removeprefix(PREFIX), file) as opened:
                return opened.read()
        except (NotFound, FileNotFoundError) as error:  # it may be deleted from a bucket while it is read
            raise GoneUpload(name) from error


class GoneUpload(UnknownName):
    """No uploaded data set has this name, or it was deleted."""

    def __init__(self, name: str) -> None:
        super().__init__("data set", name[:80], ())
        self.args = (f"no data set is called {name[:80]!r}: it was not uploaded here, or has been forgotten; upload it "
                     "again",)  # fmt: skip
