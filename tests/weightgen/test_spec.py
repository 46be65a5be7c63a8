import json
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from model_zoo.architectures import ARCHITECTURES, build_target, make_meta
from weightgen.errors import SpecMismatch, UnknownName
from weightgen.spec import StateSpec, format_axes

ALL = pytest.mark.parametrize("arch", sorted(ARCHITECTURES))


class Holder(nn.Module):
    """A module that is nothing but its tensors."""

    def __init__(self, **tensors: Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def spec_of(axes: dict[str, str], **tensors: Tensor) -> StateSpec:
    return StateSpec.from_module(Holder(**tensors), axes, arch="held")


def words_of(spec: StateSpec, name: str) -> list[list[tuple[str, int]]]:
    return [[(w.name, w.size) for w in axis] for axis in spec.by_name[name].axes]


def test_lowercase_words_are_hidden_and_others_fixed():
    spec = spec_of({"w": "c2 RGB 3 Mixed"}, w=torch.zeros(5, 3, 3, 2))
    assert words_of(spec, "w") == [[("c2", 5)], [("RGB", 3)], [("", 3)], [("Mixed", 2)]]
    assert spec.hidden == {"c2": 5}


def test_sizes_are_found_by_division_from_wherever_they_can():
    spec = spec_of({"a": "(3 h=4 k) d", "b": "d (h k)", "c": "()", "d": ""}, a=torch.zeros(24, 5), b=torch.zeros(5, 8),
                   c=torch.zeros(1), d=torch.tensor(0.0))  # fmt: skip
    assert words_of(spec, "a") == [[("", 3), ("h", 4), ("k", 2)], [("d", 5)]]
    assert words_of(spec, "b") == [[("d", 5)], [("h", 4), ("k", 2)]]
    assert words_of(spec, "c") == [[]] and words_of(spec, "d") == []


def test_sizes_may_come_from_a_later_tensor():
    spec = spec_of({"a": "(p q)", "b": "(q r)", "c": "r"}, a=torch.zeros(6), b=torch.zeros(12), c=torch.zeros(4))
    assert spec.hidden == {"p": 2, "q": 3, "r": 4}


def test_tensors_without_axes_are_fixed_on_every_axis():
    assert words_of(spec_of({}, w=torch.zeros(2, 3)), "w") == [[("", 2)], [("", 3)]]


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"v": "a b"}, r"AXES of 'held' name tensors the module does not have: v"),
        ({"w": "a"}, r"axes of 'w': 'a' has 1 axes, the tensor has shape \[4, 6\]"),
        ({"w": "a b c"}, r"axes of 'w': 'a b c' has 3 axes, the tensor has shape \[4, 6\]"),
        ({"w": "a b!"}, r"axes of 'w': cannot read the word 'b!' in 'a b!'"),
        ({"w": "a b="}, r"axes of 'w': cannot read the word 'b=' in 'a b='"),
        ({"w": "a 5"}, r"axes of 'w': '5' stands for 5, the axis has 6"),
        ({"w": "a b=5"}, r"axes of 'w': 'b' stands for 5, the axis has 6"),
        ({"w": "a a"}, r"axes of 'w': 'a' stands for 4, the axis has 6"),
        ({"w": "a (b 4)"}, r"axes of 'w': 'b 4' stands for 4, the axis has 6"),
        ({"w": "a (b c)"}, r"axes of 'w': write a size \(name=size\) for one of \['b', 'c'\]"),
        ({"w": "a (b b)"}, r"axes of 'w': write a size \(name=size\) for one of \['b', 'b'\]"),
        ({"w": "a (b"}, r"axes of 'w': the parentheses of 'a \(b' do not match, or are nested"),
        ({"w": "a b)"}, r"axes of 'w': the parentheses of 'a b\)' do not match, or are nested"),
        ({"w": "a ((2 3))"}, r"axes of 'w': the parentheses of 'a \(\(2 3\)\)' do not match, or are nested"),
    ],
)
def test_axes_that_cannot_be_right_are_refused(axes, message):
    with pytest.raises(SpecMismatch, match=message):
        spec_of(axes, w=torch.zeros(4, 6))


def test_integers_are_carried_and_not_generated():
    spec = spec_of({}, i=torch.tensor([[3, -1]]), b=torch.tensor([True]), w=torch.ones(2))
    assert spec.by_name["i"].carried == (3, -1)
    assert [t.name for t in spec.generated] == ["w"]
    assert spec.num_parameters == 2
    full = spec.complete({"w": torch.zeros(2)})
    assert torch.equal(full["i"], torch.tensor([[3, -1]])) and full["b"].dtype == torch.bool


@pytest.mark.parametrize("tensor", [torch.zeros(2, dtype=torch.complex64), torch.zeros(2, device="meta").long()])
def test_values_that_cannot_be_carried_are_refused(tensor):
    with pytest.raises(SpecMismatch, match=r"'x' is .* its values cannot be carried; expected an integer or boolean"):
        spec_of({}, x=tensor)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.inner, self.out = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inner(self.embed(x)))


TIED_AXES = {"embed.weight": "WORDS d", "inner.weight": "d d", "inner.bias": "d", "out.weight": "WORDS d"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_ties_are_found_and_restored(device):
    with torch.device(device):
        spec = StateSpec.from_module(Tied(), TIED_AXES, arch="tied")
    assert {t.name: t.tied_to for t in spec.tensors if t.tied_to} == {"out.weight": "embed.weight"}
    full = spec.complete({t.name: torch.randn(t.shape) for t in spec.generated})
    spec.check(full)
    assert full["out.weight"] is full["embed.weight"]


def test_permute_keeps_ties_and_the_function():
    module = Tied()
    spec = StateSpec.from_module(module, TIED_AXES, arch="tied")
    moved = spec.permute(dict(module.state_dict()), {"d": torch.tensor([2, 0, 3, 1])})
    assert moved["out.weight"] is moved["embed.weight"]
    x = torch.arange(9)
    torch.testing.assert_close(torch.func.functional_call(module, moved, (x,)), module(x))


def test_permute_means_new_unit_i_is_old_unit_p_i():
    spec = spec_of({"a": "(2 u)", "b": "u"}, a=torch.arange(6.0), b=torch.arange(3.0))
    state = {"a": torch.arange(6.0), "b": torch.arange(3.0)}
    moved = spec.permute(state, {"u": torch.tensor([2, 0, 1])})
    assert moved["b"].tolist() == [2, 0, 1]
    assert moved["a"].tolist() == [2, 0, 1, 5, 3, 4]


def test_permute_refuses_what_is_no_order():
    spec = spec_of({"a": "units"}, a=torch.zeros(3))
    state = {"a": torch.zeros(3)}
    with pytest.raises(UnknownName, match="no axis of 'held' is called 'unit'; did you mean 'units'"):
        spec.permute(state, {"unit": torch.arange(3)})
    for order in ([0, 1], [0, 0, 1], [1, 2, 3]):
        with pytest.raises(SpecMismatch, match="the permutation of 'units' is not an order of its 3 units"):
            spec.permute(state, {"units": torch.tensor(order)})


@ALL
def test_permutations_compose_and_invert(arch):
    spec = build_target(arch).spec
    state = build_target(arch).init_state(0)
    rng = torch.Generator().manual_seed(0)
    first, second = (
        {word: torch.randperm(n, generator=rng) for word, n in spec.hidden.items()} for _ in range(2)
    )  # new = old[first][second] = old[first[second]]
    twice = spec.permute(spec.permute(state, first), second)
    once = spec.permute(state, {word: first[word][second[word]] for word in first})
    assert all(torch.equal(twice[name], once[name]) for name in state)
    back = spec.permute(spec.permute(state, first), {word: order.argsort() for word, order in first.items()})
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_check_names_every_fault_in_one_sentence():
    spec = build_target("cnn-tiny").spec
    state = build_target("cnn-tiny").init_state(0)
    spec.check(state)
    spec.check(dict(reversed(state.items())))  # a dict's order means nothing
    del state["conv1.bias"]
    state |= {"extra": torch.zeros(1), "fc.bias": torch.zeros(3), "head.bias": torch.zeros(10).double()}
    with pytest.raises(SpecMismatch) as fault:
        spec.check(state)
    assert str(fault.value) == (
        "the state does not fit 'cnn-tiny': missing 'conv1.bias'; unexpected 'extra'; "
        "'fc.bias' is float32 [3], expected float32 [20]; 'head.bias' is float64 [10], expected float32 [10]"
    )


def test_check_keeps_long_lists_short():
    spec = build_target("resnet20").spec
    with pytest.raises(SpecMismatch, match=r"missing 'conv\.weight', .* and \d+ more$"):
        spec.check({})
    tiny = build_target("cnn-tiny").spec
    with pytest.raises(SpecMismatch, match="and 7 more wrong tensors"):
        tiny.check({t.name: torch.zeros(1, 1, 1, 1, 1) for t in tiny.tensors})


def test_complete_names_what_is_missing():
    with pytest.raises(
        SpecMismatch, match=r"the state does not fit 'cnn-tiny': missing 'conv1\.weight', 'conv1\.bias'"
    ):
        build_target("cnn-tiny").spec.complete({})


@ALL
def test_complete_restores_a_full_state_in_the_specs_order(arch):
    target = build_target(arch)
    state = target.init_state(0)
    generated = {t.name: state[t.name] for t in reversed(target.spec.generated)}
    full = target.spec.complete(generated)
    assert list(full) == list(state) == [t.name for t in target.spec.tensors]
    assert all(torch.equal(full[name], state[name]) for name in state)
    target.load(full)


@ALL
@pytest.mark.parametrize("in_channels", [1, 3])
def test_json_round_trip(arch, in_channels):
    spec = build_target(arch, in_channels=in_channels, num_classes=6).spec
    back = StateSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert back == spec and back.digest() == spec.digest() and hash(back) == hash(spec)


def test_json_round_trip_with_ties_and_carried_tensors():
    tied = StateSpec.from_module(Tied(), TIED_AXES, arch="tied", config={"width": 4})
    carried = spec_of({"w": "(2 u=3) () X"}, w=torch.zeros(6, 1, 2), i=torch.tensor([5, 6]), s=torch.tensor(True))
    for spec in (tied, carried):
        assert StateSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.]{0,5}", fullmatch=True)


@given(
    st.lists(
        st.lists(st.one_of(st.integers(1, 4), st.tuples(NAMES, st.integers(1, 4))), max_size=3), max_size=4
    )  # axes of words: a number, or a name and a size
)
def test_notation_round_trip(axes):
    sizes: dict[str, int] = {}
    notation, shape = [], []
    for axis in axes:
        words = [
            (str(w), w) if isinstance(w, int) else (f"{w[0]}={sizes.setdefault(w[0], w[1])}", sizes[w[0]]) for w in axis
        ]
        notation.append("(" + " ".join(text for text, _ in words) + ")")
        shape.append(torch.Size(n for _, n in words).numel())
    first = spec_of({"w": " ".join(notation)}, w=torch.zeros(shape))
    again = spec_of({"w": format_axes(first.by_name["w"].axes)}, w=torch.zeros(shape))
    assert first == again
    assert tuple(torch.Size(w.size for w in axis).numel() for axis in first.by_name["w"].axes) == tuple(shape)


@ALL
def test_the_spec_does_not_depend_on_the_device_it_was_read_from(arch):
    target = build_target(arch)
    module = make_meta(target.make)
    spec = StateSpec.from_module(module, module.AXES, arch=arch, config=target.spec.config)  # pyright: ignore
    assert spec == target.spec


DIGESTS = (
    "from model_zoo.architectures import *; print(*[build_target(a).spec.digest() for a in sorted(ARCHITECTURES)])"
)


def test_digests_are_the_same_in_every_process():
    here = [build_target(arch).spec.digest() for arch in sorted(ARCHITECTURES)]
    assert len(set(here)) == len(here)
    there = subprocess.run(
        [sys.executable, "-c", DIGESTS], env=os.environ | {"PYTHONHASHSEED": "7"}, capture_output=True, check=True
    )
    assert there.stdout.decode().split() == here


def test_the_digest_sees_everything():
    def digest(axes: str = "a B", *, arch: str = "held", config: dict | None = None, t: Tensor | None = None) -> str:
        holder = Holder(w=torch.zeros(2, 3), i=torch.tensor(1) if t is None else t)
        return StateSpec.from_module(holder, {"w": axes}, arch=arch, config=config).digest()

    variants = [digest(), digest("a b"), digest("A B"), digest("a 3"), digest(arch="other"), digest(config={"k": 1}),
                digest(t=torch.tensor(2)), digest(t=torch.tensor([1])), digest(t=torch.tensor(1.0))]  # fmt: skip
    assert len(set(variants)) == len(variants)


def test_head_and_counts():
    spec = build_target("cnn", num_classes=5).spec
    assert spec.head == ("head.weight", "head.bias")
    assert spec.hidden == {"c1": 32, "c2": 64, "c3": 64, "c4": 64}
    assert spec.num_parameters == sum(t.numel for t in spec.tensors if "num_batches" not in t.name)
