"""Zoo folders and checkpoint files in, the same states out, and nothing at all when something is wrong."""

import hashlib
import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_zoo.architectures import build_target
from tests.helpers.paths import shared_path
from weightgen.errors import (
    BadData,
    BadOption,
    CorruptFile,
    NotFound,
    StorageFailed,
    UnknownName,
    UnsupportedTask,
    WeightgenError,
)
from weightgen.files.checkpoint import encode_state, read_models, save_for_spec
from weightgen.files.storage import sha256_file, write_json
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.weight_dataset.dataset import WeightDataset, build_weight_dataset, verify_weight_dataset
from weightgen.weight_dataset.sources import SPLITS, split_of
from weightgen.weightspace.scaling import Moments
from weightgen.weightspace.tokens import unstack_state

STEPS = (10, 20, 30)


def trained_state(target: Target, seed: int) -> State:
    """A state with counts that moved on, as training leaves them."""
    state = target.init_state(seed)
    return {n: t if t.is_floating_point() else t + seed for n, t in state.items()}


def write_zoo(folder: Path, archs: tuple[str, ...] = ("cnn-tiny",), num_runs: int = 10) -> dict[str, State]:
    """A zoo folder of random states; its states by "run/step"."""
    specs, states = {}, {}
    for arch in archs:
        target = build_target(arch, num_classes=3)
        digest = target.spec.digest()
        specs[digest] = target.spec.to_json()
        for number in range(num_runs):
            run_id = f"{arch}-{number:02d}"
            run_folder = folder / "runs" / run_id
            run_folder.mkdir(parents=True)
            checkpoints = []
            for step in STEPS:
                state = trained_state(target, 100 * number + step)
                states[f"{run_id}/{step}"] = state
                save_for_spec(run_folder / f"{step}.safetensors", state, target.spec)
                checkpoints.append(
                    {
                        "step": step,
                        "file": f"{step}.safetensors",
                        "sha256": sha256_file(run_folder / f"{step}.safetensors"),
                        "train_accuracy": 0.5 + step / 100,
                        "test_accuracy": number / 10,
                        "test_loss": 1.0,
                    }
                )
            write_json(
                run_folder / "run.json",
                {
                    "run_id": run_id,
                    "arch": arch,
                    "spec": digest,
                    "task": {"dataset": "mnist", "classes": [0, 1, number]},
                    "seed": number,
                    "split": SPLITS[0 if number < 7 else 1 + number % 2],
                    "hyper": {"lr": 0.001},
                    "checkpoints": checkpoints,
                    "provenance": {},
                },
            )
    write_json(folder / "zoo.json", {"format": "weightgen.zoo", "version": 1, "specs": specs})
    return states


@pytest.fixture
def zoo(tmp_path) -> tuple[Path, dict[str, State]]:
    return tmp_path / "zoo", write_zoo(tmp_path / "zoo")


def assert_same_state(got: State, expected: State) -> None:
    assert list(got) == list(expected)
    assert all(torch.equal(got[n], t) and got[n].dtype == t.dtype for n, t in expected.items())


def name_of(row: dict[str, Any]) -> str:
    return f"{row['run_id']}/{row['step']}"


@pytest.mark.parametrize("max_shard_bytes", [1, 50_000, 10**9])
def test_every_state_of_a_zoo_comes_back_bit_for_bit(tmp_path, max_shard_bytes):
    states = write_zoo(tmp_path / "zoo", ("cnn-tiny", "resnet8"), num_runs=3)
    dataset = build_weight_dataset(tmp_path / "zoo", tmp_path / "out", max_shard_bytes=max_shard_bytes)
    assert sorted(map(name_of, dataset.index)) == sorted(states)
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0)).tolist()
    for i, state in zip(order, dataset.states(order), strict=True):
        assert_same_state(state, states[name_of(dataset.index[i])])
    sizes = [shard["bytes"] / shard["num_states"] for shard in dataset.shards]
    assert all(
        s["bytes"] <= max(max_shard_bytes + 4096, size + 1) for s, size in zip(dataset.shards, sizes, strict=True)
    )


def test_rows_tell_run_split_task_and_accuracies(zoo, tmp_path):
    dataset = build_weight_dataset(zoo[0], tmp_path / "out")
    row = dataset.index[4]
    assert name_of(row) == "cnn-tiny-01/20"
    assert row["task"] == {"dataset": "mnist", "classes": [0, 1, 1]}
    assert (row["split"], row["train_accuracy"], row["test_accuracy"], row["seed"]) == ("train", 0.7, 0.1, 1)
    assert row["source_sha256"] == sha256_file(zoo[0] / "runs" / row["source"])
    assert (row["shard"], row["position"]) == (dataset.shards[0]["file"], 4)


def test_no_run_is_in_two_splits(zoo, tmp_path):
    dataset = build_weight_dataset(zoo[0], tmp_path / "out")
    runs = {split: {dataset.index[i]["run_id"] for i in dataset.select(split=split)} for split in SPLITS}
    assert all(len(runs[split]) >= 1 for split in SPLITS)
    assert sum(map(len, runs.values())) == len(set().union(*runs.values())) == 10
    assert sum(len(dataset.select(split=split)) for split in SPLITS) == len(dataset) == 30


def test_statistics_are_those_of_the_training_runs_alone(zoo, tmp_path):
    dataset = build_weight_dataset(zoo[0], tmp_path / "out", max_shard_bytes=30_000)
    (digest,) = dataset.specs
    training = dataset.stacked(dataset.select(split="train"))
    assert len(training["fc.bias"]) == 21
    for name, found in dataset.scaling(digest).moments.items():
        expected = Moments.of(training[name])
        assert found.count == expected.count
        assert found.mean == pytest.approx(expected.mean, rel=1e-9, abs=1e-12)
        assert found.std == pytest.approx(expected.std, rel=1e-9)
    tokens = dataset.tokens(dataset.select(split="train"))
    layout = dataset.layout(digest)
    scaled = dataset.scaling(digest).scale(tokens, layout)
    assert float(scaled[:, layout.mask].var()) == pytest.approx(1, abs=0.01)


def test_shards_are_plain_safetensors_files_that_hash_as_written(zoo, tmp_path):
    dataset = build_weight_dataset(zoo[0], tmp_path / "out", max_shard_bytes=30_000)
    assert len(dataset.shards) > 3
    sums = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    files = {p.name for p in (tmp_path / "out").iterdir()} - {"SHA256SUMS"}
    assert {line.split("  ")[1]: line.split("  ")[0] for line in sums} == {
        f: hashlib.sha256((tmp_path / "out" / f).read_bytes()).hexdigest() for f in files
    }
    row = dataset.index[0]
    rows = load_file(tmp_path / "out" / row["shard"])["rows.float32"]
    expected = torch.cat([t.flatten() for t in zoo[1][name_of(row)].values()])
    assert torch.equal(rows[row["position"]], expected)


def test_two_builds_are_the_same_bytes(zoo, tmp_path):
    for name in ("a", "b"):
        build_weight_dataset(zoo[0], tmp_path / name, max_shard_bytes=30_000)
    assert (tmp_path / "a" / "SHA256SUMS").read_bytes() == (tmp_path / "b" / "SHA256SUMS").read_bytes()


def test_a_run_that_is_not_complete_is_left_out(zoo, tmp_path):
    shutil.copytree(zoo[0] / "runs" / "cnn-tiny-03", zoo[0] / "runs" / ".cnn-tiny-03.partial")
    (zoo[0] / "runs" / "cnn-tiny-04" / "run.json").unlink()
    dataset = build_weight_dataset(zoo[0], tmp_path / "out")
    assert len(dataset) == 27
    assert "cnn-tiny-04" not in {row["run_id"] for row in dataset.index}


def test_tokens_are_those_of_the_states(zoo, tmp_path):
    dataset = build_weight_dataset(zoo[0], tmp_path / "out")
    (digest,) = dataset.specs
    for name, token_dim in (("neuron", 64), ("chunk", 100)):
        layout = dataset.layout(digest, name=name, token_dim=token_dim)
        tokens = dataset.tokens([3, 17], layout=name, token_dim=token_dim)
        assert torch.equal(tokens, torch.stack([layout.encode(s) for s in dataset.states([3, 17])]))


def test_canonical_states_keep_their_function_and_come_closer_to_the_reference(zoo, tmp_path):
    plain = build_weight_dataset(zoo[0], tmp_path / "plain")
    dataset = build_weight_dataset(zoo[0], tmp_path / "canonical", canonical=True)
    (digest,) = dataset.specs
    assert dataset.reference == {digest: {"run_id": "cnn-tiny-06", "step": 10}}
    target = build_target("cnn-tiny", num_classes=3)
    x = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    before, after = plain.states(range(12)), dataset.states(range(12))
    (reference,) = dataset.states([i for i, r in enumerate(dataset.index) if name_of(r) == "cnn-tiny-06/10"])
    for old, new in zip(before, after, strict=True):
        assert torch.allclose(target.run(new, x), target.run(old, x), atol=1e-5)
    distance = [sum(float((s[n] - reference[n]).square().sum()) for s in some for n in s) for some in (before, after)]
    assert distance[1] < 0.95 * distance[0]


def test_a_dataset_opened_in_another_process_maps_its_shards_itself(zoo, tmp_path):
    dataset = build_weight_dataset(zoo[0], tmp_path / "out")
    dataset.states([0])
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert_same_state(pickle.loads(pickled).states([5])[0], dataset.states([5])[0])


def test_progress_counts_every_state(zoo, tmp_path):
    calls: list[tuple[int, int]] = []
    build_weight_dataset(zoo[0], tmp_path / "out", progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 30) for i in range(30)]


# Checkpoint files.


@pytest.mark.parametrize("name", ["acasxu_45", "wakewords_122", "image_classifiers_32", "rl_policies_80", "lora_gpt2"])
def test_real_checkpoints_come_back_bit_for_bit(name, tmp_path):
    path = shared_path(f"checkpoints/{name}.safetensors")
    dataset = build_weight_dataset(path, tmp_path / "out", max_shard_bytes=2**20)
    expected = list(read_models(path))
    found = {row.get("key", name): i for i, row in enumerate(dataset.index)}
    assert sorted(found) == sorted(key for key, _ in expected)
    for (key, state), got in zip(expected, dataset.states([found[key] for key, _ in expected]), strict=True):
        assert got.keys() == state.keys(), key
        assert all(torch.equal(got[n], t) for n, t in state.items())
    verify_weight_dataset(tmp_path / "out")


def test_what_the_json_says_of_a_model_stands_in_its_row(tmp_path):
    path = shared_path("checkpoints/wakewords_122.safetensors")
    dataset = build_weight_dataset(path, tmp_path / "out")
    assert dataset.index[0]["about"]["phrase"] == "hey leo"
    assert {row["split"] for row in dataset.index} == set(SPLITS)
    assert len(dataset.specs) == 1


def test_checkpoints_of_one_training_run_share_a_split(tmp_path):
    target = build_target("resnet8")
    folder = tmp_path / "in"
    for run in range(12):
        for step in (1, 2):
            path = folder / f"run{run}" / f"step_{step}.safetensors"
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(trained_state(target, 10 * run + step), path)
    dataset = build_weight_dataset(folder, tmp_path / "out")
    assert len(dataset.specs) == 1  # counts of batches differ, the spec does not
    splits = {row["run_id"]: row["split"] for row in dataset.index}
    assert len(splits) == 12
    assert all(splits[row["run_id"]] == row["split"] == split_of(row["run_id"]) for row in dataset.index)
    for row, state in zip(dataset.index, dataset.states(range(24)), strict=True):
        seed = 10 * int(row["run_id"].removeprefix("run")) + row["step"]
        assert all(torch.equal(state[n], t) for n, t in trained_state(target, seed).items())


def test_pickled_tied_and_sharded_checkpoints_are_read(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    tied = torch.randn(3, 4)
    torch.save({"state_dict": {"embed": tied, "out": tied, "n": torch.tensor(3)}}, folder / "tied.pt")
    save_file({"a": torch.randn(5)}, folder / "m-00001-of-00002.safetensors")
    save_file({"b": torch.randn(2, 2).bfloat16()}, folder / "m-00002-of-00002.safetensors")
    shards = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    (folder / "m.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    dataset = build_weight_dataset(folder, tmp_path / "out")
    assert {row["source"] for row in dataset.index} == {"tied.pt", "m.safetensors.index.json"}
    for row, state in zip(dataset.index, dataset.states([0, 1]), strict=True):
        if row["source"] == "tied.pt":
            assert torch.equal(state["embed"], tied)
            assert state["out"].data_ptr() == state["embed"].data_ptr()
            assert int(state["n"]) == 3
        else:
            assert torch.equal(state["b"], load_file(folder / shards["b"])["b"])
            assert torch.equal(state["a"], load_file(folder / shards["a"])["a"])


_BOUNDED = """
import resource, sys
from weightgen.weight_dataset.dataset import build_weight_dataset
import torch
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
build_weight_dataset(sys.argv[1], sys.argv[2], max_shard_bytes=8 * 2**20)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_memory_in_use_does_not_grow_with_the_source(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    big = {f"w{i}": torch.randn(1024, 1024) for i in range(24)}  # one checkpoint of 96 MB, and 40 of 2 MB
    save_file(big, folder / "big.safetensors")
    for i in range(40):
        save_file({"w": torch.randn(512, 1024)}, folder / f"net{i}.safetensors")
    command = [sys.executable, "-c", _BOUNDED, str(folder), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    dataset = WeightDataset(tmp_path / "out")
    assert sum(shard["bytes"] for shard in dataset.shards) > 170 * 2**20
    assert int(run.stdout) < 90  # megabytes of 176; about 40, of which some are mapped pages of the large file
    (place,) = [i for i, row in enumerate(dataset.index) if row["source"] == "big.safetensors"]
    (state,) = dataset.states([place])
    assert all(torch.equal(state[n], t) for n, t in big.items())


# Bad input.


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def flip_byte(path: Path, at: int = -3) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


RUN = Path("runs/cnn-tiny-02")
FAULTS: list[tuple[str, Callable[[Path], object], type[WeightgenError], str]] = [
    ("changed file", lambda z: flip_byte(z / RUN / "20.safetensors"), CorruptFile, r"02/20\.safetensors: its sha256"),
    ("missing file", lambda z: (z / RUN / "20.safetensors").unlink(), NotFound, r"02/20\.safetensors: no such file"),
    ("bad run", lambda z: (z / RUN / "run.json").write_text("{"), CorruptFile, r"run\.json: not valid JSON"),
    ("no steps", lambda z: edit_json(z / RUN / "run.json", lambda r: r.pop("checkpoints")), CorruptFile, "not a run"),
    ("a list", lambda z: (z / RUN / "run.json").write_text("[]"), CorruptFile, "not a run of a zoo"),
    (
        "split",
        lambda z: edit_json(z / RUN / "run.json", lambda r: r.update(split="dev")),
        CorruptFile,
        "split is 'dev'",
    ),
    (
        "other id",
        lambda z: edit_json(z / RUN / "run.json", lambda r: r.update(run_id="x")),
        CorruptFile,
        "run_id is 'x'",
    ),
    ("other spec", lambda z: edit_json(z / RUN / "run.json", lambda r: r.update(spec="0")), CorruptFile, "not in zoo"),
    (
        "outside",
        lambda z: edit_json(z / RUN / "run.json", lambda r: r["checkpoints"][0].update(file="../../x")),
        CorruptFile,
        "not a file of the run's folder",
    ),
    ("no zoo", lambda z: edit_json(z / "zoo.json", lambda r: r.pop("format")), CorruptFile, "not a weightgen zoo"),
    ("future", lambda z: edit_json(z / "zoo.json", lambda r: r.update(version=2)), CorruptFile, "version 2 of the zoo"),
    (
        "spec of another hash",
        lambda z: edit_json(z / "zoo.json", lambda r: next(iter(r["specs"].values())).update(arch="x")),
        CorruptFile,
        "does not have the hash",
    ),
    ("no runs", lambda z: shutil.rmtree(z / "runs"), BadData, "the zoo has no complete run"),
]


@pytest.mark.parametrize(("spoil", "error", "match"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS])
def test_a_damaged_zoo_is_refused_and_leaves_nothing(zoo, tmp_path, spoil, error, match):
    spoil(zoo[0])
    with pytest.raises(error, match=match):
        build_weight_dataset(zoo[0], tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["zoo"]


def test_a_checkpoint_that_does_not_fit_its_spec_or_holds_nan_is_refused_by_name(zoo, tmp_path):
    path = zoo[0] / RUN / "10.safetensors"
    state = load_file(path)
    for change, match in (
        ({**state, "fc.bias": torch.zeros(3)}, r"10\.safetensors: .*'fc\.bias' is float32 \[3\]"),
        ({**state, "fc.bias": state["fc.bias"] + float("nan")}, r"10\.safetensors: 'fc\.bias' holds NaN"),
    ):
        path.write_bytes(encode_state(change))
        edit_json(zoo[0] / RUN / "run.json", lambda run: run["checkpoints"][0].update(sha256=sha256_file(path)))
        with pytest.raises(CorruptFile, match=match):
            build_weight_dataset(zoo[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_bad_arguments_are_refused(zoo, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    with pytest.raises(StorageFailed, match=r"full: .*not empty"):
        build_weight_dataset(zoo[0], tmp_path / "full")
    with pytest.raises(NotFound, match="nowhere: no such zoo folder"):
        build_weight_dataset(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadData, match=r"no zoo\.json and no checkpoint file"):
        build_weight_dataset(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(BadOption, match="max_shard_bytes is 0"):
        build_weight_dataset(zoo[0], tmp_path / "out", max_shard_bytes=0)
    with pytest.raises(BadOption, match="is the source"):
        build_weight_dataset(zoo[0], zoo[0])
    save_file({"w": torch.ones(3)}, tmp_path / "empty" / "w.safetensors")
    with pytest.raises(BadOption, match="canonical: 'w' has no hidden axis"):
        build_weight_dataset(tmp_path / "empty", tmp_path / "out", canonical=True)


@pytest.mark.wrong_types
def test_states_that_cannot_be_had_are_refused(tmp_path):
    write_zoo(tmp_path / "zoo", ("cnn-tiny", "mlp"), num_runs=1)
    dataset = build_weight_dataset(tmp_path / "zoo", tmp_path / "out")
    for indices in ([], [6], [-1], [0.5], 3):
        with pytest.raises(BadOption, match="state"):
            dataset.states(indices)  # pyright: ignore[reportArgumentType]
    with pytest.raises(BadOption, match="states of 2 specs"):
        dataset.tokens(range(6))
    with pytest.raises(UnknownName, match="no split is called 'trian'; did you mean 'train'"):
        dataset.select(split="trian")
    with pytest.raises(UnknownName, match="no spec is called"):
        dataset.scaling("0" * 64)


def test_statistics_of_no_training_run_are_refused(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    name = next(f"net{i}" for i in range(100) if split_of(f"net{i}") == "test")
    save_file({"w": torch.ones(3)}, folder / f"{name}.safetensors")
    dataset = build_weight_dataset(folder, tmp_path / "out")
    with pytest.raises(BadData, match="no training state of"):
        dataset.scaling(next(iter(dataset.specs)))


@pytest.fixture
def dataset_folder(zoo, tmp_path) -> Path:
    build_weight_dataset(zoo[0], tmp_path / "out", max_shard_bytes=60_000)
    return tmp_path / "out"


def test_verify_says_what_a_good_dataset_holds(dataset_folder):
    assert verify_weight_dataset(dataset_folder) == {
        "states": 30,
        "runs": 10,
        "splits": {"train": 21, "val": 3, "test": 6},
        "architectures": ["cnn-tiny"],
        "shards": len(list(dataset_folder.glob("*.safetensors"))),
        "bytes": sum(p.stat().st_size for p in dataset_folder.glob("*.safetensors")),
        "canonical": False,
    }


def rehash(folder: Path) -> None:
    """What an attacker would do after changing the index."""
    names = [p.name for p in folder.iterdir() if p.name != "SHA256SUMS"]
    (folder / "SHA256SUMS").write_text("".join(f"{sha256_file(folder / n)}  {n}\n" for n in names))


def test_verify_names_the_file_that_was_changed(dataset_folder):
    shard = sorted(dataset_folder.glob("*.safetensors"))[1]
    flip_byte(shard)
    with pytest.raises(CorruptFile, match=rf"{shard.name}: its sha256 is not the recorded"):
        verify_weight_dataset(dataset_folder)
    flip_byte(shard)
    verify_weight_dataset(dataset_folder)
    (dataset_folder / "SHA256SUMS").write_text("nonsense\n")
    with pytest.raises(CorruptFile, match="SHA256SUMS: expected lines"):
        verify_weight_dataset(dataset_folder)


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda d: d.update(format="x"), CorruptFile, "not the index of a weight dataset"),
        (lambda d: d.update(version=2), UnsupportedTask, "version 2 of the format"),
        (lambda d: d.pop("rows"), CorruptFile, "damaged: KeyError 'rows'"),
        (lambda d: d["rows"][0].update(position=10**6), CorruptFile, "a row stands outside its shard"),
        (lambda d: d["rows"][0].update(position="x"), CorruptFile, "damaged: ValueError"),
        (lambda d: d["rows"][0].update(split="val"), CorruptFile, "is in two splits"),
        (lambda d: d["rows"][0].pop("run_id"), CorruptFile, "a row lacks run_id"),
        (lambda d: d["shards"][0].update(num_states=10**6), CorruptFile, "its matrices are not those of 1000000"),
        (lambda d: [x.update(file="../x") for x in (d["shards"][0], d["rows"][0])], CorruptFile, "damaged: KeyError"),
    ],
)
def test_a_forged_index_is_refused(dataset_folder, change, error, match):
    edit_json(dataset_folder / "index.json", change)
    with pytest.raises(CorruptFile, match=r"index\.json: its sha256 is not the one"):
        WeightDataset(dataset_folder)
    rehash(dataset_folder)
    with pytest.raises(error, match=match):
        verify_weight_dataset(dataset_folder)


def test_a_truncated_shard_is_refused_before_it_is_mapped(dataset_folder):
    shard = min(dataset_folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match="truncated"):
        WeightDataset(dataset_folder).states([0])
    with pytest.raises(NotFound, match="no weight dataset"):
        WeightDataset(dataset_folder.parent / "absent")


def test_stacked_states_are_the_states_side_by_side(dataset_folder):
    dataset = WeightDataset(dataset_folder)
    for one, other in zip(unstack_state(dataset.stacked([29, 0, 7])), dataset.states([29, 0, 7]), strict=True):
        assert_same_state(one, other)
