"""A key that asks too much is told when to ask again; others are not held up by it."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from service.jobs.job_store import JobStore
from service.keys.key_limits import KeyLimits
from service.keys.key_store import KeyStore
from tests.helpers.service_standins import ASKED, REPOSITORY, Clock, stand_in_app


@pytest.fixture
def keys(tmp_path, clock):
    store = KeyStore(f"sqlite:///{tmp_path}/jobs.sqlite", clock=clock)
    store.migrate()
    yield store
    store.close()


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("here")(scope, receive, send)


class As:
    """ASGI middleware in place of Authentication: the request comes from the key that it names."""

    def __init__(self, app: KeyLimits) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["state"] = {"owner": dict(scope["headers"]).get(b"x-owner", b"").decode()}
        await self._app(scope, receive, send)


def client_of(keys: KeyStore, clock: Clock, *, per_minute: int) -> TestClient:
    return TestClient(As(KeyLimits(answer, keys=keys, max_per_minute=per_minute, max_concurrent=9, clock=clock)))


def statuses(client: TestClient, owner: str, number: int) -> list[int]:
    return [client.get("/v1/x", headers={"X-Owner": owner}).status_code for _ in range(number)]


def test_a_key_may_ask_so_often_a_minute_over_all_processes(keys, clock):
    _, busy = keys.make("busy", ["read"])
    _, other = keys.make("other", ["read"])
    first, second = (client_of(keys, clock, per_minute=90) for _ in range(2))
    assert statuses(first, busy.id, 50) + statuses(second, busy.id, 40) == [200] * 90
    refused = second.get("/v1/x", headers={"X-Owner": busy.id})
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert refused.json()["detail"] == "a key may make 90 requests a minute; ask again in 1 seconds"
    assert statuses(first, busy.id, 1) == [429] and statuses(first, other.id, 1) == [200]
    clock.now += 2
    assert statuses(first, busy.id, 4) == [200, 200, 200, 429]


def test_a_key_of_few_requests_is_told_how_long_to_wait(keys, clock):
    _, key = keys.make("slow", ["read"])
    client = client_of(keys, clock, per_minute=2)
    assert statuses(client, key.id, 3) == [200, 200, 429]
    clock.now += 9.5
    assert client.get("/hf/x", headers={"X-Owner": key.id}).headers["retry-after"] == "21"
    assert "ask again in 21 seconds" in client.get("/hf/x", headers={"X-Owner": key.id}).headers["x-error-message"]
    clock.now += 20.5
    assert statuses(client, key.id, 2) == [200, 429]


def test_who_has_no_key_has_no_such_limit(keys, clock):
    assert statuses(client_of(keys, clock, per_minute=1), "", 5) == [200] * 5


def test_an_unknown_key_is_refused_not_answered(keys, clock):
    client = client_of(keys, clock, per_minute=1)
    refused = client.get("/v1/x", headers={"X-Owner": "none"})
    assert refused.status_code == 503 and "does not answer" in refused.json()["detail"]


def test_a_key_has_so_many_requests_at_a_time_and_gets_them_back(keys):
    _, key = keys.make("wide", ["read"])
    go_on = asyncio.Event()

    async def hold(scope: Scope, receive: Receive, send: Send) -> None:
        await go_on.wait()
        await answer(scope, receive, send)

    limits = KeyLimits(hold, keys=keys, max_per_minute=1000, max_concurrent=2)

    async def ask() -> int:
        sent = []

        async def receive() -> dict[str, object]:
            return {"type": "http.disconnect"}

        async def send(message) -> None:
            sent.append(message)

        await limits({"type": "http", "path": "/", "state": {"owner": key.id}}, receive, send)
        return sent[0]["status"]

    async def ask_three_then_one() -> tuple[list[int], int]:
        held = [asyncio.create_task(ask()) for _ in range(2)]
        await asyncio.sleep(0)
        refused = await ask()
        go_on.set()
        return [refused, *await asyncio.gather(*held)], await ask()

    assert asyncio.run(ask_three_then_one()) == ([429, 200, 200], 200)


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture
def service(tmp_path):
    app, run = stand_in_app(tmp_path, inline_seconds=0, max_queued_jobs_per_key=2, runner_threads=0)
    keys = KeyStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, keys
    keys.close()
    assert run.runs == []


def test_one_key_cannot_fill_the_queue(service):
    client, keys = service
    greedy, other = (bearer(keys.make(name, ["generate"])[0]) for name in ("greedy", "other"))

    def post(seed: int, headers: dict[str, str]) -> int:
        return client.post("/v1/generations", json={**ASKED, "seed": seed}, headers=headers).status_code

    assert [post(seed, greedy) for seed in range(3)] == [202, 202, 429]
    assert post(2, other) == 202 and post(0, greedy) == 202


def test_a_key_that_only_reads_makes_no_weights_through_the_hub(service):
    client, keys = service
    reads, makes = (bearer(keys.make(scope, ["read", scope])[0]) for scope in ("read", "generate"))
    path = f"/hf/{REPOSITORY}/resolve/main/config.json"
    refused = client.get(path, headers=reads)
    assert refused.status_code == 403 and "the scope 'generate'" in refused.headers["x-error-message"]
    assert client.get(path, headers=makes).status_code == 503
    assert client.get(path, headers=reads).status_code == 503  # it is being made: reading waits for it


def test_a_job_is_cancelled_by_who_asked_for_it(service, tmp_path):
    client, keys = service
    mine, theirs = (bearer(keys.make(name, ["generate"])[0]) for name in ("mine", "theirs"))
    job = client.post("/v1/generations", json=ASKED, headers=mine).json()
    refused = client.delete(f"/v1/jobs/{job['id']}", headers=theirs)
    assert refused.status_code == 403 and "another key asked for" in refused.json()["detail"]
    assert client.delete(f"/v1/jobs/{job['id']}", headers=mine).json()["state"] == "cancelled"
    jobs = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    nobodys, _ = jobs.submit(ASKED, digest="d", max_queued=9)
    jobs.close()
    assert client.delete(f"/v1/jobs/{nobodys.id}", headers=theirs).status_code == 200
