"""weightgen init as a user meets it."""

import json
import resource
import signal
import sys

import pytest
import torch
from torch import nn

import weightgen
from model_zoo.architectures import build_target
from tests.helpers.command_line import assert_refused
from tests.helpers.modules_to_fill import Large, Loop, Odd, Scaled, Unresettable
from tests.helpers.tiny_generators import TINY_LOGAH
from weightgen.files.checkpoint import load_foreign, load_state, save_state
from weightgen.generators.logah.generator import Logah, new_logah

HERE = __name__
NET = nn.Linear(3, 4)
NUMBER = 3
CONFIGS = {
    "BertForMaskedLM": {"model_type": "bert", "intermediate_size": 32, "max_position_embeddings": 20},
    "GPT2LMHeadModel": {"model_type": "gpt2", "n_positions": 20, "bos_token_id": 1, "eos_token_id": 2},
    "LlamaForCausalLM": {"model_type": "llama", "intermediate_size": 32, "dtype": "bfloat16"},
    "MambaForCausalLM": {"model_type": "mamba", "state_size": 4},
}
SIZES = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


class Gated(nn.Module):
    """Asks its input's values where to go on, in a way that no guess satisfies."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        print("a line that is no data")
        self.first, self.second = nn.Linear(4, width), nn.Linear(width, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return {"a": self.second}[str(x.tolist())](x)


def fail() -> nn.Module:
    raise ValueError("no luck\nat all")


def leave() -> nn.Module:
    sys.exit(0)


@pytest.fixture
def generator() -> Logah:
    return new_logah(TINY_LOGAH, seed=0)


@pytest.fixture
def initialise(run, tmp_path, generator):
    """Runs `weightgen init` with a generator file, into the folder `out` where no other options are given."""
    generator.save(tmp_path / "g.safetensors")

    def call(target, *options):
        return run("init", target, "--generator", "g.safetensors", *(options or ("--out", "out")))

    return call


@pytest.fixture
def model(tmp_path):
    """Writes the config of a tiny Hugging Face model to the folder `model`."""
    pytest.importorskip("transformers", reason="needs the extra 'transformers'")

    def write(architecture, **options):
        (tmp_path / "model").mkdir()
        config = {"architectures": [architecture], **SIZES, **CONFIGS[architecture], **options}
        (tmp_path / "model" / "config.json").write_text(json.dumps(config))

    return write


def test_init_has_help(run):
    done = run("init", "--help")
    assert done.code == 0 and "weightgen init" in done.out
    assert "init" in run("--help").out


@pytest.mark.parametrize("arch", ["cnn", "vit-tiny", "cnn-w16-d3"])
def test_an_architecture_gets_what_predict_makes_and_its_layers_own_values(initialise, tmp_path, generator, arch):
    done = initialise(arch, "--classes", 7, "--channels", 3, "--out", "out", "--json")
    assert done.code == 0, done.err
    module = build_target(arch, num_classes=7, in_channels=3).make()
    weightgen.init_(module, generator)
    found = load_state(tmp_path / "out" / "model.safetensors")
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(t, found[name]) for name, t in module.state_dict().items())
    assert done.json["files"] == ["model.safetensors", "report.json"]
    assert done.json["predicted"]["numbers"] == sum(p.numel() for p in module.parameters())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report.items() <= done.json.items()


def test_the_table_names_what_is_not_predicted_by_reason(initialise):
    lines = initialise("cnn").out.splitlines()
    assert lines[0].split() == ["target", "cnn"]
    assert any(line.startswith("written") and "out" in line and "model.safetensors" in line for line in lines)
    assert any(line.startswith("coverage") and "100.0%" in line for line in lines)
    reasons = [i for i, line in enumerate(lines) if line.startswith("own ") and line.endswith("):")]
    assert len(reasons) == 2 and "a statistic of data" in lines[reasons[0]]
    assert "blocks.0.norm.running_mean" in lines[reasons[0] + 1]


def test_what_a_user_wrote_is_built_with_its_arguments_and_prints_no_data(initialise, tmp_path):
    (tmp_path / "arguments.json").write_text('{"width": 6}')
    for i, config in enumerate(("arguments.json", '{"width": 6}')):
        done = initialise(f"{HERE}:Gated", "--config", config, "--out", i, "--json")
        assert done.json["target"] == f"{HERE}:Gated"
        assert "a line that is no data" in done.err
        assert load_state(tmp_path / str(i) / "model.safetensors")["first.weight"].shape == (6, 4)


def test_modules_of_the_current_folder_are_found(initialise, tmp_path, monkeypatch):
    (tmp_path / "written_by_a_user.py").write_text("from torch import nn\ndef make(): return nn.Linear(2, 3)\n")
    before = list(sys.path)
    assert initialise("written_by_a_user:make").code == 0
    assert sys.path == before
    del sys.modules["written_by_a_user"]


def test_a_module_that_exists_is_served_as_it_is(initialise):
    assert initialise(f"{HERE}:NET").code == 0
    assert_refused(initialise(f"{HERE}:NET", "--config", "{}", "--dry-run"), 2, "is a module already")


def test_control_flow_that_cannot_be_followed_is_a_note(initialise):
    done = initialise(f"{HERE}:Gated", "--dry-run", "--json")
    assert done.json["number_coverage"] == 1
    assert any("broke off" in note for note in done.json["notes"])
    assert "broke off" in initialise(f"{HERE}:Gated", "--dry-run").out


def test_odd_tensors_are_reported_and_the_rest_is_served(initialise, tmp_path):
    done = initialise(f"{Odd.__module__}:Odd", "--out", "out", "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in done.json["tensors"]}
    assert rows["served.weight"]["source"] == "predicted"
    assert rows["lazy.weight"]["how"] == "not written" and "lazy" in rows["lazy.weight"]["why"]
    assert "quantised" in rows["quantised.weight"]["why"]
    assert load_state(tmp_path / "out" / "model.safetensors").keys() == rows.keys() - {"lazy.weight", "lazy.bias"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_module_that_holds_itself_is_served(initialise, tmp_path, dtype):
    done = initialise(f"{Loop.__module__}:Loop", "--dtype", dtype, "--out", "out")
    assert "contains itself" in done.out
    found = load_state(tmp_path / "out" / "model.safetensors")
    assert {t.dtype for t in found.values()} == {getattr(torch, dtype)} and len(found) == 4


def test_what_only_a_constructor_gives_is_built_on_the_cpu_by_seed(initialise, tmp_path):
    state = torch.get_rng_state()
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        done = initialise(f"{Unresettable.__module__}:Unresettable", "--seed", seed, "--out", out)
        assert "on the CPU" in done.err and "'gamma'" in done.err
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = ((tmp_path / out / "model.safetensors").read_bytes() for out in "abc")
    assert first == again != other
    assert "on the CPU" not in initialise(f"{Scaled.__module__}:Scaled").err


def test_noise_is_drawn_by_seed_and_shards_are_split(initialise, tmp_path):
    for out, options in (("a", ["--seed", 1]), ("b", ["--seed", 2])):
        initialise("cnn-w16-d3", *options, "--noise", 0.2, "--max-shard-size", "20KB", "--out", out)
    first, second = (load_foreign(tmp_path / out / "model.safetensors.index.json") for out in "ab")
    assert len(list((tmp_path / "a").glob("model-*"))) > 2
    assert not torch.equal(first["blocks.0.conv.weight"], second["blocks.0.conv.weight"])


@pytest.mark.parametrize("architecture", CONFIGS)
def test_a_hugging_face_folder_loads_with_from_pretrained(initialise, tmp_path, model, generator, architecture):
    import transformers

    model(architecture)
    done = initialise("model", "--out", "out", "--max-shard-size", "6KB", "--json")
    assert done.code == 0, done.err
    found = load_foreign(tmp_path / "out" / "model.safetensors.index.json")
    assert {"config.json", "report.json"} < set(done.json["files"])
    kind = getattr(transformers, architecture)
    loaded, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    expected = CONFIGS[architecture].get("dtype", "float32")
    assert {t.dtype for t in found.values()} == {getattr(torch, expected)}
    state = loaded.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in found.items())
    assert {row["name"] for row in done.json["tensors"] if row["source"] == "tied"} == state.keys() - found.keys()


def test_the_dtype_asked_for_is_what_from_pretrained_loads(initialise, tmp_path, model):
    import transformers

    model("LlamaForCausalLM")
    initialise("model/config.json", "--dtype", "float16", "--out", "out")
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.float16


def test_a_dry_run_of_ten_billion_parameters_takes_no_memory(initialise, tmp_path):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = initialise(f"{Large.__module__}:Large", "--dtype", "bfloat16", "--dry-run", "--json")
    assert done.json["predicted"]["numbers"] > 1e10
    assert done.json["bytes"] == 2 * done.json["predicted"]["numbers"]
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 5e8
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("cnm", 5, ["no architecture is called 'cnm'", "'cnn'"]),
        ("absent/config.json", 5, ["absent/config.json", "no such file"]),
        ("g.safetensors", 1, ["g.safetensors", "JSON"]),
        (".", 5, ["config.json", "no such file"]),
        ("no_such_package.models:Net", 5, ["no module is called 'no_such_package'"]),
        ("weightgen.nothing:Net", 5, ["no module is called 'weightgen.nothing'"]),
        (f"{HERE}:Gatd", 5, ["did you mean 'Gated'?"]),
        (f"{HERE}:Zzzzzzzzzz", 5, ["is called 'Zzzzzzzzzz'"]),
        (f"{HERE}:", 5, ["expected package.module:class_or_function"]),
        (f"{HERE}:NUMBER", 2, ["is a int, expected a torch.nn.Module"]),
        ("builtins:dict", 2, ["makes a dict, expected a torch.nn.Module"]),
        (f"{HERE}:fail", 1, ["cannot be built: ValueError: no luck"]),
        (f"{HERE}:leave", 1, ["cannot be built: SystemExit"]),
        ("torch.nn:Linear", 1, ["cannot be built: TypeError", "in_features"]),
        ("torch.nn:Identity", 1, ["Identity has no tensors to make"]),
        ("breaks:Net", 1, ["cannot be imported: ZeroDivisionError: division by zero"]),
        ("lacks:Net", 1, ["cannot be imported: ModuleNotFoundError", "no_such_package"]),
    ],
)
def test_a_target_that_cannot_be_had_is_one_sentence(initialise, tmp_path, target, code, words):
    (tmp_path / "breaks.py").write_text("1 / 0")
    (tmp_path / "lacks.py").write_text("import no_such_package")
    assert_refused(initialise(target), code, *words)
    assert not {"out", ".out.partial"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, ["--out FOLDER", "--dry-run"]),
        (["--seed", "-1"], 2, ["seed is -1"]),
        (["--noise", "1"], 2, ["noise is 1"]),
        (["--dtype", "int8"], 2, ["dtype is 'int8'", "bfloat16"]),
        (["--classes", "1"], 2, ["num_classes is 1"]),
        (["--channels", "0"], 2, ["in_channels is 0"]),
        (["--config", "{}"], 2, ["--classes and --channels, not --config"]),
        (["--config", "[1]"], 2, ["--config is a list"]),
        (["--config", "{"], 1, ["--config: not valid JSON"]),
        (["--config", "absent.json"], 5, ["absent.json"]),
        (["--max-shard-size", "5 apples"], 2, ["'5 apples'", "5GB"]),
        (["--max-shard-size", "0GB"], 2, ["'0GB'"]),
        (["--generator", "absent.safetensors"], 5, ["absent.safetensors"]),
        (["--generator", "mpi"], 5, ["did you mean 'mip'?"]),
        (["--generator", "other.safetensors"], 4, ["'mip' makes weights for known architectures only"]),
        (["--generator", "cut.safetensors"], 1, ["cut.safetensors"]),
    ],
)
def test_options_that_cannot_be_met_are_one_sentence(run, tmp_path, generator, options, code, words):
    save_state(
        tmp_path / "other.safetensors", {}, manifest={"format": "weightgen.generator", "method": "mip", "version": 1}
    )
    generator.save(tmp_path / "g.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "g.safetensors").read_bytes()[:-50])
    out = ["--out", "out"] if options else []
    assert_refused(run("init", "cnn", "--generator", "g.safetensors", *options, *out), code, *words)
    assert not {"out", ".out.partial"} & {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("option", ["--classes", "--channels"])
def test_options_of_architectures_are_refused_elsewhere(initialise, option):
    assert_refused(initialise(f"{HERE}:NET", option, 3, "--dry-run"), 2, option, "are for architectures")


@pytest.mark.parametrize(
    ("content", "code", "words"),
    [
        ({}, 1, ["no 'model_type'"]),
        ({"model_type": "bert", "quantization_config": {"bits": 4}}, 4, ["quantised", "'quantization_config'"]),
        ({"model_type": "brt"}, 5, ["'brt'", "did you mean"]),
        ({"model_type": "zzzzzzzzzz"}, 5, ["is called 'zzzzzzzzzz'"]),
        ({"model_type": "bert", "architectures": ["MyOwn"]}, 5, ["'MyOwn'", "is not run"]),
        ({"model_type": "bert", "architectures": ["BertConfig"]}, 5, ["'BertConfig'"]),
        ({"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3}, 1, ["cannot be built", "hidden size"]),
    ],
)
def test_a_config_that_describes_no_model_is_one_sentence(initialise, tmp_path, content, code, words):
    pytest.importorskip("transformers", reason="needs the extra 'transformers'")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(content))
    assert_refused(initialise("model"), code, *words)
    assert_refused(initialise("model", "--config", "{}", "--dry-run"), 2, "its own config.json")


@pytest.mark.parametrize(
    ("module", "target", "install"),
    [
        ("transformers", "model", "weightgen[transformers]"),
        ("torchvision.models", "torchvision:resnet50", "weightgen[vision]"),
        ("timm", "timm:vit_small_patch16_224", "weightgen[vision]"),
    ],
)
def test_a_library_that_is_not_installed_is_named(initialise, tmp_path, monkeypatch, module, target, install):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    monkeypatch.setitem(sys.modules, module, None)
    assert_refused(initialise(target), 1, install)


@pytest.mark.parametrize(("library", "model_name"), [("torchvision", "resnet18"), ("timm", "vit_tiny_patch16_224")])
def test_models_of_other_libraries_are_built_without_their_weights(initialise, library, model_name):
    pytest.importorskip(library, reason="needs the extra 'vision'")
    assert initialise(f"{library}:{model_name}", "--dry-run", "--json").json["tensor_coverage"] > 0.9
    assert_refused(initialise(f"{library}:{model_name}x", "--dry-run"), 5, f"did you mean {model_name!r}?")


def test_a_folder_that_is_not_empty_is_left_alone(initialise, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    assert_refused(initialise("cnn"), 1, "out", "not empty")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.fixture
def interruptible():
    """SIGINT interrupts, even where the tests run in the background of a shell, which lets it be ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_run_leaves_nothing(initialise, tmp_path, monkeypatch):
    predict = Logah.predict

    def interrupted(self, *arguments, **options):
        made = predict(self, *arguments, **options)
        yield next(made)
        assert (tmp_path / ".out.partial").is_dir()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Logah, "predict", interrupted)
    done = initialise("cnn")
    assert (done.code, done.out) == (130, "") and "Traceback" not in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]


def test_a_full_disk_leaves_nothing(initialise, tmp_path):
    """With a real refusal by the system: files of this process may not grow over 100,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        initialise("cnn", "--dry-run")  # whatever is imported or cached is by now
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        done = initialise("cnn")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert_refused(done, 1, "out", "File too large")
    assert [path.name for path in tmp_path.iterdir()] == ["g.safetensors"]


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5e9), ("300MB", 3e8), ("1.5kb", 1500), ("2GiB", 2**31), ("700", 700), ("1 tb", 1e12)]
)
def test_sizes_are_read_as_the_hugging_face_libraries_write_them(text, size):
    from weightgen.cli.init import parse_size

    assert parse_size(text) == size
