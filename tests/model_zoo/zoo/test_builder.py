import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from model_zoo.architectures import build_target
from model_zoo.data import EVALUATION_SETS
from model_zoo.zoo.builder import build_zoo, split_of
from model_zoo.zoo.config import PRESETS, ZooConfig
from tests.helpers.paths import ROOT, shared_path
from weightgen.errors import BadData, BadOption, CorruptFile, StorageFailed
from weightgen.files.checkpoint import load_for_spec
from weightgen.files.storage import sha256_file
from weightgen.spec import StateSpec

SMALL = ZooConfig(arch="mlp-w8-d1", data=("wine", "iris"), num_runs=6, steps=12, checkpoints=(0.5, 1.0))


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 4
    images = (60 * labels[:, None, None] + 40 * rng.random((60, 12, 12))).astype(np.uint8)
    path = tmp_path / "pictures.npz"
    np.savez(path, x_train=images[:40], y_train=labels[:40], x_test=images[40:], y_test=labels[40:])
    return str(path)


def read_folder(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_runs(zoo):
    return [json.loads(p.read_text()) for p in sorted(zoo.glob("runs/*/run.json"))]


def test_a_zoo_holds_what_its_records_say(tmp_path):
    zoo = tmp_path / "zoo"
    summary = build_zoo(SMALL, zoo)
    assert (summary["num_runs"], summary["num_built"], summary["num_already_there"]) == (6, 6, 0)
    index = json.loads((zoo / "zoo.json").read_text())
    assert (index["format"], index["version"]) == ("weightgen.zoo", 1)
    runs = read_runs(zoo)
    assert [r["run_id"] for r in runs] == index["runs"]
    for run in runs:
        spec = StateSpec.from_json(index["specs"][run["spec"]])
        assert spec.digest() == run["spec"]
        assert run["split"] == split_of(run["run_id"])
        assert run["provenance"]["torch"] == torch.__version__
        assert run["provenance"]["data"] == index["data"][run["task"]["dataset"]]
        assert [c["step"] for c in run["checkpoints"]] == [6, 12]
        for checkpoint in run["checkpoints"]:
            file = zoo / "runs" / run["run_id"] / checkpoint["file"]
            assert sha256_file(file) == checkpoint["sha256"]
            load_for_spec(file, spec)
            assert 0 <= checkpoint["test_accuracy"] <= 1


def test_recorded_accuracy_is_that_of_the_saved_state(tmp_path, pictures):
    zoo = tmp_path / "zoo"
    build_zoo(ZooConfig(arch="cnn-tiny", data=(pictures,), num_runs=2, steps=30, ways=3), zoo)
    from model_zoo.data import load_data
    from model_zoo.zoo.tasks import Task

    for run in read_runs(zoo):
        target = build_target("cnn-tiny", num_classes=3)
        data = Task(pictures, tuple(run["task"]["classes"])).select(load_data(pictures))
        last = run["checkpoints"][-1]
        state = load_for_spec(zoo / "runs" / run["run_id"] / last["file"], target.spec)
        hits = target.run(state, data.x_test).argmax(1) == data.y_test
        assert float(hits.float().mean()) == pytest.approx(last["test_accuracy"])


def test_runs_differ_in_seed_and_rates_and_go_round_the_data(tmp_path):
    build_zoo(SMALL, tmp_path / "zoo")
    runs = read_runs(tmp_path / "zoo")
    for key in ("learning_rate", "weight_decay"):
        assert len({r["hyper"][key] for r in runs}) == 6
    assert len({r["seed"] for r in runs}) == 6
    assert sorted(r["task"]["dataset"] for r in runs) == ["iris"] * 3 + ["wine"] * 3


def test_building_again_trains_nothing(tmp_path):
    build_zoo(SMALL, tmp_path / "zoo")
    before = read_folder(tmp_path / "zoo")
    assert build_zoo(SMALL, tmp_path / "zoo")["num_built"] == 0
    assert read_folder(tmp_path / "zoo") == before


def test_more_runs_are_added_to_those_that_are_there(tmp_path, pictures):
    config = ZooConfig(arch="cnn-tiny", data=(pictures,), num_runs=2, steps=4)
    build_zoo(config, tmp_path / "zoo")
    before = read_folder(tmp_path / "zoo" / "runs")
    more = ZooConfig(arch="cnn-tiny", data=(pictures,), num_runs=4, steps=4)
    assert build_zoo(more, tmp_path / "zoo")["num_already_there"] == 2
    after = read_folder(tmp_path / "zoo" / "runs")
    assert before.items() < after.items()
    build_zoo(more, tmp_path / "whole")
    assert read_folder(tmp_path / "whole" / "runs") == after


def test_half_finished_runs_are_cleaned_and_trained_again(tmp_path):
    zoo = tmp_path / "zoo"
    build_zoo(SMALL, zoo)
    whole = read_folder(zoo)
    first, second, third = sorted((zoo / "runs").iterdir())[:3]
    (first / "run.json").unlink()
    (second / "6.safetensors").unlink()
    third.rename(third.with_name(f".{third.name}.partial"))
    assert build_zoo(SMALL, zoo)["num_built"] == 3
    assert read_folder(zoo) == whole


NUM_RUNS, STEPS = 8, 40
"""Of `run_build`."""


def run_build(out, *, pictures, kill_after=None):
    command = [sys.executable, "-m", "model_zoo", "build", "--arch", "cnn-tiny", "--data", pictures]
    command += [
        "--runs",
        str(NUM_RUNS),
        "--steps",
        str(STEPS),
        "--workers",
        "2",
        "--device",
        "cpu",
        "--out",
        str(out),
    ]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        if kill_after is not None:
            deadline = time.monotonic() + 200
            while process.poll() is None and len(list(out.glob("runs/*/run.json"))) < kill_after:
                assert time.monotonic() < deadline
                time.sleep(0.002)
            time.sleep(random.Random(kill_after).uniform(0, 0.2))
            os.kill(process.pid, signal.SIGKILL)  # the builder alone: its workers have to notice by themselves
        output, errors = process.communicate(timeout=300)
    return process.returncode, output, errors


def test_a_killed_build_goes_on_to_the_same_bytes(tmp_path, pictures):
    """Killed while two workers train, gone on with in this process, against one that was left alone."""
    config = ZooConfig(arch="cnn-tiny", data=(pictures,), num_runs=NUM_RUNS, steps=STEPS)
    build_zoo(config, tmp_path / "whole")
    assert run_build(tmp_path / "killed", pictures=pictures, kill_after=2)[0] == -signal.SIGKILL
    assert build_zoo(config, tmp_path / "killed")["num_already_there"] >= 2
    assert read_folder(tmp_path / "killed") == read_folder(tmp_path / "whole")
    assert not list(tmp_path.glob("killed/runs/.*"))


@pytest.mark.slow
def test_a_build_killed_again_and_again_goes_on_to_the_same_bytes(tmp_path, pictures):
    returncode, output, errors = run_build(tmp_path / "whole", pictures=pictures)
    assert returncode == 0, errors
    assert json.loads(output)["num_built"] == 8
    assert errors.splitlines()[0] == "0/8 runs"
    assert errors.splitlines()[-1].startswith("8/8 runs")
    for kill_after in (0, 3, 6):
        assert run_build(tmp_path / "killed", pictures=pictures, kill_after=kill_after)[0] == -signal.SIGKILL
    returncode, _, errors = run_build(tmp_path / "killed", pictures=pictures)
    assert returncode == 0, errors
    assert read_folder(tmp_path / "killed") == read_folder(tmp_path / "whole")


IDLE_BUILDER = """
import multiprocessing, os, signal
from concurrent.futures import ProcessPoolExecutor
from model_zoo.zoo.builder import start_worker

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    watched = (context.Event(), os.getpid())
    pool = ProcessPoolExecutor(1, mp_context=context, initializer=start_worker, initargs=watched)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see whether a process lives")
def test_idle_workers_end_with_a_killed_builder(tmp_path):
    script = tmp_path / "idle_builder.py"
    script.write_text(IDLE_BUILDER)
    with open(tmp_path / "pid", "w+") as output:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        assert subprocess.run([sys.executable, script], stdout=output, env=environment).returncode == -signal.SIGKILL
        output.seek(0)
        worker = Path("/proc") / output.read().strip()
    deadline = time.monotonic() + 60
    while worker.exists() and "\nState:\tZ" not in (worker / "status").read_text():
        assert time.monotonic() < deadline, "the worker outlived its builder"
        time.sleep(0.05)


def test_two_builders_of_one_zoo_exclude_each_other(tmp_path):
    import fcntl

    build_zoo(SMALL, tmp_path / "zoo")
    held = os.open(tmp_path / "zoo" / "runs", os.O_RDONLY)
    fcntl.flock(held, fcntl.LOCK_EX)
    try:
        with pytest.raises(StorageFailed, match="another process is building this zoo"):
            build_zoo(SMALL, tmp_path / "zoo")
    finally:
        os.close(held)


@pytest.mark.parametrize("name", [*sorted(EVALUATION_SETS), "omniglot_held_out"])
def test_evaluation_sets_never_enter_a_zoo(tmp_path, name):
    with pytest.raises(BadData, match=f"{name}' is for evaluation only"):
        build_zoo(ZooConfig(arch="cnn-tiny", data=("mnist", name)), tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_copies_of_evaluation_files_are_recognised(tmp_path):
    copy = tmp_path / "mine.npz"
    shutil.copy(shared_path("images/oracle_mnist.npz"), copy)
    with pytest.raises(BadData, match=r"mine.npz' \(oracle_mnist\) is for evaluation only"):
        build_zoo(ZooConfig(arch="cnn-tiny", data=(str(copy),)), tmp_path / "zoo")


def test_other_folders_are_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadOption, match="is not empty and no zoo"):
        build_zoo(SMALL, tmp_path)
    with pytest.raises(BadOption, match="is a file"):
        build_zoo(SMALL, tmp_path / "notes.txt")
    assert read_folder(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{}", "not the index of a zoo"), ('{"format": "weightgen.zoo", "version": 9}', "version 9")],
)
def test_zoos_of_another_format_are_refused(tmp_path, content, message):
    (tmp_path / "zoo.json").write_text(content)
    with pytest.raises(CorruptFile, match=message):
        build_zoo(SMALL, tmp_path)


def test_data_that_changed_are_refused(tmp_path, pictures):
    config = ZooConfig(arch="cnn-tiny", data=(pictures,), num_runs=1, steps=2)
    build_zoo(config, tmp_path / "zoo")
    arrays = dict(np.load(pictures))
    np.savez(pictures, **{**arrays, "x_train": 255 - arrays["x_train"]})
    with pytest.raises(BadData, match="is not what it was when this zoo was begun"):
        build_zoo(config, tmp_path / "zoo")


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageFailed, match="cannot be written"):
        build_zoo(SMALL, tmp_path / "file" / "zoo")


def test_splits_depend_on_the_run_alone():
    splits = [split_of(f"{i:016x}") for i in range(100)]
    assert [splits.count(s) for s in ("train", "val", "test")] == [80, 10, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_runs": 0}, "num_runs is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"data": ()}, "at least one data set"),
        ({"data": ("iris", "iris")}, "named twice"),
        ({"ways": 1}, "ways is 1"),
        ({"in_channels": 2}, "expected 1 or 3"),
        ({"learning_rate": (1e-2, 1e-3)}, "the smaller first"),
        ({"weight_decay": (0, 1)}, "above 0"),
        ({"checkpoints": ()}, "shares of the steps"),
        ({"batch_size": 1}, "batch_size is 1"),
    ],
)
def test_configs_out_of_range_are_refused(changes, message):
    with pytest.raises(BadOption, match=message):
        ZooConfig(**{"arch": "mlp", "data": ("iris",), **changes})


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_for_any_architecture(name):
    config = PRESETS[name]("cnn", 3)
    assert (config.arch, config.in_channels) == ("cnn", 3)
    assert not set(config.data) & EVALUATION_SETS


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--arch", "mlpp", "--data", "iris"], 5, "did you mean 'mlp'"),
        (["--arch", "mlp", "--data", "irsi"], 5, "did you mean 'iris'"),
        (["--arch", "cnn-tiny", "--data", "iris"], 2, "takes images"),
        (["--arch", "mlp", "--data", "digits"], 1, "for evaluation only"),
        (["--arch", "mlp", "--data", "iris", "--runs", "0"], 2, "num_runs is 0"),
        (["--arch", "mlp", "--data", "iris", "--device", "tpu"], 2, "device is 'tpu'"),
        (["--arch", "mlp"], 2, "--data missing"),
        (["--preset", "dmeo"], 5, "did you mean 'demo'"),
    ],
)
def test_the_command_line_fails_with_one_sentence(tmp_path, options, code, sentence, monkeypatch, capsys):
    from model_zoo.__main__ import main

    monkeypatch.setattr(sys, "argv", ["model_zoo", "build", "--out", str(tmp_path / "zoo"), *options])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit_info:
        main()
    signal.signal(signal.SIGTERM, handler)
    output = capsys.readouterr()
    assert exit_info.value.code == code
    assert output.out == ""
    assert sentence in output.err
    assert output.err.count("\n") == 1
    assert not (tmp_path / "zoo").exists()
