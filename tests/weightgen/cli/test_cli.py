"""The command line as a user meets it: exit codes, one-sentence errors, data on stdout, progress on stderr."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model_zoo import released
from model_zoo.architectures import build_target
from model_zoo.data import load_data
from tests.helpers import standins
from tests.helpers.command_line import assert_refused
from tests.helpers.paths import ROOT
from weightgen import __version__
from weightgen.files.checkpoint import save_for_spec
from weightgen.target.predict import accuracy


def start(*arguments: str, cwd: Path = ROOT) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "weightgen", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        # A shell's background job ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A tiny network for digits at its default initialisation."""
    target = build_target("cnn-tiny", num_classes=10)
    path = tmp_path / "tiny.safetensors"
    save_for_spec(path, target.init_state(0), target.spec)
    return path


@pytest.fixture
def small_data(tmp_path) -> Path:
    """An .npz of two classes: dark and bright images of an odd size."""
    rng = np.random.default_rng(0)
    y = np.arange(40) % 2
    x = (rng.integers(0, 60, (40, 19, 23)) + 150 * y[:, None, None]).astype(np.uint8)
    path = tmp_path / "small.npz"
    np.savez(path, x_train=x[:30], y_train=y[:30], x_test=x[30:], y_test=y[30:])
    return path


def test_version_is_data(run):
    done = run("--version")
    assert (done.code, done.out, done.err) == (0, f"weightgen {__version__}\n", "")


@pytest.mark.parametrize("command", ["generate", "init", "compare", "tokenize", "inspect", "score", "doctor"])
def test_every_command_has_help_and_a_sentence_about_itself(run, command):
    done = run(command, "--help")
    assert done.code == 0
    assert f"weightgen {command}" in done.out
    assert command in run("--help").out


@pytest.mark.parametrize(
    "arguments",
    [["generat"], ["generate"], ["inspect"], ["inspect", "a", "b"], ["doctor", "--jsn"], ["score", "a", "--data"]],
)
def test_wrong_usage_exits_with_2_and_no_traceback(run, arguments):
    done = run(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Traceback" not in done.err


def test_a_misspelt_command_suggests_the_nearest(run):
    assert "generate" in run("generat").err


def test_inspect_describes_an_architecture(run):
    done = run("inspect", "cnn-tiny", "--json")
    assert done.code == 0
    assert done.json["parameters"] == 2464
    assert done.json["tensors"][0]["axes"] == "c1=8 CHANNELS=1 5 5"


def test_inspect_describes_a_checkpoint(run, checkpoint):
    report = run("inspect", checkpoint, "--json").json
    assert (report["kind"], report["parameters"]) == ("checkpoint", 2464)
    assert {"name": "head.bias", "dtype": "float32", "shape": [10]} in report["tensors"]
    assert "head.bias" in run("inspect", checkpoint).out


def test_inspect_reads_the_checkpoints_of_others(run, tmp_path):
    torch.save({"state_dict": {"module.fc.weight": torch.zeros(3, 2)}}, tmp_path / "other.pt")
    report = run("inspect", "other.pt", "--json").json
    assert report["tensors"] == [{"name": "fc.weight", "dtype": "float32", "shape": [3, 2]}]


@pytest.mark.parametrize("name", ["absent.safetensors", "some/where", "./cnn-tiny"])
def test_inspect_of_an_absent_file_exits_with_5(run, name):
    assert_refused(run("inspect", name), 5, name.removeprefix("./"))


def test_inspect_suggests_the_nearest_name(run):
    assert_refused(run("inspect", "cnn-tny"), 5, "'cnn-tny'", "did you mean 'cnn-tiny'?")


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff" * 100, b"PK\x03\x04" + b"\0" * 50])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_inspect_of_a_broken_file_exits_with_1(run, tmp_path, content, suffix):
    (tmp_path / f"broken{suffix}").write_bytes(content)
    assert_refused(run("inspect", f"broken{suffix}"), 1, f"broken{suffix}")


def test_inspect_of_an_ordinary_folder_exits_with_1(run, tmp_path):
    (tmp_path / "folder").mkdir()
    assert_refused(run("inspect", "folder"), 1, "folder")


def test_score_is_the_accuracy_on_the_test_split(run, checkpoint):
    done = run("score", checkpoint, "--arch", "cnn-tiny", "--data", "digits", "--json")
    target, data = build_target("cnn-tiny"), load_data("digits")
    assert done.json["accuracy"] == accuracy(target, target.init_state(0), data.x_test, data.y_test)
    assert done.json["examples"] == len(data.y_test)
    assert len(done.json["class_accuracy"]) == 10
    assert "loading digits" in done.err


def test_score_of_a_checkpoint_asks_for_the_architecture(run, checkpoint):
    assert_refused(run("score", checkpoint, "--data", "digits"), 2, "--arch")


def test_score_refuses_weights_of_another_architecture(run, checkpoint):
    done = run("score", checkpoint, "--arch", "mlp", "--data", "digits")
    assert_refused(done, 1, "missing", "unexpected", "'mlp'")


def test_score_refuses_another_number_of_classes(run, checkpoint, small_data):
    done = run("score", checkpoint, "--arch", "cnn-tiny", "--data", small_data)
    assert_refused(done, 1, "head.weight", "[2, 20]")


@pytest.mark.parametrize(
    ("option", "value", "suggestion"),
    [("--data", "digts", "digits"), ("--arch", "cnn-tinny", "cnn-tiny")],
)
def test_unknown_names_exit_with_5_and_suggest_the_nearest(run, checkpoint, option, value, suggestion):
    options = {"--data": "digits", "--arch": "cnn-tiny", option: value}
    done = run("score", checkpoint, *(word for pair in options.items() for word in pair))
    assert_refused(done, 5, repr(value), f"did you mean {suggestion!r}?")


def test_doctor_reports_this_installation(run):
    done = run("doctor", "--json")
    report = done.json
    assert report["torch"] == torch.__version__
    assert set(report["generators"]) >= set(released.RELEASED)
    assert report["writable"]
    assert done.code == (1 if report["problems"] else 0)
    assert run("doctor").out.startswith("weightgen ")


def test_doctor_finds_a_changed_generator(run, tmp_path, monkeypatch):
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    (tmp_path / "mip.safetensors").write_bytes(b"other bytes")
    (tmp_path / "SHA256SUMS").write_text("0" * 64 + "  mip.safetensors\n")
    done = run("doctor", "--json")
    assert done.code == 1
    assert done.json["generators"]["mip"]["hash"] == "differs"
    assert "generator 'mip': differs" in done.json["problems"]
    assert "generator 'd2nwg': missing" in done.json["problems"]


def test_doctor_finds_a_folder_that_cannot_be_written(run, tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    done = run("doctor", "--json")
    assert done.code == 1
    assert "the current folder cannot be written" in done.json["problems"]


@pytest.fixture
def job(generator_file, small_data) -> list[str]:
    return [
        "--generator",
        str(generator_file),
        "--arch",
        "cnn-tiny",
        "--data",
        str(small_data),
        "--support-per-class",
        "5",
    ]


def test_generate_writes_an_artifact_that_scores_as_reported(run, job, small_data):
    done = run("generate", *job, "--out", "made", "--json")
    assert done.code == 0, done.err
    report = done.json
    assert report["artifact"] == "made"
    assert report["verification"]["loads"]
    assert any("28" in note and "23" in note for note in report["notes"])  # resized, and said so
    scored = run("score", "made", "--data", small_data, "--json").json
    assert scored["accuracy"] == report["accuracy"]
    inspected = run("inspect", "made", "--json").json
    assert (inspected["kind"], inspected["parameters"]) == ("artifact", 2464 - 8 * 21)
    assert inspected["manifest"]["source"] == report["source"]
    assert "artifact" in run("inspect", "made").out


def test_generate_prints_a_short_table(run, job):
    done = run("generate", *job, "--out", "made")
    assert done.code == 0
    assert "test accuracy" in done.out
    assert len(done.out.splitlines()) < 15


def test_generate_writes_a_folder_for_each_sample(run, job):
    done = run("generate", *job, "--samples", 2, "--out", "made", "--json")
    assert [sample["artifact"] for sample in done.json["samples"]] == ["made/0", "made/1"]


def test_generate_gives_the_same_bytes_for_the_same_seed(run, job, tmp_path):
    for out in ("a", "b"):
        assert run("generate", *job, "--seed", 5, "--out", out).code == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert (tmp_path / "a/manifest.json").read_bytes() == (tmp_path / "b/manifest.json").read_bytes()


def test_generate_leaves_a_folder_that_is_not_empty_alone(run, job, tmp_path):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "precious").write_text("x")
    assert_refused(run("generate", *job, "--out", "made"), 1, "made", "not empty")
    assert [p.name for p in (tmp_path / "made").iterdir()] == ["precious"]


def test_generate_without_fallback_exits_with_3_where_generation_fails(run, job, monkeypatch, tmp_path):
    class Dead(standins.RegisteredStandIn):
        def generate(self, request):
            return [{n: 0 * t for n, t in state.items()} for state in super().generate(request)]

    monkeypatch.setattr(standins, "RegisteredStandIn", Dead)
    assert_refused(run("generate", *job, "--no-fallback", "--out", "made"), 3, "did not pass the gate")
    assert not (tmp_path / "made").exists()
    done = run("generate", *job, "--out", "made", "--json")
    assert done.code == 0
    assert done.json["fell_back"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--support-per-class", "0"], 2, ["1 to 50"]),
        (["--support-per-class", "51"], 2, ["1 to 50"]),
        (["--support-per-class", "16"], 1, ["has 15"]),
        (["--samples", "0"], 2, ["num_samples is 0"]),
        (["--seed", "-1"], 2, ["seed is -1"]),
        (["--scheduler", "eulr"], 5, ["no scheduler is called 'eulr'", "ddim, dpm, flow"]),
        (["--steps", "10000"], 2, ["steps is 10000, expected 1 to 1000"]),
        (["--guidance", "nan"], 2, ["guidance is nan"]),
        (["--refinements", "-1"], 2, ["refinements is -1, expected 0 or more"]),
        (["--arch", "cnn-tny"], 5, ["did you mean 'cnn-tiny'?"]),
        (["--arch", "cnn-w0"], 2, ["width"]),
        (["--generator", "mpi"], 5, ["did you mean 'mip'?"]),
        (["--generator", "absent.safetensors"], 5, ["absent.safetensors"]),
        (["--data", "absent.npz"], 5, ["absent.npz"]),
        (["--data", "digit"], 5, ["did you mean 'digits'?"]),
    ],
)
def test_generate_refuses_with_one_sentence_and_writes_nothing(run, job, tmp_path, options, code, words):
    assert_refused(run("generate", *job, *options, "--out", "made"), code, *words)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith((".", "made"))] == []


def test_generate_refuses_a_checkpoint_as_its_generator(run, job, checkpoint):
    assert_refused(run("generate", *job, "--generator", checkpoint, "--out", "made"), 1, checkpoint.name)


def test_compare_prints_the_scoreboard(run, job):
    done = run("compare", *job, "--seed", 1, "--json")
    assert done.code == 0, done.err
    accuracy = done.json["accuracy"]
    assert {"generated", "scratch", "default_init", "retrieval", "soup", "shuffled_condition"} <= set(accuracy)
    assert {"unconditioned_trunk", "random_trunk_ridge"} <= set(accuracy)
    assert set(done.json["seconds"]) >= {"generate", "scratch"}
    assert set(done.json) >= {"curve", "novelty"}


@pytest.mark.parametrize("options", [["--tasks", "0"], ["--ways", "3"], ["--ways", "1"]])
def test_compare_refuses_tasks_that_cannot_be_drawn(run, job, options):
    assert_refused(run("compare", *job, *options), 2, options[1])


def test_tokenize_of_an_absent_zoo_exits_with_5(run):
    assert_refused(run("tokenize", "no-zoo", "--out", "dataset"), 5, "no-zoo")


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_command_leaves_without_a_traceback(checkpoint, sent, code):
    with start("score", str(checkpoint), "--arch", "cnn-tiny", "--data", "digits") as process:
        assert process.stderr
        assert process.stderr.readline() == "loading digits\n"
        process.send_signal(sent)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err


def test_a_closed_pipe_ends_the_command_quietly():
    with start("inspect", "resnet20", "--json") as process:
        assert process.stdout
        process.stdout.close()
        assert process.stderr
        assert process.stderr.read() == ""
    assert process.returncode == 1
