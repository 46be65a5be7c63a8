import json
import os
import struct
import subprocess
import sys

import hypothesis.strategies as st
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import example, given, settings
from torch import Tensor

from tests.helpers.hostile.make import GOOD, make_entry, make_safetensors
from weightgen.errors import CorruptFile, NotFound, SpecMismatch, StorageFailed, WeightgenError
from weightgen.files.state_file import DTYPES, StateReader, encode_state, load_state, read_manifest, save_state

SHAPES = [(), (0,), (1,), (3, 2), (2, 0, 4), (5, 1, 3)]


def make_state(seed: int = 0) -> dict[str, Tensor]:
    """A tensor of every shape for every dtype, of random bits without NaN or infinity."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for code, dtype in DTYPES.items():
        for shape in SHAPES:
            numbers = torch.randint(0, 2, shape, generator=rng)
            if dtype.is_floating_point:
                numbers = numbers + torch.rand(shape, generator=rng) + 0.5
            state[f"{code}.{'x'.join(map(str, shape))} ü"] = numbers.to(dtype)
    return state


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Equal names, shapes, dtypes and bits."""
    assert a.keys() == b.keys()
    for name in a:
        assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        assert torch.equal(a[name].flatten().view(torch.uint8), b[name].flatten().view(torch.uint8)), name


def reverse(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return dict(reversed(state.items()))


def test_load_inverts_save_for_every_dtype_and_shape(tmp_path):
    save_state(tmp_path / "a.safetensors", make_state(), manifest={"b": 1, "a": ["ü"]})
    assert_same(load_state(tmp_path / "a.safetensors"), make_state())
    assert read_manifest(tmp_path / "a.safetensors") == {"a": ["ü"], "b": 1}


def test_the_safetensors_library_reads_what_we_write(tmp_path):
    known = {n: t for n, t in make_state().items() if not n.startswith("F8_E8M0")}  # its torch side lacks this one
    save_state(tmp_path / "a.safetensors", known, manifest={"a": 1})
    assert_same(safetensors.torch.load_file(tmp_path / "a.safetensors"), known)
    with safetensors.safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"weightgen.manifest": '{"a":1}'}


def test_we_read_what_the_safetensors_library_writes(tmp_path):
    known = {n: t for n, t in make_state().items() if not n.startswith("F8_E8M0")}
    safetensors.torch.save_file(known, tmp_path / "a.safetensors", metadata={"format": "pt"})
    assert_same(load_state(tmp_path / "a.safetensors"), known)


def test_the_bytes_depend_on_the_tensors_alone():
    state, manifest = make_state(), {"b": {"d": 1, "c": 2}, "a": 3}
    assert encode_state(state, manifest) == encode_state(reverse(state), {"a": 3, "b": {"c": 2, "d": 1}})
    strided = {n: t.to(memory_format=torch.channels_last) if t.ndim == 4 else t.T.contiguous().T if t.ndim == 2 else t
               for n, t in state.items()}  # fmt: skip
    assert encode_state(state) == encode_state(strided)


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_the_bytes_are_the_same_in_every_process(tmp_path, hash_seed):
    program = (
        "import sys, torch\n"
        "from weightgen.files.state_file import save_state\n"
        "names = set('abcdefgh')  # iterates in another order for every hash seed\n"
        "state = {n: torch.full((ord(n) - 90,), float(ord(n))) for n in names}\n"
        "save_state(sys.argv[1], state, manifest={n: 1 for n in names})\n"
    )
    subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.safetensors")],
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        check=True,
    )
    state = {n: torch.full((ord(n) - 90,), float(ord(n))) for n in "abcdefgh"}
    assert (tmp_path / "a.safetensors").read_bytes() == encode_state(state, dict.fromkeys("abcdefgh", 1))


def test_the_format_is_this_byte_for_byte():
    """Written down, so that a change is seen: files of older versions must stay byte-identical."""
    state = {"b": torch.tensor([1, 2], dtype=torch.int8), "a": torch.tensor([3], dtype=torch.int8)}
    state["w"] = torch.tensor([[0.5]])
    header = (
        b'{"__metadata__":{"weightgen.manifest":"{\\"k\\":[1,2.5]}"},'
        b'"w":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"I8","shape":[1],"data_offsets":[4,5]},'
        b'"b":{"dtype":"I8","shape":[2],"data_offsets":[5,7]}}'
    )
    header += b" " * (-len(header) % 8)
    expected = struct.pack("<Q", len(header)) + header + struct.pack("<f", 0.5) + b"\x03\x01\x02"
    assert encode_state(state, {"k": [1, 2.5]}) == expected


def test_a_parameter_with_gradient_is_written(tmp_path):
    save_state(tmp_path / "a.safetensors", {"w": torch.nn.Parameter(torch.ones(2))})
    assert torch.equal(load_state(tmp_path / "a.safetensors")["w"], torch.ones(2))


def test_rows_of_one_buffer_may_be_saved_together():
    stacked = torch.arange(6.0).reshape(2, 3)
    assert encode_state({"a": stacked[0], "b": stacked[1]})
    assert encode_state({"a": stacked[:, 0], "b": stacked[:, 1]})


@pytest.mark.parametrize("second", [lambda w: w, lambda w: w.T, lambda w: w[1:]])
def test_shared_storage_is_refused_with_the_way_out(tmp_path, second):
    w = torch.ones(2, 2)
    with pytest.raises(SpecMismatch, match=r"'a' and 'b' share storage; save tied tensors with save_for_spec"):
        save_state(tmp_path / "x.safetensors", {"a": w, "b": second(w)})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"w": torch.ones(2, dtype=torch.complex128)}, r"'w' \(complex128, strided, on cpu\) cannot be written"),
        ({"w": torch.ones(2).to_sparse()}, "'w' .* cannot be written; expected a dense tensor"),
        ({"w": torch.empty(2, device="meta")}, "on meta.* cannot be written"),
        ({"__metadata__": torch.ones(2)}, "cannot be called '__metadata__'"),
        ({"\ud800": torch.ones(2)}, "cannot be called"),
        ({"w" * 1001: torch.ones(2)}, "cannot be called"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path, state, message):
    with pytest.raises(SpecMismatch, match=message):
        save_state(tmp_path / "x.safetensors", state)
    assert os.listdir(tmp_path) == []


def test_a_manifest_that_is_not_json_is_refused(tmp_path):
    with pytest.raises(StorageFailed, match=r"x.safetensors: manifest: the value cannot be written as JSON"):
        save_state(tmp_path / "x.safetensors", {}, manifest={"a": float("nan")})


def test_a_file_without_manifest_is_named(tmp_path):
    save_state(tmp_path / "x.safetensors", {"w": torch.ones(1)})
    with pytest.raises(CorruptFile, match=r"x.safetensors: has no weightgen manifest"):
        read_manifest(tmp_path / "x.safetensors")


@pytest.mark.parametrize("dtype", [d for d in DTYPES.values() if d.is_floating_point or d.is_complex])
@pytest.mark.parametrize("place", [0, 40, 99])
def test_nan_is_refused_unless_asked_for(tmp_path, dtype, place):
    numbers = torch.ones(100)
    numbers[place] = float("nan")
    save_state(tmp_path / "x.safetensors", {"w": numbers.to(dtype)})
    with pytest.raises(CorruptFile, match=r"x.safetensors: 'w' holds NaN or infinite values"):
        load_state(tmp_path / "x.safetensors")
    assert_same(load_state(tmp_path / "x.safetensors", allow_nonfinite=True), {"w": numbers.to(dtype)})


def test_reader_reads_single_tensors_and_rows(tmp_path):
    state = make_state()
    save_state(tmp_path / "x.safetensors", state, manifest={"a": 1})
    with StateReader(tmp_path / "x.safetensors") as reader:
        assert reader.manifest == {"a": 1}
        assert reader.entries.keys() == state.keys()
        for name, tensor in state.items():
            assert_same({name: reader.read(name)}, {name: tensor})
            if tensor.ndim:
                rows = [len(tensor) - 1, 0, 0] if len(tensor) else []
                assert_same({name: reader.read_rows(name, rows)}, {name: tensor[rows]})


def test_reader_works_where_the_data_are_not_aligned(tmp_path):
    data = make_safetensors({"b": make_entry(0, 1, dtype="I8", shape=[1]), "w": make_entry(1, 9)}, b"\x07" + bytes(8))
    (tmp_path / "x.safetensors").write_bytes(data)
    assert_same(load_state(tmp_path / "x.safetensors"), {"b": torch.tensor([7], dtype=torch.int8), "w": torch.zeros(2)})


def test_reader_names_what_is_not_there(tmp_path):
    save_state(tmp_path / "x.safetensors", {"w": torch.ones(3), "s": torch.ones(())})
    with StateReader(tmp_path / "x.safetensors") as reader:
        with pytest.raises(NotFound, match=r"x.safetensors: holds no tensor 'v'"):
            reader.read("v")
        for name, num_rows, row in (("w", 3, 3), ("w", 3, -1), ("s", 0, 0)):
            with pytest.raises(NotFound, match=f"{name!r} has {num_rows} rows, row {row} was asked for"):
                reader.read_rows(name, [row])


def test_a_reader_closes_after_an_error(tmp_path):
    save_state(tmp_path / "x.safetensors", {"w": torch.full((3,), float("inf"))})
    with pytest.raises(CorruptFile, match="'w' holds NaN"), StateReader(tmp_path / "x.safetensors") as reader:
        reader.read_rows("w", [1])


def test_a_sparse_terabyte_is_refused_before_anything_is_allocated(tmp_path):
    with open(tmp_path / "x.safetensors", "wb") as file:
        file.write(make_safetensors({"w": make_entry(0, 2**40, shape=[2**38])}))
        try:
            file.truncate(file.tell() + 2**40)
        except OSError:
            pytest.skip("the file system holds no sparse files of this size")
    with pytest.raises(CorruptFile, match=r"x.safetensors: \d+ bytes, expected at most 68719476736"):
        load_state(tmp_path / "x.safetensors")


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(NotFound, match=r"/none.safetensors: no such file"):
        load_state(tmp_path / "none.safetensors")
    with pytest.raises(CorruptFile, match=r"is a folder, expected a file"):
        load_state(tmp_path)


# Fuzzing: whatever the bytes, a WeightgenError or a state that the safetensors library agrees with.

BYTES = encode_state(
    {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3), "b": torch.tensor([True, False])}, {"a": 1}
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["F32", "BOOL", "w", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("wn"), inner, max_size=3),
    max_leaves=6,
)


def check_reading(data: bytes, tmp_path) -> None:
    (tmp_path / "x.safetensors").write_bytes(data)
    try:
        state = load_state(tmp_path / "x.safetensors")
    except WeightgenError as error:
        check_message(str(error), tmp_path)
        return
    assert_same(state, safetensors.torch.load(data))
    assert all(torch.isfinite(t.float()).all() for t in state.values())
    assert_same(load_state_again(state, tmp_path), state)


def check_message(message: str, tmp_path) -> None:
    """One sentence of reasonable length that names the file."""
    assert "x.safetensors: " in message
    assert "\n" not in message
    assert len(message) < len(str(tmp_path)) + 300


def load_state_again(state: dict[str, Tensor], tmp_path) -> dict[str, Tensor]:
    save_state(tmp_path / "y.safetensors", state)
    return load_state(tmp_path / "y.safetensors")


@given(flips=st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.integers(1, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_surprise(tmp_path, flips):
    data = bytearray(BYTES)
    for at, bits in flips:
        data[at] ^= bits
    check_reading(bytes(data), tmp_path)


@given(length=st.integers(0, len(BYTES) - 1), tail=st.binary(max_size=8))
def test_truncation_never_surprises(tmp_path, length, tail):
    check_reading(BYTES[:length] + tail, tmp_path)


@given(data=st.binary(max_size=200))
@example(GOOD)
def test_random_bytes_never_surprise(tmp_path, data):
    check_reading(data, tmp_path)


@given(data=st.data())
@settings(max_examples=150)
def test_mutated_headers_never_surprise(tmp_path, data):
    (length,) = struct.unpack("<Q", BYTES[:8])
    header = json.loads(BYTES[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(header)))
    key = data.draw(st.sampled_from(["", "new", *sorted(header[name])]))
    value = data.draw(JSON)
    if key == "":
        header[name] = value
    elif key == "data_offsets":
        header[name][key] = data.draw(st.lists(st.integers(-1, 40) | JSON, min_size=1, max_size=3))
    elif key == "shape":
        header[name][key] = data.draw(st.lists(st.integers(-1, 7) | JSON, max_size=4))
    else:
        header[name][key] = value
    check_reading(make_safetensors(json.dumps(header).encode(), BYTES[8 + length :]), tmp_path)
