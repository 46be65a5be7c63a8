"""Jobs are accepted once, claimed by one runner at a time, and end once, whoever asks and whoever dies."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError

from service.errors import Conflict, QueueFull
from service.jobs.database import open_database
from service.jobs.job_store import FINAL, Job, JobStore
from weightgen.errors import NotFound


@pytest.fixture
def url(database_url) -> str:
    return database_url


@pytest.fixture
def store(url, clock):
    store = JobStore(url, clock=clock)
    store.migrate()
    yield store
    store.close()


def submit(store: JobStore, digest: str = "a", key: str | None = None, **given: Any) -> tuple[Job, bool]:
    given = {"max_queued": 100, **given}
    return store.submit({"seed": digest}, digest=digest, idempotency_key=key, **given)


def claim(store: JobStore, runner: str = "r1", lease_seconds: float = 30) -> Job:
    job = store.claim(runner, lease_seconds=lease_seconds)
    assert job is not None
    return job


def end(store: JobStore, state: str) -> Job:
    """The job of request 'a', brought to this state."""
    job, _ = submit(store)
    if state == "cancelled":
        return store.cancel(job.id)
    assert claim(store).id == job.id
    assert store.finish(job.id, "r1", {"x": 1}) if state == "succeeded" else store.fail(job.id, "r1", {"detail": "no"})
    return store.get(job.id)


def test_a_job_from_post_to_result(store, clock):
    job, is_new = submit(store)
    assert is_new
    assert job == store.get(job.id)
    assert job == Job(id=job.id, digest="a", owner="", request={"seed": "a"}, state="queued", progress={}, result=None,
                      problem=None, attempt=0, created=1e6, updated=1e6, version=1)  # fmt: skip
    clock.now += 1
    running = claim(store)
    assert running == replace(job, state="running", attempt=1, updated=1e6 + 1, version=2)
    clock.now += 1
    assert store.finish(job.id, "r1", {"artifact": "f00d"})
    assert store.get(job.id) == replace(
        running, state="succeeded", result={"artifact": "f00d"}, updated=1e6 + 2, version=3
    )


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_a_request_posted_again_gets_the_same_job(store, state):
    job, _ = submit(store)
    if state != "queued":
        claim(store)
    if state == "succeeded":
        store.finish(job.id, "r1", {})
    assert submit(store) == (store.get(job.id), False)
    assert store.get(job.id).state == state


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_request_whose_job_came_to_nothing_gets_a_new_one_unless_under_its_key(store, state):
    with_key, _ = submit(store, key="k")
    old = end(store, state)
    assert old.id == with_key.id
    assert submit(store, key="k") == (old, False)
    new, is_new = submit(store)
    assert is_new
    assert new.id != old.id


def test_a_key_belongs_to_one_request(store):
    submit(store, "a", key="k")
    with pytest.raises(Conflict, match="the idempotency key 'k' belongs to another request"):
        submit(store, "b", key="k")
    assert store.count()["queued"] == 1


def test_a_job_answers_to_every_key_it_was_asked_for_under(store):
    job, _ = submit(store, "a")
    for key in ("k", "l"):
        assert submit(store, "a", key=key) == (job, False)
    store.cancel(job.id)
    for key in ("k", "l"):
        assert submit(store, "a", key=key)[0].id == job.id
        with pytest.raises(Conflict):
            submit(store, "b", key=key)


def test_the_keys_of_one_owner_are_nothing_to_another(store):
    mine, _ = submit(store, "a", key="k", owner="me")
    yours, is_new = submit(store, "b", key="k", owner="you")
    assert is_new and (mine.owner, yours.owner) == ("me", "you")
    assert submit(store, "a", key="k", owner="me") == (mine, False)
    assert submit(store, "b", key="k", owner="you") == (yours, False)


def test_owners_share_the_job_of_one_request(store):
    job, _ = submit(store, "a", key="k", owner="me")
    assert submit(store, "a", key="l", owner="you") == (job, False)
    store.cancel(job.id)
    assert submit(store, "a", key="l", owner="you")[0].id == job.id


def test_a_full_queue_refuses_new_jobs_and_answers_known_ones(store):
    submit(store, "a", max_queued=2)
    submit(store, "b", max_queued=2)
    with pytest.raises(QueueFull, match="2 jobs wait, at most 2 may"):
        submit(store, "c", max_queued=2)
    assert submit(store, "b", max_queued=2)[1] is False
    claim(store)
    assert submit(store, "c", max_queued=2)[1] is True


def test_an_owner_whose_jobs_wait_is_refused_and_others_are_not(store):
    submit(store, "a", owner="me", max_queued_of_owner=1)
    with pytest.raises(QueueFull, match="1 of your jobs wait, at most 1 may"):
        submit(store, "b", owner="me", max_queued_of_owner=1)
    assert submit(store, "a", owner="me", max_queued_of_owner=1)[1] is False
    assert submit(store, "b", owner="you", max_queued_of_owner=1)[1] is True
    claim(store)
    assert submit(store, "c", owner="me", max_queued_of_owner=1)[1] is True


def test_posts_of_one_request_at_once_make_one_job(store, url):
    stores = [store, JobStore(url), JobStore(url)]
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda i: submit(stores[i % 3], key=f"k{i}"), range(12)))
    for other in stores[1:]:
        other.close()
    assert len({job.id for job, _ in answers}) == 1
    assert sum(is_new for _, is_new in answers) == 1


def test_the_table_itself_refuses_a_second_current_job_of_a_request(store, url):
    submit(store)
    columns = "digest, owner, request, state, progress, attempt, created, updated, version"
    insert = sa.text(f"INSERT INTO jobs (id, {columns}) SELECT 'other', {columns} FROM jobs")
    engine = open_database(url)
    refused = pytest.raises(IntegrityError, match=r"UNIQUE constraint failed: jobs\.digest|jobs_digest_current")
    with refused, engine.begin() as connection:
        connection.execute(insert)
    with engine.begin() as connection:
        connection.execute(sa.text("UPDATE jobs SET state = 'failed'"))
        connection.execute(insert)
    engine.dispose()


def test_jobs_are_claimed_in_the_order_they_came(store):
    ids = [submit(store, digest)[0].id for digest in "cab"]
    assert [claim(store, f"r{i}").id for i in range(3)] == ids
    assert store.claim("r9", lease_seconds=30) is None


def test_runners_on_one_file_claim_each_job_once(store, url, clock):
    for i in range(20):
        submit(store, str(i))
    stores = [store, JobStore(url, clock=clock)]

    def claim_all(i: int) -> list[str]:
        found = []
        while job := stores[i % 2].claim(f"r{i}", lease_seconds=30):
            found.append(job.id)
        return found

    with ThreadPoolExecutor(4) as pool:
        claimed = [job_id for found in pool.map(claim_all, range(4)) for job_id in found]
    stores[1].close()
    assert len(claimed) == len(set(claimed)) == 20


def test_an_expired_lease_moves_the_job_to_another_runner_and_shuts_the_first_out(store, clock):
    job, _ = submit(store)
    claim(store, "r1", lease_seconds=30)
    clock.now += 30
    assert store.claim("r2", lease_seconds=30) is None
    clock.now += 1
    assert claim(store, "r2").attempt == 2
    before = store.get(job.id)
    assert not store.renew(job.id, "r1", lease_seconds=30, progress={"stage": "late", "done": 1, "total": 1})
    assert not store.finish(job.id, "r1", {"late": True})
    assert not store.fail(job.id, "r1", {"late": True})
    assert not store.release(job.id, "r1")
    assert store.get(job.id) == before
    assert store.finish(job.id, "r2", {"x": 1})
    assert not store.finish(job.id, "r2", {"x": 2})
    assert store.get(job.id).result == {"x": 1}


def test_a_renewed_lease_holds(store, clock):
    job, _ = submit(store)
    claim(store, "r1", lease_seconds=30)
    clock.now += 29
    assert store.renew(job.id, "r1", lease_seconds=30)
    clock.now += 29
    assert store.claim("r2", lease_seconds=30) is None


def test_progress_is_a_change_and_a_mere_renewal_is_none(store):
    job, _ = submit(store)
    version = claim(store).version
    assert store.renew(job.id, "r1", lease_seconds=30)
    assert store.get(job.id).version == version
    assert store.renew(job.id, "r1", lease_seconds=30, progress={"stage": "load", "done": 0, "total": 3})
    assert store.get(job.id).version == version + 1
    assert store.get(job.id).progress == {"stage": "load", "done": 0, "total": 3}


def test_a_job_handed_back_waits_again_and_its_attempt_does_not_count(store):
    first, _ = submit(store, "a")
    submit(store, "b")
    claim(store)
    assert store.release(first.id, "r1")
    assert (store.get(first.id).state, store.get(first.id).attempt) == ("queued", 0)
    assert claim(store, "r2").id == first.id


def test_a_cancelled_job_is_never_run_and_its_runner_is_told(store):
    waiting, _ = submit(store, "a")
    assert store.cancel(waiting.id).state == "cancelled"
    assert store.claim("r1", lease_seconds=30) is None
    running, _ = submit(store, "b")
    claim(store)
    cancelled = store.cancel(running.id)
    assert not store.renew(running.id, "r1", lease_seconds=30)
    assert not store.finish(running.id, "r1", {})
    assert store.cancel(running.id) == cancelled == store.get(running.id)


@pytest.mark.parametrize("state", ["succeeded", "failed"])
def test_a_job_that_ended_cannot_be_cancelled(store, state):
    job = end(store, state)
    with pytest.raises(Conflict, match=f"job {job.id} has {state}; only a queued or running job can be cancelled"):
        store.cancel(job.id)
    assert store.get(job.id) == job


def test_unknown_jobs_are_told(store):
    for ask in (store.get, store.cancel):
        with pytest.raises(NotFound, match="there is no job 'nothing'"):
            ask("nothing")


def test_jobs_are_counted_by_state(store):
    for state in FINAL:
        end(store, state)
        if state == "succeeded":
            store.prune(older_than=-1)
    submit(store, "b")
    assert store.count() == {"queued": 1, "running": 0, "succeeded": 0, "failed": 1, "cancelled": 1}


def test_only_jobs_that_ended_long_ago_are_forgotten(store, clock):
    old = end(store, "failed")
    waiting, _ = submit(store, "b")
    clock.now += 100
    recent = end(store, "cancelled")
    assert store.prune(older_than=50) == 1
    with pytest.raises(NotFound):
        store.get(old.id)
    assert store.get(waiting.id).state == "queued"
    assert store.get(recent.id).state == "cancelled"


def test_keys_are_forgotten_with_their_job(store):
    old, _ = submit(store, "a", key="k")
    kept, _ = submit(store, "b", key="l")
    store.cancel(old.id)
    assert store.prune(older_than=-1) == 1
    assert submit(store, "c", key="k")[1] is True
    assert submit(store, "b", key="l") == (kept, False)


def test_a_job_whose_artifact_is_deleted_answers_no_more(store):
    made = []
    for digest, artifact in [("a", "f00d"), ("b", "f00d"), ("c", "cafe")]:
        job, _ = submit(store, digest, key=f"key of {digest}")
        claim(store)
        assert store.finish(job.id, "r1", {"artifact": artifact})
        made.append(job.id)
    assert store.forget_artifact("f00d") == 2
    assert store.forget_artifact("f00d") == 0
    for digest in "ab":
        job, is_new = submit(store, digest, key=f"key of {digest}")
        assert is_new and job.id not in made
    assert submit(store, "c", key="key of c")[0].id == made[2]


def test_another_process_sees_what_is_committed(store, url):
    job, _ = submit(store)
    other = JobStore(url)
    assert other.get(job.id) == job
    other.close()


def test_others_of_a_kind_are_claimed_in_order_up_to_the_limit_and_the_runners_part(store):
    jobs = [store.submit({"kind": kind}, digest=f"{i}", max_queued=100)[0] for i, kind in enumerate("abaaba")]

    def claim(**limits: int) -> list[str]:
        found = store.claim_more("r", lease_seconds=30, is_wanted=lambda request: request["kind"] == "a", **limits)
        assert all((job.state, job.attempt) == ("running", 1) for job in found)
        return [job.id for job in found]

    assert claim(limit=1) == [jobs[0].id]
    assert claim(limit=9, sharers=2) == [jobs[2].id, jobs[3].id]
    assert claim(limit=9) == [jobs[5].id]
    assert claim(limit=9) == []
    assert [store.get(job.id).state for job in jobs] == ["running", "queued", "running", "running", "queued", "running"]


def test_a_job_that_was_begun_before_is_not_claimed_with_others(store):
    store.submit({}, digest="a", max_queued=100)
    assert store.claim("dead", lease_seconds=-1) is not None
    assert store.claim_more("r", lease_seconds=30, limit=9, is_wanted=lambda _: True) == []
    assert store.claim("alone", lease_seconds=30) is not None


def test_the_latest_results_are_those_of_jobs_that_succeeded_newest_first(store):
    for number in range(4):
        store.submit({"n": number}, digest=f"{number:064}", max_queued=9)
        job = store.claim("runner", lease_seconds=60)
        if number == 1:
            store.fail(job.id, "runner", {})
        else:
            store.finish(job.id, "runner", {"made": number})
    assert store.latest_results(limit=2) == [({"n": 3}, {"made": 3}), ({"n": 2}, {"made": 2})]
    assert [request["n"] for request, _ in store.latest_results(limit=9)] == [3, 2, 0]
