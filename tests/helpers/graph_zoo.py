"""Small modules whose graphs are known, every registered architecture, and what is asked of any graph."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.architectures import ARCHITECTURES, build_target
from weightgen.graph.arch_graph import OPS, ROLES, ArchGraph


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
