"""The study of d2nwg on a handful of networks: every section runs, and its figures are what they say."""

import pytest
import torch

import benchmarks.diffusion_study
from benchmarks.diffusion_study import (
    Bench,
    study_novelty,
    study_reconstruction,
    study_speed,
    study_steps,
    study_tasks,
)
from model_zoo.networks import draw_task_support, load_networks
from model_zoo.zoo_builder import build_zoo
from model_zoo.zoo_config import ZooConfig
from tests.shared import shared_path
from weightgen.generators.latent_diffusion import LatentDiffusion, LatentDiffusionConfig
from weightgen.reference_zoo import build_reference_zoo

MEMBER = "cnn-tiny/1x28x28"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    shared_path("images/bccd_cells.npz")
    zoo = tmp_path_factory.mktemp("zoo")
    config = ZooConfig(
        arch="cnn-tiny", data=("bccd_cells", "devnum"), num_runs=24, steps=60, ways=3, in_channels=1, eval_examples=50
    )
    build_zoo(config, zoo / "part")
    (networks,) = load_networks(zoo).values()
    torch.manual_seed(0)
    small = LatentDiffusionConfig(
        num_latents=2, latent_dim=4, codec_dim=16, codec_depth=1, encoder_dim=16, denoiser_dim=16, denoiser_depth=1
    )
    generator = LatentDiffusion({MEMBER: networks.target.spec}, small).requires_grad_(False)
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
    monkeypatch.setattr(benchmarks.diffusion_study, "TRAINED_STEPS", 5)
    speed = study_speed(bench)
    assert speed["ratio"] == pytest.approx(speed["seconds"]["train 64"] / speed["seconds"]["sample 64"])


def test_every_scheduler_has_a_curve_over_steps(bench, monkeypatch):
    monkeypatch.setattr(benchmarks.diffusion_study, "STEPS", (1, 3))
    monkeypatch.setattr(benchmarks.diffusion_study, "GUIDANCE", (1.0,))
    study = study_steps(bench)
    assert study["accuracy"].keys() == {"ddim", "dpm", "flow"} and study["accuracy"]["dpm"].keys() == {"1", "3"}
