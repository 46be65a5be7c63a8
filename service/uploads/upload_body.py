"""Receives the body of an upload on disk: a file as it is, or a form that holds it.

The file is in the scratch folder and has no name there. The name that its sender gave it is never used.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from service.problems import Problem
from service.uploads.upload_store import Sent

FORMATS: dict[str, str | None] = {
    "application/octet-stream": None,
    "application/x-npz": "npz",
    "application/zip": "zip",
    "text/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
}
"""Media type of a body -> the format that it must have; None: the content decides, as it always does in a form."""
FORM = "multipart/form-data"
_BLOCK = 2**20
_MAX_FIELD_BYTES = 1024
_SHAPE = r"^[1-9][0-9]{0,3}x[1-9][0-9]{0,3}(x[13])?$"


class UploadOptions(BaseModel):
    """How a table is read; other files need no options."""

    model_config = ConfigDict(extra="forbid")

    label: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The column with the classes; by default the one called target, class or label, else the last.",
    )
    shape: str | None = Field(
        default=None,
        pattern=_SHAPE,
        description="Height, width and, if there are more than one, channels of images, whose pixels are the other "
        "columns, row by row: 28x28 or 32x32x3.",
    )


@asynccontextmanager
async def receive_upload(
    request: Request, options: UploadOptions, folder: Path
) -> AsyncIterator[tuple[BinaryIO, Sent]]:
    """The file of a request, and what its sender says about it; Problem for a body without a file."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == FORM:
            form = await _parse_form(request, folder)
            try:
                file, options = _read_form(form.multi_items(), options)
                yield file, _sent(None, options)
            finally:
                await form.close()
        elif media_type in FORMATS:
            with tempfile.TemporaryFile(dir=folder) as file:
                await _keep(request, file)
                yield file, _sent(FORMATS[media_type], options)
        else:
            types = ", ".join((FORM, *FORMATS))
            raise Problem("wrong-content-type", f"an upload has to have one of the Content-Types {types}")
    except ClientDisconnect as error:
        raise Problem("malformed-request", "the upload was broken off") from error


async def _keep(request: Request, file: BinaryIO) -> None:
    waiting: list[bytes] = []
    size = 0
    async for block in request.stream():
        waiting.append(block)
        size += len(block)
        if size >= _BLOCK:
            await run_in_threadpool(file.write, b"".join(waiting))
            waiting, size = [], 0
    await run_in_threadpool(file.write, b"".join(waiting))


class _FormParser(MultiPartParser):
    """Writes files to the scratch folder from the first byte; the parent class begins in memory and goes on in /tmp."""

    folder: Path

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part.file
        if part is not None:
            file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115, closed with the form
            part.file.close()
            part.file = cast(BinaryIO, file)
            self._files_to_close_on_error.append(cast(Any, file))


async def _parse_form(request: Request, folder: Path) -> FormData:
    parser = _FormParser(request.headers, request.stream(), max_files=1, max_fields=2, max_part_size=_MAX_FIELD_BYTES)
    parser.folder = folder
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise Problem("malformed-request", f"the form cannot be read: {error.message[:200]}") from error


def _read_form(items: list[tuple[str, UploadFile | str]], options: UploadOptions) -> tuple[BinaryIO, UploadOptions]:
    """The part `file`, and the options together with those in the other parts."""
    files = [value.file for name, value in items if name == "file" and isinstance(value, UploadFile)]
    fields = [(name, value) for name, value in items if isinstance(value, str)]
    if len(files) != 1 or len(items) != len(fields) + 1:
        raise Problem("invalid-request", "expected a form with one file as 'file', and perhaps 'label' and 'shape'")
    given = {name: value for name, value in options.model_dump().items() if value is not None}
    for name, value in fields:
        if name in given:
            raise Problem("invalid-request", f"{name[:20]!r} is given twice")
        given[name] = value
    try:
        return files[0], UploadOptions.model_validate(given)
    except ValidationError as error:
        told = "; ".join(f"{str(fault['loc'][0])[:20]}: {fault['msg']}" for fault in error.errors())
        raise Problem("invalid-request", f"the form cannot be read: {told}") from error


def _sent(declared: str | None, options: UploadOptions) -> Sent:
    shape = tuple(int(side) for side in options.shape.split("x")) if options.shape else None
    return Sent(declared, options.label, shape)


def describe_body() -> dict[str, Any]:
    """The body, for the OpenAPI description."""
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "type": "object",
        "required": ["file"],
        "properties": {
            "file": {"type": "string", "format": "binary"},
            "label": {"type": "string"},
            "shape": {"type": "string", "pattern": _SHAPE},
        },
    }
    return {"required": True, "content": {**dict.fromkeys(FORMATS, binary), FORM: {"schema": form}}}
