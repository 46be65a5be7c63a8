"""AXES of modules that declare none, found by tracing, for `inspect` and `tokenize`."""

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from weightgen.cli import app
from weightgen.cli.targets import trace_target
from weightgen.errors import BadOption, SpecMismatch
from weightgen.weight_dataset.dataset import WeightDataset, build_weight_dataset

NET = "net_of_a_test:make"
SOURCE = """
from torch import nn

def make(width=6):
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net_of_a_test.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def make(width: int = 6) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


def test_the_axes_of_a_module_are_found_by_tracing(folder):
    spec, report = trace_target(NET, config={"width": 8}, inputs="3x9x9")
    assert spec.hidden == {"h1": 8} and spec.head == ("4.weight", "4.bias") and report.held_fixed == {}


def test_inspect_shows_them(folder):
    done = run("inspect", NET, "--input", "3x9x9", "--json")
    assert done.exit_code == 0 and '"h1": 6' in done.stdout and '"kind": "module"' in done.stdout


def test_checkpoints_of_a_traced_module_come_into_one_order(folder):
    torch.manual_seed(0)
    net, order = make(), torch.tensor([3, 0, 5, 1, 4, 2])
    state = net.state_dict()
    moved = {n: t[order] if n.startswith("0.") else t for n, t in state.items()}
    moved["4.weight"] = state["4.weight"][:, order]
    (folder / "zoo").mkdir()
    torch.save(state, folder / "zoo" / "first.pt")
    torch.save(moved, folder / "zoo" / "second.pt")
    arguments = ("tokenize", "zoo", "--canonical", "--module", NET, "--input", "3x9x9")
    assert run(*arguments, "--out", "dataset").exit_code == 0
    first, second = WeightDataset("dataset").states([0, 1])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_a_module_no_unit_may_move(folder):
    torch.save(make().state_dict(), folder / "only.pt")
    with pytest.raises(BadOption, match="'only' has no hidden axis that may be permuted"):
        build_weight_dataset(folder / "only.pt", folder / "dataset", canonical=True)


def test_a_checkpoint_of_another_network_is_refused(folder):
    torch.save(make(7).state_dict(), folder / "other.pt")
    spec, _ = trace_target(NET, config=None, inputs="3x9x9")
    with pytest.raises(SpecMismatch, match=r"other.pt: the state does not fit .* expected float32 \[6, 3, 3, 3\]"):
        build_weight_dataset(folder / "other.pt", folder / "dataset", spec=spec)
    assert not (folder / "dataset").exists()


@pytest.mark.parametrize("shape", ["", "3x", "0x3", "3x3x-1", "three"])
def test_a_shape_that_is_none_is_refused(folder, shape):
    with pytest.raises(BadOption, match="the shape of an example is .*, expected one like 3x32x32"):
        trace_target(NET, config=None, inputs=shape)
