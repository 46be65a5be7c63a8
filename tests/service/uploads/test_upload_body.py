"""What is sent lies on the disk, below the scratch folder, from its first byte until it was read."""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from service.problems import Problem
from service.uploads.upload_body import FORMATS, UploadOptions, receive_upload
from service.uploads.upload_store import Sent

FORM = "multipart/form-data; boundary=b"
CONTENT = b"a,label\n" * 100_000


def form_of(content: bytes, **fields: str) -> bytes:
    parts = [
        f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{text}\r\n'.encode()
        for name, text in fields.items()
    ]
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="../../x"\r\n\r\n'
    return b"".join([*parts, head, content, b"\r\n--b--\r\n"])


def receive(media_type: str, blocks: Iterable[bytes], folder: Path, *, is_whole: bool = True) -> tuple[bytes, Any, str]:
    """Content, what was said of it, and where it lay."""
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": b, "more_body": True} for b in blocks]
    messages.append({"type": "http.request", "body": b""} if is_whole else {"type": "http.disconnect"})
    waiting = iter(messages)

    async def next_message() -> dict[str, Any]:
        return next(waiting)

    async def ask() -> tuple[bytes, Any, str]:
        scope = {"type": "http", "method": "POST", "headers": [(b"content-type", media_type.encode())]}
        async with receive_upload(Request(scope, next_message), UploadOptions(), folder) as (file, sent):
            place = os.readlink(f"/proc/self/fd/{file.fileno()}")
            file.seek(0)
            return file.read(), sent, place

    return asyncio.run(ask())


def split(content: bytes, size: int = 7777) -> list[bytes]:
    return [content[i : i + size] for i in range(0, len(content), size)]


@pytest.mark.parametrize("media_type", FORMATS)
def test_a_file_is_kept_as_it_is_with_what_its_type_says(media_type, tmp_path):
    content, sent, place = receive(media_type.upper() + "; charset=utf-8", split(CONTENT), tmp_path)
    assert (content, sent) == (CONTENT, Sent(FORMATS[media_type]))
    assert place.startswith(str(tmp_path)) and list(tmp_path.iterdir()) == []


def test_a_form_is_kept_in_the_same_place_whatever_its_file_is_called(tmp_path):
    body = form_of(CONTENT, label="species", shape="4x5x3")
    content, sent, place = receive(FORM, split(body), tmp_path)
    assert (content, sent) == (CONTENT, Sent(None, "species", (4, 5, 3)))
    assert place.startswith(str(tmp_path)) and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("media_type", ["text/csv", FORM])
def test_what_is_broken_off_is_no_fault_of_the_server(media_type, tmp_path):
    with pytest.raises(Problem, match="the upload was broken off") as refused:
        receive(media_type, split(form_of(CONTENT))[:20], tmp_path, is_whole=False)
    assert refused.value.kind == "malformed-request" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        (form_of(b"x").replace(b'name="file"', b'title="file"'), 'field "name" must be provided'),
        (form_of(b"x" * 9, a="1", b="2", c="3"), "Too many fields"),
        (form_of(b"x", label="l" * 2000), "exceeded maximum size"),
        (b"--b\r\nContent-Disposition: form-data" + b"x" * 10_000, "Invalid multipart data"),
        (b"--c\r\n\r\n", "Invalid multipart data"),
    ],
    ids=["no name", "many fields", "long field", "long header", "other boundary"],
)
def test_a_form_that_cannot_be_read_is_told_why(body, sentence, tmp_path):
    with pytest.raises(Problem, match=f"the form cannot be read: .*{sentence}") as refused:
        receive(FORM, [body], tmp_path)
    assert refused.value.kind == "malformed-request"


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"lable": "x"}, "lable: Extra inputs"),
        ({"shape": "1"}, "shape: String should match"),
        ({"label": ""}, "label:"),
    ],
    ids=["misspelt", "no shape", "empty"],
)
def test_a_field_that_means_nothing_is_refused(fields, sentence, tmp_path):
    with pytest.raises(Problem, match=sentence) as refused:
        receive(FORM, [form_of(CONTENT, **fields)], tmp_path)
    assert refused.value.kind == "invalid-request"
