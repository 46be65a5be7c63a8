import json

import pytest
import torch

from weightgen.errors import BadOption, SpecMismatch
from weightgen.files.checkpoint import encode_state, load_foreign, load_state
from weightgen.files.state_stream import Slot, split_slots, stream_state, write_shards


@pytest.fixture
def state():
    rng = torch.Generator().manual_seed(0)
    return {
        "b": torch.randn(3, 5, generator=rng),
        "a": torch.randn(7, generator=rng).bfloat16(),
        "steps": torch.tensor(3),
        "none": torch.empty(0, 4),
        "c": torch.randn(2, 2, 2, generator=rng),
    }


def slots_of(state):
    return {name: Slot(t.dtype, tuple(t.shape)) for name, t in state.items()}


def test_a_streamed_file_holds_the_bytes_that_save_state_writes(tmp_path, state):
    with stream_state(tmp_path / "x.safetensors", slots_of(state), manifest={"made": "here"}) as file:
        for name in reversed(state):
            file.write(name, state[name])
    assert (tmp_path / "x.safetensors").read_bytes() == encode_state(state, manifest={"made": "here"})


def test_an_unfinished_stream_leaves_no_file(tmp_path, state):
    with pytest.raises(AssertionError, match="never written"), stream_state(tmp_path / "x", slots_of(state)) as file:
        file.write("a", state["a"])
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_of_another_shape_or_dtype_is_refused(tmp_path, state):
    for wrong in (state["b"].T.contiguous(), state["b"].half()):
        with pytest.raises(SpecMismatch, match=r"'b' is"), stream_state(tmp_path / "x", slots_of(state)) as file:
            file.write("b", wrong)


@pytest.mark.parametrize("max_bytes", [1, 40, 60, 10_000])
def test_shards_are_read_back_whole(tmp_path, state, max_bytes):
    paths = write_shards(tmp_path, slots_of(state), reversed(state.items()), max_shard_bytes=max_bytes)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    last = paths[-1]
    found = load_foreign(last) if last.suffix == ".json" else load_state(last)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    if last.suffix == ".json":
        assert json.loads(last.read_text())["metadata"]["total_size"] == sum(t.nbytes for t in state.values())


def test_a_tensor_over_the_size_has_a_shard_of_its_own():
    slots = {name: Slot(torch.float32, (n,)) for name, n in (("a", 1), ("b", 100), ("c", 1), ("d", 1))}
    assert split_slots(slots, 8) == [["a"], ["b"], ["c", "d"]]
    with pytest.raises(BadOption, match="at least 1"):
        split_slots(slots, 0)
