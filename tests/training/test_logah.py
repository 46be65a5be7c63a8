"""The recipe of LoGAH on a handful of small architectures: stored graphs, runs that go on, processes that agree."""

import json
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.multiprocessing as multiprocessing

import training.logah.__main__
import training.logah.scores
from model_zoo.spaces import CnnMember, draw_member
from tests.helpers.paths import shared_path
from training.logah.__main__ import graphs, release, train
from training.logah.members import draw_members, save_members
from training.logah.recipe import (
    PRESETS,
    Learner,
    LogahTraining,
    load_sources,
    rate_share,
    released,
    table,
    train_run,
)
from training.logah.tasks import Classes, Sources, Tasks, Texts
from training.loop import LAST, Run, average_gradients
from weightgen.errors import BadOption, NotFound, UnknownName
from weightgen.files.checkpoint import load_state, save_state
from weightgen.generators import load_generator
from weightgen.generators.logah.generator import LogahConfig

SMALL = LogahTraining(
    spaces={"cnns": 3, "mlps": 1, "resnets": 1, "small_vits": 1, "gpts": 1},
    data=("mnist",),
    text=("banking77",),
    model=LogahConfig(rank=4, dim=8, num_layers=1, num_heads=2),
    steps=6,
    batch_size=4,
    texts=4,
    max_parameters=400_000,
)


@pytest.fixture(scope="module")
def members():
    return draw(SMALL)


def draw(config: LogahTraining):
    return draw_members(
        config.spaces,
        classes=config.classes,
        channels=config.channels,
        max_parameters=config.max_parameters,
        seed=config.seed,
    )


@cache
def mnist() -> Sources:
    return Sources(Classes("mnist"), Texts(()))


def learn(config: LogahTraining, members=()) -> Learner:
    return Learner(config, members, load_sources(config) if config.is_head_solved else mnist())


def start(config: LogahTraining, **processes: int) -> Run:
    return Run(learn(config).recipe(), config.loop(), **processes)


@pytest.fixture
def folder(tmp_path, members):
    shared_path("images/mnist.npz")
    shared_path("text/banking77.jsonl.gz")
    save_members(tmp_path / "members.json", members, SMALL.to_json())
    return tmp_path


def test_an_interrupted_run_ends_in_the_same_bits(folder, members):
    whole = train_run(folder)
    other = folder / "other"
    save_members(other / "members.json", members, SMALL.to_json())
    train_run(other, until=2)
    train_run(other, until=3, save_every=1)
    resumed = train_run(other)
    assert whole.steps == resumed.steps == SMALL.steps
    first, second = (load_state(f / "generator.safetensors") for f in (folder, other))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(whole.rng.get_state(), resumed.rng.get_state())


@pytest.mark.slow
def test_a_run_of_other_settings_or_processes_is_not_continued(folder):
    train_run(folder, until=1)
    with pytest.raises(BadOption, match="holds a run with other settings"):
        start(replace(SMALL, learning_rate=1e-2)).load(folder / LAST)
    with pytest.raises(BadOption, match="begun with another number of processes than 2"):
        start(SMALL, world_size=2).load(folder / LAST)


SOLVED = replace(
    SMALL,
    data=("mnist", "bccd_cells"),
    text=(),
    spaces={"registered": 1, "cnns": 1, "small_vits": 1},
    model=replace(SMALL.model, encoding_dim=16),
    is_head_solved=True,
    is_transformed=True,
    classes=(2, 12),
    channels=(1, 3),
    batch_size=24,
)


@pytest.mark.parametrize("config", [SMALL, SOLVED], ids=["predicted", "solved"])
def test_every_parameter_learns_and_the_loss_falls(config):
    shared_path("images/mnist.npz")
    config = replace(config, spaces={"cnns": 2, "small_vits": 2}, steps=40, learning_rate=1e-2, warmup=2, text=())
    config = replace(config, data=("mnist",), is_transformed=False, batch_size=32)
    members = draw(config)
    learner = learn(config, members)
    run, hypernet = Run(learner.recipe(), config.loop()), learner.hypernet
    batch = learner.sources.draw(members[0].member, size=64, texts=1, rng=torch.Generator().manual_seed(5))

    @torch.no_grad()
    def loss() -> float:
        encoding = hypernet.encode(batch.inputs, batch.answers, batch.num_classes)
        predicted = hypernet(members[0].graph, encoding)
        logits, _ = learner.answer(*learner.skeleton(0, predicted), predicted, batch)
        return float(torch.nn.functional.cross_entropy(logits, batch.answers))

    before, first = {name: p.detach().clone() for name, p in run.parameters.items()}, loss()
    for _ in range(config.steps):
        run.advance()
    assert loss() < first
    assert not [name for name, p in run.parameters.items() if torch.equal(p, before[name])]


def test_a_solved_head_asks_nothing_of_the_predicted_one(rng):
    shared_path("images/bccd_cells.npz")
    config = replace(SOLVED, data=("bccd_cells",), spaces={"cnns": 1})
    (member,) = draw(config)
    learner = learn(config, [member])
    hypernet = learner.hypernet
    batch = learner.sources.draw(member.member, size=24, texts=1, rng=rng)
    predicted = hypernet(member.graph, hypernet.encode(batch.inputs, batch.answers, batch.num_classes))
    module, own = learner.skeleton(0, predicted)
    logits, used = learner.answer(module, own, predicted, batch)
    assert logits.shape == (len(batch.answers), batch.num_classes)
    assert predicted.keys() - used.keys() == {"head.weight", "head.bias"}
    logits.sum().backward()
    assert hypernet.of_support.weight.grad is not None and bool(hypernet.of_support.weight.grad.any())


def test_tasks_are_told_except_for_a_share_of_steps(rng):
    shared_path("images/bccd_cells.npz")
    config = replace(SOLVED, data=("bccd_cells",), unconditioned=0.3)
    learner = learn(config)
    assert isinstance(learner.sources.images, Tasks)
    batch = learner.sources.images.draw(3, rng=rng)
    told = [learner.encode(batch, rng=rng) is not None for _ in range(200)]
    assert 110 < sum(told) < 170
    assert learn(replace(config, model=SMALL.model)).encode(batch, rng=rng) is None


def test_the_learning_rate_rises_and_falls_to_nothing():
    config = replace(SMALL, steps=100, warmup=9, learning_rate=1.0)
    settings = config.loop()
    rates = [settings.rate(config.learning_rate, steps=step, progress=step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] and rates[100] == pytest.approx(0)


def test_wide_layers_learn_more_slowly():
    shared_path("images/mnist.npz")
    run = start(replace(SMALL, model=LogahConfig(rank=4, dim=64, num_layers=1), rate_by_fan_in=True))
    shares = {name: rate_share(name, p) for name, p in run.parameters.items()}
    assert shares["decoder.core.weight"] == 1 / 8 and shares["decoder.core.bias"] == 1
    assert shares["encoder.of_op.weight"] == 1 and shares["decoder.trunk.2.weight"] == 1 / 4
    rates = [group.rate for group in run.recipe.groups]
    assert len(run.optimizer.param_groups) == len(rates) == len(set(shares.values()))
    assert set(rates) == {share * SMALL.learning_rate for share in shares.values()}
    assert [group.rate for group in learn(SMALL).groups()] == [SMALL.learning_rate]


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
    shared_path("images/mnist.npz")
    runs = [start(SMALL, rank=rank, world_size=2) for rank in (0, 1)]
    assert not torch.equal(runs[0].rng.get_state(), runs[1].rng.get_state())
    assert all(torch.equal(p, runs[1].parameters[name]) for name, p in runs[0].parameters.items())


@pytest.mark.parametrize("config", [SMALL, SOLVED], ids=["predicted", "solved"])
def test_the_commands_end_in_a_generator_that_loads(tmp_path, monkeypatch, capsys, config):
    for path in ("images/mnist.npz", "images/bccd_cells.npz", "text/banking77.jsonl.gz"):
        shared_path(path)
    monkeypatch.setitem(PRESETS, "table", lambda: replace(config, spaces={"cnns": 2}))
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
    assert len(record["member_digests"]) == 2 and record["data"].keys() == set(config.data)
    assert LogahTraining.from_json(record["config"]) == replace(config, spaces={"cnns": 2}, steps=2)


def test_parameters_that_are_not_predicted_keep_their_own_values(members):
    shared_path("images/mnist.npz")
    cnn = next(m for m in members if m.space == "cnns")
    module, own = learn(SMALL, [cnn]).skeleton(0, {"head.weight": torch.zeros(1)})
    assert set(own) == {name for name, _ in module.named_parameters()} - {"head.weight"}
    assert all(not value.is_meta and value.shape == module.get_parameter(name).shape for name, value in own.items())


def test_a_release_chooses_refinements_and_says_how_it_does(tmp_path, monkeypatch, capsys):
    shared_path("images/bccd_cells.npz")
    monkeypatch.setitem(PRESETS, "release", lambda: replace(SOLVED, data=("bccd_cells",), spaces={"cnns": 1}))
    monkeypatch.setattr(training.logah.__main__, "CHOICE_NETWORKS", ("cnn-tiny",))
    monkeypatch.setattr(training.logah.scores, "NETWORKS", {"cnn-tiny": training.logah.scores.NETWORKS["cnn-tiny"]})
    graphs(out=tmp_path, preset="release", steps=1)
    train(out=tmp_path)
    release(tmp_path, out=tmp_path / "released.safetensors")
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    generator: Any = load_generator(tmp_path / "released.safetensors")
    chosen = training.logah.scores.SCHEDULES[told["chosen"]]
    assert generator.config.refinement_rates == chosen["refinement_rates"]
    assert told["accuracy"][told["chosen"]] == max(told["accuracy"].values())
    scores = generator.training_record["held_out"]["cnn-tiny"]
    assert set(scores) == {"generated", "unrefined", "unconditioned", "random trunk"}
    monkeypatch.setitem(PRESETS, "release", lambda: replace(SOLVED, data=("fashion_mnist",), spaces={"cnns": 1}))
    shared_path("images/fashion_mnist.npz")
    graphs(out=tmp_path / "other", preset="release", steps=1)
    train(out=tmp_path / "other")
    with pytest.raises(BadOption, match="has learnt from an evaluation set"):
        release(tmp_path / "other", out=tmp_path / "never.safetensors")


def test_the_release_learns_from_training_sets_alone_and_the_table_from_one_evaluation_set():
    assert "fashion_mnist" not in released().data and "mnist" in released().data
    assert table().data == ("fashion_mnist",)


def test_the_table_draws_no_deeper_plain_network_than_it_is_told_apart_by(rng):
    for space in ("narrow_cnns", "wide_cnns", "cnns"):
        assert space in table().spaces
        for _ in range(50):
            member = draw_member(space, rng)
            assert isinstance(member, CnnMember) and len(member.widths) <= 5 and max(member.widths) <= 128
