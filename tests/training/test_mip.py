import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

import training.mip.recipe
from tests.helpers.paths import shared_path
from training.episodes import draw_tasks, load_pool
from training.loop import LAST, Run, Span, train
from training.mip.__main__ import release
from training.mip.recipe import PRESETS, Learner, MipTraining, fit
from weightgen.errors import BadOption
from weightgen.files.checkpoint import load_state
from weightgen.generators.mip.generator import Mip
from weightgen.generators.mip.hypernet import MipConfig

SMALL = MipConfig(encoding_dim=16, encoder_width=4, rank=2, refinements=1)
CPU = torch.device("cpu")


@pytest.fixture
def few_sets(monkeypatch):
    shared_path("images/bccd_cells.npz")
    monkeypatch.setattr(training.mip.recipe, "TRAIN_SETS", frozenset({"bccd_cells", "devnum"}))


def make_run(minutes: float = 0.02, **options) -> MipTraining:
    return MipTraining(
        **{"arch": "cnn-tiny", "budget": Span(minutes=minutes), "model": SMALL, "evaluations": 2, **options}
    )


def make_recipe(learner: Learner):
    pool = load_pool(["bccd_cells"], "train")
    return learner.recipe(pool, draw_tasks(pool, each=1, seed=0))


def start_run(config: MipTraining, folder) -> tuple[Learner, Run]:
    """A saved run that has taken no step."""
    learner = Learner(config, device=CPU)
    run = Run(make_recipe(learner), config.loop())
    run.save(folder / LAST)
    return learner, run


def test_a_run_is_trained_released_and_loaded(few_sets, tmp_path, capsys):
    fit(make_run(), tmp_path / "run", device=CPU)
    release([tmp_path / "run"], tmp_path / "mip.safetensors", tasks_each=1)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["archs"] == ["cnn-tiny"]
    generator = Mip.load(tmp_path / "mip.safetensors")
    assert generator.training_record["data"]["devnum"] == "MIT"
    assert generator.training_record["runs"]["cnn-tiny"]["steps"] > 0


def test_resuming_goes_on_exactly(few_sets, tmp_path):
    config = make_run(budget=Span(steps=2))
    runs = []
    for stop in (True, False):
        learner = Learner(config, device=CPU)
        if stop:
            train(make_recipe(learner), config.loop(), tmp_path / "stopped", until=1)
            learner = Learner(config, device=CPU)
        run = train(make_recipe(learner), config.loop(), tmp_path / ("stopped" if stop else "whole"))
        runs.append(learner.model.state_dict())
        assert run.steps == 2
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_run_with_other_settings_is_not_resumed(few_sets, tmp_path):
    start_run(make_run(), tmp_path)
    other = make_run(seed=1)
    with pytest.raises(BadOption, match="holds a run with other settings"):
        train(make_recipe(Learner(other, device=CPU)), other.loop(), tmp_path)


def test_a_new_run_may_start_from_the_weights_of_another(few_sets, tmp_path):
    first, run = start_run(make_run(), tmp_path)
    run.advance()
    run.seconds = 60.0
    run.save(tmp_path / LAST)
    deeper = replace(make_run(), model=replace(SMALL, refinements=2))
    second = Learner(deeper, device=CPU)
    second.start_from(tmp_path / LAST)
    assert second.record["before"] == {"steps": 1, "minutes": 1.0}
    old, new = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("rates"))
    assert torch.equal(new["rates"], old["rates"].expand(2, -1))
    begun = Run(make_recipe(second), deeper.loop())
    assert (begun.steps, begun.seconds) == (0, 0.0)


def test_a_resumed_run_ignores_where_it_started_and_still_knows_it(few_sets, tmp_path):
    _, run = start_run(make_run(), tmp_path / "first")
    run.advance()
    run.save(tmp_path / "first" / LAST)
    config = make_run(budget=Span(steps=2))
    fit(config, tmp_path / "second", device=CPU, start=tmp_path / "first" / LAST)
    weights = load_state(tmp_path / "second" / LAST)
    fit(config, tmp_path / "second", device=CPU)
    assert all(torch.equal(value, weights[name]) for name, value in load_state(tmp_path / "second" / LAST).items())
    learner = Learner(config, device=CPU)
    train(make_recipe(learner), config.loop(), tmp_path / "second")
    assert learner.record["before"]["steps"] == 1


def test_a_run_does_not_start_from_another_architecture(few_sets, tmp_path):
    start_run(make_run(), tmp_path)
    learner = Learner(replace(make_run(), arch="cnn"), device=CPU)
    with pytest.raises(BadOption, match="trains 'cnn-tiny', not 'cnn'"):
        learner.start_from(tmp_path / LAST)


def test_the_best_model_needs_an_evaluation():
    with pytest.raises(BadOption, match="0 evaluations, expected 1 or more"):
        make_run(evaluations=0)


@pytest.mark.parametrize("arch", PRESETS)
def test_presets_come_back_from_a_saved_run(arch):
    config = PRESETS[arch]()
    assert config.arch == arch and MipTraining.from_json(json.loads(json.dumps(asdict(config)))) == config


def test_a_run_that_left_sets_out_is_no_release(few_sets, tmp_path):
    fit(make_run(held_out=("devnum",)), tmp_path, device=CPU)
    assert load_state(tmp_path / "best.safetensors")
    with pytest.raises(BadOption, match="left out devnum"):
        release([tmp_path], tmp_path / "mip.safetensors", tasks_each=1)


def test_an_unknown_architecture_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "training.mip", "train", "--arch", "alexnet", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip() == "error: no recipe for 'alexnet'; there are recipes for cnn-tiny, cnn, vit-tiny"
