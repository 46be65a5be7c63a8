import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import weightgen
from weightgen.checkpoint import encode_state, load_foreign, load_state, save_state
from weightgen.errors import BadOption, NotFound, StorageFailed, UnsupportedTask
from weightgen.generators.graph_hypernet import new_graph_hypernet
from weightgen.init import load_source

from .test_graph_hypernet import TINY, Tiny


@pytest.fixture(scope="module")
def generator():
    return new_graph_hypernet(TINY, seed=0)


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
    with pytest.raises(NotFound, match="no 'logah' generator has been released yet"):
        weightgen.init_(first)
    with pytest.raises(NotFound, match="expected a GraphHypernet or the file of one"):
        load_source("nowhere.safetensors")
    save_state(tmp_path / "m", {}, manifest={"format": "weightgen.generator", "method": "mip", "version": 1})
    with pytest.raises(UnsupportedTask, match="'mip' makes weights for known architectures only"):
        load_source(tmp_path / "m")


def test_importing_weightgen_imports_no_torch():
    code = "import sys, weightgen; assert 'torch' not in sys.modules; weightgen.init_; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'init__'"):
        _ = weightgen.init__
