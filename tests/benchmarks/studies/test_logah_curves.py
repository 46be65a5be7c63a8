"""The curves of LoGAH on tiny networks: what is trained and scored, what is kept, what is compared, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from benchmarks.studies.logah_curves import (
    COLOURS,
    COURSES,
    Course,
    ImageTask,
    TextTask,
    begin_arm,
    choose_rate,
    compare,
    draw_curves,
    fill_curves,
    load_task,
    main,
    train_and_score,
)
from benchmarks.studies.logah_table import read_generator
from model_zoo.spaces import GptMember, ViTMember
from tests.helpers.paths import shared_path
from weightgen.errors import BadOption, NotFound
from weightgen.files.storage import read_json, write_json
from weightgen.generators.logah.generator import LogahConfig, new_logah
from weightgen.labelled_data import LabelledData

TINY = {"steps": (0, 1, 2), "batch_size": 4, "learning_rates": (1e-3, 1e-2), "warmup": 1, "per_class": 3}
VIT = Course(ViTMember(8, 1, 2, patch=7, in_channels=3, num_classes=2), "cifar10", **TINY)
GPT = Course(GptMember(8, 1, 2, context=8), "ag_news", **TINY)


@pytest.fixture
def generator(tmp_path):
    hypernet = new_logah(LogahConfig(rank=4, dim=8, num_layers=1, num_heads=2), seed=0)
    hypernet.save(tmp_path / "generator.safetensors")
    return read_generator(tmp_path / "generator.safetensors")


@pytest.fixture
def images(rng):
    y = torch.arange(60) % 2
    x = 0.1 * torch.rand(60, 3, 28, 28, generator=rng) + 0.9 * y[:, None, None, None]
    return ImageTask(LabelledData("dark and light", x[:40], y[:40], x[40:], y[40:], ("dark", "light")))


@pytest.fixture
def texts():
    alternating = torch.tensor([97, 98] * 200)
    return TextTask(alternating, alternating[:100], 8)


@pytest.fixture
def loaded(monkeypatch, images, texts):
    """No data is loaded from the shared folder; counts how often any is asked for."""
    calls = []

    def load(course):
        calls.append(course.data)
        return texts if course is GPT else images

    monkeypatch.setattr("benchmarks.studies.logah_curves.load_task", load)
    return calls


def test_every_arm_of_every_network_is_trained_and_kept(generator, loaded, tmp_path):
    path = tmp_path / "curves.json"
    curves = fill_curves(path, {"v": VIT, "g": GPT}, list(COLOURS), generator=generator, seeds=2)
    assert read_json(path) == curves
    assert sorted(curves["networks"]["v"]["arms"]) == sorted(VIT.arms) == sorted(set(COLOURS) - {"normal 0.02"})
    assert sorted(curves["networks"]["g"]["arms"]) == ["default", "normal 0.02", "orthogonal", "predicted"]
    for row in curves["networks"].values():
        for arm in row["arms"].values():
            assert len(arm["score"]) == len(arm["sd"]) == 3 and arm["seeds"] == 2
            assert list(arm["choice"]) == ["0.001", "0.01"] and arm["learning_rate"] in (1e-3, 1e-2)
        assert row["arms"]["predicted"]["sd"][0] == 0  # predicted weights know no seed
        assert set(row["comparisons"]["predicted"]) == set(row["arms"]) - {"predicted", "generated"}


def test_arms_that_are_there_are_not_trained_again(generator, loaded, tmp_path):
    path = tmp_path / "curves.json"
    first = fill_curves(path, {"g": GPT}, ["default", "predicted"], generator=generator, seeds=1)
    assert loaded == ["ag_news"]
    assert fill_curves(path, {"g": GPT}, ["default", "predicted"], generator=generator, seeds=1) == first
    assert loaded == ["ag_news"]
    fill_curves(path, {"g": GPT}, ["default"], generator=None, seeds=2)
    assert loaded == ["ag_news"] * 2  # another number of seeds is another curve


def test_runs_side_by_side_keep_each_others_arms(texts, monkeypatch, tmp_path):
    path = tmp_path / "curves.json"

    def load_while_another_run_ends(course):
        found = read_json(path)
        found["networks"]["g"]["arms"]["orthogonal"] = {"score": [9, 8, 7], "sd": [0, 0, 0], "seeds": 1}
        write_json(path, found)
        return texts

    monkeypatch.setattr("benchmarks.studies.logah_curves.load_task", load_while_another_run_ends)
    fill_curves(path, {"g": GPT}, ["default"], generator=None, seeds=1)
    assert set(read_json(path)["networks"]["g"]["arms"]) == {"default", "orthogonal"}


def test_predicted_arms_of_another_generator_go_and_so_does_what_was_compared(generator, loaded, tmp_path):
    path = tmp_path / "curves.json"
    fill_curves(path, {"v": VIT}, ["default", "predicted"], generator=generator, seeds=1)
    other = generator[0], {**generator[1], "sha256": "another"}
    row = fill_curves(path, {}, [], generator=other, seeds=1)["networks"]["v"]
    assert set(row["arms"]) == {"default"} and row["comparisons"] == {}
    row = fill_curves(path, {"v": replace(VIT, warmup=2)}, [], generator=None, seeds=1)["networks"]["v"]
    assert row["arms"] == {} and row["settings"]["warmup"] == 2


def test_arms_begin_as_they_say(generator, images):
    begun = {arm: begin_arm(VIT, arm, images, generator[0], seed=0) for arm in VIT.arms}
    states = {arm: module.state_dict() for arm, module in begun.items()}
    again = {arm: begin_arm(VIT, arm, images, generator[0], seed=0).state_dict() for arm in VIT.arms}
    assert all(torch.equal(states[arm][n], again[arm][n]) for arm in VIT.arms for n in states[arm])
    for arm, solved in (("predicted", "generated"), ("default", "default, support head")):
        for name, tensor in states[arm].items():
            is_solved = not torch.allclose(tensor, states[solved][name], atol=1e-6)
            assert is_solved == name.startswith("head."), (arm, name)  # the generator here refines nothing
        assert images.score(begun[solved].eval()) == 100
    flat = states["orthogonal"]["blocks.0.fc2.weight"]
    assert torch.allclose(flat @ flat.T, torch.eye(8), atol=1e-5)


def test_gpts_own_beginning_is_small_and_keeps_head_and_embedding_one(texts):
    module = begin_arm(GPT, "normal 0.02", texts, None, seed=0)
    assert module.get_parameter("embedding.weight") is module.get_parameter("head.weight")
    assert 0.015 < float(module.get_parameter("embedding.weight").detach().std()) < 0.025
    assert not module.get_parameter("blocks.0.fc1.bias").detach().any()
    assert texts.score(module.eval()) == pytest.approx(8, abs=0.2)


def test_training_learns_images_and_texts(images, texts):
    vit, gpt = (replace(course, steps=(0, 60), batch_size=16) for course in (VIT, GPT))
    learnt = train_and_score(begin_arm(vit, "default", images, None, seed=0), images, vit, 1e-2, seed=1)
    assert learnt == train_and_score(begin_arm(vit, "default", images, None, seed=0), images, vit, 1e-2, seed=1)
    assert learnt[1] == 100
    first, last = train_and_score(begin_arm(gpt, "normal 0.02", texts, None, seed=0), texts, gpt, 1e-2, seed=1)
    assert first > 7 and last < 1.5  # which two bytes there are


def test_a_uniform_guess_takes_eight_bits_a_byte(texts):
    class Uniform(torch.nn.Module):
        def forward(self, ids):
            return torch.zeros(*ids.shape, 256)

    assert texts.score(Uniform()) == pytest.approx(8)


def test_left_out_examples_are_not_learnt_from(images, texts):
    choice = images.left_out(0.25)
    assert len(choice.data.x_train) == 30 and len(choice.data.x_test) == 10
    both = torch.cat([choice.data.x_train, choice.data.x_test]).flatten(1)
    assert torch.equal(both.sum(1).sort()[0], images.data.x_train.flatten(1).sum(1).sort()[0])
    part = texts.left_out(0.25)
    assert torch.equal(torch.cat([part.learnt, part.tested]), texts.learnt) and len(part.tested) == 100


def test_a_rate_is_chosen_by_the_better_score_and_never_where_training_diverged():
    choice = {1e-4: 2.0, 1e-3: 3.0, 1e-2: float("nan")}
    assert choose_rate(choice, better=1) == 1e-3
    assert choose_rate(choice, better=-1) == 1e-4
    with pytest.raises(BadOption, match="diverges at every learning rate"):
        choose_rate({1e-2: float("inf")}, better=-1)


@pytest.mark.parametrize("better", [1, -1])
def test_a_comparison_says_how_far_ahead_and_when_the_other_gets_there(better):
    arms = {
        "predicted": {"score": [30.0 * better, 40.0 * better, 50.0 * better], "sd": [0.0, 1.0, 1.0]},
        "default": {"score": [10.0 * better, 38.5 * better, 52.5 * better], "sd": [0.0, 1.0, 1.0]},
    }
    assert compare(arms, (0, 10, 20), better=better) == {
        "predicted": {
            "default": {
                "ahead": [20.0, 1.5, -2.5],
                "is_beyond_spread": [True, False, True],
                "reached_at": [10, 20, 20],
                "verdict": [
                    "step 0: ahead by 20",
                    "step 10: ahead by 1.5, within the spread",
                    "step 20: behind by 2.5",
                ],
            }
        }
    }
    arms["default"]["score"][2] = 45.0 * better
    assert compare(arms, (0, 10, 20), better=better)["predicted"]["default"]["reached_at"] == [10, 20, None]


def test_a_panel_is_drawn_for_every_network_with_its_arms(loaded, tmp_path):
    curves = fill_curves(tmp_path / "c.json", {"vit": VIT, "gpt": GPT}, ["default"], generator=None, seeds=1)
    figure, networks = Figure(), {name: curves["networks"][name] for name in ("vit", "gpt")}
    draw_curves(figure, networks)
    assert [axes.get_ylabel() for axes in figure.axes] == ["test accuracy, %", "bits per byte of test text"]
    for axes, row in zip(figure.axes, networks.values(), strict=True):
        assert [list(np.asarray(line.get_ydata())) for line in axes.get_lines()] == [row["arms"]["default"]["score"]]


def test_tasks_are_read_from_the_shared_folder():
    shared_path("images/cifar10.npz")
    shared_path("text/ag_news.jsonl.gz")
    images, texts = load_task(COURSES["vit 64 x 3"]), load_task(COURSES["gpt 96 x 3"])
    assert isinstance(images, ImageTask) and images.data.x_train.shape[1:] == (3, 28, 28)
    assert isinstance(texts, TextTask) and texts.context == 64
    assert bytes(texts.learnt[:11].tolist()) == b"EU increase" and 3 < len(texts.learnt) / len(texts.tested) < 5


@pytest.mark.parametrize("course", COURSES.values(), ids=list(COURSES))
def test_every_curve_begins_before_training_and_tries_five_rates(course):
    assert course.steps[0] == 0 and list(course.steps) == sorted(set(course.steps))
    assert len(set(course.learning_rates)) == 5


def test_what_is_missing_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("WEIGHTGEN_SHARED", str(tmp_path))
    with pytest.raises(NotFound, match="'ag_news' is not there; set WEIGHTGEN_SHARED"):
        load_task(COURSES["gpt 96 x 3"])
    assert main(["--networks", "gpt 96 x 3"]) == 2 and "need a generator" in capsys.readouterr().err
    assert main(["--networks", "gpt 1", "--arms", "default"]) == 5 and "gpt 96 x 3" in capsys.readouterr().err
