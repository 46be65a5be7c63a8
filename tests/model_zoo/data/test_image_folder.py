"""Folders of images: what they give, and what is refused with one clear sentence."""

import numpy as np
import pytest

from model_zoo.data import (
    load_data,
)
from model_zoo.data.image_folder import load_image_folder
from weightgen.errors import BadData, CorruptFile


def write_pictures(folder, classes=("cat", "dog"), count=5, mode="L", size=(12, 10)):
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
    rng = np.random.default_rng(0)
    for c in classes:
        (folder / c).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = rng.integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
            image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode=None).save(folder / c / f"{i}.png")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_folders_of_classes_are_split_and_resized(tmp_path, mode, channels):
    write_pictures(tmp_path, mode=mode)
    data = load_data(str(tmp_path))
    assert data.x_train.shape == (8, channels, 28, 28)
    assert len(data.y_test) == 2
    assert data.class_names == ("cat", "dog")
    assert any("resized" in n for n in data.notes)


def test_folders_with_train_and_test_keep_their_split(tmp_path):
    write_pictures(tmp_path / "train", count=4)
    write_pictures(tmp_path / "test", count=1, size=(28, 28))
    data = load_data(str(tmp_path))
    assert (len(data.y_train), len(data.y_test)) == (8, 2)


def test_unusable_folders_are_refused(tmp_path):
    with pytest.raises(BadData, match="holds no images"):
        load_data(str(tmp_path))
    write_pictures(tmp_path / "train")
    with pytest.raises(BadData, match="only train/"):
        load_data(str(tmp_path))
    write_pictures(tmp_path / "test", classes=("cow",))
    with pytest.raises(BadData, match="'cow' is in test/ but not in train/"):
        load_data(str(tmp_path))
    with pytest.raises(BadData, match="the limit is 1,000"):
        load_image_folder(tmp_path, max_bytes=1000)


def test_pictures_that_cannot_be_used_are_named(tmp_path, monkeypatch):
    image = pytest.importorskip("PIL.Image", reason="needs the extra 'images'")
    write_pictures(tmp_path)
    victim = tmp_path / "dog" / "3.png"
    good = victim.read_bytes()
    victim.write_bytes(good[:60])
    with pytest.raises(CorruptFile, match=r"3\.png' cannot be read"):
        load_data(str(tmp_path))
    image.new("RGBA", (9, 9)).save(victim)
    with pytest.raises(BadData, match=r"3\.png': it has a transparency channel"):
        load_data(str(tmp_path))
    image.new("L", (1, 1)).save(victim)
    with pytest.raises(BadData, match="1x1 pixels"):
        load_data(str(tmp_path))
    victim.write_bytes(good)
    monkeypatch.setattr(image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(BadData, match="more pixels than are safe"):
        load_data(str(tmp_path))
