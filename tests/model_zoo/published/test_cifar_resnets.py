import pytest
import torch

from model_zoo.data.npz import ARRAYS, read_arrays
from model_zoo.published.cifar_resnets import count_blocks, load_published, load_resnets, resnet_target, restack
from tests.helpers.paths import shared_path
from weightgen.errors import BadOption, NotFound
from weightgen.target.predict import accuracy
from weightgen.target.trunk import take_trunk


def test_a_published_network_classifies_as_its_publisher_says():
    shared_path("checkpoints/resnet32_cifar10.safetensors")
    arrays = read_arrays(shared_path("images/cifar10.npz"), ARRAYS, image_size=None, max_bytes=2**28, label="cifar10")
    state, about = load_published(32)
    target = resnet_target(32, image_size=32)
    target.spec.check(state)
    images = torch.from_numpy(arrays["x_test"][:200]).permute(0, 3, 1, 2).float() / 255
    reached = accuracy(target, state, images, torch.from_numpy(arrays["y_test"][:200]).long())
    assert about["licence"] == "BSD-2-Clause" and abs(reached - about["test_accuracy"]) < 0.05


def test_restacking_to_the_same_depth_changes_nothing():
    target = resnet_target(14)
    trunk = take_trunk(target.init_state(0), target.spec)
    restacked = restack(trunk, target)
    assert restacked.keys() == trunk.keys()
    assert all(torch.equal(restacked[name], trunk[name]) for name in trunk)


@pytest.mark.parametrize(("depth", "other"), [(20, 32), (32, 20), (20, 56), (14, 20)])
def test_restacking_keeps_the_first_and_the_last_block_of_every_stage(depth, other):
    target, wanted = resnet_target(depth), resnet_target(other)
    trunk = take_trunk(target.init_state(0), target.spec)
    restacked = restack(trunk, wanted)
    assert set(restacked) == {t.name for t in wanted.spec.generated} - set(wanted.spec.head)
    assert all(restacked[name].shape == wanted.spec.by_name[name].shape for name in restacked)
    for stage in range(3):
        for place in (0, -1):
            have, want = (stage * count_blocks(d) + place % count_blocks(d) for d in (depth, other))
            assert torch.equal(restacked[f"blocks.{want}.conv2.weight"], trunk[f"blocks.{have}.conv2.weight"])


@pytest.mark.parametrize("depth", [7, 21, 2])
def test_depths_that_no_resnet_of_cifar_has_are_refused(depth):
    with pytest.raises(BadOption, match=f"a ResNet of depth {depth}, expected 8, 14, 20 and so on"):
        resnet_target(depth)


def test_what_is_not_there_is_named(tmp_path, monkeypatch):
    with pytest.raises(BadOption, match="no ResNet-20 was published, only 32, 44, 56"):
        load_published(20)
    monkeypatch.setenv("WEIGHTGEN_SHARED", str(tmp_path))
    with pytest.raises(NotFound, match="the published ResNet-32 is not there; set WEIGHTGEN_SHARED"):
        load_published(32)
    with pytest.raises(NotFound, match="no run of a ResNet-20; build it with"):
        load_resnets(tmp_path)
