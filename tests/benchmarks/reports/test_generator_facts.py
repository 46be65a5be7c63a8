import pytest

from benchmarks.reports.generator_facts import describe_generator, first_sentence

SCORES = {"accuracy": {"generated": 0.9, "scratch": 0.8, "soup": None}, "seconds": {"generate": 0.1, "scratch": 4.0}}
OTHER = {"accuracy": {"generated": 0.5, "scratch": 0.75, "soup": 0.4}, "seconds": {"generate": 0.2, "scratch": 2.0}}
RESULT = {"arch": "cnn-tiny", "per_class": 20, "data": {"digits": SCORES, "coil20": OTHER}}


def test_facts_hold_the_accuracies_of_what_was_scored_everywhere_and_their_means():
    facts = describe_generator("# mip\n\nMakes weights.\n", {"archs": {"mlp": 1, "cnn": 2}}, [RESULT])
    [board] = facts["scoreboards"]
    assert facts["about"] == "Makes weights." and facts["architectures"] == ["cnn", "mlp"]
    assert board["accuracy"] == {
        "coil20": {"generated": 0.5, "scratch": 0.75},
        "digits": {"generated": 0.9, "scratch": 0.8},
    }
    assert board["mean"] == {"generated": 0.7, "scratch": 0.775}
    assert board["seconds"] == {"generate": 0.15, "scratch": 3.0}


def test_a_generator_whose_file_lists_no_architecture_takes_any():
    assert describe_generator("# logah\n\nMakes.", {}, [])["architectures"] is None


@pytest.mark.parametrize(
    ("card", "sentence"),
    [
        ("# a\n\nIt reads\n`x`. It writes.", "It reads x."),
        ("# a\n\nAfter Soro et al. 2025, it samples. More.", "After Soro et al. 2025, it samples."),
        ("# a\n\nOnly one (of it)", "Only one (of it)."),
    ],
)
def test_the_first_sentence_of_a_card_is_told_in_plain_text(card, sentence):
    assert first_sentence(card) == sentence
