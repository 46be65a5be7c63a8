"""Tokens are only moved numbers: every law here is about getting back exactly what went in."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from model_zoo.architectures import ARCHITECTURES, build_target
from tests.helpers.paths import shared_path
from weightgen.errors import BadOption, CorruptFile, SpecMismatch, UnknownName
from weightgen.spec import State, StateSpec
from weightgen.weightspace.tokens import (
    KINDS,
    LAYOUTS,
    bare_spec,
    build_layout,
    chunk_layout,
    layout_from_json,
    neuron_layout,
    stack_states,
    unstack_state,
)

TOKEN_DIMS = [1, 7, 64, 1000]
CHECKPOINTS = [
    "acasxu_45",
    "growing_nca_31",
    "image_classifiers_32",
    "lora_bert_multitask",
    "lora_gpt2",
    "resnet32_cifar10",
    "resnet44_cifar10",
    "resnet56_cifar10",
    "rl_policies_80",
    "texture_nca_133",
    "wakewords_122",
]


class TiedNet(nn.Module):
    """An embedding that is also the output matrix, a frozen integer table, a scalar and an empty tensor."""

    AXES = {
        "embed.weight": "VOCAB d",
        "out.weight": "VOCAB d",
        "out.bias": "VOCAB",
        "norm.weight": "d",
        "norm.bias": "d",
    }

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.out = nn.Linear(6, 11)
        self.out.weight = self.embed.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.nothing = nn.Parameter(torch.zeros(3, 0))
        self.register_buffer("table", torch.arange(-3, 3))
        self.register_buffer("keep", torch.tensor([True, False]))


def assert_states_equal(got: State, expected: State) -> None:
    assert list(got) == list(expected)
    for name, tensor in expected.items():
        assert got[name].dtype == tensor.dtype, name
        assert got[name].shape == tensor.shape, name
        assert torch.equal(as_bits(got[name]), as_bits(tensor)), name


def as_bits(tensor: Tensor) -> Tensor:
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(size) if tensor.ndim else tensor.reshape(1).view(size)


def tied_state() -> tuple[StateSpec, State]:
    net = TiedNet()
    return StateSpec.from_module(net, TiedNet.AXES, arch="tied"), {n: t.detach() for n, t in net.state_dict().items()}


@pytest.fixture(params=LAYOUTS)
def layout_name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize("token_dim", TOKEN_DIMS)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_decode_inverts_encode(arch, token_dim, layout_name):
    target = build_target(arch, num_classes=7, in_channels=3)
    layout = build_layout(layout_name, target.spec, token_dim=token_dim)
    state = target.init_state(0)
    tokens = layout.encode(state)
    assert tokens.shape == (layout.num_tokens, token_dim)
    assert_states_equal(layout.decode(tokens), state)


@pytest.mark.parametrize("token_dim", TOKEN_DIMS)
def test_ties_integers_scalars_and_empty_tensors_come_back(token_dim, layout_name):
    spec, state = tied_state()
    layout = build_layout(layout_name, spec, token_dim=token_dim)
    decoded = layout.decode(layout.encode(state))
    assert_states_equal(decoded, state)
    assert decoded["out.weight"] is decoded["embed.weight"]
    assert int(layout.mask.sum()) == spec.num_parameters


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_real_checkpoints_come_back_bit_for_bit(name, layout_name):
    state = load_file(shared_path(f"checkpoints/{name}.safetensors"))
    spec = bare_spec(state, name)
    for token_dim in (7, 64, 1000):
        layout = build_layout(layout_name, spec, token_dim=token_dim)
        assert_states_equal(layout.decode(layout.encode(state)), state)


@pytest.mark.parametrize("name", ["acasxu_45", "wakewords_122", "texture_nca_133"])
def test_stacks_of_real_checkpoints_come_back_bit_for_bit(name, layout_name):
    stacked = load_file(shared_path(f"checkpoints/{name}.safetensors"))
    spec = bare_spec(unstack_state(stacked)[0], name)
    layout = build_layout(layout_name, spec, token_dim=64)
    assert_states_equal(layout.decode_batch(layout.encode_batch(stacked)), stacked)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_comes_back_exactly_extremes_included(dtype, layout_name):
    info = torch.finfo(dtype)
    row = torch.tensor([0.0, -0.0, 1.0, info.max, info.min, info.tiny, info.smallest_normal / 2, float("-inf")])
    state = {"w": row.to(dtype).repeat(3, 1), "b": torch.tensor([1e-3, 2.5, float("nan")], dtype=dtype)}
    spec = bare_spec(state, "extremes")
    tokens_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    layout = build_layout(layout_name, spec, token_dim=5, dtype=tokens_dtype)
    decoded = layout.decode(layout.encode(state))
    assert torch.equal(as_bits(decoded["w"]), as_bits(state["w"]))
    assert torch.equal(decoded["b"].isnan(), state["b"].isnan())


def test_every_half_number_survives_float32_tokens(layout_name):
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        values = bits.view(dtype)
        state = {"w": values[values.isfinite()].reshape(2, -1).contiguous()}
        layout = build_layout(layout_name, bare_spec(state, "halves"), token_dim=64)
        assert_states_equal(layout.decode(layout.encode(state)), state)


def test_tokens_too_narrow_for_the_numbers_are_refused(layout_name):
    spec = bare_spec({"w": torch.zeros(2, 2, dtype=torch.float64), "v": torch.zeros(3, dtype=torch.float64)}, "wide")
    with pytest.raises(SpecMismatch, match=r"float32 tokens cannot hold float64 .*'w' and 1 more.*dtype=torch.float64"):
        build_layout(layout_name, spec, token_dim=4)
    half = bare_spec({"w": torch.zeros(2, 2, dtype=torch.float16)}, "half")
    with pytest.raises(SpecMismatch, match=r"bfloat16 tokens cannot hold float16 .*dtype=torch.float32"):
        build_layout(layout_name, half, token_dim=4, dtype=torch.bfloat16)


@pytest.mark.parametrize("arch", ["cnn-tiny", "resnet8"])
def test_batched_twins_agree_with_one_at_a_time(arch, layout_name):
    target = build_target(arch, num_classes=4)
    states = [target.init_state(seed) for seed in range(3)]
    layout = build_layout(layout_name, target.spec, token_dim=33)
    tokens = layout.encode_batch(stack_states(states))
    assert torch.equal(tokens, torch.stack([layout.encode(s) for s in states]))
    stacked = layout.decode_batch(tokens)
    for got, state in zip(unstack_state(stacked), states, strict=True):
        assert_states_equal(got, state)
    assert all(t.is_contiguous() for t in stacked.values())


@pytest.mark.parametrize("arch", ["cnn-tiny", "resnet8", "vit-tiny"])
def test_mask_is_false_exactly_on_the_zero_padding(arch, layout_name):
    target = build_target(arch, num_classes=5)
    layout = build_layout(layout_name, target.spec, token_dim=50)
    ones = {n: torch.ones_like(t) for n, t in target.init_state(0).items()}
    assert torch.equal(layout.encode(ones), layout.mask.float())
    assert int(layout.mask.sum()) == target.spec.num_parameters


def test_a_neuron_row_is_its_units_weights_then_its_vectors():
    target = build_target("cnn", num_classes=3)
    state = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in target.init_state(0).items()}
    layout = neuron_layout(target.spec, 1000)
    parts = ("weight", "bias", "running_mean", "running_var")
    expected = torch.cat(
        [state["blocks.1.conv.weight"][5].flatten(), *(state[f"blocks.1.norm.{p}"][5:6] for p in parts)]
    )
    index = list(state).index("blocks.1.conv.weight")
    (token,) = torch.nonzero((layout.positions[:, :2] == torch.tensor([index, 5])).all(1)).flatten().tolist()
    assert torch.equal(layout.encode(state)[token][layout.mask[token]], expected)


def test_a_bias_written_before_its_matrix_rides_with_it():
    state = {"a.bias": torch.randn(4), "a.weight": torch.randn(4, 3), "b.bias": torch.randn(4)}
    layout = neuron_layout(bare_spec(state, "bare"), 8)
    assert layout.num_tokens == 5  # four rows of a, and b's bias as a vector: an equal size alone proves nothing
    assert torch.equal(layout.encode(state)[:4, 3], state["a.bias"])
    assert layout.positions[:, 0].tolist() == [1, 1, 1, 1, 2]
    assert KINDS[int(layout.positions[4, 3])] == "vector"


def test_positions_name_class_rows_hidden_rows_and_chunks():
    target = build_target("cnn-tiny", num_classes=6)
    layout = neuron_layout(target.spec, 30)
    names = [t.name for t in target.spec.tensors]
    rows = [(names[t], r, c, KINDS[k]) for t, r, c, k in layout.positions.tolist()]
    assert len(set(rows)) == len(rows) == layout.num_tokens
    assert [r for r in rows if r[3] == "class row"] == [("head.weight", i, 0, "class row") for i in range(6)]
    assert ("conv2.weight", 5, 6, "hidden row") in rows  # 8 * 5 * 5 + bias = 201 numbers: chunks 0 to 6
    assert ("conv2.weight", 5, 7, "hidden row") not in rows


def test_positions_of_chunks_name_the_first_tensor_they_hold():
    state = {"a": torch.randn(5), "b": torch.randn(2, 2)}
    layout = chunk_layout(bare_spec(state, "bare"), 3)
    assert layout.positions.tolist() == [[0, 0, 0, 4], [0, 0, 1, 4], [1, 0, 2, 4]]
    assert torch.equal(layout.encode(state).flatten()[:9], torch.cat([state["a"], state["b"].flatten()]))


def test_order_of_the_callers_dict_and_memory_format_do_not_matter(layout_name):
    target = build_target("cnn-tiny")
    state = target.init_state(0)
    shuffled = {n: state[n].clone() for n in reversed(state)}
    shuffled["conv2.weight"] = shuffled["conv2.weight"].to(memory_format=torch.channels_last)
    layout = build_layout(layout_name, target.spec, token_dim=16)
    assert torch.equal(layout.encode(shuffled), layout.encode(state))


def test_decoded_tensors_own_their_memory(layout_name):
    target = build_target("cnn-tiny")
    layout = build_layout(layout_name, target.spec, token_dim=16)
    tokens = layout.encode(target.init_state(0))
    decoded = layout.decode(tokens)
    storages = {t.untyped_storage().data_ptr() for t in [tokens, *decoded.values()]}
    assert len(storages) == 1 + len(decoded)


def test_gradients_pass_through_both_ways(layout_name):
    target = build_target("cnn-tiny")
    layout = build_layout(layout_name, target.spec, token_dim=16)
    state = {n: t.requires_grad_() for n, t in target.init_state(0).items()}
    decoded = layout.decode(2 * layout.encode(state))
    sum(t.sum() for t in decoded.values()).backward()  # pyright: ignore[reportAttributeAccessIssue]
    assert all(torch.equal(t.grad, torch.full_like(t, 2)) for t in state.values() if t.grad is not None)
    assert all(t.grad is not None for t in state.values())


def test_carried_tensors_of_a_trained_state_come_back_when_they_are_given(layout_name):
    target = build_target("resnet8")
    state = {n: t + 7 if not t.is_floating_point() else t for n, t in target.init_state(0).items()}
    layout = build_layout(layout_name, target.spec, token_dim=64)
    tokens = layout.encode(state)
    assert_states_equal(layout.decode(tokens, carried=state), state)
    assert int(layout.decode(tokens)["norm.num_batches_tracked"]) == 0


def test_encode_writes_into_the_buffer_it_is_given(layout_name):
    target = build_target("resnet8")
    layout = build_layout(layout_name, target.spec, token_dim=64)
    buffer = torch.full((layout.num_tokens, 64), float("nan"))
    tokens = layout.encode(target.init_state(3), out=buffer)
    assert tokens.data_ptr() == buffer.data_ptr()
    assert torch.equal(buffer, layout.encode(target.init_state(3)))
    with pytest.raises(SpecMismatch, match=r"out is .*float32 \[1, 2, 64\], expected contiguous float32"):
        layout.encode(target.init_state(3), out=buffer[:2])


def test_a_layout_is_read_back_from_json(layout_name):
    spec = build_target("vit-tiny").spec
    layout = build_layout(layout_name, spec, token_dim=24, dtype=torch.float64)
    assert layout_from_json(spec, json.loads(json.dumps(layout.to_json()))) == layout
    with pytest.raises(CorruptFile, match="token layout needs name, token_dim and dtype"):
        layout_from_json(spec, {"name": "neuron", "token_dim": "24", "dtype": "float32"})


def test_bad_arguments_are_refused_in_one_sentence(layout_name):
    target = build_target("cnn-tiny")
    state = target.init_state(0)
    layout = build_layout(layout_name, target.spec, token_dim=64)
    with pytest.raises(BadOption, match="token_dim is 0, expected 1 to"):
        build_layout(layout_name, target.spec, token_dim=0)
    with pytest.raises(UnknownName, match="did you mean 'neuron'"):
        build_layout("neurons", target.spec, token_dim=64)
    with pytest.raises(SpecMismatch, match=r"missing 'head\.bias'"):
        layout.encode({n: t for n, t in state.items() if n != "head.bias"})
    with pytest.raises(SpecMismatch, match=r"tokens of 'cnn-tiny' are float32 \[3, 64\], expected float32"):
        layout.decode(torch.zeros(3, 64))
    with pytest.raises(SpecMismatch, match=r"tokens of 'cnn-tiny' are float64"):
        layout.decode(layout.encode(state).double())
    with pytest.raises(SpecMismatch, match="one leading size"):
        layout.encode_batch({n: t[None] if n != "head.bias" else t[None].repeat(2, 1) for n, t in state.items()})
    with pytest.raises(SpecMismatch, match="different tensors"):
        stack_states([state, {"x": torch.zeros(1)}])


def test_a_bare_spec_ties_what_is_one_memory_and_refuses_complex():
    _, state = tied_state()
    spec = bare_spec(state, "tied")
    assert spec.by_name["out.weight"].tied_to == "embed.weight"
    assert spec.by_name["table"].carried == (-3, -2, -1, 0, 1, 2)
    assert StateSpec.from_json(spec.to_json()) == spec
    with pytest.raises(SpecMismatch, match="'z' is complex64"):
        bare_spec({"z": torch.zeros(2, dtype=torch.complex64)}, "complex")
