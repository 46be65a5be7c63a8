"""The benchmark's arithmetic and output, with sides that take no time."""

import json

import pytest

from benchmarks import __main__ as program
from benchmarks.speed.measure import Ratio, median_ratio, medians, time_in_turn
from benchmarks.speed.ratios import render
from benchmarks.speed.tokens import transformer_state


def test_sides_take_turns_and_a_first_round_is_not_counted():
    order: list[str] = []
    sides = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = time_in_turn(sides, num_rounds=3)
    assert order == list("ba" + "ab" + "ba" + "ab")
    assert {side: len(found) for side, found in seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_the_median_of_the_rounds_own_ratios():
    seconds = {"ours": [1.0, 20.0, 3.0], "theirs": [2.0, 10.0, 3.0]}  # the second round met a busy machine
    assert median_ratio(seconds, "ours", "theirs") == 1.0
    assert medians(seconds) == {"ours": 3.0, "theirs": 3.0}


def test_the_state_that_is_moved_has_100_million_numbers():
    assert sum(t.numel() for t in transformer_state().values()) == pytest.approx(100e6, rel=0.005)


def test_ratios_are_printed_and_written(monkeypatch, tmp_path, capsys):
    ratio = Ratio("speed / clone", 0.51234, ">= 0.4", True, {"clone": 0.01, "speed": 0.02})
    monkeypatch.setitem(program.PARTS, "tokens", lambda: [ratio])
    assert program.main(["--only", "tokens", "--json", str(tmp_path / "bench.json")]) == 0
    assert "0.512  speed / clone (aim >= 0.4: met)" in capsys.readouterr().out
    written = json.loads((tmp_path / "bench.json").read_text())
    assert written["ratios"]["speed / clone"] == {
        "value": 0.5123,
        "aim": ">= 0.4",
        "is_met": True,
        "seconds": {"clone": 0.01, "speed": 0.02},
    }
    assert written["machine"]["cores"] >= 1


def test_a_ratio_without_sides_is_one_line():
    assert render(Ratio("megabytes", 10.9, "< 100", True, {})) == "  10.900  megabytes (aim < 100: met)"
    assert render(Ratio("reported", 2.0, "", None, {"side": 0.5})) == "   2.000  reported\n          side 500 ms"


def test_parts_on_models_of_transformers_are_refused_without_it(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(program.PARTS, "tokens", list)
    assert program.main(["--only", "tokens"]) == 0
    with pytest.raises(SystemExit):
        program.main(["--only", "tokens", "graph", "logah"])
    assert "graph and logah measure models of transformers, which is not installed" in capsys.readouterr().err
