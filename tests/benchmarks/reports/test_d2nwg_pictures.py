from typing import Any

from matplotlib.figure import Figure

from benchmarks.reports.d2nwg_pictures import ARMS, draw_novelty, draw_steps

OTHERS = {name: {"distance": 1.0, "gain": -0.1} for name in ("soup", "zoo_mean", "noise")}


def test_curves_are_drawn_in_the_order_of_their_steps():
    curve = {"100": 0.9, "0": 0.1, "25": 0.5, "5": 0.3}  # as JSON sorts keys: as words
    board = {"accuracy": {"scratch": 0.8}, "curve": dict.fromkeys(ARMS, curve)}
    axes: Any = Figure().add_subplot()
    draw_steps(axes, {"data": {"a": board, "b": board}, "generator": {"name": "d2nwg"}, "arch": "cnn-tiny"})
    line = axes.lines[0]
    assert list(line.get_ydata()) == [10, 30, 50, 90] and list(line.get_xdata()) == sorted(line.get_xdata())
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "5", "25", "100"]


def test_a_sample_stands_at_its_distance_and_its_gain_over_retrieval():
    point = {"distance": 1.0, "accuracy": 0.75, "retrieval": 0.5}
    axes: Any = Figure().add_subplot()
    draw_novelty(axes, {"points": [point], "leave_one_out_median": 2.0, "novel_from": 1.8, "references": OTHERS})
    assert axes.collections[0].get_offsets().tolist() == [[0.5, 25.0]]
