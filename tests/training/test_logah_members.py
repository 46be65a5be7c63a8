"""Architectures to learn from, drawn, stored and read back."""

import json

import pytest
import torch

import training.logah.members
from model_zoo.spaces import HELD_OUT, CnnMember, RegisteredMember
from training.logah.members import channels_of, draw_members, graph_of, load_members, save_members
from weightgen.errors import BadOption, CorruptFile, NotFound
from weightgen.graph.arch_graph import build_graph

SPACES = {"cnns": 3, "mlps": 1, "resnets": 1, "small_vits": 1, "small_gpts": 1, "registered": 2}


@pytest.fixture(scope="module")
def members():
    return draw_members(SPACES, classes=(10, 10), max_parameters=400_000, seed=0)


def test_stored_graphs_are_those_of_the_members(tmp_path, members):
    save_members(tmp_path / "members.json", members, {"steps": 3})
    config, loaded = load_members(tmp_path / "members.json")
    assert config == {"steps": 3}
    assert [(m.space, m.member, m.graph.digest) for m in loaded] == [
        (m.space, m.member, m.graph.digest) for m in members
    ]
    assert [m.space for m in loaded] == [space for space, count in SPACES.items() for _ in range(count)]
    cnn = next(m for m in loaded if m.space == "cnns")
    assert cnn.graph.digest == build_graph(cnn.member.build(), torch.zeros(1, 1, 28, 28)).digest


def test_a_graph_that_was_changed_is_refused(tmp_path, members):
    path = tmp_path / "members.json"
    save_members(path, members, {})
    content = json.loads(path.read_text())
    content["members"][0]["edges"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptFile, match="is not the one that was stored"):
        load_members(path)
    with pytest.raises(NotFound, match="run `graphs` before `train`"):
        load_members(tmp_path / "other.json")


def test_held_out_architectures_are_never_drawn(monkeypatch):
    held = HELD_OUT["cnn 32-32-32"]
    others = iter([held, CnnMember((8,)), held, CnnMember((12,)), CnnMember((8,)), CnnMember((16,))])
    monkeypatch.setattr(training.logah.members, "draw_member", lambda space, rng: next(others))
    drawn = draw_members({"cnns": 3}, classes=(10, 10), max_parameters=10**6, seed=0)
    assert [m.member for m in drawn] == [CnnMember((8,)), CnnMember((12,)), CnnMember((16,))]


def test_held_out_architectures_are_refused_at_any_number_of_classes(monkeypatch):
    others = iter([HELD_OUT["resnet8 16"], HELD_OUT["vit 48 x 2"], RegisteredMember("resnet8"), CnnMember((8,))])
    monkeypatch.setattr(training.logah.members, "draw_member", lambda space, rng: next(others))
    (drawn,) = draw_members({"cnns": 1}, classes=(17, 17), channels=(3,), max_parameters=10**6, seed=0)
    assert drawn.member == CnnMember((8,), in_channels=3, num_classes=17)


def test_a_space_that_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(training.logah.members, "draw_member", lambda space, rng: CnnMember((8,)))
    with pytest.raises(BadOption, match="space 'cnns' has fewer than 2 different architectures"):
        draw_members({"cnns": 2}, classes=(10, 10), max_parameters=10**6, seed=0)


def test_members_take_the_classes_and_channels_asked_for():
    spaces = {"cnns": 6, "mlps": 6, "registered": 6}
    drawn = draw_members(spaces, classes=(2, 40), channels=(1, 3), max_parameters=10**6, seed=1)
    heads = {m.graph.spec.by_name["head.weight"].shape[0] for m in drawn}
    assert len(heads) > 5 and heads <= set(range(2, 41))
    assert {channels_of(m.member) for m in drawn} == {1, 3}
    for m in drawn:
        m.member.build()(torch.zeros(2, channels_of(m.member), 28, 28))


def test_the_graph_of_a_registered_architecture_is_that_of_its_target():
    member = RegisteredMember("cnn-w8-d2", in_channels=3, num_classes=4)
    assert graph_of(member).digest == build_graph(member.build(), torch.zeros(1, 3, 28, 28)).digest
