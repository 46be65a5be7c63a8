"""The recipe of d2nwg-layerwise on a handful of networks: stages in order, files that go on, a generator that loads."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

import training.d2nwg.layerwise
from model_zoo.published.cifar_resnets import KnownResNet
from tests.helpers.standins import make_data, make_request, make_support
from tests.helpers.tiny_zoos import make_known
from training.d2nwg.layerwise import (
    D2nwgLayerwiseTraining,
    Images,
    Tokens,
    behave,
    codec,
    codec_recipe,
    denoiser,
    denoiser_recipe,
    encode_all,
    sample_with_gradient,
    similarity,
)
from training.loop import Span, train
from weightgen.errors import BadOption
from weightgen.generators import load_generator
from weightgen.generators.d2nwg.layerwise import D2nwgLayerwise, LayerwiseConfig
from weightgen.weightspace.windows import measure_statistics

SMALL = LayerwiseConfig(
    context=32, tail=4, latent_dim=4, codec_dim=16, codec_depth=1, encoder_dim=16, denoiser_dim=16, denoiser_depth=1
)
CONFIG = D2nwgLayerwiseTraining(model=SMALL, batch_size=2, images=40)
DATA = make_data(num_classes=10, per_class=12, channels=3)


@pytest.fixture(scope="module")
def known() -> list[KnownResNet]:
    shallow = make_known(8, 1)
    return [
        shallow,
        replace(make_known(8, 2), target=shallow.target),
        make_known(14, 3),
        make_known(8, 4, held_out=True),
    ]


@pytest.fixture(scope="module")
def model(known) -> D2nwgLayerwise:
    torch.manual_seed(0)
    statistics = measure_statistics([(k.target.spec, k.trunk) for k in known])
    return D2nwgLayerwise(statistics, known[0].target.input_shape, SMALL)


def test_the_stages_end_in_a_generator_that_loads(known, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(training.d2nwg.layerwise, "load_resnets", lambda zoo: known)
    monkeypatch.setattr(training.d2nwg.layerwise, "load_data", lambda name: DATA)
    monkeypatch.setattr(training.d2nwg.layerwise, "LayerwiseConfig", lambda **given: replace(SMALL, **given))
    monkeypatch.setattr(training.d2nwg.layerwise, "D2nwgLayerwiseTraining", lambda **given: replace(CONFIG, **given))
    with pytest.raises(BadOption, match=r"has no codec.safetensors; run the stage before this one"):
        denoiser(zoo=tmp_path, out=tmp_path)
    codec(zoo=tmp_path, out=tmp_path, minutes=0.01, latents=4, behaviour_every=1)
    denoiser(zoo=tmp_path, out=tmp_path, minutes=0.02, behaviour_every=1)
    denoiser(zoo=tmp_path, out=tmp_path, minutes=0.01, behaviour_every=0, start="denoiser.safetensors")
    assert json.loads(capsys.readouterr().out.partition("\n}\n{")[0] + "\n}")["spent"]["codec"]["steps"] > 0
    generator: Any = load_generator(tmp_path / "denoiser.safetensors")
    record = generator.training_record
    assert set(record["networks"]) == {"resnet8", "resnet14"}  # and not the held-out one
    assert record["networks"]["resnet8"]["licence"] == "of the test" and record["spent"]["denoiser"]["steps"] > 0
    assert set(record["spent"]) == {"codec", "denoiser", "denoiser, part 2"}
    request = make_request(known[2].target, make_support(num_classes=10, shots=2, channels=3))
    (state,) = generator.generate(request)
    known[2].target.spec.check(state)


@pytest.mark.parametrize("stage", ["codec", "denoiser"])
def test_an_interrupted_stage_ends_in_the_same_bits(known, tmp_path, stage):
    images, config = Images(DATA, None), replace(CONFIG, behaviour_every=2)
    found = []
    for name, stops in (("whole", (None,)), ("parts", (1, 2, None))):
        for until in stops:
            torch.manual_seed(0)
            statistics = measure_statistics([(k.target.spec, k.trunk) for k in known])
            model = D2nwgLayerwise(statistics, known[0].target.input_shape, SMALL)
            networks = [Tokens.of(k, model) for k in known[:3]]
            recipe = codec_recipe if stage == "codec" else partial(denoiser_recipe, start="of the test")
            settings = config.loop(Span(steps=3), seed=1)
            run = train(recipe(model, networks, images, config), settings, tmp_path / name, until=until)
            assert run.steps == (until or 3)
        found.append(model.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_groups_hold_every_token_once_in_order(known, model):
    tokens = Tokens.of(known[2], model)
    parts = list(tokens.groups(SMALL.context))
    assert torch.equal(torch.cat([p.flatten() for p in parts]), torch.arange(len(tokens.tokens)))
    assert parts[0].shape[1] == SMALL.context and len(parts[1]) == 1


def test_latents_of_all_windows_at_once_are_those_of_the_generator(known, model):
    tokens = Tokens.of(known[0], model)
    latents = encode_all(model, tokens, SMALL.context)
    parts = list(zip(tokens.groups(SMALL.context), strict=True))
    decoded = []
    begin = 0
    with torch.no_grad():
        for (index,) in parts:
            rows = latents[begin : begin + index.numel()].view(*index.shape, -1)
            begin += index.numel()
            given = (tokens.kinds[index], tokens.places[index], tokens.mask[index])
            decoded.append(model.codec.decode(rows, *given).flatten(0, 1))
    trunk = tokens.windows.assemble(torch.cat(decoded))
    expected = model.reconstruct(known[0].target.spec, known[0].trunk)
    assert all(torch.allclose(trunk[name], expected[name], atol=1e-5) for name in expected)


def test_samples_carry_gradients_to_denoiser_and_decoder(known, model, rng):
    trunk = sample_with_gradient(model, Tokens.of(known[0], model), model.condition(None, None), rng=rng)
    images = Images(DATA, None)
    loss, reached = behave(known[0].target, trunk, images, CONFIG, rng=rng)
    loss.backward()
    assert 0 <= reached <= 1
    for parameter in (model.denoiser.out.weight, model.codec.out_of.weight, model.codec.linear_out):
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0
    model.zero_grad(set_to_none=True)


def test_likeness_to_itself_is_one_and_survives_rotation_and_scale(rng):
    a, b = torch.randn(50, 6, generator=rng), torch.randn(50, 4, generator=rng)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=rng))[0]
    assert float(similarity(a, 3 * a @ turn + 1)) == pytest.approx(1, abs=1e-5)
    assert 0 <= float(similarity(a, b)) < 0.5


def test_images_come_balanced_with_what_the_published_network_sees_of_them(known, rng):
    images = Images(DATA, known[0])
    x, y, seen = images.draw(40, rng=rng)
    assert x.shape == (40, 3, 28, 28) and torch.bincount(y).tolist() == [4] * 10
    assert torch.bincount(y[:20]).tolist() == [2] * 10
    assert seen is not None
    torch.testing.assert_close(seen, training.d2nwg.layerwise.see(known[0], x).detach(), atol=1e-4, rtol=1e-3)
