import pytest
import torch

from model_zoo.architectures import build_target
from tests.helpers.standins import StandIn, make_data, make_support, make_zoo
from weightgen.errors import BadData, BadOption
from weightgen.evaluation.scoreboard import ARMS, ScoreboardConfig, compare, derange_labels
from weightgen.evaluation.training import FinetuneConfig, ScratchConfig
from weightgen.files.storage import write_json

QUICK = ScoreboardConfig(
    scratch=ScratchConfig(learning_rates=(3e-3, 1e-2), max_steps=12, max_steps_augmented=3),
    finetune=FinetuneConfig(record_at=(0, 1, 5)),
    finetune_rates=(1e-3, 1e-2),
    judged_at=5,
)


class Unconditioned:
    """A generator that knows nothing of embeddings and conditions."""

    name = "plain"

    def check(self, request):
        pass

    def generate(self, request):
        return StandIn().generate(request)


@pytest.fixture(scope="module")
def target():
    return build_target("cnn-w4-d2", num_classes=3)


@pytest.fixture(scope="module")
def board(target):
    said = []
    result = compare(
        StandIn(), target, make_data(), per_class=5, seed=1, references=make_zoo(target), config=QUICK, say=said.append
    )
    assert "fine-tuning from retrieval" in said
    return result


def test_the_scoreboard_has_every_arm(board, tmp_path):
    assert tuple(board["accuracy"]) == ARMS
    assert all(0 <= v <= 1 for v in board["accuracy"].values())
    assert set(board["seconds"]) == {"generate", "scratch", "scratch_sweep"}
    assert board["seconds"]["generate"] > 0
    assert 0 < board["seconds"]["scratch"] < board["seconds"]["scratch_sweep"]  # which it is a part of
    assert set(board["curve"]) == {"generated", "default_init", "retrieval"}
    write_json(tmp_path / "report.json", board)  # JSON values only


def test_curves_start_at_the_accuracy_without_a_step(board):
    for arm, curve in board["curve"].items():
        assert list(curve) == ["0", "1", "5"]
        assert curve["0"] == board["accuracy"][arm]
        assert board["details"]["finetune_rate"][arm] in QUICK.finetune_rates


def test_curves_are_summed_up(board):
    details, curve = board["details"], board["curve"]["generated"]
    assert details["area_under_curve"]["generated"] == pytest.approx(
        (0.5 * (curve["0"] + curve["1"]) + 2 * (curve["1"] + curve["5"])) / 5
    )
    assert details["steps_to_scratch"]["generated"] == 0  # the solved head is right from the start


def test_support_and_seed_decide_the_accuracies(board, target):
    again = compare(
        StandIn(), target, make_data(), per_class=5, seed=1, references=make_zoo(target), config=QUICK
    )  # fmt: skip
    assert again["accuracy"] == board["accuracy"]
    assert again["curve"] == board["curve"]
    assert again["novelty"] == board["novelty"]
    assert again["request"] == board["request"]


def test_a_shuffled_condition_is_scored_here(board):
    assert board["accuracy"]["generated"] == 1
    assert board["accuracy"]["shuffled_condition"] < 0.5
    assert board["request"]["shuffled_condition"] == "the same images, every class under another class's label"


def test_novelty_names_the_nearest_checkpoint(board):
    novelty = board["novelty"]
    assert novelty["nearest"]["run_id"].startswith("run")
    assert novelty["distance"] == novelty["nearest"]["distance"]
    assert novelty["ratio"] == pytest.approx(novelty["distance"] / novelty["leave_one_out_median"])
    assert -2 < novelty["z_u"] < 2


def test_without_references_their_arms_are_null_and_the_notes_say_why(target):
    board = compare(Unconditioned(), target, make_data(), per_class=2, seed=0, config=QUICK)
    missing = {arm for arm, value in board["accuracy"].items() if value is None}
    assert missing == {"retrieval", "soup", "zoo_mean", "noise", "unconditioned_trunk"}
    assert board["curve"]["retrieval"] is None
    assert board["novelty"]["distance"] is None
    assert "no reference zoo" in board["novelty"]["reason"]
    notes = " ".join(board["request"]["notes"])
    assert "there is no reference zoo" in notes
    assert "no trunk condition" in notes


def test_references_of_another_generator_are_not_used(target):
    board = compare(
        StandIn(), target, make_data(), per_class=2, seed=0, references=make_zoo(target, embedder="x"), config=QUICK
    )
    assert board["accuracy"]["retrieval"] is None
    assert any("embedded by another generator" in note for note in board["request"]["notes"])


def test_many_tasks_are_averaged_and_their_spread_is_told(target, tmp_path):
    data = make_data(num_classes=6)
    board = compare(
        StandIn(), target, data, per_class=3, seed=0, references=make_zoo(target), tasks=3, ways=3, config=QUICK
    )
    subsets = [task["details"]["classes"] for task in board["per_task"]]
    assert all(len(set(s)) == 3 for s in subsets)
    assert len({tuple(s) for s in subsets}) == 3
    scores = [task["accuracy"]["generated"] for task in board["per_task"]]
    assert board["accuracy"]["generated"] == pytest.approx(sum(scores) / 3)
    assert set(board["spread"]["generated"]) == {"sd", "median", "p10"}
    assert board["request"]["shuffled_condition"] == "the next task's support set"
    assert board["request"]["test_examples"] == [36, 36, 36]
    assert board["novelty"]["z_u"] is not None
    write_json(tmp_path / "report.json", board)


def test_the_shuffled_condition_can_be_another_data_set(target):
    other = make_data(num_classes=4, name="elsewhere")
    board = compare(StandIn(), target, make_data(), per_class=2, seed=0, other=other, config=QUICK)
    assert board["request"]["shuffled_condition"] == "support sets of elsewhere"
    with pytest.raises(BadOption, match="'few' has 2 classes"):
        compare(StandIn(), target, make_data(), per_class=2, seed=0, other=make_data(num_classes=2, name="few"))


@pytest.mark.parametrize(
    ("options", "error", "sentence"),
    [
        ({"tasks": 0}, BadOption, "0 tasks, expected 1 to 10000"),
        ({"ways": 9}, BadOption, "9 ways, expected 2 to the 3 classes"),
        ({"ways": 2}, BadOption, "the target network has 3 classes, the tasks of 'squares' have 2"),
        ({"per_class": 13}, BadData, "13 support examples a class"),
    ],
)
def test_impossible_comparisons_are_refused(target, options, error, sentence):
    with pytest.raises(error, match=sentence):
        compare(StandIn(), target, make_data(), **({"per_class": 2, "seed": 0} | options))


def test_steps_that_are_not_recorded_cannot_judge():
    with pytest.raises(BadOption, match="steps 0 and 50 have to be recorded"):
        ScoreboardConfig(finetune=FinetuneConfig(record_at=(0, 1)))


@pytest.mark.parametrize("num_classes", [2, 3, 9])
def test_no_class_keeps_its_label_in_a_derangement(num_classes):
    support = make_support(num_classes=num_classes, shots=2)
    deranged = derange_labels(support, seed=0)
    assert (deranged.labels != support.labels).all()
    assert sorted(deranged.labels.tolist()) == sorted(support.labels.tolist())
    assert torch.equal(deranged.inputs, support.inputs)
