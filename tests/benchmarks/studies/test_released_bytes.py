"""The same request to the same released generator gives the same bytes, whatever is changed in the code round it."""

import json

import pytest

from benchmarks.studies.released_bytes import GOLDEN, differences, list_cases, processor, run_case

RECORDED = json.loads(GOLDEN.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("released_bytes")


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, id=c.name, marks=[pytest.mark.slow] if c.is_slow else []) for c in list_cases()],
)
def test_a_request_gives_the_bytes_it_always_gave(case, folder):
    made = run_case(case, folder)
    assert made, "no weights were written"
    is_same = RECORDED["processor"] == processor()
    assert list(differences(made, RECORDED["cases"][case.name], same_processor=is_same)) == []


def test_every_recorded_request_is_still_made():
    assert {c.name for c in list_cases()} == set(RECORDED["cases"])


def test_other_bytes_are_noticed():
    recorded = {"model.safetensors": {"sha256": "a" * 64, "rms": {"w": 1.0}}}
    other = {"model.safetensors": {"sha256": "b" * 64, "rms": {"w": 1.05}}}
    far = {"model.safetensors": {"sha256": "b" * 64, "rms": {"w": 1.5}}}
    assert list(differences(recorded, recorded, same_processor=True)) == []
    assert list(differences(other, recorded, same_processor=True))
    assert list(differences(other, recorded, same_processor=False)) == []
    assert list(differences(far, recorded, same_processor=False))
    assert list(differences({}, recorded, same_processor=False))
