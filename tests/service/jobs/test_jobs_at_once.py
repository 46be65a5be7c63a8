"""Jobs are accepted once and end once when many processes and threads want the same ones at the same time."""

import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from service.errors import Conflict, QueueFull
from service.jobs.job_store import JobStore
from tests.helpers.paths import ROOT

NUM_REQUESTS = 8
PROCESS = """
import json, random, sys, time
from service.jobs.job_store import JobStore

url, name = sys.argv[1:]
store, rng, lease = JobStore(url), random.Random(name), 0.02
print("ready", flush=True)
sys.stdin.readline()
accepted, begun, ended = {}, [], []
for digest in rng.sample([str(i) for i in range(8)], 8):
    job, _ = store.submit({}, digest=digest, owner=name, idempotency_key=digest, max_queued=100)
    accepted[digest] = job.id
while store.count()["succeeded"] < 8:
    job = store.claim(f"{name}-{len(begun)}", lease_seconds=lease)
    if job is None:
        continue
    begun.append(job.id)
    time.sleep(rng.choice([0, 0, lease, 3 * lease]))  # some outlast their lease
    if rng.random() < 0.3:
        continue  # as good as dead
    if store.finish(job.id, f"{name}-{len(begun) - 1}", {"artifact": name}):
        ended.append(job.id)
print(json.dumps({"accepted": accepted, "begun": begun, "ended": ended}))
"""


@pytest.fixture
def store(database_url):
    store = JobStore(database_url)
    store.migrate()
    yield store
    store.close()


def test_processes_that_submit_claim_lose_and_finish_end_each_request_once(store, database_url):
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, database_url, name], cwd=ROOT, text=True,
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in "pqr"
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [json.loads(process.communicate()[0]) for process in processes]
    assert told[0]["accepted"] == told[1]["accepted"] == told[2]["accepted"]
    jobs = sorted(told[0]["accepted"].values())
    assert len(set(jobs)) == NUM_REQUESTS
    assert sorted(job for one in told for job in one["ended"]) == jobs
    begun = Counter(job for one in told for job in one["begun"])
    assert {job: store.get(job).attempt for job in jobs} == begun
    for one, name in zip(told, "pqr", strict=True):
        assert all(store.get(job).result == {"artifact": name} for job in one["ended"])
    assert store.count() == {"queued": 0, "running": 0, "succeeded": NUM_REQUESTS, "failed": 0, "cancelled": 0}


def test_the_last_place_of_the_queue_goes_to_one(store):
    def ask(i: int) -> bool:
        try:
            return store.submit({}, digest=str(i), max_queued=3)[1]
        except QueueFull:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(ask, range(24))) == 3
    assert store.count()["queued"] == 3


def test_a_job_is_cancelled_or_finished_but_never_both(store):
    jobs = [store.submit({}, digest=str(i), max_queued=100)[0].id for i in range(20)]
    for i, job_id in enumerate(jobs):
        assert store.claim(f"r{i}", lease_seconds=30).id == job_id

    def end(i: int) -> bool:
        if i % 2:
            return store.finish(jobs[i // 2], f"r{i // 2}", {"artifact": "f00d"})
        try:
            return store.cancel(jobs[i // 2]).state == "cancelled"
        except Conflict:
            return False

    with ThreadPoolExecutor(8) as pool:
        ended = list(pool.map(end, range(40)))
    for i, job_id in enumerate(jobs):
        assert (ended[2 * i], ended[2 * i + 1]) in [(True, False), (False, True)]
        assert store.get(job_id).state == ("cancelled" if ended[2 * i] else "succeeded")


def test_a_key_is_never_kept_without_its_job_when_both_come_and_go(store):
    def come_and_go(i: int) -> None:
        if i % 2:
            store.prune(older_than=-1)
            return
        job, _ = store.submit({}, digest=str(i % 3), idempotency_key=f"k{i}", max_queued=100)
        assert store.submit({}, digest=str(i % 3), idempotency_key=f"l{i}", max_queued=100)[0].digest == job.digest
        while (claimed := store.claim(f"r{i}", lease_seconds=30)) is not None:
            store.finish(claimed.id, f"r{i}", {"artifact": "f00d"})

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(come_and_go, range(60)))
    store.forget_artifact("f00d")
    for i in range(60):
        assert store.submit({}, digest="new", idempotency_key=f"k{i}", max_queued=100)[0].digest == "new"
