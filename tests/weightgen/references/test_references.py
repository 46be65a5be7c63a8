"""The references of weightgen/generators: default_init, zoo_mean, soup, retrieval, noise; and load_generator."""

import pytest
import torch

from model_zoo.architectures import ARCHITECTURES, build_target
from tests.helpers.standins import embed, make_request, make_support, make_zoo
from tests.helpers.states import assert_states_equal
from weightgen.errors import BadOption, CorruptFile, UnknownName, UnsupportedTask
from weightgen.files.checkpoint import save_state
from weightgen.generators import load_generator
from weightgen.references.default_init import DefaultInit, RandomTrunkRidge
from weightgen.references.noise import Noise
from weightgen.references.retrieval import Retrieval
from weightgen.references.soup import Soup
from weightgen.references.zoo_mean import ZooMean
from weightgen.solve.refit import refit
from weightgen.target.predict import accuracy

OF_A_ZOO = {
    "retrieval": lambda zoo: Retrieval(zoo, embed=embed),
    "soup": lambda zoo: Soup(zoo, embed=embed),
    "zoo_mean": ZooMean,
    "noise": lambda zoo: Noise(zoo, embed=embed),
}
ALL = {
    "default_init": lambda _: DefaultInit(),
    "random_trunk_ridge": lambda _: RandomTrunkRidge(),
    **OF_A_ZOO,
}
DETERMINISTIC = ["retrieval", "soup", "zoo_mean"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_reference_serves_every_architecture_the_same_twice(arch, name):
    target = build_target(arch, num_classes=3)
    reference = ALL[name](make_zoo(target, num_trunks=2))
    assert reference.name == name
    request = make_request(target, make_support())
    reference.check(request)
    (state,) = reference.generate(request)
    target.spec.check(state)
    assert list(state) == list(target.spec.by_name)
    assert_states_equal(state, reference.generate(request)[0])


@pytest.mark.parametrize("name", [*OF_A_ZOO, "random_trunk_ridge"])
def test_a_refitted_reference_knows_the_support_set(name):
    target, support = build_target("cnn-w8-d2", num_classes=3), make_support()
    (state,) = ALL[name](make_zoo(target)).generate(make_request(target, support))
    assert accuracy(target, state, support.inputs, support.labels) == 1.0


@pytest.mark.parametrize("name", ["default_init", "random_trunk_ridge", "noise"])
def test_samples_differ_and_follow_the_seed(name):
    target, support = build_target("cnn-tiny", num_classes=3), make_support()
    reference = ALL[name](make_zoo(target))
    three = reference.generate(make_request(target, support, num_samples=3, seed=5))
    assert len({float(s["conv1.weight"].sum()) for s in three}) == 3
    assert_states_equal(three[0], reference.generate(make_request(target, support, seed=5))[0])
    other = reference.generate(make_request(target, support, seed=6))[0]
    assert not torch.equal(three[0]["conv1.weight"], other["conv1.weight"])


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_references_refuse_more_than_one_sample(name):
    target = build_target("cnn-tiny", num_classes=3)
    request = make_request(target, make_support(), num_samples=2)
    with pytest.raises(UnsupportedTask, match="2 samples are asked for; this generator is deterministic, expected 1"):
        ALL[name](make_zoo(target)).check(request)


@pytest.mark.parametrize("name", [*OF_A_ZOO, "random_trunk_ridge"])
def test_a_request_without_a_fitting_support_set_is_refused(name):
    target = build_target("cnn-tiny", num_classes=3)
    reference = ALL[name](make_zoo(target))
    with pytest.raises(UnsupportedTask, match="no support set"):
        reference.check(make_request(target, None))
    with pytest.raises(UnsupportedTask, match="the target has 3 classes, the support set 4"):
        reference.check(make_request(target, make_support(num_classes=4)))
    with pytest.raises(
        UnsupportedTask, match=r"takes inputs of shape \[1, 28, 28\], the support set has \[3, 28, 28\]"
    ):
        reference.check(make_request(target, make_support(channels=3)))


@pytest.mark.parametrize("name", OF_A_ZOO)
def test_a_zoo_of_another_architecture_is_refused(name):
    zoo = make_zoo(build_target("cnn-tiny", in_channels=3))
    target = build_target("cnn-tiny", num_classes=3)
    with pytest.raises(UnsupportedTask, match=r"'conv1.weight' is \[8, 3, 5, 5\], expected \[8, 1, 5, 5\]"):
        ALL[name](zoo).check(make_request(target, make_support()))


def test_retrieval_takes_the_trunk_of_the_nearest_task():
    target, zoo = build_target("cnn-tiny", num_classes=4), make_zoo(build_target("cnn-tiny"))
    support = make_support(num_classes=4, seed=2)  # the task of the zoo's trunk 2
    reference = Retrieval(zoo, embed=embed)
    assert reference.nearest(make_request(target, support)) == 2
    (state,) = reference.generate(make_request(target, support))
    assert_states_equal(state, refit(target, zoo.trunk(2), support))


def test_a_soup_of_one_is_retrieval_and_of_all_is_the_mean():
    target, support = build_target("cnn-tiny", num_classes=3), make_support()
    zoo, request = make_zoo(target), make_request(target, support)
    one = Soup(zoo, embed=embed, size=1).generate(request)[0]
    assert_states_equal(one, Retrieval(zoo, embed=embed).generate(request)[0])
    everything = Soup(zoo, embed=embed, size=16).generate(request)[0]
    torch.testing.assert_close(everything["conv1.weight"], ZooMean(zoo).generate(request)[0]["conv1.weight"])


def test_noise_is_as_large_as_asked():
    target, support = build_target("mlp", num_classes=3), make_support()
    zoo = make_zoo(target, num_trunks=1)
    (state,) = Noise(zoo, embed=embed, sigma=0.1).generate(make_request(target, support))
    trunk = zoo.trunk(0)["layers.0.weight"]
    moved = (state["layers.0.weight"] - trunk).square().mean().sqrt() / trunk.square().mean().sqrt()
    assert float(moved) == pytest.approx(0.1, rel=0.02)


def test_senseless_sizes_are_refused():
    zoo = make_zoo(build_target("cnn-tiny"))
    with pytest.raises(BadOption, match="sigma is 0"):
        Noise(zoo, embed=embed, sigma=0.0)
    with pytest.raises(BadOption, match="a soup of 0 trunks"):
        Soup(zoo, embed=embed, size=0)


@pytest.mark.parametrize(
    ("manifest", "error", "sentence"),
    [
        ({"format": "weightgen.references"}, CorruptFile, "expected a generator file"),
        ({"format": "weightgen.generator", "version": 99, "method": "mip"}, UnsupportedTask, "version 99"),
        ({"format": "weightgen.generator", "version": 1, "method": "mop"}, UnknownName, "did you mean 'mip'"),
    ],
)
def test_files_that_hold_no_known_generator_are_refused(tmp_path, manifest, error, sentence):
    save_state(tmp_path / "g.safetensors", {"x": torch.zeros(1)}, manifest=manifest)
    with pytest.raises(error, match=sentence):
        load_generator(tmp_path / "g.safetensors")
