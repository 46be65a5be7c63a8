"""The demo's report and picture; the whole demo runs where a generator has been released."""

import json

import pytest

from model_zoo import demo
from model_zoo.released import FOLDER, RELEASED

pytest.importorskip("matplotlib", reason="the picture needs the extra 'plot'")

STEPS = ("0", "1", "5", "10", "25", "50", "100")


def make_report(*, generated: float = 0.9, with_retrieval: bool = True) -> dict:
    rising = {step: generated + 0.001 * i for i, step in enumerate(STEPS)}
    return {
        "accuracy": {"generated": generated, "scratch": 0.8, "default_init": 0.1, "retrieval": None},
        "seconds": {"generate": 0.01, "scratch": 2.0},
        "curve": {
            "generated": rising,
            "retrieval": rising if with_retrieval else None,
            "default_init": {step: 0.1 + 0.1 * i for i, step in enumerate(STEPS)},
        },
        "request": {
            "arch": "cnn-tiny",
            "num_parameters": 2464,
            "per_class": 20,
            "data": "digits",
            "test_examples": 100,
            "notes": ["resized from 8x8 to 28x28"],
        },
    }


@pytest.mark.parametrize("with_retrieval", [True, False])
def test_the_picture_is_a_png(tmp_path, with_retrieval):
    demo.draw_accuracy(make_report(with_retrieval=with_retrieval), tmp_path / "accuracy.png")
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert [p.name for p in tmp_path.iterdir()] == ["accuracy.png"]


@pytest.mark.parametrize(("generated", "sentence"), [(0.9, "without a training step"), (0.7, "generated only 70.0%")])
def test_the_title_says_who_won(generated, sentence):
    assert sentence in demo.state_finding(make_report(generated=generated))


def test_labels_are_moved_apart_in_order():
    placed = demo.spread_heights([10.0, 10.5, 50.0, 10.2], 2.0)
    assert sorted(range(4), key=lambda i: placed[i]) == [0, 3, 1, 2]
    assert all(b - a >= 2.0 - 1e-3 for a, b in zip(sorted(placed), sorted(placed)[1:], strict=False))


def test_scores_are_printed_best_first_without_those_that_are_absent(capsys):
    demo.print_scores(make_report())
    out = capsys.readouterr().out
    assert out.index("generated") < out.index("trained from scratch") < out.index("default initialisation")
    assert "nearest" not in out
    assert "200 times as long" in out


def test_an_unknown_name_is_one_sentence_and_its_exit_code(capsys, tmp_path):
    assert demo.main(["--generator", "mpi", "--out", str(tmp_path / "demo")]) == 5
    assert "did you mean 'mip'?" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (FOLDER / RELEASED["mip"]).is_file(), reason="no generator has been released yet")
def test_the_demo_writes_report_artifact_and_picture(tmp_path, capsys):
    for _ in range(2):  # the second run replaces the first
        assert demo.main(["--out", str(tmp_path / "demo")]) == 0
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    scores = report["accuracy"]
    as_cheap = ("retrieval", "soup", "zoo_mean", "noise", "random_trunk_ridge", "unconditioned_trunk", "default_init")
    assert scores["generated"] > max(scores[arm] for arm in as_cheap)
    assert (tmp_path / "demo" / "artifact" / "model.safetensors").is_file()
    assert (tmp_path / "demo" / "accuracy.png").is_file()
