"""One job from end to end: the same request gives the same bytes, references step in, faults are told."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from model_zoo.architectures import build_target
from model_zoo.architectures.cnn_tiny import CnnTiny
from model_zoo.lookup import target_for
from tests.helpers.standins import StandIn, make_data, make_zoo
from weightgen.delivery.artifact import read_artifact
from weightgen.delivery.classifier import Classifier
from weightgen.errors import BadData, BadOption, StorageFailed, UnsupportedTask, VerificationFailed, WeightgenError
from weightgen.files.storage import sha256_file
from weightgen.generators.mip.generator import Mip
from weightgen.generators.mip.hypernet import MipConfig, new_hypernet
from weightgen.pipeline import Job, compare_job, make_weights, make_weights_many
from weightgen.references import references_for
from weightgen.target.predict import accuracy


@pytest.fixture
def job() -> Job:
    return Job(StandIn(), "stand-in", make_data(), partial(target_for, "cnn-tiny"))


class Dead(StandIn):
    """Makes weights that do nothing."""

    def generate(self, request):
        return [{n: 0 * t for n, t in state.items()} for state in super().generate(request)]


class Deterministic(StandIn):
    def check(self, request):
        if request.num_samples > 1:
            raise UnsupportedTask(f"{request.num_samples} samples of a deterministic generator")


def test_the_same_job_gives_the_same_bytes(job, tmp_path):
    for folder in ("a", "b"):
        make_weights(job, job.order(support_per_class=5, seed=3))[0].save(tmp_path / folder)
    names = {p.name for p in (tmp_path / "a").iterdir()}
    assert names == {"model.safetensors", "config.json", "README.md", "manifest.json"}
    assert all(sha256_file(tmp_path / "a" / n) == sha256_file(tmp_path / "b" / n) for n in names)


def test_another_seed_draws_other_examples(job):
    first, second = (job.request(job.order(support_per_class=2, seed=seed)) for seed in (0, 1))
    assert first.digest() != second.digest()
    assert not torch.equal(first.condition.support.inputs, second.condition.support.inputs)


def test_the_report_tells_the_accuracy_of_what_was_saved(job, tmp_path):
    made = make_weights(job, job.order(support_per_class=5))[0]
    report = made.save(tmp_path / "artifact")
    saved = read_artifact(tmp_path / "artifact", target=job.target)
    assert report["accuracy"] == accuracy(job.target, saved.state, job.data.x_test, job.data.y_test)
    assert report["source"] == saved.manifest["source"] == "stand-in"
    assert report["shots"] == [5, 5, 5]
    assert report["nearest_checkpoint"] is None


def test_the_artifact_loads_with_the_hub_client(job, tmp_path):
    made = make_weights(job, job.order(support_per_class=5))[0]
    made.save(tmp_path / "artifact")
    loaded = CnnTiny.from_pretrained(tmp_path / "artifact").state_dict()
    assert list(loaded) == list(made.state)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in made.state.items())


def test_num_samples_gives_as_many(job):
    assert len(make_weights(job, job.order(support_per_class=3, num_samples=2))) == 2


def test_with_references_the_nearest_checkpoint_is_named(job, tmp_path):
    with_zoo = Job(job.generator, "stand-in", job.data, job.target_for, make_zoo(job.target))
    assert [r.name for r in references_for(with_zoo.generator, "cnn-tiny", with_zoo.references)] == [
        "retrieval",
        "soup",
        "random_trunk_ridge",
    ]
    report = make_weights(with_zoo, with_zoo.order(support_per_class=5))[0].save(tmp_path / "artifact")
    assert report["nearest_checkpoint"]["dataset"] == "squares"


def test_references_of_another_generator_are_left_out(job):
    zoo = make_zoo(job.target, embedder="another file")
    foreign = Job(job.generator, "stand-in", job.data, job.target_for, zoo)
    assert [r.name for r in references_for(foreign.generator, "cnn-tiny", foreign.references)] == ["random_trunk_ridge"]


def test_where_generation_fails_a_reference_is_returned_and_told(job, tmp_path):
    dead = Job(Dead(), "dead", job.data, job.target_for)
    report = make_weights(dead, dead.order(support_per_class=5))[0].save(tmp_path / "artifact")
    assert report["fell_back"]
    assert report["source"] == "random_trunk_ridge"


def test_without_fallback_a_failed_generation_is_refused(job):
    dead = Job(Dead(), "dead", job.data, job.target_for)
    with pytest.raises(VerificationFailed, match="did not pass the gate"):
        make_weights(dead, dead.order(support_per_class=5, fallback=False))


def test_a_generator_may_refuse(job):
    with pytest.raises(UnsupportedTask, match="2 samples"):
        make_weights(replace(job, generator=Deterministic()), job.order(support_per_class=3, num_samples=2))


@pytest.mark.parametrize("per_class", [0, -1, 51])
def test_shots_out_of_range_are_refused(job, per_class):
    with pytest.raises(BadOption, match="expected 1 to 50"):
        make_weights(job, job.order(support_per_class=per_class))


def test_more_shots_than_there_are_is_told_with_the_class(job):
    with pytest.raises(BadData, match="'class 0' has 12"):
        make_weights(job, job.order(support_per_class=13))


def test_a_full_folder_is_not_overwritten(job, tmp_path):
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "precious").write_text("x")
    made = make_weights(job, job.order(support_per_class=5))[0]
    with pytest.raises(StorageFailed, match="not empty"):
        made.save(tmp_path / "artifact")
    assert [p.name for p in (tmp_path / "artifact").iterdir()] == ["precious"]


@pytest.mark.parametrize("ways", [0, 1, 4])
def test_compare_refuses_more_ways_than_classes(job, ways):
    with pytest.raises(BadOption, match=f"{ways} ways, expected 2 to the 3 classes"):
        compare_job(job, job.order(support_per_class=3), ways=ways)


def test_orders_made_together_give_each_what_it_gets_alone(tmp_path):
    config = MipConfig(encoding_dim=16, encoder_width=4, rank=2)
    hypernet = new_hypernet(build_target("cnn-tiny", num_classes=2, in_channels=3), config, seed=0)
    generator = Mip({"cnn-tiny": hypernet}).requires_grad_(False)
    jobs = [
        Job(generator=generator, generator_sha256="0" * 64, data=make_data(num_classes=classes),
            target_for=partial(target_for, "cnn-tiny"))
        for classes in (3, 4)
    ]  # fmt: skip
    asked = [
        (job, job.order(support_per_class=shots, seed=seed))
        for job, shots, seed in ((jobs[0], 4, 0), (jobs[0], 4, 1), (jobs[1], 4, 0), (jobs[0], 99, 0), (jobs[0], 2, 0))
    ]
    together = make_weights_many(asked)
    assert isinstance(together[3], BadOption)
    with pytest.raises(BadOption, match="99 support examples a class"):
        make_weights(jobs[0], jobs[0].order(support_per_class=99))
    for i, ((job, order), made) in enumerate(zip(asked, together, strict=True)):
        if not isinstance(made, WeightgenError):
            (alone,) = make_weights(job, order)
            alone.save(tmp_path / f"alone-{i}")
            made[0].save(tmp_path / f"together-{i}")
            for path in (tmp_path / f"alone-{i}").iterdir():
                assert (tmp_path / f"together-{i}" / path.name).read_bytes() == path.read_bytes()


def test_the_end_of_generation_is_told_before_the_gate_for_what_was_not_refused(job, monkeypatch):
    told: list[object] = []
    monkeypatch.setattr(Classifier, "hold_back", lambda self, request: told.append("gate"))
    orders = [(job, job.order(support_per_class=shots)) for shots in (99, 5)]
    refused, made = make_weights_many(orders, on_generated=told.append)
    assert told == [[1], "gate"] and isinstance(refused, BadOption) and isinstance(made, list)
