import copy
from dataclasses import replace

import pytest
import torch

from model_zoo.architectures import build_target
from model_zoo.published.cifar_resnets import resnet_target
from tests.helpers.standins import make_request, make_support
from weightgen.condition import Condition
from weightgen.errors import BadOption, CorruptFile, UnsupportedTask
from weightgen.files.checkpoint import encode_state, read_manifest, save_state
from weightgen.generators import load_generator
from weightgen.generators.d2nwg.layerwise import D2nwgLayerwise, LayerwiseConfig
from weightgen.generators.d2nwg.method import SCHEDULERS, D2nwgOptions, SchedulerOptions
from weightgen.weightspace.windows import Windows, measure_statistics

CONFIG = LayerwiseConfig(
    context=40, tail=4, latent_dim=6, codec_dim=16, codec_depth=1, encoder_dim=16, denoiser_dim=32, denoiser_depth=1
)
TARGET = resnet_target(8)
SUPPORT = make_support(num_classes=10, shots=3, channels=3)
REQUEST = make_request(TARGET, SUPPORT)
FAST = SchedulerOptions(steps=2)


@pytest.fixture(scope="module")
def generator() -> D2nwgLayerwise:
    """Untrained, but moved off its start: condition, noise and tail have an effect."""
    torch.manual_seed(0)
    statistics = measure_statistics([(TARGET.spec, TARGET.init_state(0))])
    made = D2nwgLayerwise(statistics, TARGET.input_shape, CONFIG).requires_grad_(False)
    for name, parameter in made.named_parameters():
        if "out_of" in name or "modulation" in name or "denoiser.out" in name:
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return made


def sample(generator: D2nwgLayerwise, *, seed: int = 0, sees_tail: bool = True, told: torch.Tensor | None = None):
    told = generator.condition(None, None) if told is None else told
    rng = torch.Generator().manual_seed(seed)
    return generator.sample_trunk(TARGET.spec, told, FAST, rng=rng, sees_tail=sees_tail)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("depth", [8, 14])
def test_samples_of_any_depth_load_strictly_differ_and_learn_the_support_set(generator, depth, scheduler):
    target = resnet_target(depth)
    request = make_request(target, SUPPORT, num_samples=2)
    request = replace(request, options=SchedulerOptions(scheduler, steps=2))
    generator.check(request)
    first, second = generator.generate(request)
    for state in (first, second):
        target.spec.check(state)
        assert (target.load(state)(SUPPORT.inputs).argmax(1) == SUPPORT.labels).double().mean() > 0.5
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_equal_requests_give_equal_bytes_and_seeds_matter(generator):
    request = replace(REQUEST, options=FAST)
    (a,), (b,) = generator.generate(request), generator.generate(request)
    assert encode_state(a) == encode_state(b)
    (c,) = generator.generate(replace(request, seed=1))
    assert encode_state(a) != encode_state(c)


def test_a_sample_does_not_depend_on_how_many_follow(generator):
    request = replace(REQUEST, options=FAST)
    one, two = generator.generate(request), generator.generate(replace(request, num_samples=2))
    assert encode_state(one[0]) == encode_state(two[0])


def test_the_tail_reaches_every_window_but_the_first(generator):
    seen, unseen = sample(generator), sample(generator, sees_tail=False)
    windows = generator.split(TARGET.spec)
    same = [torch.equal(windows.read(seen, w), windows.read(unseen, w)) for w in windows.cut(CONFIG.context)]
    assert len(same) > 3 and same[0] and not any(same[1:])


def test_support_set_accuracy_and_guidance_each_change_the_trunk(generator):
    other = make_support(num_classes=10, shots=3, channels=3, seed=5)
    given = [(SUPPORT, None), (other, None), (SUPPORT, 0.9), (SUPPORT, 0.2)]
    trunks = [sample(generator, told=generator.condition(generator.summarise(s), a)) for s, a in given]
    trunks.append(sample(generator))
    for i, a in enumerate(trunks):
        assert all(not torch.equal(a["conv.weight"], b["conv.weight"]) for b in trunks[i + 1 :])
    plain = generator.generate(replace(REQUEST, options=SchedulerOptions(steps=2, guidance=0.0)))[0]
    assert torch.allclose(plain["conv.weight"], trunks[-1]["conv.weight"], atol=1e-5)


def test_only_one_window_is_in_memory_at_a_time(generator, monkeypatch):
    sizes = []
    write = Windows.write
    monkeypatch.setattr(Windows, "write", lambda self, tokens, window, *, out: (
        sizes.append(len(tokens)), write(self, tokens, window, out=out)
    ))  # fmt: skip
    sample(generator)
    assert set(sizes[:-1]) == {CONFIG.context} and 0 < sizes[-1] <= CONFIG.context
    assert sum(sizes) == generator.split(TARGET.spec).num_tokens


def test_reconstruction_depends_on_the_window_a_token_is_in_only_through_the_codec(generator):
    state = TARGET.init_state(0)
    whole = copy.deepcopy(generator)
    whole.codec.set_components(*(f(range(whole.split(TARGET.spec).num_tokens)) for f in (
        lambda w: whole.split(TARGET.spec).read(state, w), whole.split(TARGET.spec).kind_indices
    )))  # fmt: skip
    whole.codec.out_of.weight.zero_()
    whole.codec.out_of.bias.zero_()
    narrow = copy.deepcopy(whole)
    narrow.config = replace(CONFIG, context=7)
    a, b = (g.reconstruct(TARGET.spec, state) for g in (whole, narrow))
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_a_file_gives_the_same_weights_back(generator, tmp_path):
    rounded = copy.deepcopy(generator).half().float()
    rounded.save(tmp_path / "made.safetensors")
    loaded = load_generator(tmp_path / "made.safetensors")
    assert isinstance(loaded, D2nwgLayerwise)
    request = replace(REQUEST, options=FAST)
    assert encode_state(rounded.generate(request)[0]) == encode_state(loaded.generate(request)[0])
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "made.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"version": 99}, UnsupportedTask, "written in version 99 of the format, this weightgen reads 1"),
        ({"config": {"context": 64, "tail": 8, "latent_dim": 3}}, CorruptFile, "not a whole generator file"),
        ({"statistics": []}, CorruptFile, "not a whole generator file"),
        ({"statistics": 3}, CorruptFile, "not a whole generator file"),
    ],
)
def test_damaged_files_are_refused(generator, tmp_path, change, error, sentence):
    generator.save(tmp_path / "whole.safetensors")
    manifest = {**read_manifest(tmp_path / "whole.safetensors"), **change}
    save_state(tmp_path / "broken.safetensors", generator.state_dict(), manifest=manifest)
    with pytest.raises(error, match=sentence):
        load_generator(tmp_path / "broken.safetensors")


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (make_request(build_target("cnn-tiny"), SUPPORT), "'cnn-tiny' has layers of .*; known are 16x3x3x3"),
        (make_request(resnet_target(8, image_size=32), SUPPORT), "for inputs of 3x28x28, not of 3x32x32"),
        (make_request(TARGET, None), "'d2nwg-layerwise' needs a support set"),
        (make_request(TARGET, make_support(num_classes=3, channels=3)), "the target has 10 classes, the support set 3"),
        (replace(REQUEST, condition=Condition(support=SUPPORT, text="cats")), "cannot use a description in words"),
        (
            replace(REQUEST, options=D2nwgOptions(refinements=2)),
            "does not take scheduler, steps, guidance, refinements",
        ),
    ],
)
def test_requests_it_cannot_honour_are_refused_in_a_sentence(generator, request_, sentence):
    with pytest.raises(UnsupportedTask, match=sentence):
        generator.check(request_)
    with pytest.raises(UnsupportedTask, match=sentence):
        generator.generate(request_)


def test_a_tail_longer_than_the_window_before_is_refused():
    with pytest.raises(BadOption, match="a tail of 9 tokens, expected 1 to 8, the context"):
        LayerwiseConfig(context=8, tail=9)
