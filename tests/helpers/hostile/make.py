"""Makes the hostile files in tests/helpers/hostile/files: `python -m tests.helpers.hostile.make`.

HOSTILE maps each file's name to its bytes and to what the refusal must say. A test checks that the committed files
are these, and that the readers refuse every one.
"""

import io
import json
import pickle
import pickletools
import struct
import zipfile
from pathlib import Path
from typing import Any

FILES = Path(__file__).parent / "files"
MARKER = "weightgen-code-was-run"
"""The folder that the pickled files would make in the working directory if they were ever run."""


def make_safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def make_entry(begin: int = 0, end: int = 8, *, dtype: Any = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


GOOD = make_safetensors({"w": make_entry()}, struct.pack("<2f", 1.0, 2.0))


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.mkdir, (MARKER,)


def _zip(records: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive as torch.save lays it out, the same bytes on every day."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in records.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), data, compress_type=compression, compresslevel=9)
    return buffer.getvalue()


def _pickle_tensor(shape: tuple[int, ...], stride: tuple[int, ...], numel: int) -> bytes:
    """data.pkl of {"w": a float tensor over storage 0}, opcode by opcode, so that this file needs no torch."""

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def integers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", v) for v in values) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += b"\x8a\x08" + struct.pack("<q", numel) + b"tQ"
    hooks = b"ccollections\nOrderedDict\n)R"
    arguments = b"(" + storage + b"K\x00" + integers(shape) + integers(stride) + b"\x89" + hooks + b"t"
    return b"\x80\x02}" + text("w") + b"ctorch._utils\n_rebuild_tensor_v2\n" + arguments + b"Rs."


def _torch_file(data_pkl: bytes, storage: bytes = b"", *, compression: int = zipfile.ZIP_STORED) -> bytes:
    return _zip({"data.pkl": data_pkl, "data/0": storage, "version": b"3\n"}, compression=compression)


def _pickled(value: Any) -> bytes:
    return pickletools.optimize(pickle.dumps(value, protocol=2))


_INF, _NAN = struct.pack("<2f", 1.0, float("inf")), struct.pack("<2f", float("nan"), 1.0)
_DEEP = b'{"w":' + b"[" * 5000 + b"]" * 5000 + b"}"

HOSTILE: dict[str, tuple[bytes, str]] = {
    # Whole files.
    "empty.safetensors": (b"", "0 bytes are too few"),
    "short.safetensors": (b"\x02\x00\x00\x00\x00\x00\x00\x00{", "9 bytes are too few"),
    "text.safetensors": (b"this is not a checkpoint", "not a safetensors file; it claims a header of"),
    "truncated_header.safetensors": (GOOD[:20], "truncated; its header"),
    "truncated_data.safetensors": (GOOD[:-3], "truncated; its tensors end"),
    "trailing_bytes.safetensors": (GOOD + b"MZ", "followed by other bytes"),
    "huge_header_length.safetensors": (make_safetensors({}, length=2**63), "claims a header of 9223372036854775808"),
    "header_length_over_limit.safetensors": (make_safetensors({}, length=25_000_001), "header of 25000001 bytes"),
    "wrong_extension.safetensors": (_torch_file(_pickled({})), "not a safetensors file"),
    "wrong_extension.pt": (GOOD, "looks like a safetensors file; rename it"),
    "unknown_extension.weights": (GOOD, "not a checkpoint by its name"),
    # Headers.
    "header_is_array.safetensors": (make_safetensors([1, 2]), "its header is not a JSON object"),
    "header_is_cut.safetensors": (make_safetensors(b'{"w":{'), "header: not valid JSON"),
    "header_is_not_utf8.safetensors": (make_safetensors(b'{"\xff\xfe":1}'), "header: not valid JSON"),
    "header_begins_with_space.safetensors": (make_safetensors(b'  {"w":1}'), "its header is not a JSON object"),
    "deep_nesting.safetensors": (make_safetensors(_DEEP), "header: the JSON is nested too deeply"),
    "repeated_name.safetensors": (
        make_safetensors(b'{"w":%b,"w":%b}' % ((json.dumps(make_entry()).encode(),) * 2), bytes(8)),
        "the key 'w' stands twice",
    ),
    "repeated_key.safetensors": (
        make_safetensors(b'{"w":{"dtype":"F32","dtype":"F64","shape":[1],"data_offsets":[0,8]}}', bytes(8)),
        "the key 'dtype' stands twice",
    ),
    "half_a_surrogate.safetensors": (
        make_safetensors(b'{"\\ud800":%b}' % json.dumps(make_entry()).encode(), bytes(8)),
        "is not Unicode text",
    ),
    "endless_name.safetensors": (
        make_safetensors({"w" * 1001: make_entry()}, bytes(8)),
        "is not Unicode text of at most",
    ),
    "metadata_is_number.safetensors": (make_safetensors({"__metadata__": {"a": 1}}), "not an object of strings"),
    "manifest_is_cut.safetensors": (
        make_safetensors({"__metadata__": {"weightgen.manifest": "{"}}),
        "manifest: not valid JSON",
    ),
    "manifest_is_array.safetensors": (
        make_safetensors({"__metadata__": {"weightgen.manifest": "[]"}}),
        "the manifest is not a JSON object",
    ),
    # Tensors.
    "missing_dtype.safetensors": (make_safetensors({"w": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)), "exactly"),
    "extra_key.safetensors": (make_safetensors({"w": {**make_entry(), "x": 1}}, bytes(8)), "needs exactly dtype"),
    "unknown_dtype.safetensors": (make_safetensors({"w": make_entry(dtype="F31")}, bytes(8)), "unknown dtype 'F31'"),
    "dtype_is_list.safetensors": (make_safetensors({"w": make_entry(dtype=["F32"])}, bytes(8)), "unknown dtype"),
    "negative_shape.safetensors": (make_safetensors({"w": make_entry(shape=[-2])}, bytes(8)), "the shape of 'w'"),
    "float_shape.safetensors": (make_safetensors({"w": make_entry(shape=[2.0])}, bytes(8)), "the shape of 'w'"),
    "boolean_shape.safetensors": (make_safetensors({"w": make_entry(0, 4, shape=[True])}, bytes(4)), "the shape"),
    "overflowing_shape.safetensors": (
        make_safetensors({"w": make_entry(0, 0, shape=[2**32, 2**32])}),
        "the shape of 'w' is not a short list of reasonable numbers",
    ),
    "empty_yet_overflowing_shape.safetensors": (
        make_safetensors({"w": make_entry(0, 0, shape=[0, 2**62, 2**62])}),
        "the shape of 'w'",
    ),
    "huge_tensor.safetensors": (
        make_safetensors({"w": make_entry(0, 4 * 10**12, shape=[10**12])}, bytes(8)),
        "truncated; its tensors end at 40000000000",
    ),
    "span_differs_from_shape.safetensors": (make_safetensors({"w": make_entry(shape=[3])}, bytes(8)), "span 8"),
    "negative_offsets.safetensors": (make_safetensors({"w": make_entry(-8, 0)}, bytes(8)), "the data_offsets of 'w'"),
    "three_offsets.safetensors": (
        make_safetensors({"w": {**make_entry(), "data_offsets": [0, 8, 8]}}, bytes(8)),
        "the data_offsets of 'w' are not two numbers",
    ),
    "endless_offsets.safetensors": (
        make_safetensors({"w": make_entry(10**4000, 10**4000 + 8)}, bytes(8)),
        "the data_offsets of 'w' are not two numbers",
    ),
    "backward_offsets.safetensors": (make_safetensors({"w": make_entry(8, 0)}, bytes(8)), "span -8"),
    "offsets_out_of_range.safetensors": (make_safetensors({"w": make_entry(64, 72)}, bytes(8)), "begin at"),
    "overlapping_offsets.safetensors": (
        make_safetensors({"a": make_entry(0, 8), "b": make_entry(4, 12)}, bytes(12)),
        "the bytes of 'b' begin at",
    ),
    "same_offsets.safetensors": (make_safetensors({"a": make_entry(), "b": make_entry()}, bytes(8)), "'b' begin at"),
    "gap.safetensors": (make_safetensors({"a": make_entry(0, 8), "b": make_entry(12, 20)}, bytes(20)), "'b' begin"),
    "gap_at_start.safetensors": (make_safetensors({"w": make_entry(4, 12)}, bytes(12)), "'w' begin at"),
    "boolean_bytes.safetensors": (
        make_safetensors({"w": make_entry(0, 2, dtype="BOOL")}, b"\x01\x02"),
        "bytes other than 0 and 1",
    ),
    "nan.safetensors": (make_safetensors({"w": make_entry()}, _NAN), "'w' holds NaN or infinite values"),
    "infinite.safetensors": (make_safetensors({"w": make_entry()}, _INF), "'w' holds NaN or infinite values"),
    "no_tensors.safetensors": (make_safetensors({}), "holds no tensors"),
    # Pickles.
    "runs_code.pkl.pt": (_pickled(_RunsCode()), r"holds the Python object \w+\.mkdir"),
    "runs_code.pt": (_torch_file(_pickled({"w": _RunsCode()})), r"holds the Python object \w+\.mkdir"),
    "runs_code_in_protocol_0.th": (f"cposix\nmkdir\n(V{MARKER}\ntR.".encode(), r"holds the Python object posix\.mkdir"),
    "empty.pt": (b"", "is empty"),
    "text.pth": (b"this is not a checkpoint", "not a file of torch.save"),
    "truncated.pt": (_torch_file(_pickle_tensor((2,), (1,), 2), bytes(8))[:-30], "a damaged zip archive"),
    "storage_is_short.pt": (_torch_file(_pickle_tensor((64,), (1,), 64), bytes(8)), "not a file of torch.save"),
    "zip_bomb.pt": (
        _torch_file(_pickle_tensor((2**20,), (1,), 2**20), bytes(2**22), compression=zipfile.ZIP_DEFLATED),
        "compressed or overlapping records",
    ),
    "stride_bomb.pt": (_torch_file(_pickle_tensor((2**40,), (0,), 2), bytes(8)), "claim more than 16 times"),
    "out_of_storage.pt": (_torch_file(_pickle_tensor((2**40,), (1,), 2), bytes(8)), "not a file of torch.save"),
    "nan.pt": (_torch_file(_pickle_tensor((2,), (1,), 2), _NAN), "'w' holds NaN or infinite values"),
    "list.pt": (_torch_file(_pickled([1, 2])), "holds a list, expected a dict of tensors"),
    "no_tensors.pt": (_torch_file(_pickled({})), "holds no tensors"),
    "no_state.pt": (
        _torch_file(_pickled({"epoch": 3, "loss": 0.5})),
        r"not tensors: 'epoch' \(int\), 'loss' \(float\)",
    ),
    "number_as_name.pt": (_torch_file(_pickled({1: 2})), r"a key of type int \(int\)"),
    # Shard indices.
    "up.safetensors.index.json": (b'{"weight_map": {"w": "../make.py"}}', "not a file name in the same folder"),
    "absolute.safetensors.index.json": (b'{"weight_map": {"w": "/etc/passwd"}}', "not a file name in the same"),
    "windows.safetensors.index.json": (b'{"weight_map": {"w": "..\\\\make.py"}}', "not a file name in the same"),
    "dots.safetensors.index.json": (b'{"weight_map": {"w": ".."}}', "not a"),
    "nul.safetensors.index.json": (b'{"weight_map": {"w": "a\\u0000.safetensors"}}', "not a file name in the same"),
    "itself.safetensors.index.json": (
        b'{"weight_map": {"w": "itself.safetensors.index.json"}}',
        "not a checkpoint by its name",
    ),
    "no_map.safetensors.index.json": (b'{"weight_map": [1]}', "not a shard index"),
    "number_as_shard.safetensors.index.json": (b'{"weight_map": {"w": 1}}', "not a shard index"),
    "array.safetensors.index.json": (b"[]", "not a shard index"),
    "nan.safetensors.index.json": (b'{"metadata": NaN, "weight_map": {}}', "NaN is not a JSON number"),
    "deep.safetensors.index.json": (_DEEP, "the JSON is nested too deeply"),
    "repeated.safetensors.index.json": (b'{"weight_map": {"w": "a", "w": "b"}}', "the key 'w' stands twice"),
    "disagrees.safetensors.index.json": (
        b'{"weight_map": {"v": "infinite.safetensors"}}',
        "'w' holds NaN or infinite values",
    ),
    "empty.pytorch_model.bin.index.json": (b"", "not valid JSON"),
}


def main() -> None:
    FILES.mkdir(exist_ok=True)
    for name, (data, _) in HOSTILE.items():
        (FILES / name).write_bytes(data)
    print(f"{len(HOSTILE)} files in {FILES}")


if __name__ == "__main__":
    main()
