import itertools
import json
import resource
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import weightgen
from model_zoo import released
from tests.helpers.modules_to_fill import Large, Loop, Odd, Scaled, Tiny, Unresettable
from tests.helpers.paths import ROOT
from tests.helpers.tiny_generators import TINY_LOGAH
from weightgen.errors import BadOption, CorruptFile, NotFound, StorageFailed, UnknownName, UnsupportedTask
from weightgen.files.checkpoint import encode_state, load_foreign, load_state, save_state
from weightgen.generators.logah.generator import new_logah
from weightgen.init import fill as init
from weightgen.init.fill import load_source


@pytest.fixture(scope="module")
def generator():
    return new_logah(TINY_LOGAH, seed=0)


def untied(module):
    return {name: t for name, t in module.state_dict().items() if name != "out.weight"}


def test_the_streamed_file_holds_the_bytes_that_init_gives(tmp_path, generator):
    torch.manual_seed(0)
    module = Tiny()
    written = weightgen.write_init(module, tmp_path / "out", source=generator, seed=2, noise=0.1)
    report = weightgen.init_(module, generator, seed=2, noise=0.1)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == encode_state(untied(module))
    assert written == report
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == report.to_json()


def test_writing_only_reads_the_module(tmp_path, generator):
    module = Tiny()
    before = encode_state(untied(module))
    state = torch.get_rng_state()
    weightgen.write_init(module, tmp_path / "out", source=generator)
    assert encode_state(untied(module)) == before and torch.equal(torch.get_rng_state(), state)


def test_shards_hold_the_same_tensors_and_are_read_by_their_index(tmp_path, generator):
    module = Tiny()
    weightgen.write_init(module, tmp_path / "one", source=generator)
    weightgen.write_init(module, tmp_path / "many", source=generator, max_shard_bytes=300)
    whole = load_state(tmp_path / "one" / "model.safetensors")
    split = load_foreign(tmp_path / "many" / "model.safetensors.index.json")
    assert len(list((tmp_path / "many").glob("model-*"))) > 2
    assert whole.keys() == split.keys() and all(torch.equal(whole[n], split[n]) for n in whole)


def test_a_module_on_the_meta_device_is_written_with_its_layers_own_values(tmp_path, generator):
    make = lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.PReLU())  # noqa: E731
    with torch.device("meta"):
        module = make()
    state = torch.get_rng_state()
    report = weightgen.write_init(module, tmp_path / "out", source=generator)
    assert torch.equal(torch.get_rng_state(), state) and next(module.parameters()).is_meta
    found = load_state(tmp_path / "out" / "model.safetensors")
    real = make()
    weightgen.init_(real, generator)
    assert all(torch.equal(t, found[name]) for name, t in real.state_dict().items())
    assert {row.how for row in report.kept} == {
        *("BatchNorm2d.reset_parameters", "PReLU.reset_parameters"),
        "the value it has",
    }


def test_tensors_that_nothing_gives_a_value_are_named(tmp_path, generator):
    with torch.device("meta"):
        module = Tiny()
    with pytest.raises(BadOption, match=r"no reset_parameters draws them: 'gamma'; build"):
        weightgen.write_init(module, tmp_path / "out", source=generator)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_refused(tmp_path, generator):
    (tmp_path / "mine").write_text("x")
    with pytest.raises(StorageFailed, match="not empty"):
        weightgen.write_init(Tiny(), tmp_path, source=generator)


def test_a_source_is_a_generator_or_its_file(tmp_path, generator):
    generator.save(tmp_path / "g.safetensors")
    first, second = Tiny(), Tiny()
    second.load_state_dict(first.state_dict())
    weightgen.init_(first, generator)
    weightgen.init_(second, tmp_path / "g.safetensors")
    assert encode_state(untied(first)) == encode_state(untied(second))


def test_a_source_that_is_no_generator_of_this_method_is_told(tmp_path, generator):
    with pytest.raises(NotFound, match="expected a Logah, its file or a released generator"):
        load_source("nowhere.safetensors")
    save_state(tmp_path / "m", {}, manifest={"format": "weightgen.generator", "method": "mip", "version": 1})
    with pytest.raises(UnsupportedTask, match="'mip' makes weights for known architectures only"):
        load_source(tmp_path / "m")
    generator.save(tmp_path / "cut")
    (tmp_path / "cut").write_bytes((tmp_path / "cut").read_bytes()[:-100])
    with pytest.raises(CorruptFile, match="cut"):
        load_source(tmp_path / "cut")
    with pytest.raises(CorruptFile, match="is a folder"):
        load_source(tmp_path)


@pytest.fixture
def release(tmp_path, monkeypatch) -> Path:
    """The folder of released generators, empty, found through the entry points of pyproject.toml.

    They are installed anew in a folder of their own, so that the test sees the project's as they stand.
    """
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    info = tmp_path / "site" / "weightgen-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Name: weightgen\nVersion: 0\n")
    lines = (f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in found.items()) for group, found in groups.items())
    (info / "entry_points.txt").write_text("".join(lines))
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(released, "FOLDER", tmp_path)
    monkeypatch.setattr(released, "RELEASED", {"logah": "released.safetensors"})
    return tmp_path


def test_a_released_generator_is_found_by_its_name(release, generator, monkeypatch):
    generator.save(release / "released.safetensors")
    first, second = Tiny(), Tiny()
    second.load_state_dict(first.state_dict())
    weightgen.init_(first, generator)
    monkeypatch.chdir(release)
    (release / "logah").mkdir()  # a folder of this name does not hide the release
    weightgen.init_(second)
    assert encode_state(untied(first)) == encode_state(untied(second))


def test_a_name_that_nothing_was_released_under_is_told(release, monkeypatch):
    with pytest.raises(UnknownName, match="no released generator is called 'logha'; did you mean 'logah'"):
        weightgen.init_(Tiny(), "logha")
    with pytest.raises(NotFound, match="has no file released.safetensors in this copy"):
        weightgen.init_(Tiny())
    monkeypatch.setattr(init, "RELEASED_GROUP", "weightgen.nothing")
    with pytest.raises(NotFound, match="no installed package says where released generators are"):
        weightgen.init_(Tiny())


@pytest.mark.parametrize(("seed", "noise"), [(-1, 0.0), (2**63, 0.0), (0, 1.0), (0, -0.1), (0, float("nan"))])
def test_what_nothing_can_be_drawn_with_is_refused(generator, tmp_path, seed, noise):
    with pytest.raises(BadOption, match="seed is|noise is"):
        weightgen.init_(Tiny(), generator, seed, noise=noise)
    with pytest.raises(BadOption, match="seed is|noise is"):
        weightgen.write_init(Tiny(), tmp_path / "out", source=generator, seed=seed, noise=noise)
    assert list(tmp_path.iterdir()) == []


def test_layers_on_the_meta_device_are_drawn_apart_and_by_seed(tmp_path, generator):
    with torch.device("meta"):
        module = nn.Sequential(Scaled(), Scaled())
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        weightgen.write_init(module, tmp_path / out, source=generator, seed=seed)
    first, again, other = (load_state(tmp_path / out / "model.safetensors") for out in "abc")
    assert encode_state(first) == encode_state(again)
    assert not torch.equal(first["0.alpha"], other["0.alpha"])
    assert not torch.equal(first["0.alpha"], first["1.alpha"])


def test_a_tensor_that_reset_parameters_leaves_blank_is_named(tmp_path, generator, monkeypatch):
    monkeypatch.setattr(Scaled, "is_thorough", False)
    with torch.device("meta"):
        module = nn.Sequential(Scaled())
    assert init.find_undrawn(init.plan_init(module, generator)) == ["0.beta"]
    with pytest.raises(BadOption, match=r"no reset_parameters draws them: '0.beta'; build"):
        weightgen.write_init(module, tmp_path / "out", source=generator)
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_whose_layer_cannot_be_reset_is_named(generator):
    with torch.device("meta"):
        module = Unresettable()
    assert init.find_undrawn(init.plan_init(module, generator)) == ["gamma"]


def test_what_is_not_predicted_is_written_as_it_is_or_said_to_be_left_out(tmp_path, generator):
    report = weightgen.write_init(Odd(), tmp_path / "out", source=generator)
    found = load_state(tmp_path / "out" / "model.safetensors")
    assert set(found) == {"served.weight", "served.bias", "quantised.weight", "quantised.bias", "empty"}
    assert found["quantised.weight"].shape == (1100, 1000) and bool((found["quantised.weight"] == 1).all())
    rows = {row.name: row for row in report.rows}
    assert set(rows) == {*found, "lazy.weight", "lazy.bias"}
    assert rows["served.weight"].source == "predicted"
    assert rows["lazy.weight"].how == "not written" and "run one batch" in rows["lazy.weight"].why
    assert rows["quantised.weight"].shape == (1100, 1000) and "quantised" in rows["quantised.weight"].why
    assert rows["empty"].why == "it has no numbers"


def test_what_is_not_known_on_the_meta_device_is_named(generator):
    module = Odd()
    with torch.device("meta"):
        module.quantised.weight = nn.Parameter(torch.ones(1100, 1000, dtype=torch.int8), requires_grad=False)
        module.empty = nn.Parameter(torch.zeros(0, 3))
    assert init.find_undrawn(init.plan_init(module, generator)) == ["quantised.weight"]


def test_a_module_that_holds_itself_is_served_and_left_whole(tmp_path, generator):
    loop = Loop()
    report = weightgen.init_(loop, generator)
    assert report == weightgen.init_(Loop(), generator) and report.tensor_coverage == 1
    assert [row.name for row in report.predicted] == ["first.weight", "first.bias", "child.0.weight", "child.0.bias"]
    assert "contains itself as 'child.1'" in report.notes[0]
    assert loop.child[1] is loop
    weightgen.write_init(Loop(), tmp_path / "out", source=generator)
    found = load_state(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(t, found[name]) for name, t in loop.named_parameters()) and len(found) == 4


def test_the_dtype_of_files_changes_no_weight_but_by_rounding(tmp_path, generator):
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    planned = init.plan_init(module, generator, dtype=torch.bfloat16)
    (tmp_path / "out").mkdir()
    init.fill_folder(tmp_path / "out", planned)
    found = load_state(tmp_path / "out" / "model.safetensors")
    weightgen.init_(module, generator)
    assert {name for name, t in found.items() if t.dtype != torch.bfloat16} == {"1.num_batches_tracked"}
    assert all(torch.equal(t.to(found[name].dtype), found[name]) for name, t in module.state_dict().items())
    assert planned.num_bytes == sum(t.nbytes for t in found.values())


def count_resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux says how much memory is held")
def test_ten_billion_parameters_are_planned_and_streamed_without_being_held(generator):
    with torch.device("meta"):
        module = Large()
    before = count_resident()
    planned = init.plan_init(module, generator)
    assert planned.report.number_coverage == 1
    assert planned.num_bytes > 4e10
    made = itertools.islice(generator.predict(planned.graph), 36)
    seen = [(tensor.nbytes, count_resident() - before) for _, tensor in made]
    sizes, held = zip(*seen, strict=True)
    assert sum(sizes) > 9e8 and max(sizes) < 1.1e8
    assert max(held) < 5e8


def test_importing_weightgen_imports_no_torch():
    code = "import sys, weightgen; assert 'torch' not in sys.modules; weightgen.init_; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'init__'"):
        _ = weightgen.init__
