"""What the chaos benchmark concludes from what it saw, and a small run of it."""

import json
from collections import Counter

import pytest

from benchmarks.service.chaos import Ledger, check_aims, find_orphans, judge, main
from benchmarks.service.http_connection import Answer

SHA = "ab" + 62 * "0"


def job(number: int, *, state: str = "succeeded", artifact: str = "") -> dict:
    result = {"artifact": artifact or f"sha {number}"} if state == "succeeded" else None
    return {"id": f"job {number}", "state": state, "result": result, "attempt": 1}


def answer(told: dict, status: int = 201) -> Answer:
    return Answer(status, {}, json.dumps(told).encode(), 0.0, 0.0)


def seen() -> tuple[Ledger, dict[int, dict], dict[str, int]]:
    ledger = Ledger(sent=[0, 1])
    ledger.write_down(0, "k", answer(job(0)))
    ledger.write_down(1, "", answer(job(1, state="queued"), 202))
    return ledger, {0: job(0), 1: job(1)}, {"queued": 0, "running": 0, "succeeded": 2, "failed": 0, "cancelled": 0}


def aims_of(ledger: Ledger, jobs: dict[int, dict], counts: dict[str, int], **found) -> set[str]:
    """The aims that are missed."""
    rest = {"killed": {"group": 3}, "damaged_artifacts": 0, "orphan_files": [], "orphan_processes": False,
            "other_bytes": 0, **found}  # fmt: skip
    return {aim for aim, is_met in check_aims(judge(ledger, jobs, counts) | rest, kills=3).items() if not is_met}


def test_a_run_without_fault_meets_every_aim():
    assert aims_of(*seen()) == set()


def test_a_job_that_did_not_succeed_is_lost():
    ledger, jobs, counts = seen()
    assert "none lost" in aims_of(ledger, jobs | {1: job(1, state="failed")}, counts)
    assert "none lost" in aims_of(ledger, {0: jobs[0]}, counts)


def test_a_request_with_two_jobs_is_doubled():
    ledger, jobs, counts = seen()
    assert aims_of(ledger, jobs, counts | {"succeeded": 3}) >= {"none doubled"}
    ledger.write_down(0, "", answer(job(7)))
    assert "none doubled" in aims_of(ledger, jobs, counts)


def test_a_key_with_two_jobs_is_doubled():
    ledger, jobs, counts = seen()
    ledger.keys["k"].add("another job")
    assert aims_of(ledger, jobs, counts) == {"none doubled"}


@pytest.mark.parametrize("found", [{"damaged_artifacts": 1}, {"other_bytes": 1}], ids=["damaged", "other bytes"])
def test_other_bytes_are_told(found):
    assert aims_of(*seen(), **found) == {"one artifact a request, the same bytes"}


def test_a_request_with_two_results_is_told():
    ledger, jobs, counts = seen()
    ledger.write_down(0, "", answer(job(0, artifact="another")))
    assert aims_of(ledger, jobs, counts) == {"one artifact a request, the same bytes"}


def test_an_answer_that_nobody_should_get_is_told_and_a_full_queue_is_none():
    ledger, jobs, counts = seen()
    ledger.write_down(0, "", answer({}, 429))
    assert aims_of(ledger, jobs, counts) == set()
    ledger.write_down(0, "", answer({}, 500))
    assert aims_of(ledger, jobs, counts) == {"no answer but 201, 202, 429, 503"}
    assert ledger.statuses == Counter({"201": 1, "202": 1, "429": 1, "500": 1})


def test_files_that_nothing_accounts_for_are_found(tmp_path):
    for name in ("jobs.sqlite", "scratch/lock", "artifacts/lock", f"artifacts/ab/{SHA}.json", f"artifacts/ab/{SHA}/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert find_orphans(tmp_path, {SHA}) == []
    assert find_orphans(tmp_path, set()) == [f"artifacts/ab/{SHA}", f"artifacts/ab/{SHA}.json", f"artifacts/ab/{SHA}/x"]
    (tmp_path / "scratch" / "work").mkdir()
    (tmp_path / "artifacts" / "ab" / f".{SHA}.json.tmp").write_text("")
    assert find_orphans(tmp_path, {SHA}) == [f"artifacts/ab/.{SHA}.json.tmp", "scratch/work"]


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_three_kills_lose_nothing(tmp_path, database, request):
    if database == "postgresql":
        request.getfixturevalue("postgres")  # or the test is skipped
    place = tmp_path / "chaos.json"
    given = ["--kills", "3", "--clients", "3", "--seed", "2", "--database", database, "--json", str(place)]
    assert main(given) == 0, place.read_text()
