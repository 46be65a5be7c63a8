"""Estimates agree with what is then generated, tell strangers apart, and say why where nothing is known."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from model_zoo.data import load_data
from model_zoo.lookup import target_for
from model_zoo.released import released_facts, released_generator, released_references
from service.jobs.job_store import JobStore
from service.work.estimate import FEWEST_JOBS, Estimator
from service.work.request_body import GenerationRequestBody
from weightgen.errors import UnsupportedTask
from weightgen.generators import load_generator
from weightgen.labelled_data import LabelledData
from weightgen.pipeline import Job, make_weights
from weightgen.references.zoo import ReferenceZoo

ASKED = {"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits", "support_per_class": 10}
MIP = load_generator(released_generator("mip"))


def noise() -> LabelledData:
    """Images without anything in them, under ten labels."""
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(10).repeat(20)
    images = torch.rand(200, 1, 28, 28, generator=rng)
    return LabelledData("noise", images, labels, images, labels, tuple(f"class {i}" for i in range(10)))


DATA = {"digits": load_data("digits"), "noise": noise(), "iris": load_data("iris")}


def look_up(request: Any) -> tuple[Job, threading.Lock]:
    arch, data = request["architecture"], DATA[request["dataset"]]
    zoo = released_references("mip", arch, data.in_channels) if data.in_channels else None
    references = ReferenceZoo.load(zoo) if zoo else None
    job = Job(MIP, "a" * 64, data, lambda found: target_for(arch, found), references)
    return job, threading.Lock()


@pytest.fixture
def jobs(tmp_path: Path):
    store = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    store.migrate()
    yield store
    store.close()


@pytest.fixture
def estimate(jobs):
    estimator = Estimator(jobs, look_up, released_facts)

    def ask(**changes: Any):
        request = GenerationRequestBody.model_validate(ASKED | changes)
        return estimator.estimate(request.canonical(), digest=request.digest(contents={"generator": "a" * 64}))

    return ask


def finish_job(jobs: JobStore, *, seed: int, accuracy: float, seconds: float, **changes: Any) -> None:
    request = GenerationRequestBody.model_validate(ASKED | {"seed": seed} | changes).canonical()
    jobs.submit(request, digest=f"{seed:064}", max_queued=100)
    job = jobs.claim("runner", lease_seconds=60)
    assert job is not None
    jobs.finish(job.id, "runner", {"report": {"accuracy": accuracy, "seconds": seconds}})


def test_the_size_is_that_of_what_is_generated(estimate, tmp_path):
    told = estimate()
    job, _ = look_up(ASKED)
    made = make_weights(job, job.order(support_per_class=10))[0]
    report = made.save(tmp_path / "artifact")
    assert told.parameters == report["parameters"]
    header = (tmp_path / "artifact" / "model.safetensors").stat().st_size - told.bytes
    assert 0 < header < 4096
    assert told.bytes == sum(t.numel() * t.element_size() for t in made.state.values())


def test_digits_are_no_stranger_to_the_generator_and_noise_is(estimate):
    digits, stranger = estimate(support_per_class=20), estimate(dataset="noise", support_per_class=20)
    assert (digits.out_of_distribution, stranger.out_of_distribution) == (False, True)
    assert "the nearest training task" in digits.basis.out_of_distribution
    assert digits.accuracy is not None and stranger.accuracy is not None
    assert stranger.accuracy.low == 0.1 < digits.accuracy.low
    assert "down to chance, for the task is unlike the training tasks" in stranger.basis.accuracy


def test_without_finished_jobs_the_time_is_unknown_and_the_band_is_that_of_the_scores(estimate):
    told = estimate(support_per_class=20)
    assert told.seconds is None and told.basis.seconds.startswith("unknown: no job")
    board = next(b for b in released_facts("mip")["scoreboards"] if b["architecture"] == "cnn-tiny")
    scores = [arms["generated"] for arms in board["accuracy"].values()]
    assert told.accuracy is not None
    assert (told.accuracy.low, told.accuracy.high) == (min(scores), max(scores))
    assert f"{board['accuracy']['digits']['generated']:.3f} on this one" in told.basis.accuracy
    fewer = estimate(support_per_class=1)
    assert fewer.accuracy is not None and fewer.accuracy.low == 0.1


def test_finished_jobs_tell_the_time_and_like_ones_the_accuracy(estimate, jobs):
    for seed, (accuracy, seconds) in enumerate([(0.9, 1.0), (0.8, 3.0), (0.85, 2.0)][:FEWEST_JOBS]):
        finish_job(jobs, seed=seed, accuracy=accuracy, seconds=seconds)
    finish_job(jobs, seed=8, accuracy=0.1, seconds=2.0, support_per_class=50)
    finish_job(jobs, seed=9, accuracy=0.1, seconds=50.0, architecture="vit-tiny")
    told = estimate(seed=10)
    assert told.seconds == 2.0 and "median of the latest 4 jobs" in told.basis.seconds
    assert told.accuracy is not None and (told.accuracy.low, told.accuracy.high) == (0.8, 0.9)


def test_an_embedding_that_cannot_tell_is_said_to(estimate):
    told = estimate(architecture="cnn")
    assert told.out_of_distribution is None
    assert "hardly tells its own training tasks apart" in told.basis.out_of_distribution


def test_what_cannot_be_generated_is_not_estimated(estimate):
    with pytest.raises(UnsupportedTask):
        estimate(architecture="mlp", dataset="iris")


def test_asking_again_loads_nothing(jobs):
    loads: list[Any] = []

    def counted(request: Any) -> tuple[Job, threading.Lock]:
        loads.append(request)
        return look_up(request)

    estimator = Estimator(jobs, counted, released_facts)
    request = GenerationRequestBody.model_validate(ASKED).canonical()
    assert estimator.estimate(request, digest="1") == estimator.estimate(request, digest="1")
    assert len(loads) == 1
