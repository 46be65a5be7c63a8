import io
import json
import os
from collections import OrderedDict
from types import SimpleNamespace

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import given
from torch import Tensor, nn

from model_zoo.architectures import build_target
from tests.helpers.hostile.make import FILES, HOSTILE, MARKER
from tests.helpers.paths import shared_path
from weightgen.errors import CorruptFile, NotFound, SpecMismatch, WeightgenError
from weightgen.files.checkpoint import load_for_spec, load_foreign, load_state, read_models, save_for_spec, save_state
from weightgen.files.storage import write_json
from weightgen.spec import StateSpec

STATE = {
    "conv.weight": torch.arange(12.0).reshape(3, 4),
    "norm.num_batches_tracked": torch.tensor(7),
    "half": torch.ones(2).bfloat16(),
}
REAL = ["acasxu_45", "growing_nca_31", "image_classifiers_32", "lora_bert_multitask", "lora_gpt2", "resnet32_cifar10",
        "resnet44_cifar10", "resnet56_cifar10", "rl_policies_80", "texture_nca_133", "wakewords_122"]  # fmt: skip


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert list(a) == list(b)
    assert all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in b)


def prefix(before: str) -> dict[str, Tensor]:
    return {before + name: tensor for name, tensor in STATE.items()}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.out = nn.Linear(3, 4)
        self.out.weight = self.embed.weight


# The specs of ours.


@pytest.mark.parametrize("arch", ["cnn-tiny", "resnet8", "vit-tiny", "mlp"])
def test_load_for_spec_inverts_save_for_spec(tmp_path, arch):
    target = build_target(arch, num_classes=3)
    state = target.init_state(seed=1)
    save_for_spec(tmp_path / "a.safetensors", dict(reversed(state.items())), target.spec)
    assert_same(load_for_spec(tmp_path / "a.safetensors", target.spec), state)


def test_ties_are_written_once_and_restored(tmp_path):
    module = Tied()
    spec = StateSpec.from_module(module, {}, arch="tied")
    save_for_spec(tmp_path / "a.safetensors", module.state_dict(), spec, manifest={"a": 1})
    assert list(load_state(tmp_path / "a.safetensors")) == ["embed.weight", "out.bias"]
    state = load_for_spec(tmp_path / "a.safetensors", spec)
    assert_same(state, {n: t.detach() for n, t in module.state_dict().items()})
    assert state["out.weight"] is state["embed.weight"]
    assert_same(load_foreign(tmp_path / "a.safetensors"), load_state(tmp_path / "a.safetensors"))


def test_a_broken_tie_is_refused(tmp_path):
    module = Tied()
    spec = StateSpec.from_module(module, {}, arch="tied")
    state = {**module.state_dict(), "out.weight": torch.zeros(4, 3)}
    with pytest.raises(
        SpecMismatch, match=r"'out.weight' of 'tied' is tied to 'embed.weight', but their values differ"
    ):
        save_for_spec(tmp_path / "a.safetensors", state, spec)
    assert os.listdir(tmp_path) == []


def test_a_file_of_another_spec_is_named(tmp_path):
    spec = build_target("cnn-tiny").spec
    save_state(tmp_path / "a.safetensors", STATE)
    with pytest.raises(
        SpecMismatch, match=r"/a.safetensors: the state does not fit 'cnn-tiny': missing 'conv1.weight'"
    ):
        load_for_spec(tmp_path / "a.safetensors", spec)
    with pytest.raises(SpecMismatch, match="does not fit 'cnn-tiny'"):
        save_for_spec(tmp_path / "b.safetensors", STATE, spec)


# The files of others.


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_states_are_read_in_both_formats_of_torch(tmp_path, suffix, zipped):
    torch.save(OrderedDict(STATE), tmp_path / f"a{suffix}", _use_new_zipfile_serialization=zipped)
    assert_same(load_foreign(tmp_path / f"a{suffix}"), STATE)


@pytest.mark.parametrize(
    "wrapped",
    [
        {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {0: {"step": 1}}, "param_groups": [{"lr": 0.1}]}},
        {"model_state_dict": STATE, "loss": 0.5},
        {"net": STATE, "acc": torch.tensor(0.9), "epoch": 3},
        {"model": {"state_dict": STATE}, "args": {"lr": 0.1}},
        {"model": {"width": 8}, "state_dict": STATE},
        {"model": prefix("module.")},
        {"model": prefix("_orig_mod.")},
        prefix("module._orig_mod."),
        prefix("_orig_mod.module."),
        prefix("module.module."),
    ],
)
def test_wrappers_and_prefixes_are_taken_off(tmp_path, wrapped):
    torch.save(wrapped, tmp_path / "a.pt")
    assert_same(load_foreign(tmp_path / "a.pt"), STATE)


def test_a_compiled_part_loses_its_prefix():
    assert_same(_load({f"trunk._orig_mod.{n}": t for n, t in STATE.items()}), prefix("trunk."))


def test_module_is_kept_where_it_is_a_name():
    state = {"module.a": torch.ones(1), "head": torch.ones(1), "my_module.b": torch.ones(1)}
    assert_same(_load(state), state)


def _load(state: object) -> dict[str, Tensor]:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        torch.save(state, f"{folder}/a.pt")
        return load_foreign(f"{folder}/a.pt")


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({**STATE, "epoch": 3}, r"entries that are not tensors: 'epoch' \(int\); expected a state dict"),
        ({"state_dict": {**STATE, "x": None}}, r"not tensors: 'x' \(NoneType\)"),
        ({"state_dict": STATE, "model": STATE}, "holds several states, 'state_dict' and 'model'"),
        ({"generator": STATE}, r"'generator' \(dict\)"),
        (torch.ones(2), "holds a Tensor, expected a dict of tensors"),
        ({0: torch.ones(1)}, r"a key of type int \(Tensor\)"),
        (nn.Linear(1, 1), r"holds the Python object torch\.nn\.modules\.linear\.Linear, which is never loaded"),
        ({"a": SimpleNamespace()}, r"holds the Python object types\.SimpleNamespace"),
        ({"a": torch.ones(2).to_sparse()}, "'a' is not a dense tensor"),
        ({"a": torch.empty(2, device="meta")}, "'a' is not a dense tensor"),
        ({"a": torch.tensor([float("nan")])}, "'a' holds NaN"),
        ({"a._orig_mod.b": torch.ones(1), "a.b": torch.ones(1)}, "names clash once the prefixes"),
        ({}, "holds no tensors"),
    ],
)
def test_what_is_no_state_is_refused(saved, message):
    with pytest.raises(CorruptFile, match=message):
        _load(saved)


def test_tied_and_strided_tensors_are_read_exactly():
    w = torch.arange(6.0).reshape(2, 3)
    state = _load({"a": w, "b": w, "t": w.T, "row": w[1]})
    assert_same(state, {"a": w, "b": w, "t": w.T, "row": w[1]})
    assert state["a"].data_ptr() == state["b"].data_ptr()
    assert all(t.is_contiguous() for t in state.values())


def test_nan_can_be_asked_for(tmp_path):
    torch.save({"a": torch.tensor([float("inf")])}, tmp_path / "a.pt")
    assert load_foreign(tmp_path / "a.pt", allow_nonfinite=True)["a"].isinf().all()


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_shards_are_joined(tmp_path, kind):
    names, files = list(STATE), [f"model-0000{i}-of-00002.{kind}" for i in (1, 2)]
    parts = [{n: STATE[n] for n in names[:2]}, {n: STATE[n] for n in names[2:]}]
    for file, part in zip(files, parts, strict=True):
        if kind == "bin":
            torch.save(part, tmp_path / file)
        else:
            safetensors.torch.save_file(part, tmp_path / file)
    index = tmp_path / ("model.safetensors.index.json" if kind == "safetensors" else "pytorch_model.bin.index.json")
    weight_map = {names[0]: files[0], names[1]: files[0], names[2]: files[1]}
    index.write_text(json.dumps({"metadata": {"total_size": 60}, "weight_map": weight_map}))
    assert_same(load_foreign(index), STATE)

    index.write_text(json.dumps({"weight_map": {**weight_map, "more": files[1]}}))
    with pytest.raises(CorruptFile, match=r"the index and the shard 'model-00002-of-00002.\w+' disagree about 'more'"):
        load_foreign(index)
    (tmp_path / files[1]).unlink()
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(NotFound, match=r"/model-00002-of-00002.\w+: no such file"):
        load_foreign(index)


def test_missing_files_and_folders_are_named(tmp_path):
    for name in ("a.pt", "a.safetensors", "a.index.json", "a.weights"):
        with pytest.raises(NotFound, match=f"/{name}: no such file"):
            load_foreign(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(CorruptFile, match=f"/{name}: is a folder, expected a file"):
            load_foreign(tmp_path / name)


# Hostile files.


def test_the_hostile_files_are_those_of_make():
    """`python -m tests.helpers.hostile.make` writes them anew."""
    assert {f.name for f in FILES.iterdir()} == HOSTILE.keys()
    # Compressors differ between machines: the bomb itself is only checked to be there.
    stale = [n for n, (data, _) in HOSTILE.items() if n != "zip_bomb.pt" and (FILES / n).read_bytes() != data]
    assert not stale


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CorruptFile, match=HOSTILE[name][1]) as refusal:
        load_foreign(FILES / name)
    message = str(refusal.value)
    assert message.startswith(str(FILES))
    assert "\n" not in message
    assert len(message) < len(str(FILES)) + 300
    assert not (tmp_path / MARKER).exists()


def _saved(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0), "n": torch.tensor(3)}, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


PICKLED = {zipped: _saved(zipped) for zipped in (True, False)}


@given(
    zipped=st.booleans(),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), max_size=3),
    kept=st.floats(0.3, 1) | st.just(1.0),
)
def test_mutated_pickles_never_surprise(tmp_path, zipped, flips, kept):
    data = bytearray(PICKLED[zipped])
    for at, bits in flips:
        data[int(at * len(data))] ^= bits
    (tmp_path / "x.pt").write_bytes(bytes(data[: int(kept * len(data))]))
    try:
        state = load_foreign(tmp_path / "x.pt")
    except WeightgenError as error:
        assert str(error).startswith(f"{tmp_path}/x.pt: ")  # noqa: PT017, most mutations fail, some do not
    else:
        assert all(isinstance(n, str) and torch.isfinite(t).all() for n, t in state.items())


# Files of many models.


@pytest.mark.parametrize("name", REAL)
def test_real_checkpoints_are_read_exactly(name):
    path = shared_path(f"checkpoints/{name}.safetensors")
    about = json.loads(path.with_suffix(".json").read_text())
    expected = safetensors.torch.load_file(path)
    whole = load_foreign(path)
    assert whole.keys() == expected.keys()
    assert all(torch.equal(whole[n], expected[n]) for n in expected)
    num_models = 0
    for i, (key, state) in enumerate(read_models(path)):
        num_models += 1
        for n, t in state.items():
            if about.get("stacked"):
                assert key == str(i)
                assert torch.equal(t, expected[n][i])
            elif "rows" in about:
                assert key == about["rows"][i]["key"]
                assert torch.equal(t, expected.pop(f"{key}/{n}"))
            else:
                assert (key, num_models) == (name, 1)
                assert torch.equal(t, expected[n])
    assert num_models == about.get("n_models", 1)
    assert not (expected and "key_format" in about)


def test_models_are_found_by_the_longest_row_key(tmp_path):
    safetensors.torch.save_file(
        {f"{k}/w": torch.tensor([v]) for k, v in (("a", 1), ("a/b", 2))}, tmp_path / "x.safetensors"
    )
    write_json(tmp_path / "x.json", {"key_format": "<row key>/<name>", "rows": [{"key": "a/b"}, {"key": "a"}]})
    assert [(k, s["w"].item()) for k, s in read_models(tmp_path / "x.safetensors")] == [("a/b", 2), ("a", 1)]


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ([], "expected a JSON object"),
        ({"stacked": True, "n_models": 2}, "a stacked file needs stack_axis 0 and n_models"),
        ({"stacked": True, "stack_axis": 1, "n_models": 2}, "needs stack_axis 0"),
        ({"stacked": True, "stack_axis": 0, "n_models": 3}, "expected 3 models on axis 0 of 'a/w', 'b/w'"),
        ({"key_format": ""}, "expected rows, each with a key of its own"),
        ({"key_format": "", "rows": [{"key": "a"}, {"key": "a"}]}, "each with a key of its own"),
        ({"key_format": "", "rows": [{"key": "a"}, {"key": 1}]}, "each with a key of its own"),
        ({"key_format": "", "rows": [{"key": "a"}]}, "'b/w' belongs to none of the 1 rows"),
        ({"key_format": "", "rows": [{"key": k} for k in "abc"]}, "no tensors for 'c'"),
    ],
)
def test_a_wrong_description_is_refused_at_once(tmp_path, about, message):
    safetensors.torch.save_file({"a/w": torch.ones(2), "b/w": torch.ones(2)}, tmp_path / "x.safetensors")
    write_json(tmp_path / "x.json", about)
    with pytest.raises(CorruptFile, match=message):
        read_models(tmp_path / "x.safetensors")
