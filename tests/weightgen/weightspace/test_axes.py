import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from model_zoo.architectures import ARCHITECTURES, build_target
from tests.helpers.paths import shared_path
from weightgen.errors import BadData
from weightgen.spec import StateSpec
from weightgen.weightspace.axes import AxesReport, trace_axes
from weightgen.weightspace.canonical import align

ALL = pytest.mark.parametrize("arch", sorted(ARCHITECTURES))


def with_random_norms(module: nn.Module) -> nn.Module:
    """The module with biases, norms and statistics away from the zeros and ones they start with."""
    rng = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 1 and tensor.dtype.is_floating_point:
            noise = torch.randn(tensor.shape, generator=rng)
            tensor.copy_(torch.exp(0.5 * noise) if name.endswith(("running_var", "weight")) else 0.3 * noise)
    return module.eval()


def assert_lossless(module: nn.Module, report: AxesReport, x: Tensor) -> StateSpec:
    """Reorder every traced word at random; the outputs are what they were. Returns the spec."""
    spec = StateSpec.from_module(module, report.axes, arch="traced")
    state = spec.complete({name: t.detach() for name, t in module.state_dict().items()})
    for seed in range(2):
        rng = torch.Generator().manual_seed(seed)
        orders = {word: torch.randperm(n, generator=rng) for word, n in spec.hidden.items()}
        moved = spec.permute(state, orders)
        with torch.no_grad():
            got, expected = (functional_call(module.eval(), s, (x,)) for s in (moved, state))
        assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
        assert not spec.hidden or any(not torch.equal(moved[name], t) for name, t in state.items())
    return spec


def in_own_words(spec: StateSpec) -> dict[str, tuple]:
    """Axes with every hidden word replaced by its number in order of appearance, and fixed words by their size."""
    numbers: dict[str, int] = {}
    return {
        t.name: tuple(
            tuple(f"#{numbers.setdefault(w.name, len(numbers))}" if w.is_hidden else w.size for w in axis if w.size > 1)
            for axis in t.axes
        )
        for t in spec.tensors
    }


@ALL
@pytest.mark.parametrize("in_channels", [1, 3])
def test_tracing_finds_exactly_the_declared_axes(arch, in_channels):
    target = build_target(arch, in_channels=in_channels, num_classes=7)
    module = with_random_norms(target.make())
    x = torch.rand(2, *target.input_shape)
    spec = assert_lossless(module, trace_axes(module, x), x)
    assert in_own_words(spec) == in_own_words(target.spec)
    assert spec.head == target.spec.head


@ALL
def test_nothing_is_left_unproven_but_which_of_q_k_v_is_which(arch):
    target = build_target(arch)
    held = trace_axes(target.make(), torch.rand(2, *target.input_shape)).held_fixed
    if arch != "vit-tiny":
        assert held == {}
    else:
        assert {name.split(".")[2] for name in held} == {"qkv"}
        assert held["blocks.0.qkv.weight"] == "axis 0 (factor 3 of 144): its units are taken apart, by number"


@ALL
def test_batch_size_does_not_matter(arch):
    target = build_target(arch)
    module = target.make()
    one, five = (trace_axes(module, torch.rand(n, *target.input_shape)) for n in (1, 5))
    assert one.axes == five.axes


def test_tracing_leaves_module_mode_buffers_and_rng_alone():
    module = build_target("resnet8").make().train()
    module.get_submodule("norm").eval()  # a mixed mode has to survive too
    modes = [m.training for m in module.modules()]
    before = copy.deepcopy(module.state_dict())
    rng = torch.random.get_rng_state()
    trace_axes(module, torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert [m.training for m in module.modules()] == modes
    assert all(torch.equal(t, before[name]) for name, t in module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in module.parameters())


def test_a_users_sequential():
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.5),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.PReLU(12),
        nn.GroupNorm(3, 12),
        nn.Upsample(scale_factor=2),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(48, 20),
        nn.LayerNorm(20),
        nn.SiLU(),
        nn.Linear(20, 5),
    )
    with_random_norms(module)
    x = torch.rand(2, 3, 12, 12)
    report = trace_axes(module, x)
    assert_lossless(module, report, x)
    assert report.held_fixed == {}
    assert report.axes["0.weight"] == "h1 3 3 3"
    assert report.axes["4.weight"] == "(h2=3 h3=4) h1 3 3"  # GroupNorm joins channels 4 by 4
    assert report.axes["5.weight"] == report.axes["6.weight"] == "(h2=3 h3=4)"
    assert report.axes["11.weight"] == "h4 (h2=3 h3=4 2 2)"
    assert report.axes["14.weight"] == "CLASSES h4"


def test_depthwise_and_grouped_convolutions_move_in_step():
    module = nn.Sequential(
        nn.Conv2d(3, 12, 1),
        nn.Conv2d(12, 12, 3, groups=12),
        nn.ReLU6(),
        nn.Conv2d(12, 18, 1, groups=3),
        nn.BatchNorm2d(18),
        nn.Hardswish(),
        nn.Conv2d(18, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    with_random_norms(module)
    x = torch.rand(2, 3, 6, 6)
    report = trace_axes(module, x)
    assert_lossless(module, report, x)
    # 3 groups of 4 in and 6 out: groups move as a whole, and inside all groups alike.
    assert report.axes["0.weight"] == "(h1=3 h2) 3 1 1"
    assert report.axes["1.weight"] == "(h1=3 h2) 1 3 3"
    assert report.axes["3.weight"] == "(h1=3 h3=6) h2 1 1"
    assert report.axes["6.weight"] == "CLASSES (h1=3 h3=6) 1 1"


def test_transposed_convolutions_make_their_second_axis():
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 6, 2, stride=2), nn.Tanh(), nn.Conv2d(6, 2, 3)
    )
    x = torch.rand(2, 1, 8, 8)
    report = trace_axes(module, x)
    assert_lossless(module, report, x)
    assert report.axes["2.weight"] == "h1 h2 2 2"
    assert report.axes["4.weight"] == "2 h2 3 3"


class Lambda(nn.Module):
    """A two-layer network with some function of its first layer's map (n, 8, 6, 6) in the middle."""

    def __init__(self, middle: Callable[[Tensor], Tensor], num_features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 3, padding=1)
        self.middle = middle
        self.head = nn.Linear(num_features, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.middle(self.conv(x).relu())
        return self.head(y.flatten(1) if y.ndim == 4 else y)


PROVABLE = {
    "sum": (lambda y: y.sum((2, 3)), 8, "h1"),
    "attention over positions": (lambda y: y.mean((2, 3)).softmax(1), 8, "h1"),
    "einsum": (lambda y: torch.einsum("nchw,nchv->nc", y, y), 8, "h1"),
    "gram": (lambda y: (y.flatten(2) @ y.flatten(2).mT).flatten(1), 64, "(h1 h1)"),
    "expand": (lambda y: y.mean((2, 3), keepdim=True).expand_as(y).mean((2, 3)) * torch.ones(8), 8, "h1"),
    "channel shuffle": (lambda y: y.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2).mean((2, 3)), 8, "(h2=4 h1=2)"),
    "halves": (lambda y: torch.add(*y.mean((2, 3)).chunk(2, dim=1)), 4, "h1"),
    "glu": (lambda y: F.glu(y.mean((2, 3)), dim=1), 4, "h1"),
    "one weight for all": (lambda y: F.prelu(y, torch.tensor([0.25])).amax((2, 3)), 8, "h1"),
}  # fmt: skip
UNPROVABLE = {
    "cat": (lambda y: torch.cat([y, y], 1).mean((2, 3)), 16, "concatenated with others"),
    "pad channels": (lambda y: F.pad(y, (0, 0, 0, 0, 2, 2)).mean((2, 3)), 12, "padded: the order of its units"),
    "slice": (lambda y: y[:, 1:7].mean((2, 3)), 6, "only some of its units"),
    "every other": (lambda y: y[:, ::2].mean((2, 3)), 4, "only some of its units"),
    "pick": (lambda y: y[:, 3].flatten(1), 36, "taken out, by number"),
    "roll": (lambda y: y.roll(1, 1).mean((2, 3)), 8, "no rule says what 'roll' does"),
    "cumsum": (lambda y: y.cumsum(1).mean((2, 3)), 8, "no rule says what 'cumsum' does"),
    "pool across channels": (lambda y: F.max_pool1d(y.mean((2, 3)), 2), 4, "joins neighbours"),
    "uneven reshape": (lambda y: y.reshape(-1, 6, 48).mean(2), 6, "a reshape cuts"),
    "uneven split": (lambda y: torch.cat(y.split([3, 5], 1)[::-1], 1).mean((2, 3)), 8, "cut into unequal parts"),
    "constant": (lambda y: y.mean((2, 3)) * torch.arange(8.0), 8, "no rule says what|constant that is not"),
    "sort": (lambda y: y.mean((2, 3)).sort(1).values, 8, "no rule says what 'sort' does"),
    "write": (lambda y: y.mean((2, 3)).index_fill(1, torch.tensor([2]), 0.0), 8, "index_fill"),
}


@pytest.mark.parametrize("case", PROVABLE)
def test_what_treats_all_units_alike_is_proven(case):
    middle, num_features, axis = PROVABLE[case]
    module, x = Lambda(middle, num_features), torch.rand(2, 2, 6, 6)
    report = trace_axes(module, x)
    assert_lossless(module, report, x)
    assert report.axes["head.weight"] == f"CLASSES {axis}"


@pytest.mark.parametrize("case", UNPROVABLE)
def test_what_tells_units_apart_is_held_fixed_with_a_reason(case):
    middle, num_features, _ = UNPROVABLE[case]
    module, x = Lambda(middle, num_features), torch.rand(2, 2, 6, 6)
    report = trace_axes(module, x)
    spec = assert_lossless(module, report, x)
    assert spec.hidden == {}
    if case != "constant":  # made in the pass itself: an outside order like that of an input
        with pytest.raises(AssertionError, match=UNPROVABLE[case][2]):
            raise AssertionError(report.held_fixed["conv.weight"])


class OptionABlock(nn.Module):
    """Two convolutions round a shortcut that pads new channels with zeros (He et al. 2016, option A)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.stride = 2 if out_channels > in_channels else 1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.new_channels = out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        if self.new_channels:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new_channels // 2, self.new_channels // 2))
        return (y + x).relu()


class OptionAResNet(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = [16, 16, 32, 64]
        for stage in (1, 2, 3):
            blocks = [
                OptionABlock(widths[stage - (i == 0)], widths[stage]) for i in range((depth - 2) // 6)
            ]  # the first block of a stage widens
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.layer3(self.layer2(self.layer1(x)))  # pyright: ignore
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


@pytest.mark.parametrize("depth", [32, 44, 56])
def test_real_resnets_with_padded_shortcuts_keep_their_streams_fixed_and_their_blocks_free(depth):
    from safetensors.torch import load_file

    module = OptionAResNet(depth)
    state = load_file(shared_path(f"checkpoints/resnet{depth}_cifar10.safetensors"))
    missing = module.load_state_dict(state, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    report = trace_axes(module.eval(), x)
    spec = assert_lossless(module, report, x)
    assert len(spec.hidden) == (depth - 2) // 2  # one word inside each block
    assert report.axes["conv1.weight"] == "16 3 3 3"
    assert report.axes["layer1.0.conv2.weight"] == "16 h1 3 3"
    assert "padded: the order of its units" in report.held_fixed["conv1.weight"]
    assert report.axes["linear.weight"] == "CLASSES 64"
    full = {name: t.detach() for name, t in module.state_dict().items()}
    rng = torch.Generator().manual_seed(0)
    moved = spec.permute(full, {word: torch.randperm(n, generator=rng) for word, n in spec.hidden.items()})
    undone = align(moved, full, spec)
    assert all(torch.equal(undone[name], t) for name, t in full.items())


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.second(y if y.sum() > 0 else -y)


def test_a_module_that_branches_on_its_data_is_held_fixed_and_the_report_says_so():
    report = trace_axes(Branches(), torch.rand(2, 4))
    assert report.axes == {"first.weight": "6 4", "first.bias": "6", "second.weight": "2 6", "second.bias": "2"}
    assert report.held_fixed.keys() == report.axes.keys()
    assert all(reason.startswith("the forward pass could not be traced: ") for reason in report.held_fixed.values())


class Cached(nn.Module):
    """Writes what it saw into itself, outside of torch's sight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)
        self.register_buffer("largest", torch.zeros(6))
        self.num_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.num_calls += 1
        y = self.first(x)
        self.largest.copy_(torch.maximum(self.largest, y.amax(0)))  # pyright: ignore
        return self.second(y)


def test_a_module_that_writes_into_itself_is_not_changed():
    module = Cached()
    trace_axes(module, torch.rand(2, 4))
    assert module.num_calls == 0
    assert torch.equal(module.largest, torch.zeros(6))  # pyright: ignore


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()).relu())


def test_tied_tensors_have_one_set_of_axes():
    module, x = Tied(), torch.rand(3, 6)
    report = trace_axes(module, x)
    spec = assert_lossless(module, report, x)
    # The weight's input axis is the network's input, and through the tie also its hidden layer.
    assert report.axes["first.weight"] == report.axes["second.weight"]
    assert spec.by_name["second.weight"].tied_to == "first.weight"


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(4, 3), nn.Linear(5, 5)
        self.register_buffer("index", torch.arange(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x[:, self.index])  # pyright: ignore


def test_tensors_that_are_not_used_and_integers_are_held_fixed():
    report = trace_axes(Unused(), torch.rand(2, 4))
    assert report.axes["unused.weight"] == "5 5"
    assert report.held_fixed["unused.bias"] == "axis 0 (5): the forward pass does not use it"
    assert report.held_fixed["index"] == "axis 0 (4): its integers are carried along, not generated"


class PlainAttention(nn.Module):
    """Attention written out, with an embedding of positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(20, 12), nn.Embedding(5, 12)
        self.q, self.k, self.v, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x) + self.position(torch.arange(x.shape[1]))
        q, k, v = (layer(y).unflatten(-1, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = y + self.out(((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2))
        return self.head(y.mean(1))


def test_attention_written_out_is_proven():
    module, x = PlainAttention(), torch.randint(20, (2, 5))
    report = trace_axes(module, x)
    assert_lossless(module, report, x)
    assert report.held_fixed == {}
    assert report.axes["embed.weight"] == "20 h1"
    assert report.axes["q.weight"] == report.axes["k.weight"] == "(h2=3 h3=4) h1"
    assert report.axes["v.weight"] == "(h2=3 h4=4) h1"
    assert report.axes["out.weight"] == "h1 (h2=3 h4=4)"


@pytest.mark.parametrize(
    "layer",
    [nn.MultiheadAttention(8, 2, batch_first=True), nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True)],
    ids=["attention", "lstm", "gru"],
)
def test_layers_that_torch_fuses_stay_lossless(layer):
    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before, self.layer, self.after = nn.Linear(4, 8), layer, nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.before(x).relu()
            y = self.layer(y, y, y)[0] if isinstance(self.layer, nn.MultiheadAttention) else self.layer(y)[0]
            return self.after(y.mean(1))

    module, x = Around(), torch.rand(2, 5, 4)
    assert_lossless(module, trace_axes(module, x), x)


def test_a_module_that_cannot_run_on_the_example_is_refused():
    with pytest.raises(BadData, match=r"does not run on the example input \[2, 5\]: mat1 and mat2"):
        trace_axes(nn.Linear(4, 3), torch.rand(2, 5))
    with torch.device("meta"):
        module = nn.Linear(4, 3)
    with pytest.raises(BadData, match="this one is on the meta device"):
        trace_axes(module, torch.rand(2, 4))
