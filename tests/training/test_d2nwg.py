"""The recipe of d2nwg on a handful of networks: stages in order, files that go on, a release that loads."""

import json
from functools import partial
from typing import Any

import pytest
import torch

import training.d2nwg.__main__
from model_zoo.architectures import build_target
from model_zoo.zoo.networks import load_networks
from tests.helpers.standins import make_request, make_support
from tests.helpers.tiny_generators import TINY_D2NWG
from tests.helpers.tiny_zoos import build_tiny_zoo
from training.d2nwg.__main__ import codec, denoiser, release
from training.d2nwg.codecs import codec_recipe
from training.d2nwg.denoiser import denoiser_recipe
from training.d2nwg.recipe import D2nwgTraining
from training.d2nwg.sampling import draw_few_levels, lower_noise
from training.loop import Span, train
from weightgen.errors import BadOption, NotFound, UnsupportedTask
from weightgen.generators import load_generator
from weightgen.generators.d2nwg.diffusion import add_noise
from weightgen.generators.d2nwg.generator import D2nwg


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"), num_runs=12)


def test_the_stages_end_in_a_generator_that_loads(zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.d2nwg.__main__, "D2nwgTraining", lambda **given: D2nwgTraining(**{
        "model": TINY_D2NWG, "batch_size": 4, "behaviour_size": 1, **given
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


@pytest.mark.slow
def test_a_run_that_left_sets_out_is_not_released(zoo, tmp_path, monkeypatch):
    monkeypatch.setattr(training.d2nwg.__main__, "D2nwgTraining", lambda **given: D2nwgTraining(**{
        "model": TINY_D2NWG, "batch_size": 4, "behaviour_size": 1, **given
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


@pytest.mark.parametrize("stage", ["codec", "denoiser"])
def test_an_interrupted_stage_ends_in_the_same_bits(zoo, tmp_path, stage):
    config = D2nwgTraining(model=TINY_D2NWG, batch_size=4, latents_size=4, behaviour_size=1, sample_size=1)
    networks = load_networks(zoo)

    def build() -> D2nwg:
        torch.manual_seed(config.seed)
        model = D2nwg({m: n.target.spec for m, n in networks.items()}, TINY_D2NWG)
        for member, known in networks.items():
            model.codec(member).set_scaling(known.tokens)
        return model

    found = []
    for name, stops in (("whole", (None,)), ("parts", (1, 2, None))):
        for until in stops:
            model = build()
            recipe = codec_recipe if stage == "codec" else partial(denoiser_recipe, first_stage=["of the test"])
            settings = config.loop(Span(steps=3), seed=1)
            run = train(recipe(model, networks, config), settings, tmp_path / name, until=until)
            assert run.steps == (until or 3)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.slow
def test_a_finished_stage_is_not_trained_again(zoo, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.d2nwg.__main__, "D2nwgTraining", lambda **given: D2nwgTraining(**{
        "model": TINY_D2NWG, "batch_size": 4, "behaviour_size": 1, **given
    }))  # fmt: skip
    codec(zoo=zoo, out=tmp_path, steps=2)
    first = (tmp_path / "codec.safetensors").read_bytes()
    codec(zoo=zoo, out=tmp_path, steps=2)
    assert (tmp_path / "codec.safetensors").read_bytes() == first
    with pytest.raises(BadOption, match=r"holds a run with other settings \(loop.budget.steps\)"):
        codec(zoo=zoo, out=tmp_path, steps=3)
    denoiser(zoo=zoo, out=tmp_path, steps=1)
    second = tmp_path / "other"
    codec(zoo=zoo, out=second, steps=1)
    with pytest.raises(BadOption, match=r"holds a run with other settings \(recipe.first_stage\)"):
        denoiser(zoo=zoo, out=tmp_path, codecs=[second], steps=1)


def test_noise_is_lowered_to_the_level_asked_for(rng):
    levels = draw_few_levels(rng=rng)
    assert 1 <= len(levels) <= 3 and levels.tolist() == sorted(levels)
    clean = torch.randn(4, 2, 3, generator=rng)
    low, high = torch.tensor([-1.0]), torch.tensor([2.0])
    noisy = add_noise(clean, low.expand(4), rng=torch.Generator().manual_seed(1))
    expected = add_noise(clean, high.expand(4), rng=torch.Generator().manual_seed(1))
    torch.testing.assert_close(lower_noise(noisy, clean, low, high), expected)
