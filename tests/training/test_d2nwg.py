"""The recipe of d2nwg on a handful of networks: stages in order, files that go on, a release that loads."""

import json
from typing import Any

import pytest

import training.d2nwg
from model_zoo.architectures import build_target
from model_zoo.zoo.builder import build_zoo
from model_zoo.zoo.config import ZooConfig
from model_zoo.zoo.networks import load_networks
from tests.helpers.paths import shared_path
from tests.helpers.standins import make_request, make_support
from training.d2nwg import D2nwgTraining, codec, denoiser, release
from weightgen.errors import BadOption, NotFound, UnsupportedTask
from weightgen.generators import load_generator
from weightgen.generators.d2nwg.generator import D2nwgConfig

SMALL = D2nwgConfig(
    num_latents=2, latent_dim=4, codec_dim=16, codec_depth=1, encoder_dim=16, denoiser_dim=16, denoiser_depth=1
)


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    shared_path("images/bccd_cells.npz")
    folder = tmp_path_factory.mktemp("zoo")
    config = ZooConfig(
        arch="cnn-tiny", data=("bccd_cells", "devnum"), num_runs=12, steps=60, ways=3, in_channels=1, eval_examples=100
    )
    build_zoo(config, folder / "part")
    return folder


def test_the_stages_end_in_a_generator_that_loads(zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.d2nwg, "D2nwgTraining", lambda **given: D2nwgTraining(**{
        "model": SMALL, "batch_size": 4, "behaviour_size": 1, **given
    }))  # fmt: skip
    with pytest.raises(NotFound, match="run the stage before this one"):
        denoiser(zoo=zoo, out=tmp_path)
    with pytest.raises(BadOption, match="the zoo has no 'resnet8/1x28x28'"):
        codec(zoo=zoo, out=tmp_path, minutes=0.01, members=["resnet8/1x28x28"])
    codec(zoo=zoo, out=tmp_path, minutes=0.03)
    denoiser(zoo=zoo, out=tmp_path, minutes=0.05)
    release(out=tmp_path, file=tmp_path / "d2nwg.safetensors")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["members"] == ["cnn-tiny/1x28x28"]
    generator: Any = load_generator(tmp_path / "d2nwg.safetensors")
    record = generator.training_record
    assert record["data"]["devnum"] == "MIT" and record["spent"]["denoiser"]["steps"] > 0
    target = next(iter(load_networks(zoo).values())).target
    (state,) = generator.generate(make_request(target, make_support(num_classes=10, shots=3)))
    target.spec.check(state)
    many = make_request(build_target("cnn-tiny", num_classes=21), make_support(num_classes=21, shots=1))
    with pytest.raises(UnsupportedTask, match="takes 2 to 20 classes"):  # the most that an episode has
        generator.check(many)


def test_a_run_that_left_sets_out_is_not_released(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(training.d2nwg, "D2nwgTraining", lambda **given: D2nwgTraining(**{
        "model": SMALL, "batch_size": 4, "behaviour_size": 1, **given
    }))  # fmt: skip
    with pytest.raises(BadOption, match="name one with --hold-out"):
        codec(zoo=zoo, out=tmp_path, report=tmp_path / "left-out.json")
    codec(zoo=zoo, out=tmp_path, minutes=0.01, hold_out=["devnum"], report=tmp_path / "left-out.json")
    report = json.loads((tmp_path / "left-out.json").read_text())
    assert report["left_out"] == ["devnum"]
    assert report["results"]["held-out data sets"]["cnn-tiny/1x28x28"].keys() == {"original", "decoded", "weight_error"}
    denoiser(zoo=zoo, out=tmp_path, minutes=0.01)
    with pytest.raises(BadOption, match="left out devnum"):
        release(out=tmp_path, file=tmp_path / "d2nwg.safetensors")
