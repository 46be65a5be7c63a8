"""Methods declare what they take; what they do not take is refused by name, without torch."""

import subprocess
import sys
from dataclasses import dataclass

import pytest

from weightgen.errors import BadOption, UnknownName, UnsupportedTask
from weightgen.generators import METHODS, class_of
from weightgen.method import Method, Options, describe_options, option


@dataclass(frozen=True, slots=True)
class PaintOptions(Options):
    coats: int = option(2, help="Layers of paint.", low=1, high=9)
    gloss: float = option(0.5, help="How much it shines.", low=0)
    colour: str = option("red", help="Its colour.", choices=("red", "blue"))
    is_wet: bool = option(False, help="Whether it is wet.")
    hours: int | None = option(None, help="Time to dry; as long as it takes if not given.", low=0)


PAINT = Method("paint", "Paints.", "nowhere:Paint", options=PaintOptions, uses=frozenset({"text"}))


def test_options_are_described_as_they_were_declared():
    described = {each.name: each for each in describe_options(PaintOptions)}
    assert list(described) == ["coats", "gloss", "colour", "is_wet", "hours"]
    assert [each.kind for each in described.values()] == [int, float, str, bool, int]
    assert described["coats"].describe_range() == "1 to 9" and described["gloss"].describe_range() == "0 or more"
    assert described["hours"].to_json() == {
        "name": "hours", "kind": "int", "default": None, "help": "Time to dry; as long as it takes if not given.",
        "low": 0, "high": None, "choices": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("values", "error", "sentence"),
    [
        ({"coats": 0}, BadOption, "coats is 0, expected 1 to 9"),
        ({"coats": 2.0}, BadOption, "coats is 2.0, expected a whole number"),
        ({"coats": True}, BadOption, "coats is True, expected a whole number"),
        ({"coats": None}, BadOption, "coats is None, expected a whole number"),
        ({"gloss": float("nan")}, BadOption, "gloss is nan, expected 0 or more"),
        ({"gloss": "much"}, BadOption, "gloss is 'much', expected a number"),
        ({"colour": "blau"}, UnknownName, "did you mean 'blue'"),
        ({"is_wet": 1}, BadOption, "is_wet is 1, expected true or false"),
        ({"hours": -1}, BadOption, "hours is -1, expected 0 or more"),
        ({"price": 1, "size": 2}, UnsupportedTask, "'paint' does not take price, size; its options are coats, gloss"),
    ],
)
def test_values_that_an_option_cannot_have_are_refused(values, error, sentence):
    with pytest.raises(error, match=sentence):
        PAINT.read_options(values)


def test_options_are_read_with_their_defaults():
    assert PAINT.read_options({"gloss": 1, "hours": None}) == PaintOptions(gloss=1)
    assert PAINT.read_options({}).to_json() == {"coats": 2, "gloss": 0.5, "colour": "red", "is_wet": False}


def test_parts_of_a_condition_that_a_method_lacks_or_cannot_use_are_named():
    PAINT.check_parts(frozenset({"support", "text"}))
    with pytest.raises(UnsupportedTask, match="'paint' needs a support set of labelled examples"):
        PAINT.check_parts(frozenset({"text"}))
    with pytest.raises(UnsupportedTask, match="'paint' cannot use an accuracy to aim for; it takes a support set"):
        PAINT.check_parts(frozenset({"support", "target_accuracy"}))


def test_another_methods_options_are_refused_by_what_they_are_called():
    PAINT.check_options(None)
    PAINT.check_options(PaintOptions())
    plain = Method("plain", "Does nothing.", "nowhere:Plain")
    with pytest.raises(UnsupportedTask, match="'plain' does not take coats, .* hours; it has no options of its own"):
        plain.check_options(PaintOptions())


@pytest.mark.parametrize("name", METHODS)
def test_every_registered_method_has_a_class_of_its_name(name):
    found = class_of(METHODS[name])
    assert (found.name, found.method) == (name, METHODS[name])


def test_declarations_need_no_torch():
    code = "import sys, weightgen.generators, weightgen.order; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
