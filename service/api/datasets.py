"""Data sets over HTTP: upload one, see what one is, forget one."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from service.api.description import problem_answers
from service.api.schemas import DatasetBody
from service.problems import Problem
from service.uploads.names import is_upload
from service.uploads.upload_body import UploadOptions, describe_body, receive_upload
from service.uploads.upload_store import Uploads
from service.work.catalogue import Catalogue
from weightgen.errors import UnknownName

PATH = "/v1/datasets"
MAX_AT_ONCE = 2
"""Uploads that one process reads at a time."""


def dataset_routes(uploads: Uploads, catalogue: Catalogue) -> APIRouter:
    """The routes under /v1/datasets, except for the list."""
    routes = APIRouter(prefix="/v1")
    turns = asyncio.Semaphore(MAX_AT_ONCE)

    @routes.post(
        "/datasets",
        status_code=201,
        response_model=DatasetBody,
        responses={
            200: {"model": DatasetBody, "description": "The same data were there already"},
            **problem_answers(*_REFUSALS),
        },
        openapi_extra={"requestBody": describe_body()},
    )
    async def upload(request: Request, response: Response, options: Annotated[UploadOptions, Query()]) -> DatasetBody:
        """Upload labelled examples: an .npz, a zip of folders of pictures, CSV or Parquet. Equal data have one name."""
        async with receive_upload(request, options, uploads.scratch.folder) as (file, sent), turns:
            name, is_new = await run_in_threadpool(uploads.add, file, sent)
        response.status_code = 201 if is_new else 200
        response.headers["Location"] = f"{PATH}/{name}"
        return _tell(name, await run_in_threadpool(uploads.describe, name))

    @routes.get("/datasets/{name}", responses=problem_answers("not-found"))
    def describe(name: str) -> DatasetBody:
        """A data set, uploaded or not: its classes, how many examples each has, and their shape."""
        try:
            return _tell(name, uploads.describe(name) if is_upload(name) else catalogue.describe(name))
        except UnknownName as error:
            raise Problem("not-found", str(error)) from error

    @routes.delete("/datasets/{name}", responses=problem_answers("not-found", "conflict"))
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


_REFUSALS = (
    "malformed-request",
    "request-too-slow",
    "body-too-large",
    "wrong-content-type",
    "invalid-request",
    "unusable-data",
    "storage-failed",
    "storage-full",
)


def _tell(name: str, about: dict[str, Any]) -> DatasetBody:
    return DatasetBody(name=name, origin="uploaded" if is_upload(name) else "registered", **about)
