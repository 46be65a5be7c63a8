"""A zip of pictures is read whatever its files are called; what is no picture, or too large a one, is refused."""

import io
import struct
import zlib
from dataclasses import replace

import numpy as np
import PIL.Image
import pytest

from service.uploads.reading import Unusable
from service.uploads.reading.pictures import read_pictures
from tests.helpers.upload_samples import (
    LIMITS,
    class_folders,
    is_sentence,
    picture_bytes,
    refusal,
    some_images,
    zip_bytes,
)

IMAGES, LABELS = some_images(per_class=2, size=9)
GREY, COLOUR = IMAGES[0], np.stack([IMAGES[0], IMAGES[1], IMAGES[2]], axis=-1)
PNG = picture_bytes(GREY)


def read(files: dict[str, bytes], **limits: int):
    return read_pictures(io.BytesIO(zip_bytes(files)), replace(LIMITS, **limits))


def read_one(data: bytes, **limits: int):
    return read({"a/1": data, "b/1": PNG}, **limits)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png_that_says(width: int, height: int, *more: bytes, data: bytes = b"") -> bytes:
    header = struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *more, chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_pictures_come_class_after_class_pixel_for_pixel():
    raw = read(class_folders(IMAGES, LABELS))
    assert np.array_equal(raw.arrays["pixels"].reshape(IMAGES.shape), IMAGES)
    assert raw.arrays["sizes"].tolist() == [[9, 9, 1]] * 6
    assert (raw.texts, raw.arrays["y"].tolist(), raw.num_train) == (["0", "1", "2"], [0, 0, 1, 1, 2, 2], None)


@pytest.mark.parametrize("above", ["", "pictures/", "my/pictures/"])
def test_train_and_test_are_told_apart_below_any_folder(above):
    files = class_folders(IMAGES[:4], LABELS[:4], above=f"{above}train/")
    files |= class_folders(IMAGES[4:], LABELS[4:], above=f"{above}test/")
    raw = read(files)
    assert raw.num_train == 4
    assert np.array_equal(raw.arrays["pixels"].reshape(IMAGES.shape), IMAGES)


def test_what_file_managers_hide_is_passed_over():
    hidden = {"0/.DS_Store": b"x", "__MACOSX/0/._0000.png": b"x", ".git/config": b"x"}
    assert len(read(class_folders(IMAGES, LABELS) | hidden).arrays["y"]) == 6


@pytest.mark.parametrize(
    ("picture_format", "pixels"),
    [("PNG", COLOUR), ("PNG", GREY), ("BMP", COLOUR), ("BMP", GREY), ("JPEG", COLOUR), ("WEBP", COLOUR)],
)
def test_every_format_is_read_by_its_content(picture_format, pixels):
    options = {"lossless": True} if picture_format == "WEBP" else {}
    raw = read({"a/1.txt": picture_bytes(pixels, picture_format, **options), "b/1": PNG})
    height, width, channels = raw.arrays["sizes"][0]
    found = raw.arrays["pixels"][: height * width * channels].reshape(height, width, channels)
    expected = pixels if pixels.ndim == 3 else pixels[..., None]
    if picture_format != "JPEG":
        assert np.array_equal(found, expected)
    assert found.shape == expected.shape


def test_pictures_with_a_palette_or_two_levels_are_read():
    palette = io.BytesIO()
    PIL.Image.fromarray(COLOUR).quantize(200).save(palette, "PNG")
    levels = io.BytesIO()
    PIL.Image.fromarray(GREY > 99).save(levels, "PNG")
    assert read_one(palette.getvalue()).arrays["sizes"][0].tolist() == [9, 9, 3]
    assert read_one(levels.getvalue()).arrays["sizes"][0].tolist() == [9, 9, 1]


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (101, 100), (2**31 - 1, 2**31 - 1), (2**28, 1)])
def test_a_decompression_bomb_is_refused_by_its_header(width, height):
    with pytest.raises(Unusable, match=r"'a/1' (has .* pixels|is a damaged picture)"):
        read_one(png_that_says(width, height, data=bytes(1000)))


def test_pictures_that_are_large_together_are_refused():
    files = {f"{i % 2}/{i}": png_that_says(100, 100, data=bytes(10_100)) for i in range(20)}
    with pytest.raises(Unusable, match="unpacks to"):
        read(files, max_uncompressed_bytes=100_000)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_or_a_profile_that_is_a_bomb_does_no_harm(kind):
    packed = zlib.compress(bytes(50_000_000), 9)
    data = b"key\0" + (b"\0\0\0\0" if kind == b"iTXt" else b"\0") + packed
    picture = png_that_says(9, 9, chunk(kind, data), data=bytes(90))
    assert is_sentence(refusal(read_one, picture))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is no picture; expected PNG, JPEG, BMP, WEBP"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no picture"),
        (b"GIF89a" + bytes(99), "is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "is no picture"),
        (b"\x80\x04\x95cos\nsystem\n", "is no picture"),
        (zip_bytes({"a/1": PNG}), "is no picture"),
        (PNG[:50], "is a damaged picture, or one that is cut short"),
        (PNG[:-40], "is a damaged picture, or one that is cut short"),
        (picture_bytes(np.zeros((9, 9, 4), np.uint8)), "transparency"),
        (picture_bytes(np.zeros((9, 9), np.uint16)), "8 bits a channel"),
        (png_that_says(1, 9, data=bytes(18)), "has 9x1 pixels; expected 2 to 4096 a side"),
    ],
    ids=["empty", "svg", "gif", "eps", "pickle", "zip", "cut", "cut at the end", "alpha", "16 bits", "thin"],
)
def test_what_is_no_plain_picture_is_refused_by_its_name(data, sentence):
    with pytest.raises(Unusable, match=f"'a/1' .*{sentence}"):
        read_one(data)


def test_an_animation_is_refused():
    file = io.BytesIO()
    frames = [PIL.Image.fromarray(image) for image in IMAGES]
    frames[0].save(file, "PNG", save_all=True, append_images=frames[1:])
    with pytest.raises(Unusable, match="'a/1' is animated"):
        read_one(file.getvalue())


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds no pictures"),
        ({"__MACOSX/a": PNG}, "holds no pictures"),
        ({"1.png": PNG, "2.png": PNG}, "'1.png' lies in no folder of a class"),
        ({"a/1": PNG, "b/c/1": PNG}, "'b/c/1' lies in no folder of a class"),
        ({"train/a/1": PNG, "train/b/1": PNG}, "holds only train/"),
        ({"train/a/1": PNG, "test/1": PNG}, "lies in no folder of a class"),
        ({"a/1": PNG, "README.md": b"# Pictures"}, "'README.md' lies in no folder of a class"),
        ({"a/1": PNG, "b/notes.txt": b"text"}, "'b/notes.txt' is no picture"),
        ({"a" * 101 + "/1": PNG, "b/1": PNG}, "cannot be the name of a class"),
        ({"a\nb/1": PNG, "b/1": PNG}, r"'a\\nb' cannot be the name of a class"),
        ({f"{i}/1": PNG for i in range(21)}, "more than 20 classes"),
        ({f"a/{i}": PNG for i in range(9)}, "9 examples, at most 8"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else None,
)
def test_an_archive_that_is_not_folders_of_pictures_is_refused(files, sentence):
    with pytest.raises(Unusable, match=sentence):
        read(files, **({"max_examples": 8} if "9 examples" in sentence else {}))


@pytest.mark.parametrize("picture_format", ["PNG", "JPEG", "BMP", "WEBP"])
def test_a_picture_with_any_byte_changed_is_read_or_refused_in_a_sentence(picture_format):
    data = picture_bytes(COLOUR, picture_format)
    for at in range(len(data)):
        assert is_sentence(refusal(read_one, data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]))
