import pytest
import torch

from model_zoo.architectures import ARCHITECTURES, build_target
from tests.helpers.standins import StandIn, make_request, make_support
from weightgen.delivery.classifier import check_state, hold_back
from weightgen.delivery.gate import generate_verified
from weightgen.errors import VerificationFailed
from weightgen.files.storage import write_json
from weightgen.references.default_init import DefaultInit, RandomTrunkRidge


class Broken(StandIn):
    """A stand-in whose states go through `damage` before they are returned."""

    name = "broken"

    def __init__(self, damage):
        super().__init__()
        self.damage = damage

    def generate(self, request):
        return [self.damage(state) for state in super().generate(request)]


def rename_classes(state):
    return {n: t.roll(1, 0) if n.startswith("head") else t for n, t in state.items()}


def zero_head(state):
    return {n: torch.zeros_like(t) if n == "head.weight" else t for n, t in state.items()}


def put_nan(state):
    return {n: torch.full_like(t, float("nan")) if n == "layers.0.bias" else t for n, t in state.items()}


def drop_tensor(state):
    return {n: t for n, t in state.items() if n != "layers.1.bias"}


DAMAGES = {
    rename_classes: "on 3 held-back support examples 'random_trunk_ridge' got .* right, 'broken' 0.0%",
    zero_head: "the logits are the same for every input",
    put_nan: "'layers.0.bias' holds NaN or infinite values",
    drop_tensor: "missing 'layers.1.bias'",
}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_working_weights_pass(arch, tmp_path):
    target = build_target(arch, num_classes=3)
    request = make_request(target, make_support(shots=10))
    (weights,) = generate_verified(StandIn(), request, references=[DefaultInit()])
    assert (weights.source, weights.is_fallback) == ("stand-in", False)
    assert weights.report["passed"]
    assert weights.report["loads"]
    assert weights.report["finite"]
    assert weights.report["has_effect"]
    assert weights.report["held_back"]["examples"] == 6
    write_json(tmp_path / "report.json", weights.report)  # JSON values only


@pytest.mark.parametrize("damage", DAMAGES)
def test_broken_weights_are_replaced_by_a_reference_or_refused(damage):
    target = build_target("mlp", num_classes=3)
    request = make_request(target, make_support(shots=9))
    (weights,) = generate_verified(Broken(damage), request)
    assert (weights.source, weights.is_fallback, weights.report["passed"]) == ("random_trunk_ridge", True, False)
    target.spec.check(weights.state)
    expected = RandomTrunkRidge().generate(request)[0]  # made from the whole support set
    assert all(torch.equal(weights.state[n], expected[n]) for n in expected)
    with pytest.raises(VerificationFailed, match="did not pass the gate: .*" + DAMAGES[damage]):
        generate_verified(Broken(damage), request, fallback=False)


def test_without_any_reference_broken_weights_are_refused():
    request = make_request(build_target("cnn-tiny", num_classes=3), make_support())
    with pytest.raises(VerificationFailed, match="the same for every input"):
        generate_verified(Broken(zero_head), request, references=[])


def test_one_shot_support_sets_cannot_hold_back_and_the_report_says_so():
    request = make_request(build_target("cnn-tiny", num_classes=3), make_support(shots=1))
    (weights,) = generate_verified(StandIn(), request)
    assert weights.report["held_back"] == {
        "examples": 0,
        "reason": "no class has two support examples, so none could be held back",
    }
    assert weights.source == "stand-in"


def test_equally_good_references_do_not_win():
    request = make_request(build_target("cnn-w8-d2", num_classes=3), make_support(shots=10))
    (weights,) = generate_verified(StandIn(), request, references=[RandomTrunkRidge()])
    assert weights.report["held_back"]["references"] == {"random_trunk_ridge": 1.0}
    assert weights.source == "stand-in"


class Fixed:
    """A reference whose answers are those of a stand-in, with the logits in another order."""

    def __init__(self, name, order):
        self.name, self.order = name, order

    def check(self, request):
        pass

    def generate(self, request):
        (state,) = StandIn().generate(request)
        return [{n: t[self.order] if n.startswith("head") else t for n, t in state.items()}]


def test_one_example_alone_never_decides():
    """Four classes, one held-back example each; the generated weights get one wrong, then two."""
    request = make_request(build_target("cnn-w8-d2", num_classes=4), make_support(num_classes=4, shots=5))
    confused, good = Fixed("confused", [0, 1, 2, 2]), Fixed("good", [0, 1, 2, 3])
    (weights,) = generate_verified(confused, request, references=[good])
    assert weights.report["held_back"]["generated"] == 0.75
    assert weights.report["held_back"]["references"] == {"good": 1.0}
    assert weights.source == "confused"
    (weights,) = generate_verified(Fixed("worse", [0, 1, 1, 0]), request, references=[confused, good])
    assert weights.source == "good"


def test_every_sample_goes_through_the_gate():
    request = make_request(build_target("mlp", num_classes=3), make_support(), num_samples=3)
    assert [w.source for w in generate_verified(StandIn(), request)] == ["stand-in"] * 3


@pytest.mark.parametrize(("shots", "expected"), [(2, 1), (4, 1), (5, 1), (9, 1), (10, 2), (50, 10)])
def test_one_in_five_of_each_class_is_held_back(shots, expected):
    support = make_support(shots=shots)
    parts = hold_back(support, rng=torch.Generator().manual_seed(0))
    assert parts is not None
    kept, inputs, labels = parts
    assert kept.shots == [shots - expected] * 3
    assert torch.bincount(labels).tolist() == [expected] * 3
    rows = {tuple(x.flatten().tolist()) for x in torch.cat([kept.inputs, inputs])}
    assert rows == {tuple(x.flatten().tolist()) for x in support.inputs}


def test_default_initialisation_has_no_effect():
    target = build_target("cnn-tiny", num_classes=3)
    checks = check_state(target, target.init_state(0), inputs=make_support().inputs)
    assert checks.found == {"loads": True, "finite": True, "has_effect": False}
    assert checks.faults == ("the logits are those of the default initialisation",)
