"""What is measured of graphs, and where it is written."""

import json

import pytest
import torch
from torch import nn

from benchmarks.speed import graph as graph_speed


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Every network is a linear layer, no aim can be met, and figures go to a folder of their own."""
    monkeypatch.setattr(graph_speed, "networks", lambda: {n: lambda: nn.Linear(4, 4) for n in ("vit-s", "other")})
    monkeypatch.setattr(graph_speed, "AIMS", {"vit-s": 0.0})
    monkeypatch.setattr(graph_speed, "NUM_ROUNDS", 1)
    monkeypatch.setattr(graph_speed, "OUT", tmp_path / "graph_speed.json")


def test_only_networks_with_an_aim_are_judged_and_only_vit_s_stands_beside_normal(tiny):
    found = {r.name: r for r in graph_speed.measure_graphs()}
    built = found["graph: seconds to build vit-s (3 nodes, 2 tensors)"]
    assert (built.aim, built.is_met) == ("<= 0.0", False)
    assert built.value == built.seconds["build"]
    assert found["graph: seconds to build other (3 nodes, 2 tensors)"].is_met is None
    assert [name for name in found if "normal_" in name] == ["graph: build vit-s / normal_ of every tensor"]


def test_figures_are_written_with_the_machine(tiny):
    assert graph_speed.main() == 0
    written = json.loads(graph_speed.OUT.read_text())
    assert len(written["ratios"]) == 3
    assert written["machine"]["torch"] == torch.__version__
