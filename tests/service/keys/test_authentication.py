"""Keys are asked for as soon as there is one; a request needs the scope of what it does."""

import pytest
from starlette.testclient import TestClient

from service.jobs.job_store import JobStore
from service.keys.authentication import NEEDED, PUBLIC, Authentication, KeyRing, needed_scope
from service.keys.key_store import KeyStore
from service.problems import MEDIA_TYPE
from tests.helpers.service_standins import ASKED, REPOSITORY, stand_in_app

OF_A_KEY = ("/v1/generators", "/v1/jobs/none", "/hf/api/models/job/none", "/nothing", "/healthz/")


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A client, and the keys; what a process knows of them it forgets at once."""
    monkeypatch.setattr("service.keys.authentication.KNOWN_SECONDS", 0.0)
    app, _ = stand_in_app(tmp_path)
    keys = KeyStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, keys
    keys.close()


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


def test_without_keys_everybody_may_ask(service):
    client, _ = service
    assert client.post("/v1/generations", json=ASKED, headers=bearer("hf_of_another_hub")).status_code == 201


@pytest.mark.parametrize("path", OF_A_KEY)
def test_as_soon_as_there_is_a_key_nothing_but_the_public_is_answered_without(service, path):
    client, keys = service
    _, key = keys.make("ci", ["read"])
    refused = client.get(path)
    assert (refused.status_code, refused.headers["content-type"]) == (401, MEDIA_TYPE)
    assert refused.headers["www-authenticate"] == 'Bearer realm="weightgen"'
    assert refused.json()["type"] == "urn:weightgen:problem:unauthorized"
    keys.revoke(key.id)
    assert client.get(path).status_code == 401


@pytest.mark.parametrize("path", sorted(PUBLIC - {"/", "/favicon.ico"}))
def test_what_is_public_is_answered_without_a_key(service, path):
    client, keys = service
    keys.make("ci", ["read"])
    assert client.get(path).status_code == 200


def test_a_key_opens_what_its_scopes_say(service):
    client, keys = service
    reads, makes = bearer(keys.make("r", ["read"])[0]), bearer(keys.make("g", ["generate"])[0])
    assert client.get("/v1/generators", headers=reads).status_code == 200
    refused = client.post("/v1/generations", json=ASKED, headers=reads)
    assert refused.status_code == 403 and refused.json()["type"] == "urn:weightgen:problem:forbidden"
    assert "needs a key with the scope 'generate'; yours has read" in refused.json()["detail"]
    assert 'error="insufficient_scope", scope="generate"' in refused.headers["www-authenticate"]
    assert client.get("/v1/generators", headers=makes).status_code == 403
    assert client.post("/v1/generations", json=ASKED, headers=makes).status_code == 201


def test_jobs_belong_to_the_key_that_asked(service, tmp_path):
    client, keys = service
    text, key = keys.make("g", ["generate"])
    job = client.post("/v1/generations", json=ASKED, headers=bearer(text)).json()
    jobs = JobStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    assert jobs.get(job["id"]).owner == key.id
    jobs.close()


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        ("", "holds no key"),
        ("Bearer", "holds no key"),
        ("Bearer wg_0123456789ab", "holds no key"),
        ("Basic d2c6d2c=", "holds no key"),
        ("Bearer wg_0123456789ab_" + "a" * 43, "is not one of this service"),
        ("Bearer {id}", "holds no key"),
        ("Bearer wg_{id}_" + "a" * 43, "is not one of this service"),
        ("Bearer {key} {key}", "holds no key"),
    ],
)
def test_what_is_no_key_of_the_service_is_refused(service, header, sentence):
    client, keys = service
    text, key = keys.make("ci", ["read"])
    refused = client.get("/v1/generators", headers={"Authorization": header.format(id=key.id, key=text)})
    assert refused.status_code == 401 and sentence in refused.json()["detail"]
    assert text.split("_", 2)[2] not in refused.text


def test_two_authorization_headers_are_refused(service):
    client, keys = service
    text, _ = keys.make("ci", ["read"])
    twice = [("Authorization", f"Bearer {text}")] * 2
    assert client.get("/v1/generators", headers=twice).status_code == 401
    assert client.get("/v1/generators", headers={"Authorization": f"bearer  {text}"}).status_code == 200


def test_a_key_that_was_revoked_or_has_expired_is_refused_by_its_name(service):
    client, keys = service
    revoked, key = keys.make("old", ["read"])
    expired, _ = keys.make("brief", ["read"], expires_days=1e-9)
    assert client.get("/v1/generators", headers=bearer(revoked)).status_code == 200
    keys.revoke(key.id)
    refused = client.get("/v1/generators", headers=bearer(revoked))
    assert refused.status_code == 401 and "the key 'old' was revoked" in refused.json()["detail"]
    refused = client.get("/v1/generators", headers=bearer(expired))
    assert refused.status_code == 401 and "the key 'brief' has expired" in refused.json()["detail"]


def test_hub_clients_are_told_in_a_header(service):
    client, keys = service
    keys.make("ci", ["read"])
    refused = client.head(f"/hf/{REPOSITORY}/resolve/main/config.json")
    assert refused.status_code == 401 and "asks for a key" in refused.headers["x-error-message"]


def test_no_key_and_no_door_beyond_loopback_that_may_be_open(tmp_path):
    app, _ = stand_in_app(tmp_path, host="0.0.0.0")
    with TestClient(app) as client:
        assert client.get("/v1/generators").status_code == 401
    app, _ = stand_in_app(tmp_path, host="0.0.0.0", insecure=True)
    with TestClient(app) as client:
        assert client.get("/v1/generators").status_code == 200


def test_a_database_that_does_not_answer_lets_nobody_in(tmp_path):
    store = KeyStore(f"sqlite:///{tmp_path}/not-migrated.sqlite")

    async def answer(scope, receive, send) -> None:
        raise AssertionError

    refused = TestClient(Authentication(answer, keys=KeyRing(store), may_be_open=True)).get("/v1/generators")
    assert refused.status_code == 503 and "the keys does not answer" in refused.json()["detail"]
    assert refused.headers["retry-after"] == "2" and str(tmp_path) not in refused.text
    store.close()


def test_a_process_remembers_a_key_for_a_while_and_no_longer(tmp_path):
    app, _ = stand_in_app(tmp_path)
    store = KeyStore(f"sqlite:///{tmp_path}/jobs.sqlite")
    text, key = store.make("ci", ["read"])
    with TestClient(app) as client:
        assert client.get("/v1/generators", headers=bearer(text)).status_code == 200
        store.revoke(key.id)
        while client.get("/v1/generators", headers=bearer(text)).status_code == 200:
            pass  # for KNOWN_SECONDS at most; that the loop ends is what is tested
    store.close()


@pytest.mark.parametrize(("method", "path"), NEEDED)
def test_the_table_is_read_by_the_beginning_of_a_path(method, path):
    assert needed_scope(method, path) == needed_scope(method, path + "x") == NEEDED[method, path]


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/v1/anything", "read"),
        ("HEAD", "/hf/anything", "read"),
        ("PUT", "/v1/anything", "generate"),
        ("PATCH", "/", None),
        ("GET", "/static/page.js", None),
        ("GET", "/staticx", "read"),
        ("GET", "/docs/x", "read"),
    ],
)
def test_what_the_table_does_not_name_needs_read_to_look_and_generate_to_change(method, path, scope):
    assert needed_scope(method, path) == scope


def test_what_a_key_is_answered_nobody_keeps_for_others(service):
    client, keys = service
    result = client.post("/v1/generations", json=ASKED).json()["result"]
    path = f"/v1/artifacts/{result['artifact']}/files/config.json"
    assert "public" in client.get(path).headers["cache-control"]
    headers = bearer(keys.make("r", ["read"])[0])
    cached = client.get(path, headers=headers).headers["cache-control"]
    assert cached == "private, max-age=31536000, immutable"
    assert client.get("/v1/generators", headers=headers).headers["cache-control"] == "private"
    assert (
        client.get(f"/hf/{result['repository']}/resolve/main/config.json", headers=headers).headers["cache-control"]
        == "no-cache"
    )
