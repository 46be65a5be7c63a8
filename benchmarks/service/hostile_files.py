"""Hostile files posted as data sets: bombs, pickles, traversals, wrong sizes, and random bytes.

None of them holds usable data, so every answer is a refusal. Equal seeds give equal files.
"""

import io
import pickle
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence

from benchmarks.service.hostile_requests import Attack, Known, Make, request

TYPES = (
    "application/octet-stream", "application/x-npz", "application/zip", "text/csv", "application/vnd.apache.parquet",
)  # fmt: skip
NAMES = (
    "../../etc/cron.d/x", "/etc/passwd", "..\\..\\x.png", "a/../../b.png", "C:\\x.png", "a\x00.png", "~/x.png", "",
    "a/" * 200 + "x.png", "x" * 5000, "a/\u202egnp.exe", "__init__.py", "a/.htaccess", "con/x.png", "a/x.png\n",
)  # fmt: skip


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return exec, ("raise SystemExit",)


def npy(shape: str, dtype: str, data: bytes) -> bytes:
    """An .npy file with any text as shape and dtype in its header."""
    header = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zipped(
    members: Sequence[tuple[str, bytes]], *, mode: int = 0o100644, compress: int = zipfile.ZIP_DEFLATED
) -> bytes:
    """A zip of these members, with any names; `mode` is their declared file mode."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # about repeated names
        for name, data in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.external_attr, info.compress_type = name, mode << 16, compress
            archive.writestr(info, data)
    return file.getvalue()


def png(width: int, height: int, data: bytes = b"") -> bytes:
    """A PNG with this width and height in its header."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def _post(kind: str, known: Known, body: bytes, content_type: str, query: str = "") -> Attack:
    sent = request(known, "POST", "/v1/datasets" + query, body, ("Content-Type", content_type))
    return Attack(kind, sent)


def pickles(rng: random.Random, known: Known) -> Attack:
    evil = pickle.dumps(_Evil(), protocol=rng.choice((0, 2, 4)))
    objects = npy("(2,)", "'|O'", evil)
    body = rng.choice((
        evil,
        objects,
        zipped([("x_train.npy", objects), ("y_train.npy", objects)]),
        zipped([("x.npy", objects), ("y.npy", npy("(2,)", "'<i8'", b"\0" * 16))]),
        zipped([("archive/data.pkl", evil), ("archive/version", b"3\n")]),
        zipped([("a/x.pkl", evil), ("b/y.pkl", evil)]),
        npy("(2,)", "__import__('os').system('id')", b""),
        npy("(2,)", "[('a', '|O')]", evil),
    ))  # fmt: skip
    return _post("pickles", known, body, rng.choice(TYPES[:3]))


def lying_arrays(rng: random.Random, known: Known) -> Attack:
    shape = rng.choice(("(1000000000, 28, 28)", "(-1,)", "(2, 2, 2", "(2**70,)", "()", f"({'1, ' * 500})", "(1e9,)",
                        f"({10**30},)", "(0, 28, 28)"))  # fmt: skip
    array = npy(shape, rng.choice(("'<f8'", "'|u1'", "'<M8[ns]'", "'|V100000000'", "'<U900000000'")), rng.randbytes(64))
    names = rng.choice((("x_train", "y_train"), ("x", "y"), ("x", "x"), ("images", "labels")))
    return _post("lying arrays", known, zipped([(f"{name}.npy", array) for name in names]), TYPES[1])


def zip_bombs(rng: random.Random, known: Known) -> Attack:
    zeros = bytes(rng.choice((20, 60)) * 2**20)
    array, labels = npy(f"({len(zeros)},)", "'|u1'", zeros), npy("(2,)", "'|u1'", b"ab")
    inner = zipped([(f"{i}/x.png", zeros[: 2**20]) for i in range(8)])
    body = rng.choice((
        zipped([("a/x.png", zeros), ("b/x.png", zeros[:100])]),
        zipped([("x_train.npy", array), ("y_train.npy", labels)]),
        zipped([(f"{i}/inner.zip", inner) for i in range(50)]),
        zipped([(f"{i % 2}/{i}.png", b"") for i in range(rng.choice((5000, 12_000)))]),
        _lie_about_sizes(zipped([("a/x.png", zeros[: 2**20]), ("b/x.png", b"x")])),
    ))  # fmt: skip
    return _post("zip bombs", known, body, rng.choice(TYPES[:3]))


def _lie_about_sizes(body: bytes) -> bytes:
    """The same zip, whose directory says that every member has one byte."""
    parts = body.split(b"PK\x01\x02")
    return b"PK\x01\x02".join([parts[0], *(part[:20] + struct.pack("<I", 1) + part[24:] for part in parts[1:])])


def zip_names(rng: random.Random, known: Known) -> Attack:
    picture = png(8, 8, b"\0" * 10)
    mode = rng.choice((0o100644, 0o120777, 0o060666, 0o020666, 0o104755, 0o040755))
    data = b"/etc/passwd" if mode == 0o120777 else picture
    members = [(rng.choice(NAMES), data) for _ in range(rng.randrange(1, 6))]
    body = zipped(members, mode=mode, compress=rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA)))
    if rng.random() < 0.3:
        cut = body[: rng.randrange(1, len(body))]
        body = rng.choice((cut, b"#!/bin/sh\n" + body[:-3], body.replace(b"PK\x01\x02", b"PK\x01\x03")))
    return _post("zip names", known, body, rng.choice(TYPES[:3]))


def picture_bombs(rng: random.Random, known: Known) -> Attack:
    size = rng.choice(((100_000, 100_000), (2**31 - 1, 2**31 - 1), (0, 0), (1, 2**30), (60_000, 1), (8, 8)))
    pictures = (
        png(*size, b"\0" * 1000),
        b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\x80\0\0" + rng.randbytes(40),
        b"\xff\xd8\xff\xe0" + rng.randbytes(500),
        b"BM" + struct.pack("<IHHIIiiHH", 54, 0, 0, 54, 40, 2**30, -(2**30), 1, 24) + b"\0" * 24,
        b"II*\0\x08\0\0\0" + rng.randbytes(300),
        b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><image href="file:///etc/passwd"/></svg>',
        b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n",
        b"RIFF\xff\xff\xff\xffWEBPVP8 " + rng.randbytes(100),
    )  # fmt: skip
    suffix = rng.choice(("png", "jpg", "gif", "bmp", "tif", "webp"))
    members = [(f"{label}/{i}.{suffix}", rng.choice(pictures)) for label in "ab" for i in range(3)]
    return _post("picture bombs", known, zipped(members), "application/zip")


def bad_tables(rng: random.Random, known: Known) -> Attack:
    body = rng.choice((
        b"",
        b"\n" * 1000,
        b"a,b,target\n",
        b"a,target\n" + b"x" * rng.choice((200_000, 3_000_000)) + b",0\n1,1\n",
        b",".join(b"c%d" % i for i in range(20_000)) + b"\n" + b"a," * 20_000 + b"\n",
        b"a,target\n=cmd|'/C calc'!A0,0\n@SUM(1),1\n",
        b"a,target\n1,0\n" + b'"' + b"x" * 100_000,
        b"a,a,target\nx,y,0\n",
        b"a,target\nnan,0\ninf,1\n-inf,0\n",
        b"a,target\n1e999,0\n2,1\n",
        b"\xff\xfea\0,\0b\0",
        b"a,target\n" + bytes(range(256)) * 20,
        b"a;target\n1;0\n" + b"\x00" * 1000,
        b"target\n0\n1\n",
    ))  # fmt: skip
    return _post(
        "bad tables", known, body, "text/csv", rng.choice(("", "", "?label=none", "?label=target&shape=28x28"))
    )


def bad_parquet(rng: random.Random, known: Known) -> Attack:
    size = rng.choice((0, 8, 2**31 - 1, 2**32 - 1, 60))
    middle = rng.randbytes(rng.choice((0, 60, 5000)))
    body = rng.choice((
        b"PAR1", b"PAR1PAR1", b"PAR1" + middle + struct.pack("<I", size) + b"PAR1", b"PARE" + middle + b"PARE",
        b"PAR1" + b"\x15" * 5000 + struct.pack("<I", 5000) + b"PAR1", b"ARROW1\0\0" + middle,
    ))  # fmt: skip
    return _post("bad parquet", known, body, TYPES[4])


def other_files(rng: random.Random, known: Known) -> Attack:
    body = rng.choice((
        b"\x1f\x8b\x08\0" + rng.randbytes(200), b"BZh9" + rng.randbytes(100), rng.randbytes(5000),
        b"7z\xbc\xaf\x27\x1c" + rng.randbytes(100), b"\x7fELF\x02\x01\x01" + b"\0" * 100, b"#!/bin/sh\nid\n",
        b"Rar!\x1a\x07\x01\0" + b"\0" * 60, b"<?php system('id'); ?>", b"<html><script>alert(1)</script>",
        b"SQLite" + b"\0" * 600, b"x" * 512 + b"ustar\0" + b"00" * 200,
    ))  # fmt: skip
    types = (*TYPES, "application/json", "text/html", "application/x-tar", "image/png", "", "../../x")
    queries = ("", "?shape=99999x99999", "?shape=-1x2", "?label=", "?format=pickle", "?label=" + "a" * 300, "?x=1")
    return _post("other files", known, body, rng.choice(types), rng.choice(queries))


def bad_forms(rng: random.Random, known: Known) -> Attack:
    part = b'--b\r\nContent-Disposition: form-data; name="file"; filename="%s"\r\n\r\n%s\r\n'
    name = rng.choice((b"../../x.npz", b"/etc/passwd", b"x.npz\x00.png", b"a" * 3000, b"", b'x"; filename="y'))
    rubbish = part % (name, rng.randbytes(100).replace(b"\r", b""))
    body = rng.choice((
        b"", b"--b--\r\n", b"--b\r\n", rubbish, rubbish * 2 + b"--b--\r\n", rubbish + b"--b--\r\n",
        part % (name, b"x") * 3000 + b"--b--\r\n",
        b"--b\r\n" + b"X-Header: y\r\n" * 3000 + b"\r\nx\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="label"\r\n\r\n' + b"a" * 100_000 + b"\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="__class__"\r\n\r\nx\r\n--b--\r\n',
        b"--c\r\n\r\nx\r\n--c--\r\n", b"\r\n" * 5000,
        b'--b\r\nContent-Type: multipart/mixed; boundary=c\r\n\r\n--c\r\n\r\nx\r\n--c--\r\n--b--\r\n',
    ))  # fmt: skip
    kind = rng.choice(("multipart/form-data; boundary=b", "multipart/form-data; boundary=b", "multipart/form-data",
                       "multipart/form-data; boundary=" + "b" * 500, "multipart/mixed; boundary=b"))  # fmt: skip
    return _post("bad forms", known, body, kind)


FILE_KINDS: dict[str, tuple[int, Make]] = {
    "pickles": (2, pickles),
    "lying arrays": (2, lying_arrays),
    "zip bombs": (2, zip_bombs),
    "zip names": (2, zip_names),
    "picture bombs": (2, picture_bombs),
    "bad tables": (2, bad_tables),
    "bad parquet": (2, bad_parquet),
    "other files": (2, other_files),
    "bad forms": (2, bad_forms),
}
"""Name -> its share, relative to those in KINDS, and the function that makes one."""
