"""The load benchmark's arithmetic, and its client against a server that answers in every way the service does."""

import asyncio
import os
from collections import Counter

import pytest

from benchmarks.service.http_connection import Connection
from benchmarks.service.load import GOOD, MIX, Seen, describe_memory, render, summarize
from benchmarks.service.server_process import Server

MIB = 2**20


def test_the_mix_adds_up_to_a_hundred():
    assert sum(MIX.values()) == 100 and len({act.__name__ for act in MIX}) == len(MIX)


@pytest.mark.parametrize(("status", "is_error"), [*((str(s), False) for s in GOOD), ("503", True), ("500", True),
                                                  ("ConnectionResetError", True)])  # fmt: skip
def test_only_good_statuses_and_429_are_no_errors(status, is_error):
    seen = Seen({"poll": Counter({"200": 3, status: 1})}, {"poll": [0.1, 0.2, 0.3, 0.4]})
    summary = summarize(seen, flat_memory(), seconds=10)
    assert bool(summary["errors"]) == is_error and summary["met"]["no error but 429"] != is_error
    assert summary["requests"] == 4 and summary["milliseconds"]["poll"]["p99"] == 400
    assert "poll" in render(summary)


def flat_memory() -> list[tuple[float, int, int]]:
    return [(second, 100 * MIB, 7) for second in range(61)]


@pytest.mark.parametrize(("grown", "growth"), [(0, 0.0), (4, 0.04), (50, 0.5)])
def test_growth_is_counted_from_after_the_warm_up(grown, growth):
    samples = [(second, (50 if second < 20 else 100 + grown * (second > 50)) * MIB, 7) for second in range(61)]
    found = describe_memory(samples, warm=20)
    assert found["growth"] == pytest.approx(growth)
    assert (found["after_warm_up_mib"], found["at_the_end_mib"], found["most_open_files"]) == (100, 100 + grown, 7)


def test_the_memory_and_files_of_a_process_are_those_of_its_tree(tmp_path):
    own = Server(port=0, pid=os.getpid(), folder=tmp_path)
    assert own.pid in own.processes() and own.resident_bytes() > MIB and own.open_files() > 2


def test_the_client_reads_bodies_by_length_in_chunks_and_none_at_all():
    answers = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-Name: a: b\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello",
    ]
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answers:
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head + (await reader.readexactly(8) if b"POST" in head else b""))
            writer.write(reply := answers.pop(0))
            if b"close" in reply:
                break
        writer.close()

    async def ask() -> None:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            connection = Connection(server.sockets[0].getsockname()[1])
            first = await connection.ask("POST", "/a", body={"x": 1})
            assert (first.status, first.body, first.headers["x-name"]) == (200, b"hello", "a: b")
            assert (await connection.ask("GET", "/b", headers={"Range": "bytes=0-4"})).body == b"hello"
            unchanged = await connection.ask("GET", "/c")
            assert (unchanged.status, unchanged.body) == (304, b"")
            assert (await connection.ask("GET", "/d")).body == b"hello"

    asyncio.run(ask())
    assert asked[0].startswith(b"POST /a HTTP/1.1\r\nHost: 127.0.0.1:") and asked[0].endswith(b'\r\n\r\n{"x": 1}')
    assert b"Range: bytes=0-4\r\n" in asked[1]
