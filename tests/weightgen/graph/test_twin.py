"""Which modules are of one structure, and what is copied of them."""

import copy

import pytest
import torch
from torch import nn

from tests.helpers.graph_zoo import Net, assert_whole, ops_of, used_twice
from weightgen.graph.arch_graph import build_graph
from weightgen.graph.twin import structure_key


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, groups=1, padding=1)),
        (nn.Linear(4, 4), nn.Bilinear(4, 1, 4)),
        (Net(lambda m, x: m.a(x), a=nn.Linear(4, 4)), Net(lambda m, x: m.a(m.a(x)), a=nn.Linear(4, 4))),
        (nn.LayerNorm(4), nn.LayerNorm(4, eps=1)),
        (used_twice(), nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))),
    ],
)
def test_structures_with_other_code_or_hyperparameters_are_not_confused(left, right):
    assert structure_key(left) != structure_key(right)
    assert structure_key(left) == structure_key(copy.deepcopy(left))


def test_torchs_wrappers_are_looked_through():
    inner = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    for wrapper in (nn.DataParallel(inner), torch.compile(inner, backend="eager")):
        assert isinstance(wrapper, nn.Module)
        assert ops_of(build_graph(wrapper)) == ["linear", "activation", "linear"]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
def test_what_cannot_be_copied_follows_in_the_order_of_registration():
    script = torch.jit.script(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2)))
    assert isinstance(script, nn.Module)
    graph = build_graph(script)
    assert_whole(graph, script)
    assert graph.notes == ("the module could not be traced: RecursiveScriptModule is compiled to TorchScript",)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    "module",
    [
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True),
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 30 * 30, 10)),
        nn.LSTM(4, 5),
        nn.Linear(4, 3),
    ],
)
def test_inputs_are_guessed_in_the_dtype_of_the_module(module, dtype):
    graph = build_graph(copy.deepcopy(module).to(dtype))
    assert graph.notes == ()
    assert ops_of(graph) == ops_of(build_graph(module))
