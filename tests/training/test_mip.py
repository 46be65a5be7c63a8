import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import training.episodes
import training.mip
from tests.helpers.paths import shared_path
from training.mip import MipTraining, Trainer, fit, release
from weightgen.errors import BadOption
from weightgen.files.checkpoint import load_state
from weightgen.generators.mip.generator import Mip
from weightgen.generators.mip.hypernet import MipConfig

SMALL = MipConfig(encoding_dim=16, encoder_width=4, rank=2, refinements=1)


@pytest.fixture
def few_sets(monkeypatch):
    shared_path("images/bccd_cells.npz")
    monkeypatch.setattr(training.mip, "TRAIN_SETS", frozenset({"bccd_cells", "devnum"}))


def make_run(minutes: float = 0.02, **options) -> MipTraining:
    return MipTraining(arch="cnn-tiny", minutes=minutes, model=SMALL, **options)


def test_a_run_is_trained_released_and_loaded(few_sets, tmp_path, capsys):
    fit(make_run(), tmp_path / "run", device=torch.device("cpu"))
    release([tmp_path / "run"], tmp_path / "mip.safetensors", tasks_each=1)
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["archs"] == ["cnn-tiny"]
    generator = Mip.load(tmp_path / "mip.safetensors")
    assert generator.training_record["data"]["devnum"] == "MIT"
    assert generator.training_record["runs"]["cnn-tiny"]["steps"] > 0


def test_resuming_goes_on_exactly(few_sets, tmp_path):
    pool = training.episodes.load_pool(["bccd_cells"], "train")
    runs = []
    for stop in (True, False):
        trainer = Trainer(make_run(), tmp_path, device=torch.device("cpu"))
        trainer.step(pool)
        if stop:
            trainer.save("last.safetensors")
            trainer = Trainer(make_run(), tmp_path, device=torch.device("cpu"))
            trainer.resume()
        trainer.step(pool)
        runs.append(trainer.model.state_dict())
        assert trainer.steps == 2
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


def test_a_run_with_other_settings_is_not_resumed(few_sets, tmp_path):
    Trainer(make_run(), tmp_path, device=torch.device("cpu")).save("last.safetensors")
    with pytest.raises(BadOption, match="holds a run with other settings"):
        Trainer(make_run(seed=1), tmp_path, device=torch.device("cpu")).resume()


def test_a_new_run_may_start_from_the_weights_of_another(few_sets, tmp_path):
    first = Trainer(make_run(), tmp_path, device=torch.device("cpu"))
    first.step(training.episodes.load_pool(["bccd_cells"], "train"))
    first.spent = 60.0
    first.save("last.safetensors")
    deeper = replace(make_run(), model=replace(SMALL, refinements=2))
    second = Trainer(deeper, tmp_path, device=torch.device("cpu"))
    second.start_from(tmp_path / "last.safetensors")
    assert second.before == {"steps": 1, "minutes": 1.0}
    old, new = first.model.state_dict(), second.model.state_dict()
    assert all(torch.equal(old[name], new[name]) for name in old if not name.startswith("rates"))
    assert torch.equal(new["rates"], old["rates"].expand(2, -1))
    assert (second.steps, second.spent) == (0, 0.0)


def test_a_run_does_not_start_from_another_architecture(few_sets, tmp_path):
    Trainer(make_run(), tmp_path, device=torch.device("cpu")).save("last.safetensors")
    trainer = Trainer(replace(make_run(), arch="cnn"), tmp_path, device=torch.device("cpu"))
    with pytest.raises(BadOption, match="trains 'cnn-tiny', not 'cnn'"):
        trainer.start_from(tmp_path / "last.safetensors")


def test_a_run_that_left_sets_out_is_no_release(few_sets, tmp_path):
    fit(make_run(held_out=("devnum",)), tmp_path, device=torch.device("cpu"))
    assert load_state(tmp_path / "best.safetensors")
    with pytest.raises(BadOption, match="left out devnum"):
        release([tmp_path], tmp_path / "mip.safetensors", tasks_each=1)


def test_an_unknown_architecture_is_one_sentence(tmp_path):
    command = [sys.executable, "-m", "training.mip", "train", "--arch", "alexnet", "--out", str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.strip() == "error: no recipe for 'alexnet'; there are recipes for cnn-tiny, cnn, vit-tiny"
