"""A job followed over HTTP by its server-sent events, through connections that break."""

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx2

from weightgen.client.http import Connection, Patience, object_in
from weightgen.errors import ServiceFailed

FINAL = ("succeeded", "failed", "cancelled")
MAX_EVENT_CHARS = 16 * 2**20


def follow(connection: Connection, job_id: str) -> Iterator[dict[str, Any]]:
    """Every state of a job that the server sends, the last one final.

    A stream that ends or breaks before that is resumed with Last-Event-ID; raises ServiceFailed when patience ends.
    """
    path, last, patience = f"/v1/jobs/{job_id}/events", "", Patience(connection.patience_seconds)
    while True:
        broken: httpx2.TransportError | None = None
        try:
            with closing(connection.open(path, headers={"Last-Event-ID": last} if last else None)) as answer:
                for number, job in _read_events(answer):
                    last = number or last
                    patience.renew()
                    yield job
                    if object_in(job, "state", str) in FINAL:
                        return
        except httpx2.TransportError as error:
            broken = error
        if not patience.wait():
            raise connection.lost(broken or httpx2.RemoteProtocolError("the stream of events ended before the job"))


def _read_events(answer: httpx2.Response) -> Iterator[tuple[str, dict[str, Any]]]:
    """Id and data of each event of a stream; comments and other fields are skipped."""
    number, data, size = "", [], 0
    for line in answer.iter_lines():
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        size += len(line)
        if size > MAX_EVENT_CHARS:
            raise ServiceFailed("the server sent an event larger than any that describes a job")
        if name == "data":
            data.append(value)
        elif name == "id" and value.isdecimal():
            number = value
        elif not line:
            if data:
                yield number, _parse_job("\n".join(data))
            number, data, size = "", [], 0


def _parse_job(text: str) -> dict[str, Any]:
    try:
        job = json.loads(text)
    except (ValueError, RecursionError):
        job = None
    if not isinstance(job, dict):
        raise ServiceFailed("the server described the job by something that is no JSON object")
    return job
