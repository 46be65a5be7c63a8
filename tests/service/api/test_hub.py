import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
from starlette.testclient import TestClient

from model_zoo.architectures import ARCHITECTURES
from model_zoo.data import list_data
from model_zoo.released import RELEASED
from service.api.hub import MAX_NAME, parse_generation
from service.work.request_body import MAX_SEED
from tests.helpers.service_standins import ASKED, REPOSITORY, stand_in_app
from weightgen.errors import NotFound, UnsupportedTask


@pytest.fixture
def service(tmp_path):
    app, run = stand_in_app(tmp_path)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client, run
        run.go_on.set()


def resolve(name: str, path: str = "config.json", revision: str = "main") -> str:
    return f"/hf/{name}/resolve/{revision}/{path}"


@pytest.mark.parametrize(
    "name", ["cnn-tiny.fashion_mnist.d2nwg-layerwise.s7", "cnn-tiny--fashion_mnist--d2nwg-layerwise--s7"]
)
def test_a_name_is_a_request(name):
    request = parse_generation(name)
    assert (request.architecture, request.dataset, request.generator, request.seed) == (
        "cnn-tiny", "fashion_mnist", "d2nwg-layerwise", 7
    )  # fmt: skip


def test_every_registered_name_fits_into_the_name_of_a_repository():
    uploaded = "up-" + "0" * 64
    for architecture, generator in product(ARCHITECTURES, RELEASED):
        assert len(f"{architecture}.{uploaded}.{generator}.s0") <= MAX_NAME
        for dataset in list_data():
            request = parse_generation(f"{architecture}.{dataset}.{generator}.s0")
            assert (request.architecture, request.dataset, request.generator) == (architecture, dataset, generator)


@pytest.mark.parametrize(
    "name",
    [
        "cnn-tiny.digits.mip",
        "cnn-tiny.digits.mip.0",
        "cnn-tiny.digits.mip.s-1",
        "cnn-tiny.digits.mip.s01",
        "cnn-tiny.digits--mip.s0",
        "cnn-tiny.digits.mip.s0.s0",
        ".digits.mip.s0",
        "..digits.mip.s0",
        "cnn tiny.digits.mip.s0",
        "cnn-tiny.digits.mip.s0\n",
        f"cnn-tiny.digits.mip.s{MAX_SEED + 1}",
        f"{'c' * 70}.digits.mip.s0",
        f"{'c' * 90}.digits.mip.s0",
    ],
)
def test_a_name_of_another_form_is_no_repository(name):
    with pytest.raises(NotFound, match="no repository is called"):
        parse_generation(name)


def test_the_first_read_makes_the_weights_and_the_next_ones_read_them(service):
    client, run = service
    head = client.head(resolve(REPOSITORY, "model.safetensors"))
    assert head.status_code == 200 and len(head.headers["x-repo-commit"]) == 40
    data = client.get(resolve(REPOSITORY, "model.safetensors"))
    assert head.headers["etag"] == data.headers["etag"] and int(head.headers["content-length"]) == len(data.content)
    assert len(run.runs) == 1 and run.runs[0]["seed"] == 0


def test_a_commit_is_kept_for_ever_and_main_is_asked_for_again(service):
    client, _ = service
    main = client.get(resolve(REPOSITORY))
    commit = client.get(resolve(REPOSITORY, revision=main.headers["x-repo-commit"]))
    assert commit.content == main.content and "immutable" in commit.headers["cache-control"]
    assert main.headers["cache-control"] == "no-cache"


def test_a_job_and_an_artifact_are_repositories_of_the_same_commit(service):
    client, _ = service
    job = client.post("/v1/generations", json=ASKED).json()
    names = [REPOSITORY, f"job/{job['id']}", job["result"]["repository"]]
    described = [client.get(f"/hf/api/models/{name}").json() for name in names]
    assert {d["sha"] for d in described} == {job["result"]["artifact"][:40]}
    assert [d["id"] for d in described] == names
    assert [s["rfilename"] for s in described[0]["siblings"]] == ["config.json", "model.safetensors"]


def test_the_tree_lists_every_file_with_its_sha256(service):
    client, _ = service
    tree = client.get(f"/hf/api/models/{REPOSITORY}/tree/main?recursive=true").json()
    etags = {f["path"]: client.head(resolve(REPOSITORY, f["path"])).headers["etag"] for f in tree}
    assert {f["path"]: f'"{f["lfs"]["oid"]}"' for f in tree} == etags
    assert {f["path"] for f in tree} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (resolve("gen/cnn-tiny.digits.mop.s0"), "RepoNotFound"),
        (resolve("gen/cnn-tiny.nothing.mip.s0"), "RepoNotFound"),
        (resolve("gen/nothing"), "RepoNotFound"),
        (resolve("someone/something"), "RepoNotFound"),
        (resolve("sha/" + "0" * 64), "RepoNotFound"),
        (resolve("sha/%2e%2e"), "RepoNotFound"),
        (resolve("job/" + "0" * 32), "RepoNotFound"),
        (resolve(REPOSITORY, revision="0" * 40), "RevisionNotFound"),
        (f"/hf/api/models/{REPOSITORY}/revision/v1", "RevisionNotFound"),
        (resolve(REPOSITORY, "none.json"), "EntryNotFound"),
        (resolve(REPOSITORY, "%2e%2e/config.json"), "EntryNotFound"),
        (resolve(REPOSITORY, "%2fetc%2fpasswd"), "EntryNotFound"),
        (f"/hf/api/models/{REPOSITORY}/tree/main/folder", "EntryNotFound"),
    ],
)
def test_what_is_not_there_is_told_as_hub_clients_expect_it(service, path, code):
    client, _ = service
    answer = client.get(path)
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, code)
    assert answer.headers["x-error-message"] == answer.json()["detail"]
    assert ("x-repo-commit" in answer.headers) == (code == "EntryNotFound")


def test_who_asks_what_a_repository_holds_gets_no_503_while_it_is_made(tmp_path):
    app, run = stand_in_app(tmp_path, inline_seconds=0.0, hub_seconds=600)
    with TestClient(app) as client, ThreadPoolExecutor(1) as pool:
        run.go_on.clear()
        asked = pool.submit(client.get, f"/hf/api/models/{REPOSITORY}/revision/main")
        while not run.runs:
            time.sleep(0.01)
        assert client.head(resolve(REPOSITORY)).status_code == 503 and not asked.done()
        run.go_on.set()
        answer = asked.result()
    assert answer.status_code == 200 and len(answer.json()["siblings"]) == 2


def test_weights_that_take_longer_are_asked_for_again(tmp_path):
    app, run = stand_in_app(tmp_path, inline_seconds=0.05)
    run.go_on.clear()
    with TestClient(app) as client:
        answer = client.head(resolve(REPOSITORY))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2")
        run.go_on.set()
        while client.head(resolve(REPOSITORY)).status_code == 503:
            time.sleep(0.02)
        assert client.get(resolve(REPOSITORY)).status_code == 200 and len(run.runs) == 1


def test_weights_that_cannot_be_made_are_told_with_the_reason(service):
    client, run = service
    run.error = UnsupportedTask("'mip' takes 2 to 64 classes")
    answer = client.head(resolve(REPOSITORY))
    assert (answer.status_code, answer.headers["x-error-message"]) == (422, "'mip' takes 2 to 64 classes")


def test_a_cancelled_job_is_no_repository(tmp_path):
    app, run = stand_in_app(tmp_path, inline_seconds=0)
    run.go_on.clear()
    with TestClient(app) as client:
        job = client.post("/v1/generations", json=ASKED).json()
        client.delete(f"/v1/jobs/{job['id']}")
        answer = client.get(resolve(f"job/{job['id']}"))
        assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")
        run.go_on.set()


def test_those_of_the_paths_asked_for_that_exist_are_described(service):
    client, _ = service
    tree = client.get(f"/hf/api/models/{REPOSITORY}/tree/main").json()
    place = f"/hf/api/models/{REPOSITORY}/paths-info/main"
    asked = {"paths": ["config.json", "none", "../config.json"], "expand": "false"}
    assert client.post(place, data=asked).json() == client.post(place, json=asked).json() == tree[:1]
    assert tree[0]["path"] == "config.json"


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        ("expand=1", "application/x-www-form-urlencoded"),
        ("paths=a&" * 1001, "application/x-www-form-urlencoded"),
        ("paths=\u00e9", "application/x-www-form-urlencoded"),
        ("{}", "application/json"),
        ("[]", "application/json"),
        ('{"paths": "config.json"}', "application/json"),
        ('{"paths": [1]}', "application/json"),
    ],
    ids=range(7),
)
def test_paths_that_cannot_be_read_are_refused(service, content, content_type):
    client, _ = service
    place, headers = f"/hf/api/models/{REPOSITORY}/paths-info/main", {"Content-Type": content_type}
    answer = client.post(place, content=content.encode(), headers=headers)
    assert (answer.status_code, answer.json()["type"]) == (400, "urn:weightgen:problem:malformed-request")


def test_the_only_branch_is_main_and_there_are_no_tags(service):
    client, _ = service
    refs = client.get(f"/hf/api/models/{REPOSITORY}/refs").json()
    commit = client.get(f"/hf/api/models/{REPOSITORY}").json()["sha"]
    assert refs == {
        "branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": commit}],
        "converts": [], "tags": [], "pullRequests": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    "path", ["/hf/api/datasets/gen/digits", "/hf/datasets/gen/digits/resolve/main/a", "/hf/api/models", "/hf/"]
)
def test_what_is_no_model_is_no_repository(service, path):
    client, _ = service
    answer = client.get(path)
    assert (answer.status_code, answer.headers["x-error-code"]) == (404, "RepoNotFound")
    assert "there are models only" in answer.json()["detail"]
