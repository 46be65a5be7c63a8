"""The recipe of LoGAH on a handful of small architectures: stored graphs, runs that go on, processes that agree."""

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing

import training.logah
from model_zoo.spaces import HELD_OUT, CnnMember, draw_member
from tests.shared import shared_path
from training.logah import (
    PRESETS,
    Batches,
    LogahTraining,
    Run,
    average_gradients,
    draw_members,
    graphs,
    learning_rate,
    load_members,
    rate_share,
    save_members,
    table,
    train,
    train_run,
)
from weightgen.checkpoint import load_state, save_state
from weightgen.errors import BadOption, CorruptFile, NotFound, UnknownName
from weightgen.generators import load_generator
from weightgen.generators.graph_hypernet import LogahConfig
from weightgen.graph import build_graph

SMALL = LogahTraining(
    spaces={"cnns": 3, "mlps": 1, "resnets": 1, "small_vits": 1, "gpts": 1},
    data="mnist",
    text="banking77",
    model=LogahConfig(rank=4, dim=8, num_layers=1, num_heads=2),
    steps=6,
    batch_size=4,
    max_parameters=400_000,
)


@pytest.fixture(scope="module")
def members():
    return draw_members(SMALL, num_classes=10)


@pytest.fixture
def folder(tmp_path, members):
    shared_path("images/mnist.npz")
    shared_path("text/banking77.jsonl.gz")
    save_members(tmp_path / "members.json", members, SMALL)
    return tmp_path


def test_stored_graphs_are_those_of_the_members(folder, members):
    config, loaded = load_members(folder / "members.json")
    assert config == SMALL
    assert [(m.space, m.member, m.graph.digest) for m in loaded] == [
        (m.space, m.member, m.graph.digest) for m in members
    ]
    cnn = next(m for m in loaded if m.space == "cnns")
    assert cnn.graph.digest == build_graph(cnn.member.build(), torch.zeros(1, 1, 28, 28)).digest
    run = Run(SMALL)
    fresh = run.hypernet(build_graph(cnn.member.build(), torch.zeros(1, 1, 28, 28)))
    for name, tensor in run.hypernet(cnn.graph).items():
        assert torch.equal(tensor, fresh[name])


def test_a_graph_that_was_changed_is_refused(folder):
    path = folder / "members.json"
    content = json.loads(path.read_text())
    content["members"][0]["edges"].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(CorruptFile, match="is not the one that was stored"):
        load_members(path)


def test_held_out_architectures_are_never_drawn(monkeypatch):
    held = HELD_OUT["cnn 32-32-32"]
    others = iter([held, CnnMember((8,)), held, CnnMember((12,)), CnnMember((8,)), CnnMember((16,))])
    monkeypatch.setattr(training.logah, "draw_member", lambda space, rng: next(others))
    drawn = draw_members(replace(SMALL, spaces={"cnns": 3}), num_classes=10)
    assert [m.member for m in drawn] == [CnnMember((8,)), CnnMember((12,)), CnnMember((16,))]


def test_a_space_that_is_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(training.logah, "draw_member", lambda space, rng: CnnMember((8,)))
    with pytest.raises(BadOption, match="space 'cnns' has fewer than 2 different architectures"):
        draw_members(replace(SMALL, spaces={"cnns": 2}), num_classes=10)


def test_members_of_every_space_are_drawn_at_the_data_sets_classes(members):
    assert [m.space for m in members] == ["cnns"] * 3 + ["mlps", "resnets", "small_vits", "gpts"]
    (other,) = draw_members(replace(SMALL, spaces={"cnns": 1}), num_classes=3)
    assert other.graph.spec.by_name["head.weight"].shape[0] == 3


def test_an_interrupted_run_ends_in_the_same_bits(folder, members):
    whole = train_run(folder)
    other = folder / "other"
    save_members(other / "members.json", members, SMALL)
    train_run(other, until=2)
    train_run(other, until=3, save_every=1)
    resumed = train_run(other)
    assert whole.step == resumed.step == SMALL.steps
    first, second = (load_state(f / "generator.safetensors") for f in (folder, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(whole.rng.get_state(), resumed.rng.get_state())


def test_a_run_of_other_settings_or_processes_is_not_continued(folder):
    train_run(folder, until=1)
    with pytest.raises(BadOption, match="begun with other settings"):
        Run(replace(SMALL, learning_rate=1e-2)).load(folder / "run.safetensors")
    with pytest.raises(BadOption, match="begun with another number of processes than 2"):
        Run(SMALL, world_size=2).load(folder / "run.safetensors")


def test_every_parameter_learns_and_the_loss_falls(members):
    shared_path("images/mnist.npz")
    config = replace(SMALL, steps=40, learning_rate=1e-2, warmup=2, batch_size=32, text=None)
    run, batches = Run(config), Batches(config)
    before = {name: p.detach().clone() for name, p in run.parameters.items()}
    cnns = [m for m in members if m.space in ("cnns", "small_vits")]
    losses = []
    for _ in range(40):
        run.advance(cnns, batches)
        losses.append(run.running["cnns loss"])
    assert losses[-1] < losses[0]
    assert not [name for name, p in run.parameters.items() if torch.equal(p, before[name])]


def test_a_language_model_without_texts_is_refused(members):
    shared_path("images/mnist.npz")
    config = replace(SMALL, text=None)
    with pytest.raises(BadOption, match="language models need texts"):
        Run(config).advance([m for m in members if m.space == "gpts"], Batches(config))


def test_the_learning_rate_rises_and_falls_to_nothing():
    config = replace(SMALL, steps=100, warmup=9, learning_rate=1.0)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] and rates[100] == pytest.approx(0)


def test_wide_layers_learn_more_slowly():
    run = Run(replace(SMALL, model=LogahConfig(rank=4, dim=64, num_layers=1), rate_by_fan_in=True))
    shares = {name: rate_share(name, p) for name, p in run.parameters.items()}
    assert shares["decoder.core.weight"] == 1 / 8 and shares["decoder.core.bias"] == 1
    assert shares["encoder.of_op.weight"] == 1 and shares["decoder.trunk.2.weight"] == 1 / 4
    assert len(run.optimizer.param_groups) == len(run.shares) == len(set(shares.values()))
    assert Run(SMALL).shares == [1.0]


def _average(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    parameters = [torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(1, 3))]
    for i, parameter in enumerate(parameters):
        parameter.grad = torch.full_like(parameter, float(i + 10 * rank))
    average_gradients(parameters, 2)
    save_state(f"{folder}/{rank}.safetensors", {str(i): p.grad for i, p in enumerate(parameters) if p.grad is not None})
    torch.distributed.destroy_process_group()


def test_two_processes_follow_the_mean_of_their_gradients(tmp_path):
    multiprocessing.spawn(_average, (str(tmp_path),), nprocs=2)  # pyright: ignore[reportPrivateImportUsage]
    for rank in (0, 1):
        found = load_state(tmp_path / f"{rank}.safetensors")
        assert torch.equal(found["0"], torch.full((2,), 5.0)) and torch.equal(found["1"], torch.full((1, 3), 6.0))


def test_processes_draw_differently_and_begin_alike():
    runs = [Run(SMALL, rank=rank, world_size=2) for rank in (0, 1)]
    assert not torch.equal(runs[0].rng.get_state(), runs[1].rng.get_state())
    assert all(torch.equal(p, runs[1].parameters[name]) for name, p in runs[0].parameters.items())


def test_the_commands_end_in_a_generator_that_loads(tmp_path, monkeypatch, capsys):
    shared_path("images/mnist.npz")
    shared_path("text/banking77.jsonl.gz")
    monkeypatch.setitem(PRESETS, "table", lambda: replace(SMALL, spaces={"cnns": 2}))
    with pytest.raises(UnknownName, match="preset"):
        graphs(out=tmp_path, preset="tabel")
    with pytest.raises(NotFound, match="run `graphs` before `train`"):
        train(out=tmp_path)
    graphs(out=tmp_path, preset="table", steps=2)
    train(out=tmp_path)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["step"] == 2
    generator: Any = load_generator(tmp_path / "generator.safetensors")
    record = generator.training_record
    assert record["steps"] == 2 and record["members"] == {"cnns": 2} and not record["for_evaluation_only"]


def test_parameters_that_are_not_predicted_keep_their_own_values(members):
    shared_path("images/mnist.npz")
    run = Run(SMALL)
    cnn = next(m for m in members if m.space == "cnns")
    module, own = run._skeleton(0, cnn.member, {"head.weight": torch.zeros(1)})
    assert set(own) == {name for name, _ in module.named_parameters()} - {"head.weight"}
    assert all(not value.is_meta and value.shape == module.get_parameter(name).shape for name, value in own.items())


def test_the_table_draws_nothing_as_wide_or_deep_as_what_it_is_told_apart_by(rng):
    assert table().data == "fashion_mnist" and "narrow_cnns" in table().spaces
    for _ in range(50):
        member = draw_member("narrow_cnns", rng)
        assert isinstance(member, CnnMember) and len(member.widths) <= 5 and max(member.widths) <= 64
