import io

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="Playwright is not installed; pip install playwright")

from benchmarks.service.screenshot import MAX_BYTES, shrink


def as_png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", compress_level=0)
    return out.getvalue()


def test_a_picture_of_few_colours_keeps_them_and_gets_smaller():
    colours = np.array([[0, 0, 0], [11, 110, 105], [255, 255, 255]], np.uint8)
    pixels = colours[np.random.default_rng(0).integers(3, size=(60, 80))]
    small = shrink(as_png(pixels))
    assert (np.array(Image.open(io.BytesIO(small)).convert("RGB")) == pixels).all()
    assert len(small) < len(as_png(pixels)) / 3


def test_a_picture_that_stays_too_large_is_refused():
    noise = np.random.default_rng(0).integers(256, size=(800, 800, 3), dtype=np.uint8)
    with pytest.raises(AssertionError, match=f"expected at most {MAX_BYTES}"):
        shrink(as_png(noise))
