import pytest
import torch

from model_zoo.architectures import build_target
from model_zoo.published.cifar_resnets import resnet_target
from weightgen.errors import BadOption, UnsupportedTask
from weightgen.spec import StateSpec
from weightgen.weightspace.tokens import chunk_layout
from weightgen.weightspace.windows import PLACE_DIM, Windows, list_layers, measure_statistics, split_windows

TARGET = resnet_target(14)
STATE = TARGET.init_state(0)
STATISTICS = measure_statistics([(TARGET.spec, STATE)])


def split(token_dim: int = 144, spec: StateSpec = TARGET.spec) -> Windows:
    return split_windows(spec, STATISTICS, token_dim=token_dim)


@pytest.mark.parametrize(("token_dim", "context"), [(1000, 1), (144, 64), (144, 7), (50, 10_000)])
def test_writing_what_was_read_gives_the_trunk_back(token_dim, context):
    windows = split(token_dim)
    trunk = windows.allocate()
    for window in windows.cut(context):
        windows.write(windows.read(STATE, window), window, out=trunk)
    kept = {t.name for t in TARGET.spec.generated} - set(TARGET.spec.head)
    assert set(trunk) == {name for name in kept if not name.endswith(("running_mean", "running_var"))}
    for name, tensor in trunk.items():
        torch.testing.assert_close(tensor, STATE[name], atol=1e-6, rtol=1e-5)


def test_windows_of_any_context_are_pieces_of_one_sequence():
    windows = split()
    every = range(windows.num_tokens)
    for whole, piece in (
        (windows.read(STATE, every), lambda w: windows.read(STATE, w)),
        (windows.mask(every), windows.mask),
        (windows.places(every), windows.places),
        (windows.kind_indices(every), windows.kind_indices),
    ):
        assert torch.equal(whole, torch.cat([piece(window) for window in windows.cut(37)]))


def test_the_tokens_of_a_layer_are_the_chunks_of_its_flattened_tensors():
    windows = split()
    for layer, tensors in zip(windows.layers, list_layers(TARGET.spec), strict=True):
        layout = chunk_layout(StateSpec("layer", tensors), windows.token_dim)
        tokens = windows.read(STATE, range(layer.first, layer.first + layer.num_tokens))
        values = {
            t.name: (STATE[t.name] - mean) / deviation
            for t, (mean, deviation) in zip(tensors, STATISTICS[layer.kind], strict=True)
        }
        torch.testing.assert_close(tokens, layout.encode(values))
        assert torch.equal(layout.mask, windows.mask(range(layer.first, layer.first + layer.num_tokens)))


def test_assembling_all_tokens_is_writing_every_window_and_carries_gradients():
    windows = split()
    tokens = windows.read(STATE, range(windows.num_tokens)).requires_grad_()
    trunk = windows.assemble(tokens)
    for name, tensor in trunk.items():
        torch.testing.assert_close(tensor.detach(), STATE[name], atol=1e-6, rtol=1e-5)
    torch.cat([t.flatten() for t in trunk.values()]).square().sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad != 0, windows.mask(range(windows.num_tokens)) & (trunk_values(windows) != 0))


def trunk_values(windows: Windows) -> torch.Tensor:
    """What every token's numbers are in the trunk."""
    ones = {name: torch.ones_like(t) for name, t in windows.allocate().items()}
    zero = windows.read({name: torch.zeros_like(t) for name, t in ones.items()}, range(windows.num_tokens))
    one = windows.read(ones, range(windows.num_tokens))
    scale = torch.where(one != zero, 1 / (one - zero), 0.0)
    return windows.read(STATE, range(windows.num_tokens)) * scale - zero * scale


def test_tokens_have_unit_variance_over_the_networks_measured():
    windows = split()
    tokens, mask = windows.read(STATE, range(windows.num_tokens)), windows.mask(range(windows.num_tokens))
    kinds = windows.kind_indices(range(windows.num_tokens))
    for kind, name in enumerate(windows.kinds):
        if "+" not in name:
            assert tokens[kinds == kind][mask[kinds == kind]].square().mean() == pytest.approx(1, abs=1e-3)


def test_a_place_is_the_same_in_networks_of_every_depth():
    deep = split(spec=resnet_target(26).spec)
    shallow = split()
    assert deep.places(range(5)).shape == (5, PLACE_DIM)
    assert torch.equal(shallow.places(range(3)), deep.places(range(3)))
    last = torch.cat([w.places(range(w.num_tokens - 1, w.num_tokens)) for w in (shallow, deep)])
    assert torch.equal(last[0], last[1])
    assert len(shallow.places(range(shallow.num_tokens)).unique(dim=0)) == shallow.num_tokens


def test_layers_of_other_shapes_are_refused_by_name():
    with pytest.raises(UnsupportedTask, match=r"'cnn-tiny' has layers of .*; known are 16x3x3x3, 16\+16"):
        split(spec=build_target("cnn-tiny").spec)
    with pytest.raises(BadOption, match="token_dim is 0, expected 1 or more"):
        split(0)
