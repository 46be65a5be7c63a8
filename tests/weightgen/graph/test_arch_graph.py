"""Laws of ArchGraph over the registered architectures and hand-written modules."""

import copy
from collections import deque

import pytest
import torch
from torch import nn

from model_zoo.architectures import build_target
from tests.helpers.graph_zoo import ALL, MODULES, ZOO, Net, assert_whole, ops_of, scaled_residual, sources_of
from weightgen.graph import arch_graph as graph_module
from weightgen.graph.arch_graph import ArchGraph, build_graph, forget_graphs


@ALL
def test_every_tensor_belongs_to_exactly_one_node(name):
    module = MODULES[name]()
    graph = build_graph(module)
    assert_whole(graph, module)
    assert graph.unreached == ()
    assert ("broke off" in " ".join(graph.notes)) == (name == "stubborn")


@pytest.mark.parametrize("name", sorted(ZOO))
def test_ops_are_those_of_the_forward_pass_in_order(name):
    make, ops = ZOO[name]
    assert ops_of(build_graph(make())) == ops


@ALL
def test_the_same_module_has_the_same_graph_on_the_meta_device_and_after_training(name):
    module = MODULES[name]()
    graph = build_graph(module)
    forget_graphs()
    other = copy.deepcopy(module).train()
    for t in other.state_dict().values():
        t.add_(1)
    again = build_graph(other)
    assert again.digest == graph.digest
    assert again.nodes == graph.nodes
    assert torch.equal(again.edges, graph.edges)
    if name != "tied":  # which `to` unties
        assert build_graph(copy.deepcopy(module).to("meta")).digest == graph.digest


@ALL
def test_distances_agree_with_a_plain_search(name):
    graph = build_graph(MODULES[name]())
    for cap in (3, 50):
        assert graph.distances(cap).tolist() == search_distances(graph, cap)
    assert graph.distances() is graph.distances(50)
    from_input = graph.distances(1000)[0]
    reached = from_input >= 0
    assert torch.equal(graph.depth[reached], from_input[reached].long())


def search_distances(graph: ArchGraph, cap: int) -> list[list[int]]:
    """One breadth-first search a node."""
    after: dict[int, list[int]] = {}
    for source, target in graph.edges.tolist():
        after.setdefault(source, []).append(target)
    rows = []
    for start in range(len(graph.nodes)):
        found = {start: 0}
        waiting = deque([start])
        while waiting:
            node = waiting.popleft()
            for target in after.get(node, []):
                if target not in found:
                    found[target] = found[node] + 1
                    waiting.append(target)
        rows.append([min(found[i], cap) if i in found else -1 for i in range(len(graph.nodes))])
    return rows


def test_residual_edges_go_round_the_block():
    graph = build_graph(nn.Sequential(nn.Linear(8, 8), scaled_residual()))
    ops = [node.op for node in graph.nodes]
    assert ops == ["input", "linear", "layer_norm", "linear", "parameter", "product", "sum", "output"]
    assert sources_of(graph, 6) == [1, 5]
    assert graph.depth.tolist() == [0, 1, 2, 3, 3, 4, 2, 3]  # gamma stands beside the layer that it scales


def test_names_of_submodules_do_not_matter_and_their_order_does():
    def make(first: str, second: str) -> nn.Module:
        net = nn.Sequential()
        net.add_module(first, nn.Linear(4, 5))
        net.add_module(second, nn.LayerNorm(5))
        return net

    graph = build_graph(make("layer_norm", "conv"))
    assert ops_of(graph) == ops_of(build_graph(make("a", "b"))) == ["linear", "layer_norm"]
    turned = build_graph(nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 5)))
    assert ops_of(turned) == ["layer_norm", "linear"]


def test_the_order_is_that_of_the_pass_and_not_of_registration():
    net = Net(lambda m, x: m.first(m.second(x)), first=nn.Linear(4, 4, bias=False), second=nn.Linear(4, 4, bias=False))
    graph = build_graph(net)
    assert [t.name for node in graph.nodes for t in node.tensors] == ["second.weight", "first.weight"]


@pytest.mark.parametrize(
    "other",
    [
        nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 2)),
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2, bias=False)),
        nn.Sequential(nn.ReLU(), nn.Linear(4, 6), nn.Linear(6, 2)),
        nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)),
        nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).half(),
    ],
    ids=["width", "bias", "order", "activation", "dtype"],
)
def test_another_architecture_has_another_digest(other):
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    assert build_graph(module).digest != build_graph(other).digest


def test_the_digest_is_the_same_on_every_machine():
    graph = build_graph(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    assert graph.digest.startswith("d8fee96a47386e66")


def test_a_second_module_of_the_same_structure_takes_the_graph_that_is_kept():
    first, second = (build_graph(build_target("resnet8").make()) for _ in range(2))
    assert first is second
    trained = build_target("resnet8").make()
    trained(torch.rand(2, 1, 28, 28))  # one more batch in BatchNorm's counter
    third = build_graph(trained)
    assert third.nodes is first.nodes
    assert third.spec.by_name["norm.num_batches_tracked"].carried == (1,)


def test_no_more_graphs_are_kept_than_the_limit(monkeypatch):
    monkeypatch.setattr(graph_module, "MAX_KEPT", 3)
    graphs = {width: build_graph(nn.Linear(width, 2)) for width in range(4, 10)}
    assert all(build_graph(nn.Linear(width, 2)) is graphs[width] for width in (7, 8, 9))
    assert build_graph(nn.Linear(6, 2)) is not graphs[6]


@pytest.mark.parametrize(
    ("module", "name", "code"),
    [
        (nn.Linear(3, 5), "weight", (5, 3, 1, 1)),
        (nn.Linear(3, 5), "bias", (5, 1, 1, 1)),
        (nn.Conv2d(3, 5, (2, 4)), "weight", (5, 3, 2, 4)),
        (nn.Conv1d(3, 5, 7), "weight", (5, 3, 7, 1)),
        (nn.Conv3d(3, 5, (2, 3, 4)), "weight", (5, 3, 6, 4)),
        (nn.Conv2d(6, 6, 3, groups=6), "weight", (6, 1, 3, 3)),
        (nn.ConvTranspose2d(3, 5, 2), "weight", (5, 3, 2, 2)),
        (nn.Embedding(11, 4), "weight", (11, 4, 1, 1)),
        (ZOO["matmul"][0](), "1.w", (4, 8, 1, 1)),
        (ZOO["raw parameters"][0](), "1.place", (2, 8, 1, 1)),
        (build_target("resnet8").make(), "norm.num_batches_tracked", (1, 1, 1, 1)),
    ],
)
def test_shape_codes_are_outputs_inputs_and_kernel(module, name, code):
    graph = build_graph(module)
    assert graph.shape_code(name) == code
    row = [t.name for t in graph.spec.tensors].index(name)
    assert tuple(graph.shape_codes[row].tolist()) == code


def test_ten_billion_parameters_take_no_memory():
    with torch.device("meta"):
        layers = [nn.TransformerEncoderLayer(8192, 64, 32768, batch_first=True) for _ in range(13)]
        module = nn.Sequential(nn.Embedding(50_000, 8192), *layers)
    graph = build_graph(module)
    assert graph.spec.num_parameters > 10e9
    assert_whole(graph, module)
    assert graph.unreached == ()
