"""The figures of logah in Markdown, and what counts as met."""

import json

from benchmarks.reports.logah import read_figures, render_figures

GENERATOR = {"parameters": 1000, "config": {"refinement_rates": [0.1, 0.05]}, "training": {"cpu_seconds": 200.0}}
ARMS = ("generated", "condition off", "random trunk, refined", "random trunk", "default, 100 steps")


def score(*values):
    return dict(zip(ARMS, values, strict=True))


UNSEEN = {
    "generator": GENERATOR,
    "settings": {"per_class": 20},
    "learnt_from": ["b", "c"],
    "networks": {
        "b": {"digits": {"generated": 9.0}},
        "c": {"digits": score(1.0, 1.0, 1.0, 1.0, 99.0)},
        "a": {"digits": score(80.0, 70.0, 60.0, 50.0, 75.0), "coil20": score(90.0, 60.0, 50.0, 40.0, 65.0)},
    },
    "mean": {
        "b": {"generated": 9.0},
        "c": {**score(1.0, 1.0, 1.0, 1.0, 99.0), "ahead_of_default_on": 0, "of": 1},
        "a": {**score(85.0, 65.0, 55.0, 45.0, 70.0), "ahead_of_default_on": 2, "of": 2},
    },
}


def curve(*accuracy):
    return {"accuracy": list(accuracy)}


ROW = {
    "predicted, solved head": curve(81, 82, 83),
    "default, solved head": curve(70, 75, 80),
    "default": curve(10, 60, 81),
    "orthogonal": curve(10, 65, 82.5),
    "is_ahead_of_default": True,
    "is_ahead_of_orthogonal": False,
}
TABLE = {
    "generator": GENERATOR,
    "settings": {"steps": [0, 20, 200], "learning_rates": [1e-3, 1e-2]},
    "published": {"networks": {"cnn 32-32-32": {"predicted": [74.8]}}},
    "networks": {
        "cnn 32-32-32": ROW,
        "cnn 32-48x5": {**ROW, "predicted, solved head": curve(55, 60, 70), "is_ahead_of_default": False},
    },
}


def tau(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


RANKING = {"tau": {"all": {"architectures": 50, "predicted": tau(0.5), "flops": tau(0.3), "lead": {"flops": tau(0.2)}}}}
CURVES = {
    "networks": {
        "vit": {
            "parameters": 9,
            "unit": "test accuracy, %",
            "settings": {"data": "cifar10", "steps": [0, 25]},
            "arms": {"default": {"learning_rate": 1e-3, "score": [10.0, 15.25]}},
        },
        "gpt": {"parameters": 9, "settings": {"steps": [0]}, "arms": {}},
    }
}
COVERAGE = {
    "architectures": {
        "mamba": {"tensors": 23, "predicted": 20, "tied": 1, "own": {"it scales": [2, 8]}, "parameters": 1000,
                  "parameters_predicted": 992}
    }
}  # fmt: skip


def test_aims_say_what_was_found_and_whether_it_is_enough():
    text = render_figures({"unseen": UNSEEN, "table": TABLE})
    assert "without a training step, above default init after 100 steps | 65.0 against 70.0, ahead on 0 of 2 |" in text
    assert "refined, above default init after 100 steps | 85.0 against 70.0, ahead on 2 of 2 | met" in text
    assert "80 at step 0 | 81.0 to 81.0, 1 of 1 | met" in text
    assert "60 at step 0 | 55.0 to 55.0, 0 of 1 | missed" in text
    assert "after 20 steps above default init after 200 | 1 of 2 networks | missed" in text


def test_every_section_has_its_table():
    sections = {"unseen": UNSEEN, "table": TABLE, "ranking": RANKING, "curves": CURVES, "coverage": COVERAGE}
    text = render_figures(sections)
    assert "| c (learnt from at other classes) | 1.0" in text
    assert "| a | 85.0 | 65.0 | 55.0 | 45.0 | 70.0 | 2 of 2 |" in text and "refined in 2 steps" in text
    assert "| cnn 32-32-32 | 81.0 | 82.0 | 83.0 | 70.0 | 75.0 | 80.0 | 60.0 | 81.0 | 65.0 | 82.5 | 74.8 |" in text
    assert "| predicted | 0.50 (0.40 to 0.60) |" in text and "| lead" not in text
    assert "| default | 0.001 | 10.00 | 15.25 |" in text and "gpt" not in text and "| b |" not in text
    assert "| mamba | 23 | 20 | 1 | 2 it scales | 99.2 |" in text


def test_a_table_without_wider_networks_has_no_aim_for_them():
    text = render_figures({"table": {**TABLE, "networks": {"cnn 32-32-32": ROW}}})
    assert "80 at step 0" in text and "60 at step 0" not in text


def test_what_is_not_measured_is_left_out(tmp_path):
    assert render_figures(read_figures(tmp_path)) == "Not measured yet."
    (tmp_path / "curves.json").write_text(json.dumps(CURVES))
    assert list(read_figures(tmp_path)) == ["curves"]
