"""The figures of the study of d2nwg in Markdown, and what counts as met."""

import json

import pytest

from benchmarks.reports.d2nwg import list_aims, read_study, render_study

MEMBER = "cnn-tiny/1x28x28"
SPREAD = {"disagreement": 0.2, "ensemble_gain": 0.01, "error_overlap": 0.7}
STUDY = {
    "tasks": {
        "a": {"tasks": 4, "generated": 0.8, "retrieval": 0.7, "shuffled_condition": 0.1},
        "b": {"tasks": 4, "generated": 0.7, "retrieval": 0.7},
    },
    "reconstruction": {
        MEMBER: {
            "networks": 3,
            "weights": 2254,
            "codecs": {
                "original": {"accuracy": 0.7, "weight_error": 0},
                "vae": {"accuracy": 0.695, "weight_error": 0.5, "latents": 256},
            },
        }
    },
    "published": {
        name: {f"{n} examples a class": {"generated": n / 60, "soup": n / 80} for n in (5, 20, 50)}
        | {"zoo_mean": 0.9, "zoo_mean_of_those_that_learnt": 0.95}
        for name in ("mnist", "cifar10")
    },
    "novelty": {
        MEMBER: {
            "samples": 6,
            "novel": 1.0,
            "accurate": 0.5,
            "novel_and_accurate": 0.5,
            "z_u": -3.5,
            "best_of_16_on_held_back": {"mean_sample": 0.7, "chosen": 0.71},
        }
    },
    "steps": {"member": MEMBER, "accuracy": {"ddim": {"1": 0.7, "2": 0.71, "5": 0.7, "20": 0.69, "100": 0.68}}},
    "speed": {
        "member": MEMBER,
        "ratio": 50.1,
        "ratio_plainly": 150.2,
        "seconds": {"sample 64": 3, "sample 64 plainly": 1, "train 64": 150.2},
        "trained": "4",
    },
    "diversity": {MEMBER: {"networks": 16, "samples": SPREAD, "zoo": {**SPREAD, "error_overlap": None}}},
    "aim": {
        MEMBER: {"asked": {"0.3": {"accuracy": 0.5}, "none": {"accuracy": 0.6}}, "rank_correlation": 0.25},
    },
}


def test_aims_are_judged_by_what_was_found():
    verdicts = {aim: (found, verdict) for aim, found, verdict in list_aims(STUDY)}
    assert verdicts == {
        "held-out tasks: 5 points above retrieval": ("a +10.0, b +0.0", "1 of 2"),
        "held-out tasks: 20 points above the shuffled condition": ("a +70.0", "met"),
        "published tiny network, MNIST: 90": ("8.3, 33.3, 83.3 from 5, 20, 50 images a class", "missed"),
        "published tiny network, CIFAR-10: within 2 points of the zoo's 90.0": (
            "8.3, 33.3, 83.3 from 5, 20, 50 images a class",
            "missed",
        ),
        "new seeds of known tasks: at least the soup": ("cifar10 +8.3, mnist +8.3", "met"),
        "reconstruction: within 1 point of the originals": (f"{MEMBER} -0.5", "met"),
        "half of the samples novel and accurate": (f"{MEMBER} 50%", "met"),
        "Z_U above -3": (f"{MEMBER} -3.5", "missed"),
        "20 steps or fewer (2): no loss over 100": ("ddim +3.0", "met"),
        "64 samples: 100 times faster than training them": (
            "by default 50 times, in one step without refinement 150 times",
            "1 of 2",
        ),
    }


@pytest.mark.parametrize(
    "row",
    [
        "| a | 4 | 80.0 | - | - | 10.0 | - | 70.0 | - | - | - | - | +10.0 |",
        f"| {MEMBER} | 3 | 2,254 | 256 | 70.0 | 69.5 | -0.5 | 0.50 |",
        "| cifar10 | 8.3 | 33.3 | 83.3 | - | - | 25.0 | 90.0 | 95.0 |",
        f"| {MEMBER} | 6 | 100 | 50 | 50 | -3.5 | 70.0 | 71.0 |",
        f"| {MEMBER} | 20.0 | 20.0 | +1.0 | +1.0 | 0.70 | - |",
        "| member | asked none | asked 0.3 | correlation |",
        f"| {MEMBER} | 60.0 | 50.0 | +0.25 |",
        "| ddim | 70.0 | 71.0 | 70.0 | 69.0 | 68.0 |",
    ],
)
def test_every_section_has_its_figures(row):
    assert row in render_study(STUDY).splitlines()


@pytest.mark.parametrize("section", STUDY)
def test_a_section_stands_alone(section, tmp_path):
    (tmp_path / f"{section}.json").write_text(json.dumps({"results": STUDY[section], "samples": 3}))
    (tmp_path / "texture-nca.json").write_text("{}")
    study = read_study(tmp_path)
    assert study == {section: STUDY[section]}
    whole, alone = render_study(STUDY).split("\n\n"), render_study(study).split("\n\n")
    assert all(part in whole for part in alone if not part.startswith("| aim |"))
    assert alone[0].startswith("| aim |") == bool(list_aims(study))


def test_nothing_is_said_of_what_has_not_been_measured(tmp_path):
    assert render_study(read_study(tmp_path)) == "Not measured yet."
