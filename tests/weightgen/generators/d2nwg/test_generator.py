import copy
from dataclasses import replace

import pytest
import torch

from model_zoo.architectures import build_target
from tests.helpers.standins import make_request, make_support
from weightgen.condition import Condition
from weightgen.errors import CorruptFile, UnsupportedTask
from weightgen.files.checkpoint import encode_state, load_state, read_manifest, save_state
from weightgen.generators import load_generator
from weightgen.generators.d2nwg.generator import D2nwg, D2nwgConfig, member_name
from weightgen.generators.d2nwg.method import SCHEDULERS, D2nwgOptions
from weightgen.target.trunk import trunk_spec

CONFIG = D2nwgConfig(
    num_latents=2,
    latent_dim=4,
    codec_dim=16,
    codec_depth=1,
    encoder_dim=16,
    denoiser_dim=32,
    denoiser_depth=1,
    refinements=2,
)
ARCHS = ("cnn-tiny", "mlp-w16-d2", "cnn-w4-d2")


def make_generator(*archs: str, channels: tuple[int, ...] = (1,), config: D2nwgConfig = CONFIG) -> D2nwg:
    """Untrained, but moved off its start: condition and noise have an effect."""
    targets = [build_target(arch, in_channels=c) for arch in archs for c in channels]
    torch.manual_seed(0)
    generator = D2nwg({member_name(t): t.spec for t in targets}, config)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if "out_of" in name or "modulation" in name or "denoiser.out" in name:
                parameter.add_(0.3 * torch.randn(parameter.shape))
        for target in targets:
            codec, spec = generator.codec(member_name(target)), trunk_spec(target.spec)
            states = [target.init_state(seed) for seed in range(4)]
            layout = generator.layouts[member_name(target)]
            codec.set_scaling(torch.stack([layout.encode({t.name: s[t.name] for t in spec.tensors}) for s in states]))
    return generator.requires_grad_(False)


@pytest.fixture(scope="module")
def generator() -> D2nwg:
    return make_generator(*ARCHS)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("arch", ARCHS)
def test_samples_load_strictly_differ_and_learn_the_support_set(generator, arch, scheduler):
    support, target = make_support(num_classes=4, shots=8), build_target(arch, num_classes=4)
    request = replace(make_request(target, support), num_samples=2, options=D2nwgOptions(scheduler, steps=3))
    generator.check(request)
    first, second = generator.generate(request)
    for state in (first, second):
        target.spec.check(state)
        assert (target.load(state)(support.inputs).argmax(1) == support.labels).double().mean() > 0.6
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_equal_requests_give_equal_bytes_and_seeds_matter(generator):
    request = make_request(build_target("cnn-tiny", num_classes=3), make_support(num_classes=3, shots=4))
    (a,), (b,) = generator.generate(request), generator.generate(request)
    assert encode_state(a) == encode_state(b)
    (c,) = generator.generate(replace(request, seed=1))
    assert encode_state(a) != encode_state(c)


def test_support_set_accuracy_and_guidance_each_change_the_trunk(generator):
    target = build_target("cnn-tiny", num_classes=3)
    support = make_support(num_classes=3, shots=4)
    request = make_request(target, support)
    aimed = replace(request, condition=Condition(support=support, target_accuracy=0.9))
    guided = replace(request, options=D2nwgOptions(guidance=3.0))
    trunks = [generator.sample(r) for r in (request, aimed, guided)]
    trunks.append(generator.sample(request, conditioned=False))
    for i, a in enumerate(trunks):
        assert all(not torch.equal(a, b) for b in trunks[i + 1 :])
    plain = replace(request, options=D2nwgOptions(guidance=0.0))
    assert torch.allclose(generator.sample(plain), trunks[3], atol=1e-5)


@pytest.mark.parametrize("arch", ARCHS)
def test_every_support_set_refines_a_trunk_in_its_own_way(generator, arch):
    target, supports = build_target(arch, num_classes=3), [make_support(seed=seed) for seed in (0, 1)]
    latents = generator.sample(make_request(target, supports[0]))
    trunk = {name: t[0] for name, t in generator.decode_trunks(member_name(target), latents).items()}
    one, other = (generator.refine(target, trunk, s.inputs, s.labels, s.num_classes) for s in supports)
    assert one.keys() == trunk.keys()
    weights = [name for name in trunk if name.endswith("weight")]  # a unit that is off has no say in its own bias
    for name in weights:
        assert not torch.equal(one[name], trunk[name]) and not torch.equal(one[name], other[name])
        assert one[name].shape == trunk[name].shape and (one[name] - trunk[name]).norm() < trunk[name].norm()


def test_refinements_can_be_left_out_and_no_more_than_learnt_be_asked_for(generator):
    request = make_request(build_target("cnn-tiny", num_classes=3), make_support(num_classes=3, shots=4))
    states = [generator.generate(replace(request, options=D2nwgOptions(refinements=n)))[0] for n in (0, 1, 2)]
    states.append(generator.generate(replace(request, options=D2nwgOptions()))[0])
    codes = [encode_state(s) for s in states]
    assert len(set(codes[:3])) == 3 and codes[2] == codes[3]
    with pytest.raises(UnsupportedTask, match="has learnt 2 refinements of a sample, 3 were asked for"):
        generator.check(replace(request, options=D2nwgOptions(refinements=3)))


def test_without_condition_only_the_head_knows_the_support_set(generator):
    target, off = build_target("cnn-tiny", num_classes=3), generator.without_condition()
    one, other = (off.generate(make_request(target, make_support(num_classes=3, shots=4, seed=s)))[0] for s in (0, 1))
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_the_order_of_the_classes_permutes_the_head_and_leaves_the_trunk(generator):
    target, support = build_target("cnn-tiny", num_classes=3), make_support(num_classes=3, shots=4)
    renamed = replace(support, labels=(support.labels + 1) % 3)
    one, other = (generator.generate(make_request(target, s))[0] for s in (support, renamed))
    assert torch.allclose(one["conv1.weight"], other["conv1.weight"], atol=1e-3)
    assert torch.allclose(one["head.weight"].roll(1, 0), other["head.weight"], atol=1e-2)


def test_a_generated_head_follows_the_order_of_the_classes(generator):
    target, support = build_target("cnn-tiny", num_classes=3), make_support(num_classes=3, shots=4)
    renamed = replace(support, labels=(support.labels + 1) % 3)
    one, other = (generator.with_generated_head().generate(make_request(target, s))[0] for s in (support, renamed))
    target.spec.check(one)
    assert torch.allclose(one["head.weight"].roll(1, 0), other["head.weight"], atol=1e-4)
    assert not torch.equal(one["head.weight"], generator.generate(make_request(target, support))[0]["head.weight"])


def test_a_file_gives_the_same_weights_back(generator, tmp_path):
    generator = copy.deepcopy(generator).half().float()
    generator.save(tmp_path / "d2nwg.safetensors")
    loaded = load_generator(tmp_path / "d2nwg.safetensors")
    request = make_request(build_target("cnn-tiny", num_classes=3), make_support(num_classes=3, shots=4))
    assert isinstance(loaded, D2nwg) and loaded.digest_of("cnn-tiny") == generator.digest_of("cnn-tiny")
    (a,), (b,) = generator.generate(request), loaded.generate(request)
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)


def test_a_clip_may_see_the_support_set_and_a_file_names_it_without_holding_it(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs the extra 'clip'")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = transformers.CLIPVisionConfig(**sizes, image_size=32, patch_size=16, projection_dim=12)
    for seed in (0, 1):
        torch.manual_seed(seed)
        transformers.CLIPVisionModelWithProjection(vision).save_pretrained(tmp_path / str(seed))
    generator = make_generator("cnn-tiny", config=replace(CONFIG, clip=str(tmp_path / "0"))).half().float()
    generator.save(tmp_path / "d2nwg.safetensors")
    assert not any("tower" in name or "vision" in name for name in load_state(tmp_path / "d2nwg.safetensors"))
    loaded = load_generator(tmp_path / "d2nwg.safetensors")
    request = make_request(build_target("cnn-tiny", num_classes=3), make_support(num_classes=3, shots=4))
    (a,), (b,) = generator.generate(request), loaded.generate(request)
    assert all(torch.allclose(a[name], b[name], atol=1e-5) for name in a)
    (tmp_path / "1").rename(tmp_path / "0" / "other")
    for file in (tmp_path / "0" / "other").iterdir():
        file.replace(tmp_path / "0" / file.name)
    with pytest.raises(CorruptFile, match="a CLIP tower of digest"):
        load_generator(tmp_path / "d2nwg.safetensors")


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"version": 99}, UnsupportedTask, "written in version 99 of the format, this weightgen reads 1"),
        ({"config": {"num_latents": 3}}, CorruptFile, "not a whole generator file"),
        ({"specs": []}, CorruptFile, "not a whole generator file"),
    ],
)
def test_files_that_are_not_whole_or_from_the_future_are_refused(generator, tmp_path, change, error, sentence):
    path = tmp_path / "d2nwg.safetensors"
    generator.save(path)
    manifest = read_manifest(path)
    save_state(path, load_state(path), manifest={**manifest, **change})
    with pytest.raises(error, match=sentence):
        load_generator(path)


@pytest.mark.parametrize(
    ("arch", "channels", "classes", "change", "sentence"),
    [
        ("resnet8", 1, 3, {}, "makes weights for cnn-tiny, mlp-w16-d2, cnn-w4-d2, not for 'resnet8'"),
        ("cnn-tiny", 3, 3, {}, "for inputs of 1x28x28, not of 3x28x28"),
        ("cnn-tiny", 1, 65, {}, "takes 2 to 64 classes"),
        ("cnn-tiny", 1, 3, {"text": "digits"}, "cannot use a description in words"),
        ("cnn-tiny", 1, 3, {"support": None}, "needs a support set"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_any_work(generator, arch, channels, classes, change, sentence):
    support = make_support(num_classes=classes, shots=1, channels=channels)
    request = make_request(build_target(arch, num_classes=classes, in_channels=channels), support)
    condition = replace(request.condition, **change)
    with pytest.raises(UnsupportedTask, match=sentence):
        generator.check(replace(request, condition=condition))


def test_tasks_are_embedded_at_unit_norm(generator):
    embedding = generator.embed(make_support(num_classes=3, shots=2), arch="cnn-tiny")
    assert embedding.shape == (16,) and embedding.norm() == pytest.approx(1, abs=1e-5)
