import pytest
from pydantic import ValidationError

from service.api.schemas import JobBody, ResultBody
from service.jobs.job_store import Job
from service.work.request_body import MAX_SAMPLES, MAX_SEED, MAX_SHOTS, GenerationRequestBody
from tests.helpers.service_standins import ASKED
from weightgen.labelled_data import MAX_SHOTS as MOST_EXAMPLES
from weightgen.request import MAX_SAMPLES as MOST_SAMPLES

CHANGES = {
    "generator": "d2nwg",
    "architecture": "cnn",
    "dataset": "mnist",
    "support_per_class": 5,
    "seed": 1,
    "fallback": False,
}


def body(**given) -> GenerationRequestBody:
    return GenerationRequestBody.model_validate({**ASKED, **given})


def test_the_canonical_request_has_every_field_and_reads_back_as_itself():
    request = body(seed=MAX_SEED)
    assert set(request.canonical()) == set(GenerationRequestBody.model_fields)
    assert GenerationRequestBody.model_validate(request.canonical()) == request


def test_a_default_that_is_spelt_out_is_the_same_request():
    spelt = body(support_per_class=20, seed=0, num_samples=1, fallback=True)
    assert spelt.digest(contents={"generator": "a" * 64}) == body().digest(contents={"generator": "a" * 64})


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_decides_the_digest(field):
    changed = body(**{field: CHANGES[field]})
    assert changed.digest(contents={"generator": "a" * 64}) != body().digest(contents={"generator": "a" * 64})


def test_another_generator_file_is_another_request():
    assert body().digest(contents={"generator": "a" * 64}) != body().digest(contents={"generator": "b" * 64})


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"steps": 3}, "steps"),
        ({"seed": "1"}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"seed": True}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"fallback": 1}, "fallback"),
        ({"support_per_class": 0}, "support_per_class"),
        ({"support_per_class": MAX_SHOTS + 1}, "support_per_class"),
        ({"num_samples": 0}, "num_samples"),
        ({"num_samples": MAX_SAMPLES + 1}, "num_samples"),
        ({"generator": "../mip.safetensors"}, "generator"),
        ({"generator": ".."}, "generator"),
        ({"dataset": "hf:mnist"}, "dataset"),
        ({"dataset": "/etc/passwd"}, "dataset"),
        ({"dataset": "digits\n"}, "dataset"),
        ({"dataset": None}, "dataset"),
        ({"architecture": ""}, "architecture"),
        ({"architecture": "c" * 68}, "architecture"),
        ({"architecture": "cnn\0"}, "architecture"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_the_name_of_its_field(given, field):
    with pytest.raises(ValidationError) as refused:
        body(**given)
    assert [error["loc"] for error in refused.value.errors()] == [(field,)]


def test_the_most_examples_are_those_that_the_library_draws():
    assert MAX_SHOTS == MOST_EXAMPLES


def test_the_most_samples_are_those_that_the_library_makes():
    assert MAX_SAMPLES == MOST_SAMPLES


def test_a_result_written_before_there_were_several_samples_lists_its_only_one():
    known = {"artifact": "a" * 64, "repository": "sha/a", "files": [], "report": {}}
    assert ResultBody.model_validate(known).model_dump() == {**known, "samples": [known]}


def test_a_job_is_told_without_what_is_only_the_stores():
    job = Job(
        id="1", digest="d", owner="", request=dict(ASKED), state="running", progress={}, result=None, problem=None,
        attempt=1, created=1.0, updated=2.0, version=2,
    )  # fmt: skip
    told = JobBody.of(job).model_dump()
    assert told["state"] == "running" and told["progress"] is None and "digest" not in told
