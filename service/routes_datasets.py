"""Data sets over HTTP: upload one, see what one is, forget one."""

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from service.catalogue import Catalogue
from service.problems import Problem
from service.routes_native import tell
from service.schemas import DatasetBody
from service.uploads import Sent, Uploads, is_upload
from weightgen.errors import UnknownName

PATH = "/v1/datasets"
FORMATS: dict[str, str | None] = {
    "application/octet-stream": None,
    "application/x-npz": "npz",
    "application/zip": "zip",
    "text/csv": "csv",
    "application/vnd.apache.parquet": "parquet",
}
"""Media type of a body -> the format it has to be; None: by its content. In a form the content alone decides."""
FORM = "multipart/form-data"
MAX_AT_ONCE = 2
"""Uploads that one process reads at a time."""
_BLOCK = 2**20
_MAX_FIELD_BYTES = 1024
_SHAPE = r"^[1-9][0-9]{0,3}x[1-9][0-9]{0,3}(x[13])?$"


class UploadOptions(BaseModel):
    """How a table is read; other files need nothing."""

    model_config = ConfigDict(extra="forbid")

    label: str | None = Field(
        default=None,
        min_length=1,
        max_length=200,
        description="The column of the classes; by default the one called target, class or label, else the last.",
    )
    shape: str | None = Field(
        default=None,
        pattern=_SHAPE,
        description="Height, width and, if there are more than one, channels of images, whose pixels are the other "
        "columns, row by row: 28x28 or 32x32x3.",
    )


def dataset_routes(uploads: Uploads, catalogue: Catalogue) -> APIRouter:
    """The routes under /v1/datasets but the list."""
    routes = APIRouter(prefix="/v1")
    turns = asyncio.Semaphore(MAX_AT_ONCE)

    @routes.post(
        "/datasets",
        status_code=201,
        response_model=DatasetBody,
        responses={
            200: {"model": DatasetBody, "description": "The same data were there already"},
            **tell("malformed-request", "request-too-slow", "body-too-large", "wrong-content-type", "invalid-request",
                   "unusable-data", "storage-failed", "storage-full"),
        },
        openapi_extra={"requestBody": _describe_body()},
    )  # fmt: skip
    async def upload(request: Request, response: Response, options: Annotated[UploadOptions, Query()]) -> DatasetBody:
        """Upload labelled examples: an .npz, a zip of folders of pictures, CSV or Parquet. Its name is its content."""
        async with _receive(request, uploads, options) as (file, sent), turns:
            name, is_new = await run_in_threadpool(uploads.add, file, sent)
        response.status_code = 201 if is_new else 200
        response.headers["Location"] = f"{PATH}/{name}"
        return _tell(name, await run_in_threadpool(uploads.describe, name))

    @routes.get("/datasets/{name}", responses=tell("not-found"))
    def describe(name: str) -> DatasetBody:
        """A data set, uploaded or not: its classes, how many examples each has, and their shape."""
        try:
            return _tell(name, uploads.describe(name) if is_upload(name) else catalogue.describe(name))
        except UnknownName as error:
            raise Problem("not-found", str(error)) from error

    @routes.delete("/datasets/{name}", responses=tell("not-found", "conflict"))
    def forget(name: str) -> DatasetBody:
        """Forget an uploaded data set; what was generated with it stays."""
        if not is_upload(name) and name in catalogue.datasets():
            raise Problem("conflict", f"data set {name!r} was not uploaded; only uploaded ones are forgotten")
        try:
            about = uploads.describe(name)
            uploads.delete(name)
        except UnknownName as error:
            raise Problem("not-found", str(error)) from error
        return _tell(name, about)

    return routes


def _tell(name: str, about: dict[str, Any]) -> DatasetBody:
    return DatasetBody(name=name, origin="uploaded" if is_upload(name) else "registered", **about)


@asynccontextmanager
async def _receive(request: Request, uploads: Uploads, options: UploadOptions) -> AsyncIterator[tuple[BinaryIO, Sent]]:
    """The file of a request, on the disk and without a name, and what is said of it."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == FORM:
            async with request.form(max_files=1, max_fields=2, max_part_size=_MAX_FIELD_BYTES) as form:
                file, options = _read_form(form.multi_items(), options)
                yield file, _sent(None, options)
        elif media_type in FORMATS:
            with tempfile.TemporaryFile(dir=uploads.scratch.folder) as file:
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


def _read_form(items: list[tuple[str, UploadFile | str]], options: UploadOptions) -> tuple[BinaryIO, UploadOptions]:
    """The part `file`, and the options with those of the other parts."""
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


def _describe_body() -> dict[str, Any]:
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
