"""Laws of ArchGraph over the registered architectures, hand-written modules and tiny transformers."""

import copy
import importlib.util
import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.architectures import ARCHITECTURES, build_target
from weightgen import graph as graph_module
from weightgen.errors import BadData
from weightgen.graph import OPS, ROLES, ArchGraph, build_graph
from weightgen.graph_twin import structure_key

NO_TRANSFORMERS = importlib.util.find_spec("transformers") is None


class Net(nn.Module):
    """Submodules by keyword, and a forward pass given as a function of (self, inputs)."""

    def __init__(self, forward: Callable[..., object], **parts: object) -> None:
        super().__init__()
        self.pass_through = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> object:
        return self.pass_through(self, x)


class HandMadeAttention(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.fused = nn.Linear(8, 24), nn.Linear(8, 8), fused

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        if self.fused:
            return self.out(F.scaled_dot_product_attention(q, k, v))
        scores = q @ k.transpose(-2, -1) / 8**0.5
        scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), float("-inf"))
        return self.out(F.dropout(scores.softmax(-1), 0.1, self.training) @ v)


class RootNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Experts(nn.Module):
    """Routing by data: each expert runs on the rows that were sent to it, if there are any."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 3, bias=False)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self.router(x).softmax(-1).topk(2)
        mixed = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            row, place = torch.where(chosen == i)
            if row.numel() == 0:
                continue
            mixed.index_add_(0, row, expert(x[row]) * weights[row, place, None])
        return mixed


class Stubborn(nn.Module):
    """Leaves torch in the middle of its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.second = nn.Sequential(Net(lambda m, x: x + m.a(x), a=nn.Linear(5, 5)), nn.Linear(5, 6))
        self.third = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.from_numpy(self.first(x).detach().numpy() * 2)
        return self.third(self.second(x))


def scaled_residual() -> nn.Module:
    return Net(
        lambda m, x: x + m.gamma * m.linear(m.norm(x)),
        norm=nn.LayerNorm(8),
        linear=nn.Linear(8, 8),
        gamma=nn.Parameter(torch.ones(8)),
    )


def tied() -> nn.Module:
    net = Net(lambda m, x: m.head(m.embed(x)), embed=nn.Embedding(11, 6), head=nn.Linear(6, 11, bias=False))
    net.head.weight = net.embed.weight  # pyright: ignore
    return net


def used_twice() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer)


ZOO: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "bias-free chain": (
        lambda: nn.Sequential(*(nn.Linear(6, 6, bias=False) for _ in range(4))),
        ["linear"] * 4,
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.PReLU(8), nn.AdaptiveAvgPool2d(1)),
        ["conv", "group_norm", "activation", "pooling"],
    ),
    "batch norm 1d": (lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8)), ["linear", "batch_norm"]),
    "conv 1d": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3)),
        ["conv", "activation", "conv"],
    ),
    "conv 3d": (
        lambda: nn.Sequential(nn.Conv3d(2, 4, 3), nn.InstanceNorm3d(4, affine=True)),
        ["conv", "instance_norm"],
    ),
    "transposed conv": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Conv2d(6, 6, 3, groups=6)),
        ["conv", "transposed_conv", "grouped_conv"],
    ),
    "lstm": (lambda: Net(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(4, 5, 2, bidirectional=True)), ["recurrent"]),
    "gru": (
        lambda: Net(lambda m, x: m.head(m.gru(x)[0]), gru=nn.GRU(4, 5), head=nn.Linear(5, 2)),
        ["recurrent", "linear"],
    ),
    "lstm cell": (lambda: Net(lambda m, x: m.cell(x)[0], cell=nn.LSTMCell(4, 5)), ["recurrent"]),
    "multi-head attention": (
        lambda: Net(lambda m, x: m.attend(x, x, x)[0], attend=nn.MultiheadAttention(8, 2)),
        ["linear", "attention", "linear"],
    ),
    "encoder layer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        ["linear", "attention", "linear", "sum", "layer_norm", "linear", "activation", "linear", "sum", "layer_norm"],
    ),
    "fused attention": (lambda: HandMadeAttention(fused=True), ["linear", "attention", "linear"]),
    "attention by hand": (lambda: HandMadeAttention(fused=False), ["linear", "attention", "linear"]),
    "rms norm by hand": (lambda: nn.Sequential(nn.Linear(4, 8), RootNorm(8)), ["linear", "rms_norm"]),
    "raw parameters": (
        lambda: Net(
            lambda m, x: m.head(torch.cat([m.token.expand(len(x), -1, -1), x + m.place], 1)),
            token=nn.Parameter(torch.zeros(1, 1, 8)),
            place=nn.Parameter(torch.zeros(1, 2, 8)),
            head=nn.Linear(8, 3),
        ),
        ["parameter", "sum", "parameter", "concat", "linear"],
    ),
    "layer scale": (scaled_residual, ["layer_norm", "linear", "parameter", "product", "sum"]),
    "tied": (tied, ["embedding", "linear"]),
    "used twice": (used_twice, ["linear", "activation", "linear"]),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Linear(5, 2)),
        ["linear", "linear"],
    ),
    "matmul": (
        lambda: Net(lambda m, x: x @ m.w + m.b, w=nn.Parameter(torch.zeros(8, 4)), b=nn.Parameter(torch.zeros(4))),
        ["linear"],
    ),
}
for name in ZOO:  # a first layer, where nothing else says what comes in
    if name in ("raw parameters", "matmul"):
        make, ops = ZOO[name]
        ZOO[name] = (lambda make=make: nn.Sequential(nn.Linear(8, 8), make()), ["linear", *ops])

MODULES = {name: make for name, (make, _) in ZOO.items()}
MODULES |= {"experts": Experts, "stubborn": Stubborn}
MODULES |= {arch: build_target(arch, in_channels=3).make for arch in ARCHITECTURES if arch != "mlp"}
MODULES["mlp"] = build_target("mlp").make
ALL = pytest.mark.parametrize("name", sorted(MODULES))


def ops_of(graph: ArchGraph) -> list[str]:
    return [node.op for node in graph.nodes[1:-1]]


def sources_of(graph: ArchGraph, node: int) -> list[int]:
    return [source for source, target in graph.edges.tolist() if target == node]


def assert_whole(graph: ArchGraph, module: nn.Module) -> None:
    """Every tensor of the module belongs to one node, or is reported; the graph is one that readers may rely on."""
    owned = [tensor.name for node in graph.nodes for tensor in node.tensors]
    assert sorted(owned) == sorted(t.name for t in graph.spec.tensors)
    assert sorted([*owned, *graph.left_out]) == sorted(module.state_dict())
    assert {node.op for node in graph.nodes} <= set(OPS)
    assert {tensor.role for node in graph.nodes for tensor in node.tensors} <= set(ROLES)
    assert {name for node in graph.nodes for name in node.reads} <= set(owned)
    assert (graph.nodes[0].op, graph.nodes[-1].op) == ("input", "output")
    assert [n.op for n in graph.nodes].count("input") == [n.op for n in graph.nodes].count("output") == 1
    edges = [tuple(e) for e in graph.edges.tolist()]
    assert all(source < target for source, target in edges)
    assert edges == sorted({tuple(e) for e in edges}, key=lambda e: (e[1], e[0]))
    assert graph.in_degree.sum() == graph.out_degree.sum() == len(edges)


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
def test_the_module_and_every_random_generator_are_left_alone(name):
    module = MODULES[name]().train()
    before = {n: (t.clone(), id(t), t._version) for n, t in module.state_dict(keep_vars=True).items()}
    attributes = {n: dict(vars(m)) for n, m in module.named_modules()}
    seen: list[object] = []
    module.register_forward_hook(lambda *call: seen.append(call))
    states = torch.get_rng_state(), random.getstate(), str(np.random.get_state())  # noqa: NPY002
    build_graph(module)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), str(np.random.get_state()))  # noqa: NPY002
    assert seen == []
    for n, t in module.state_dict(keep_vars=True).items():
        assert torch.equal(t, before[n][0])
        assert (id(t), t._version, t.grad) == (*before[n][1:], None)
    for n, m in module.named_modules():
        assert vars(m).keys() == attributes[n].keys()
        assert all(m.__dict__[k] is v for k, v in attributes[n].items())
        assert m.training


def test_lists_counters_and_modules_in_closures_are_left_alone():
    hidden = nn.BatchNorm1d(5)  # not registered: only the closure knows it

    def count(m: Any, x: Tensor) -> Tensor:
        m.num_calls += 1
        m.seen.append(x)
        m.kept["last"] = hidden(m.linear(x))
        return m.kept["last"]

    net = Net(count, linear=nn.Linear(4, 5), seen=[], kept={}, num_calls=0)
    assert ops_of(build_graph(net)) == ["linear", "batch_norm"]
    assert (net.num_calls, net.seen, net.kept) == (0, [], {})
    assert torch.equal(hidden.running_mean, torch.zeros(5))  # pyright: ignore
    assert hidden.num_batches_tracked == 0
    assert hidden.training


@ALL
def test_the_same_module_has_the_same_graph_on_the_meta_device_and_after_training(name):
    module = MODULES[name]()
    graph = build_graph(module)
    graph_module._KEPT.clear()
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


def test_fused_attention_and_attention_by_hand_are_one_graph():
    fused, by_hand = (build_graph(HandMadeAttention(fused=fused)) for fused in (True, False))
    assert fused.nodes == by_hand.nodes
    assert torch.equal(fused.edges, by_hand.edges)


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
    for width in range(4, 10):
        build_graph(nn.Linear(width, 2))
    assert len(graph_module._KEPT) == 3


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


def test_tied_tensors_go_with_their_owner_and_the_other_reader_points_at_it():
    graph = build_graph(tied())
    embedding, head = graph.nodes[1:3]
    assert [t.name for t in embedding.tensors] == ["embed.weight", "head.weight"]
    assert (head.op, head.tensors, head.reads) == ("linear", (), ("embed.weight",))
    assert graph.spec.by_name["head.weight"].tied_to == "embed.weight"


def test_a_module_used_twice_owns_its_tensors_once():
    first, _, second = build_graph(used_twice()).nodes[1:-1]
    assert [t.name for t in first.tensors if t.name.startswith("0.")] == ["0.weight", "0.bias"]
    assert (second.tensors, second.reads) == ((), ("0.weight", "0.bias"))


def test_roles_say_what_a_tensor_is_to_its_node():
    roles = {n: t.role for n, t in build_graph(build_target("resnet8").make()).owned.items() if n.startswith("norm")}
    assert roles == {
        "norm.weight": "norm weight",
        "norm.bias": "norm bias",
        "norm.running_mean": "running mean",
        "norm.running_var": "running var",
        "norm.num_batches_tracked": "carried",
    }
    buffers = {t.name for t in build_graph(nn.BatchNorm1d(4)).owned.values() if t.is_buffer}
    assert buffers == {"running_mean", "running_var", "num_batches_tracked"}
    attend = build_graph(nn.TransformerEncoderLayer(8, 2, 16)).owned
    assert attend["self_attn.in_proj_weight"].role == "in_proj"
    assert attend["self_attn.out_proj.weight"].role == "weight"
    assert {t.role for t in build_graph(nn.GRU(4, 5)).owned.values()} == {"weight", "bias"}


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


def test_experts_run_once_each_behind_their_gate():
    graph = build_graph(Experts())
    ops = ops_of(graph)
    assert (ops.count("gate"), ops.count("expert"), ops.count("linear")) == (1, 6, 0)
    assert graph.notes == ("the forward pass depends on values of tensors (positions), which were guessed",)


def test_a_loop_over_slices_of_stacked_experts_leaves_the_nodes_of_one():
    def mix(m: Any, x: Tensor) -> Tensor:
        x = m.first(x)
        _, chosen = m.gate(x).topk(2)
        mixed = torch.zeros_like(x)
        for i in range(5):
            rows = (chosen == i).any(-1).nonzero()[:, 0]
            mixed[rows] += F.relu(x[rows] @ m.w[i] + m.b[i])
        return mixed

    parts = {"w": nn.Parameter(torch.zeros(5, 8, 8)), "b": nn.Parameter(torch.zeros(5, 8))}
    graph = build_graph(Net(mix, first=nn.Linear(8, 8), gate=nn.Linear(8, 5), **parts))
    assert ops_of(graph) == ["linear", "gate", "expert", "activation"]
    assert [(t.name, t.role) for t in graph.nodes[3].tensors] == [("w", "weight"), ("b", "bias")]
    assert graph.shape_code("w") == (8, 8, 5, 1)


def test_a_pass_that_breaks_off_is_continued_part_by_part():
    graph = build_graph(Stubborn())
    assert ops_of(graph) == ["linear", "linear", "sum", "linear", "linear"]
    assert graph.edges.tolist() == [[0, 1], [1, 2], [1, 3], [2, 3], [3, 4], [4, 5], [5, 6]]
    assert graph.unreached == ()
    assert len(graph.notes) == 1 and graph.notes[0].startswith("the forward pass broke off (")


def test_loops_over_a_condition_of_the_data_end():
    def loop(m: Any, x: Tensor) -> Tensor:
        while x.norm() > 1:
            x = m.step(x)
        return x

    graph = build_graph(Net(loop, step=nn.Linear(4, 4)))
    assert_whole(graph, nn.ModuleDict({"step": nn.Linear(4, 4)}))
    assert "conditions" in graph.notes[0]


def test_tensors_that_no_operation_reads_hang_behind_the_tensor_before():
    net = Net(lambda m, x: m.last(m.first(x)), first=nn.Linear(4, 5), spare=nn.Conv2d(3, 2, 1), last=nn.Linear(5, 2))
    graph = build_graph(net)
    assert graph.unreached == ("spare.weight", "spare.bias")
    assert graph.nodes[graph.owner["spare.weight"]].op == "conv"
    assert sources_of(graph, graph.owner["spare.weight"]) == [graph.owner["first.weight"]]
    assert sources_of(graph, len(graph.nodes) - 1) == [graph.owner["last.weight"]]


def test_lazy_parameters_are_reported_and_the_rest_is_served():
    graph = build_graph(nn.Sequential(nn.Linear(4, 5), nn.LazyLinear(3)))
    assert [t.name for t in graph.spec.tensors] == ["0.weight", "0.bias"]
    assert graph.left_out == dict.fromkeys(
        ("1.weight", "1.bias"), "it is lazy, its shape is not known yet; run one batch through the module first"
    )
    with pytest.raises(BadData, match="LazyLinear has no tensors to make; left out: 'weight', 'bias'.*run one"):
        build_graph(nn.LazyLinear(3))


def test_quantised_tensors_are_reported_and_the_rest_is_served():
    net = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2))
    net[1].weight = nn.Parameter(torch.zeros(2000, 2200, dtype=torch.int8), requires_grad=False)
    graph = build_graph(net)
    assert graph.left_out["1.weight"].startswith("it holds 4,400,000 integers (int8), as quantised weights do")
    assert "1.bias" in graph.owner


def test_tensors_without_elements_are_reported_and_served():
    graph = build_graph(Net(lambda m, x: m.linear(x), linear=nn.Linear(4, 2), none=nn.Parameter(torch.empty(0, 3))))
    assert "'none' has no elements" in graph.notes
    assert graph.unreached == ("none",)


def test_a_module_that_contains_itself_is_reported_and_served():
    outer, inner = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4))
    outer.add_module("inner", inner)
    inner.add_module("outer", outer)
    graph = build_graph(outer)
    assert graph.notes[0].startswith("'the module' contains itself as 'inner.outer'; its tensors are listed once")
    assert {t.name for t in graph.spec.tensors} == {"0.weight", "0.bias", "inner.0.weight", "inner.0.bias"}


def test_a_module_without_tensors_is_refused():
    with pytest.raises(BadData, match="ReLU has no tensors to make"):
        build_graph(nn.ReLU())


def test_given_inputs_are_used():
    net = Net(lambda m, x: m.wide(x) if x.shape[-1] == 6 else m.narrow(x), narrow=nn.Linear(4, 2), wide=nn.Linear(6, 2))
    assert build_graph(net, torch.rand(1, 6)).unreached == ("narrow.weight", "narrow.bias")
    assert build_graph(net, torch.rand(1, 4)).unreached == ("wide.weight", "wide.bias")
    assert build_graph(net).unreached == ("wide.weight", "wide.bias")


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


def test_ten_billion_parameters_take_no_memory():
    with torch.device("meta"):
        layers = [nn.TransformerEncoderLayer(8192, 64, 32768, batch_first=True) for _ in range(13)]
        module = nn.Sequential(nn.Embedding(50_000, 8192), *layers)
    graph = build_graph(module)
    assert graph.spec.num_parameters > 10e9
    assert_whole(graph, module)
    assert graph.unreached == ()


if not NO_TRANSFORMERS:
    import transformers

SMALL: dict[str, object] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
TRANSFORMERS: dict[str, tuple[str, dict[str, object]]] = {
    "BertForMaskedLM": ("BertConfig", SMALL | {"intermediate_size": 32}),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "LlamaForCausalLM": ("LlamaConfig", SMALL | {"num_key_value_heads": 1, "intermediate_size": 32}),
    "Qwen2ForCausalLM": ("Qwen2Config", SMALL | {"num_key_value_heads": 1, "intermediate_size": 32}),
    "OPTForCausalLM": ("OPTConfig", SMALL | {"ffn_dim": 32, "word_embed_proj_dim": 16}),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2},
    ),
    "MambaForCausalLM": ("MambaConfig", {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2}),
    "MixtralForCausalLM": ("MixtralConfig", SMALL | {"num_key_value_heads": 1, "intermediate_size": 32}),
    "ViTForImageClassification": (
        "ViTConfig",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8},
    ),
}
EXPECTED_OPS = {
    "LlamaForCausalLM": {"rms_norm": 5, "linear": 15, "attention": 2, "activation": 2, "product": 2, "sum": 4},
    "GPT2LMHeadModel": {"layer_norm": 5, "linear": 9, "attention": 2, "activation": 2, "sum": 5},
    "BertForMaskedLM": {"layer_norm": 6, "linear": 14, "attention": 2, "activation": 3},
    "T5ForConditionalGeneration": {"rms_norm": 12, "attention": 6, "embedding": 4, "activation": 4},
    "MixtralForCausalLM": {"gate": 2, "expert": 4, "attention": 2},
}


@pytest.mark.skipif(NO_TRANSFORMERS, reason="transformers is not installed (pip install 'weightgen[clip]')")
@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_transformers_are_traced_to_the_end(name, attention):
    config, options = TRANSFORMERS[name]
    attention = "eager" if name == "MambaForCausalLM" else attention  # it has none
    with torch.device("meta"):
        module = getattr(transformers, name)(getattr(transformers, config)(**options, attn_implementation=attention))
    graph = build_graph(module)
    assert_whole(graph, module)
    assert graph.unreached == ()
    assert "broke off" not in " ".join(graph.notes)
    counts = {op: ops_of(graph).count(op) for op in EXPECTED_OPS.get(name, {})}
    assert counts == EXPECTED_OPS.get(name, {})


@pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed; it is no dependency"
)
@pytest.mark.parametrize("name", ["resnet18", "vit_b_16", "convnext_tiny", "swin_t", "swin_v2_t"])
def test_torchvision_models_are_traced_to_the_end(name):
    from torchvision import models  # pyright: ignore

    with torch.device("meta"):
        module = models.get_model(name)
    graph = build_graph(module)
    assert_whole(graph, module)
    assert graph.unreached == ()
