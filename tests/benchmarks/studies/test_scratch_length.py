import json

from benchmarks.studies import scratch_length
from tests.helpers.paths import shared_path


def test_it_writes_accuracies_by_number_of_steps(tmp_path, monkeypatch):
    shared_path("images/devnum.npz")
    monkeypatch.setattr(scratch_length, "ROOT", tmp_path)
    monkeypatch.setattr(scratch_length, "STEPS", (1, 3))
    assert scratch_length.main(["--data", "devnum", "--support-per-class", "5"]) == 0
    written = json.loads((tmp_path / "docs" / "results" / "scratch_length" / "cnn-tiny.json").read_text())
    assert written["per_class"] == 5
    assert written["accuracy"]["devnum"].keys() == {"1", "3"}
    assert written["accuracy"]["mean"] == written["accuracy"]["devnum"]


def test_an_unknown_data_set_is_one_sentence(capsys):
    assert scratch_length.main(["--data", "devnmu"]) == 5
    assert "did you mean 'devnum'" in capsys.readouterr().err
