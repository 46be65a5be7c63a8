"""The study of d2nwg on a handful of networks: every section runs, and its figures are what they say."""

import json

import pytest
import torch

import benchmarks.studies.d2nwg
import benchmarks.studies.d2nwg_diversity
from benchmarks.speed.d2nwg import Bench
from benchmarks.studies.d2nwg import (
    study_aim,
    study_diversity,
    study_novelty,
    study_reconstruction,
    study_speed,
    study_steps,
    study_tasks,
)
from model_zoo.zoo.networks import draw_task_support, load_networks
from tests.helpers.tiny_generators import TINY_D2NWG
from tests.helpers.tiny_zoos import build_tiny_zoo
from weightgen.files.storage import sha256_file
from weightgen.generators.d2nwg.generator import D2nwg
from weightgen.references.zoo import build_reference_zoo

MEMBER = "cnn-tiny/1x28x28"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    zoo = build_tiny_zoo(tmp_path_factory.mktemp("zoo"), num_runs=24, eval_examples=50)
    (networks,) = load_networks(zoo).values()
    torch.manual_seed(0)
    generator = D2nwg({MEMBER: networks.target.spec}, TINY_D2NWG).requires_grad_(False)
    generator.codec(MEMBER).set_scaling(networks.tokens)
    references = build_reference_zoo(
        zoo / "part",
        networks.target,
        embed=generator.embed,
        support_of=lambda task: draw_task_support(task, 1),
        embedder=generator.digest_of("cnn-tiny"),
    )
    made = Bench(generator, zoo, num_tasks=2, seeds=2)
    made.references = lambda networks: references  # pyright: ignore
    return made


def test_held_out_tasks_are_scored_beside_every_reference(bench):
    scores = study_tasks(bench)[MEMBER]
    assert scores["tasks"] >= 1
    arms = {"generated", "unconditioned_trunk", "generated_head", "retrieval", "soup", "own_trunk"}
    assert all(0 <= scores[arm] <= 1 for arm in arms)
    assert scores["own_trunk"] > 0.5


def test_support_sets_come_from_the_train_part_of_tasks_no_train_run_had(bench):
    networks = bench.networks[MEMBER]
    for row, task in bench.held_out(networks):
        assert networks.split[row] == "test"
        trained = [(networks.datasets[i], networks.classes[i]) for i in networks.rows("train")]
        assert (task.dataset, task.classes) not in trained
        _, support, part = bench.prepare(networks, task)
        train = {x.numpy().tobytes() for x in part.x_train}
        assert all(x.numpy().tobytes() in train for x in support.inputs)


def test_codecs_are_measured_against_the_originals(bench):
    codecs = study_reconstruction(bench)[MEMBER]["codecs"]
    assert codecs["original"]["weight_error"] == 0
    assert codecs["pca 8"]["weight_error"] > codecs["pca 32"]["weight_error"] > 0
    assert codecs["vae"]["latents"] == 8


def test_novelty_counts_samples_and_speed_is_a_ratio(bench, monkeypatch):
    study = study_novelty(bench)[MEMBER]
    assert study["samples"] == len(study["points"]) == 2 * len(bench.held_out(bench.networks[MEMBER]))
    assert 0 <= study["novel_and_accurate"] <= min(study["novel"], study["accurate"])
    monkeypatch.setattr(benchmarks.studies.d2nwg, "TRAINED_STEPS", 5)
    speed = study_speed(bench)
    seconds = speed["seconds"]
    assert speed["ratio"] == pytest.approx(seconds["train 64"] / seconds["sample 64"])
    assert speed["ratio_plainly"] == pytest.approx(seconds["train 64"] / seconds["sample 64 plainly"])


def test_every_scheduler_has_a_curve_over_steps(bench, monkeypatch):
    monkeypatch.setattr(benchmarks.studies.d2nwg, "STEPS", (1, 3))
    monkeypatch.setattr(benchmarks.studies.d2nwg, "GUIDANCE", (1.0,))
    study = study_steps(bench)
    assert study["accuracy"].keys() == {"ddim", "dpm", "flow"} and study["accuracy"]["dpm"].keys() == {"1", "3"}


def test_samples_are_compared_with_as_many_networks_of_the_zoo(bench, monkeypatch):
    monkeypatch.setattr(benchmarks.studies.d2nwg_diversity, "COMPARED", 3)
    study = study_diversity(bench)[MEMBER]
    assert (study["tasks"], study["networks"]) == (len(bench.held_out(bench.networks[MEMBER])), 3)
    for kind in ("samples", "zoo"):
        assert 0 < study[kind]["disagreement"] <= 1 and 0 <= study[kind]["error_overlap"] <= 1
    assert study["zoo"]["accuracy"] > 0.5


def test_every_accuracy_is_asked_for(bench, monkeypatch):
    monkeypatch.setattr(benchmarks.studies.d2nwg_diversity, "AIMS", (None, 0.2, 0.9))
    study = study_aim(bench)[MEMBER]
    assert study["asked"].keys() == {"none", "0.2", "0.9"}
    assert all(0 <= row["accuracy"] <= 1 and row["entropy"] >= 0 for row in study["asked"].values())
    assert -1 <= study["rank_correlation"] <= 1


def test_every_section_is_written_to_a_file_of_its_own(bench, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmarks.studies.d2nwg, "Bench", lambda *_, **__: bench)
    sections = {name: lambda bench, name=name: {"of": name} for name in ("tasks", "aim")}
    monkeypatch.setattr(benchmarks.studies.d2nwg, "SECTIONS", sections)
    path = tmp_path / "d2nwg.safetensors"
    bench.generator.save(path)
    assert benchmarks.studies.d2nwg.main(["all", "--generator", str(path), "--out", str(tmp_path / "out")]) == 0
    written = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "out").iterdir()}
    assert written.keys() == {"tasks", "aim"} and written["aim"]["results"] == {"of": "aim"}
    assert written["aim"]["generator"]["sha256"] == sha256_file(path)
