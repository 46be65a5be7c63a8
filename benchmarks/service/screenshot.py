"""Pictures of the page: python -m benchmarks.service.screenshot writes docs/images/service_page*.png.

A headless Chromium asks a new server for weights on its page. The pictures show the page afterwards: all of it in a
wide light window, and the result in a narrow dark one.
"""

import argparse
import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from benchmarks import ROOT
from benchmarks.service.server_process import serving
from weightgen.files.storage import write_file

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PATIENCE_MS = 120_000
MAX_BYTES = 300_000
NUM_COLOURS = 256


@dataclass(frozen=True)
class Picture:
    """One picture and its window."""

    file: str
    width: int
    height: int
    scheme: str
    scale: float
    is_whole: bool
    """Whether the picture shows the whole page, not only the window from the result on."""


PICTURES = (
    Picture("service_page.png", 1240, 900, "light", scale=1.5, is_whole=True),
    Picture("service_page_dark.png", 390, 1180, "dark", scale=2, is_whole=False),
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="folder of the pictures")
    parser.add_argument("--data", default="digits", help="data set that the page asks for")
    options = parser.parse_args(argv)
    chromium = shutil.which("chromium")
    if chromium is None:
        print("chromium is not installed; apt-get install chromium", file=sys.stderr)
        return 1
    with serving(workers=1) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        for picture in PICTURES:
            content = take(browser, f"http://127.0.0.1:{server.port}/", picture, data=options.data)
            write_file(options.out / picture.file, content)
            print(f"{options.out / picture.file}: {len(content):,} bytes")
        browser.close()
    return 0


def take(browser: Any, address: str, picture: Picture, *, data: str) -> bytes:
    """The PNG of the page with a result on it."""
    size = {"width": picture.width, "height": picture.height}
    page = browser.new_page(viewport=size, color_scheme=picture.scheme, device_scale_factor=picture.scale)
    page.set_default_timeout(PATIENCE_MS)
    page.goto(address)
    page.select_option("#dataset", data)
    page.wait_for_selector("#estimate:not([hidden])")
    page.click("#generate")
    page.wait_for_selector("#snippet:not(:empty)")
    page.mouse.move(0, 0)
    page.evaluate(
        "whole => whole ? scrollTo(0, 0) : document.getElementById('result').scrollIntoView()", picture.is_whole
    )
    content = shrink(page.screenshot(full_page=picture.is_whole, animations="disabled"))
    page.close()
    return content


def shrink(png: bytes) -> bytes:
    """The same PNG with a palette, which is enough for a page of few colours; at most MAX_BYTES."""
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(NUM_COLOURS, dither=Image.Dither.NONE)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    assert out.tell() <= MAX_BYTES, f"{out.tell()} bytes, expected at most {MAX_BYTES}"
    return out.getvalue()


if __name__ == "__main__":
    sys.exit(main())
