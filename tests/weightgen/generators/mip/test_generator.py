import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model_zoo.architectures import build_target
from tests.helpers.standins import make_request, make_support
from tests.helpers.tiny_generators import TINY_MIP, make_mip
from weightgen.condition import SupportSet
from weightgen.errors import CorruptFile, UnknownName, UnsupportedTask
from weightgen.files.checkpoint import encode_state, read_manifest, save_state
from weightgen.generators.d2nwg.method import D2nwgOptions
from weightgen.generators.mip.generator import Mip
from weightgen.generators.mip.hypernet import new_hypernet

ARCHS = ("cnn-tiny", "cnn-w4-d2", "resnet8", "vit-tiny")


@pytest.fixture(scope="module")
def generator() -> Mip:
    return make_mip(*ARCHS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("arch", ARCHS)
def test_generated_states_load_strictly_and_learn_the_support_set(generator, arch, channels):
    support = make_support(num_classes=4, shots=8, channels=channels)
    target = build_target(arch, num_classes=4, in_channels=channels)
    (state,) = generator.generate(make_request(target, support))
    target.spec.check(state)
    predicted = target.load(state)(support.inputs).argmax(1)
    assert (predicted == support.labels).double().mean() > 0.7


@pytest.mark.parametrize("arch", ARCHS)
def test_the_state_computes_what_was_trained(generator, arch):
    """The differentiable route of training and a plain PyTorch module give the same logits."""
    support = make_support()
    target = build_target(arch, num_classes=3)
    hypernet = generator.hypernets[arch]
    trained = hypernet(target.skeleton, support.inputs, support.labels, num_classes=3)
    (state,) = generator.generate(make_request(target, support))
    expected = hypernet.run(target.skeleton, trained, support.inputs)
    assert torch.allclose(target.load(state)(support.inputs), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("arch", ARCHS)
def test_one_channel_gives_the_same_network_as_the_same_grey_in_three(generator, arch):
    grey = make_support()
    colour = replace(grey, inputs=grey.inputs.expand(-1, 3, -1, -1).contiguous())
    hypernet = copy.deepcopy(generator.hypernets[arch])
    hypernet.config = replace(hypernet.config, refinements=0)  # a step is relative to the tensor, summed or not
    logits = []
    for support in (grey, colour):
        target = build_target(arch, num_classes=3, in_channels=support.inputs.shape[1])
        state = hypernet(target.skeleton, support.inputs, support.labels, num_classes=3, conditioned=True)
        logits.append(hypernet.run(target.skeleton, state, support.inputs))
    assert torch.allclose(logits[0], logits[1], atol=1e-3, rtol=1e-3)


def test_the_same_request_gives_the_same_bytes(generator):
    request = make_request(build_target("cnn-tiny", num_classes=3), make_support())
    first, second = (encode_state(generator.generate(request)[0]) for _ in range(2))
    assert first == second


def test_the_order_of_examples_does_not_matter(generator):
    support = make_support()
    order = torch.randperm(len(support.labels), generator=torch.Generator().manual_seed(0))
    shuffled = SupportSet(support.inputs[order], support.labels[order], support.class_names)
    target = build_target("cnn-tiny", num_classes=3)
    a, b = (generator.generate(make_request(target, s))[0] for s in (support, shuffled))
    assert all(torch.allclose(a[name], b[name], atol=1e-3, rtol=1e-2) for name in a)


def test_reordering_the_classes_reorders_the_head_alone(generator):
    support = make_support()
    turned = SupportSet(support.inputs, (support.labels + 1) % 3, support.class_names)
    target = build_target("cnn-tiny", num_classes=3)
    a, b = (generator.generate(make_request(target, s))[0] for s in (support, turned))
    assert torch.allclose(a["conv1.weight"], b["conv1.weight"], atol=1e-3, rtol=1e-2)
    assert torch.allclose(a["head.weight"].roll(1, 0), b["head.weight"], atol=1e-2, rtol=5e-2)


def test_with_the_condition_off_the_trunk_is_the_same_for_every_support_set(generator):
    target = build_target("cnn-tiny", num_classes=3)
    plain = generator.without_condition()
    a, b = (plain.generate(make_request(target, make_support(seed=s)))[0] for s in (0, 1))
    assert all(torch.equal(a[name], b[name]) for name in a if not name.startswith("head"))
    assert not torch.equal(a["head.weight"], b["head.weight"])
    on = generator.generate(make_request(target, make_support()))[0]
    assert not torch.equal(on["conv1.weight"], a["conv1.weight"])


def test_delta_is_zero_at_the_start():
    target = build_target("cnn-tiny", num_classes=2, in_channels=3)
    hypernet = new_hypernet(target, TINY_MIP, seed=3)
    initial = target.init_state(3)
    support = make_support(num_classes=2, channels=3)
    trunk = hypernet.make_trunk(support.inputs, support.labels, 2, conditioned=True)
    assert all(torch.equal(tensor, initial[name]) for name, tensor in trunk.items() if name in initial)


def test_embeddings_have_norm_one_and_tell_tasks_apart(generator):
    a, b = (generator.embed(make_support(seed=s, num_classes=k), arch="cnn-tiny") for s, k in ((0, 3), (5, 2)))
    assert float(a.norm()) == pytest.approx(1)
    assert not torch.allclose(a, b)


def test_a_file_holds_everything(generator, tmp_path):
    generator.save(tmp_path / "mip.safetensors")
    loaded = Mip.load(tmp_path / "mip.safetensors")
    assert loaded.archs == generator.archs
    assert [loaded.digest_of(arch) for arch in loaded.archs] == [generator.digest_of(arch) for arch in loaded.archs]
    loaded.save(tmp_path / "again.safetensors")
    assert (tmp_path / "mip.safetensors").read_bytes() == (tmp_path / "again.safetensors").read_bytes()
    request = make_request(build_target("resnet8", num_classes=3), make_support())
    (state,) = loaded.generate(request)
    assert (request.target.run(state, make_support().inputs).argmax(1) == make_support().labels).all()


def test_the_digest_of_one_architecture_does_not_see_the_others(generator):
    before = {arch: generator.digest_of(arch) for arch in generator.archs}
    changed = copy.deepcopy(generator)
    first, *others = changed.archs
    next(changed.hypernets[first].parameters()).data.add_(1)
    assert changed.digest_of(first) != before[first]
    assert [changed.digest_of(arch) for arch in others] == [before[arch] for arch in others]


def test_other_files_are_refused(tmp_path, generator):
    path = tmp_path / "mip.safetensors"
    generator.save(path)
    tensors, manifest = load_file(path), read_manifest(path)
    save_state(path, tensors, manifest={**manifest, "version": 99})
    with pytest.raises(UnsupportedTask, match="version 99 of the format, this weightgen reads 2"):
        Mip.load(path)
    save_state(path, tensors, manifest={**manifest, "method": "other"})
    with pytest.raises(CorruptFile, match="expected a generator file of method 'mip'"):
        Mip.load(path)
    broken = json.loads(json.dumps(manifest))
    broken["archs"]["cnn-tiny"]["config"]["rank"] = 5
    save_state(path, tensors, manifest=broken)
    with pytest.raises(CorruptFile, match="do not fit its own configuration"):
        Mip.load(path)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"num_samples": 2}, "num_samples must be 1, got 2"),
        ({"support": None}, "needs a support set"),
        ({"arch": "mlp"}, "makes weights for cnn-tiny, .*, not for 'mlp'"),
        ({"num_classes": 5}, "the target has 5 classes, the support set 3"),
        ({"channels": 3}, r"takes inputs of shape \[1, 28, 28\], the support set has \[3, 28, 28\]"),
        ({"shots": 51}, "classes of 1 to 50 examples, got 3 classes of up to 51"),
    ],
)
def test_what_cannot_be_honoured_is_refused(generator, options, match):
    support = make_support(shots=options.get("shots", 2), channels=options.get("channels", 1))
    target = build_target(options.get("arch", "cnn-tiny"), num_classes=options.get("num_classes", 3))
    request = make_request(target, None if "support" in options else support, num_samples=options.get("num_samples", 1))
    with pytest.raises(UnsupportedTask, match=match):
        generator.check(request)


def test_text_is_refused_rather_than_ignored(generator):
    request = make_request(build_target("cnn-tiny", num_classes=3), make_support())
    with pytest.raises(UnsupportedTask, match="cannot use a description in words"):
        generator.check(replace(request, condition=replace(request.condition, text="digits")))


def test_sampling_is_refused_rather_than_ignored(generator):
    request = make_request(build_target("cnn-tiny", num_classes=3), make_support())
    with pytest.raises(UnsupportedTask, match="does not take scheduler"):
        generator.check(replace(request, options=D2nwgOptions(steps=5)))


def test_embedding_for_an_unknown_architecture_is_refused(generator):
    with pytest.raises(UnknownName, match="did you mean 'resnet8'"):
        generator.embed(make_support(), arch="resnet9")


@pytest.mark.parametrize("shots", [1, 3, 8])
def test_several_requests_in_one_pass_give_each_the_bytes_that_it_gets_alone(generator, shots):
    target = build_target("cnn-tiny", num_classes=3)
    requests = [make_request(target, make_support(num_classes=3, shots=shots, seed=seed)) for seed in range(4)]
    assert len({generator.group_of(request) for request in requests}) == 1
    alone = [generator.generate(request)[0] for request in requests]
    for chosen in ([0, 1], [3, 0, 2], [0, 1, 2, 3], [2, 2, 1, 0, 3, 1, 1]):
        for i, (state,) in zip(chosen, generator.generate_many([requests[i] for i in chosen]), strict=True):
            assert encode_state(state, manifest={}) == encode_state(alone[i], manifest={})


def test_side_by_side_without_refinement_is_the_same_route_as_forward():
    generator = make_mip("cnn-tiny")
    hypernet: Any = generator.hypernets["cnn-tiny"]
    hypernet.rates.zero_()  # a step is along the sign of what may be a rounding error
    support, target = make_support(num_classes=3, shots=8), build_target("cnn-tiny", num_classes=3)
    expected = hypernet(target.skeleton, support.inputs, support.labels, num_classes=3)
    (state,) = generator.generate(make_request(target, support))
    for name in expected:
        assert torch.allclose(state[name], expected[name], rtol=1e-3, atol=1e-4), name


def test_requests_that_no_pass_can_hold_have_no_group(generator):
    target = build_target("resnet8", num_classes=3)
    assert generator.group_of(make_request(target, make_support())) is None
    other = make_request(build_target("cnn-tiny", num_classes=3), make_support(num_classes=3, shots=2))
    assert generator.group_of(other) != generator.group_of(make_request(other.target, make_support(num_classes=3)))
