"""Names and files a user types become a job, or one sentence."""

import pytest
import torch

from model_zoo import released
from model_zoo.lookup import look_up, target_for
from tests.helpers.standins import make_data, make_zoo
from weightgen.errors import BadOption, CorruptFile, NotFound, UnknownName
from weightgen.files.checkpoint import save_state
from weightgen.order import Order


def test_names_and_files_become_a_job(generator_file):
    job = look_up(Order(str(generator_file), "resnet8", "digits"))
    assert job.generator.name == "stand-in"
    assert job.target.spec.config == {"num_classes": 10, "in_channels": 1, "depth": 8, "width": 16}
    assert job.target.input_shape == tuple(job.data.x_train.shape[1:])
    assert job.references is None
    assert len(job.generator_sha256) == 64


def test_a_released_name_is_its_file(generator_file, monkeypatch):
    monkeypatch.setattr(released, "FOLDER", generator_file.parent)
    monkeypatch.setitem(released.RELEASED, "stand-in", generator_file.name)
    job = look_up(Order("stand-in", "cnn-tiny", "digits"))
    folder = generator_file.parent / "references" / "stand-in"
    folder.mkdir(parents=True)
    make_zoo(job.target).save(folder / "cnn-tiny-c1.safetensors")
    assert len(look_up(Order("stand-in", "cnn-tiny", "digits")).references or ()) == 4
    assert look_up(Order("stand-in", "mlp", "digits")).references is None


@pytest.mark.parametrize(
    ("names", "error", "sentence"),
    [
        ({"generator": "mpi"}, UnknownName, "did you mean 'mip'?"),
        ({"generator": "no/such.safetensors"}, NotFound, "no generator file 'no/such.safetensors'"),
        ({"architecture": "cnn-tny"}, UnknownName, "did you mean 'cnn-tiny'?"),
        ({"dataset": "digit"}, UnknownName, "did you mean 'digits'?"),
        ({"dataset": "no/such.npz"}, NotFound, "no/such.npz"),
        ({"dataset": "iris"}, BadOption, "takes images, the data are vectors of 4; use 'mlp'"),
    ],
)
def test_what_does_not_exist_is_told(generator_file, names, error, sentence):
    order = {"generator": str(generator_file), "architecture": "cnn-tiny", "dataset": "digits"} | names
    with pytest.raises(error, match=sentence.replace("?", r"\?")):
        look_up(Order(**order)).target  # noqa: B018, the target is built when first asked for


def test_a_released_generator_that_is_not_here_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    with pytest.raises(NotFound, match="generator 'mip' has no file mip.safetensors in this copy"):
        released.released_generator("mip")


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"format": "weightgen.artifact"}, CorruptFile, "expected a generator file"),
        ({"method": "stand-on"}, UnknownName, "did you mean 'stand-in'"),
    ],
)
def test_other_files_are_no_generators(generator_file, change, error, sentence):
    manifest = {"format": "weightgen.generator", "version": 1, "method": "stand-in"} | change
    save_state(generator_file, {"nothing": torch.zeros(1)}, manifest=manifest)
    with pytest.raises(error, match=sentence):
        look_up(Order(str(generator_file), "cnn-tiny", "digits"))


def test_a_damaged_list_of_hashes_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    (tmp_path / "SHA256SUMS").write_text("not a hash\n")
    with pytest.raises(CorruptFile, match="cannot read the line 'not a hash'"):
        released.expected_hashes()


@pytest.mark.parametrize("channels", [1, 3])
def test_targets_take_the_data_and_have_its_classes(channels):
    target = target_for("resnet8", make_data(num_classes=4, channels=channels))
    assert target.input_shape == (channels, 28, 28)
    assert target.spec.config["num_classes"] == 4
