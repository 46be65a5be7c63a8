"""The study of d2nwg-layerwise on untrained networks, and the law it is there to show: memory."""

import json

import pytest
import torch

import benchmarks.studies.d2nwg_layerwise
from benchmarks.studies.d2nwg_layerwise import (
    fit_linear,
    group_networks,
    main,
    measure_memory,
    measure_novelty,
    peak_memory,
    weight_error,
)
from model_zoo.published.cifar_resnets import KnownResNet
from tests.helpers.standins import make_data
from tests.helpers.tiny_zoos import make_known
from weightgen.generators.d2nwg.layerwise import D2nwgLayerwise, LayerwiseConfig
from weightgen.weightspace.windows import measure_statistics

SMALL = LayerwiseConfig(
    context=256, tail=4, latent_dim=4, codec_dim=16, codec_depth=1, encoder_dim=16, denoiser_dim=16, denoiser_depth=1
)


@pytest.fixture(scope="module")
def known() -> list[KnownResNet]:
    return [
        make_known(8, 1),
        make_known(8, 2),
        make_known(8, 3, held_out=True),
        make_known(14, 4),
        make_known(20, 5, held_out=True),
    ]


@pytest.fixture(scope="module")
def generator(known) -> D2nwgLayerwise:
    torch.manual_seed(0)
    statistics = measure_statistics([(k.target.spec, k.trunk) for k in known])
    return D2nwgLayerwise(statistics, known[0].target.input_shape, SMALL, training={"spent": {"denoiser": {}}})


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(benchmarks.studies.d2nwg_layerwise, "DEPTH", 8)
    monkeypatch.setattr(benchmarks.studies.d2nwg_layerwise, "DEEP", 14)
    monkeypatch.setattr(benchmarks.studies.d2nwg_layerwise, "DEPTHS", (8, 14))
    monkeypatch.setattr(benchmarks.studies.d2nwg_layerwise, "CONTEXTS", (64, 256))
    monkeypatch.setattr(benchmarks.studies.d2nwg_layerwise, "LINEAR_RANKS", (4, 144))
    monkeypatch.setattr(benchmarks.studies.d2nwg_layerwise, "SHOTS", (2, 3))


def test_memory_grows_with_the_context_and_not_with_the_network(generator):
    found = measure_memory(generator)
    by_context = [row["bytes_besides"] for row in found["by context, resnet8"].values()]
    by_network = list(found["by network, context 256"].values())
    assert by_context == sorted(by_context) and by_context[-1] > 1.5 * by_context[0]
    assert by_network[1]["trunk_bytes"] > 2 * by_network[0]["trunk_bytes"]
    assert by_network[1]["bytes_besides"] < 1.05 * by_network[0]["bytes_besides"]


def test_peak_memory_is_what_was_alive_at_once():
    def run() -> None:
        for _ in range(3):
            torch.zeros(1000, 250)
        kept = torch.zeros(2000)
        torch.zeros(500)
        del kept

    assert peak_memory(run) == pytest.approx(1_000_000, abs=1000)


def test_a_linear_codec_of_full_rank_gives_networks_back(generator, known):
    linear = fit_linear(generator, known, rank=144)
    for k in known:
        assert weight_error(linear, k.target.spec, k.trunk, linear.reconstruct(k.target.spec, k.trunk)) < 1e-6


def test_groups_name_what_is_held_out(known):
    groups = group_networks(known)
    assert {name: len(rows) for name, rows in groups.items()} == {
        "ours, train": 2, "ours, held out": 1, "resnet14, train": 1, "resnet20, held out": 1
    }  # fmt: skip


def test_a_copy_of_a_training_network_is_found_out(known):
    copied = measure_novelty(known[0].target, [known[0].trunk], known)
    assert copied["nearest"] < 0.2 and copied["nearest_of_held_out"] > 1.0


def test_the_study_writes_every_figure(generator, known, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks.studies.d2nwg_layerwise, "load_resnets", lambda zoo: known)
    monkeypatch.setattr(
        benchmarks.studies.d2nwg_layerwise, "load_data", lambda name: make_data(num_classes=10, channels=3)
    )
    generator.save(tmp_path / "made.safetensors")
    files = ["--zoo", str(tmp_path), "--generator", str(tmp_path / "made.safetensors")]
    assert main([*files, "--json", str(tmp_path / "found.json"), "--samples", "1", "--steps", "2"]) == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert main([*files, "--json", str(tmp_path / "found.json"), "--part", "linear"]) == 0
    assert json.loads((tmp_path / "found.json").read_text()) == found  # what is not asked for is kept
    assert set(found) == {"networks", "reconstruction", "generation", "references", "training", "memory"}
    assert found["networks"]["resnet14"]["train"] == 1
    made = found["generation"][tmp_path.name]
    assert {"generated, 2 a class", "one step, 3 a class", "no tail, 2 a class"} <= set(made)
    assert made["generated, 2 a class"]["nearest"] > 0
    assert 0 <= found["references"]["3 a class"]["blocks of resnet14"] <= 1


def test_a_file_that_is_no_generator_is_an_error(tmp_path, capsys, monkeypatch, known):
    monkeypatch.setattr(benchmarks.studies.d2nwg_layerwise, "load_resnets", lambda zoo: known)
    monkeypatch.setattr(
        benchmarks.studies.d2nwg_layerwise, "load_data", lambda name: make_data(num_classes=10, channels=3)
    )
    assert main(["--zoo", str(tmp_path), "--generator", str(tmp_path / "missing.safetensors")]) != 0
    assert "error: " in capsys.readouterr().err
