"""The Hub side of the service as real clients use it: each version of huggingface_hub in a process of its own."""

import hashlib
import json
import re

import pytest

from service.keys.key_store import KeyStore
from tests.helpers.hub_clients import OLDER, ROOT, VERSIONS, client_environment, run_client
from tests.helpers.live_servers import RecordingProxy, live_service
from tests.helpers.service_standins import REPOSITORY, write_safetensors

ABSENT = "gen/cnn-tiny.digits.mop.s0"
EVERY_VERSION = pytest.mark.parametrize("version", VERSIONS)


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    with live_service(tmp_path_factory.mktemp("hub")) as (url, run):
        yield url, run


def test_the_docs_tell_the_versions_that_are_tested():
    told = (
        (ROOT / "docs" / "service.md").read_text().split("<!-- clients:begin -->")[1].split("<!-- clients:end -->")[0]
    )
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "#" not in line)
    listed = re.findall(r"^\| `([a-z_]+)` \| ([0-9.]+)(?: and ([0-9.]+))? \|", told, re.MULTILINE)
    assert [row[0] for row in listed] == ["huggingface_hub", "transformers", "peft"]
    for name, current, older in listed:
        assert current == pins[name] and older == (OLDER if name == "huggingface_hub" else "")


READ = """
import json, sys
from pathlib import Path
import huggingface_hub
from huggingface_hub import HfApi, hf_hub_download, snapshot_download

name, api, told = sys.argv[1], HfApi(), {}
info = api.model_info(name, files_metadata=True)
told["version"], told["sha"] = huggingface_hub.__version__, info.sha
told["siblings"] = {s.rfilename: [s.size, s.lfs.sha256] for s in info.siblings}
told["files"] = sorted(api.list_repo_files(name))
told["exists"] = [api.repo_exists(name), api.revision_exists(name, "main"), api.revision_exists(name, "v1"),
                  api.file_exists(name, "config.json"), api.file_exists(name, "none.json")]
told["tree"] = {f.path: f.size for f in api.list_repo_tree(name, recursive=True)}
told["paths"] = [f.path for f in api.get_paths_info(name, ["config.json", "none.json"])]
told["branches"] = [[b.name, b.target_commit] for b in api.list_repo_refs(name).branches]
metadata = api.get_safetensors_metadata(name)
told["parameters"], told["tensors"] = metadata.parameter_count, dict(metadata.weight_map)
told["config"] = json.loads(Path(hf_hub_download(name, "config.json")).read_text())
main = Path(snapshot_download(name))
pinned = Path(snapshot_download(name, revision=told["sha"]))
told["snapshot"] = [main == pinned, main.name, sorted(p.name for p in main.iterdir())]
told["bytes"] = (main / "model.safetensors").read_bytes().hex()
print(json.dumps(told))
"""


@EVERY_VERSION
def test_every_call_that_reads_a_repository_reads_generated_weights(service, tmp_path, version):
    url, _ = service
    told = json.loads(run_client(READ, REPOSITORY, environment=client_environment(version, url, tmp_path)))
    weights, config = write_safetensors([0.0] * 300), b'{"num_classes": 10}'
    sizes = {"config.json": len(config), "model.safetensors": len(weights)}
    hashes = {"config.json": hashlib.sha256(config), "model.safetensors": hashlib.sha256(weights)}
    assert told["version"] == OLDER or version == "installed"
    assert told["files"] == sorted(sizes) and told["tree"] == sizes and told["paths"] == ["config.json"]
    assert told["siblings"] == {name: [size, hashes[name].hexdigest()] for name, size in sizes.items()}
    assert told["exists"] == [True, True, False, True, False] and told["branches"] == [["main", told["sha"]]]
    assert told["parameters"] == {"F32": 300} and told["tensors"] == {"weight": "model.safetensors"}
    assert told["config"] == {"num_classes": 10}
    assert told["snapshot"] == [True, told["sha"], sorted(sizes)] and bytes.fromhex(told["bytes"]) == weights


REFUSED = """
import json, sys
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

name, absent = sys.argv[1:]
api, told = HfApi(), []
for error, call in [
    (EntryNotFoundError, lambda: hf_hub_download(name, "none.json")),
    (EntryNotFoundError, lambda: list(api.list_repo_tree(name, "folder"))),
    (RevisionNotFoundError, lambda: hf_hub_download(name, "config.json", revision="v1")),
    (RevisionNotFoundError, lambda: api.model_info(name, revision="v1")),
    (RepositoryNotFoundError, lambda: hf_hub_download(absent, "config.json")),
    (RepositoryNotFoundError, lambda: api.model_info(absent)),
    (RepositoryNotFoundError, lambda: api.model_info("someone/something")),
    (RepositoryNotFoundError, lambda: api.dataset_info("gen/digits")),
    (RepositoryNotFoundError, lambda: api.space_info("gen/digits")),
    (RepositoryNotFoundError, lambda: hf_hub_download("gen/digits", "a.csv", repo_type="dataset")),
    (HFValidationError, lambda: api.model_info("gen/cnn-tiny--digits--mip--s0")),
]:
    try:
        call()
        told.append("nothing was raised")
    except error as raised:
        told.append(str(raised))
print(json.dumps(told))
"""


@EVERY_VERSION
def test_what_is_not_there_raises_the_clients_own_errors_with_our_sentence(service, tmp_path, version):
    url, _ = service
    told = json.loads(run_client(REFUSED, REPOSITORY, ABSENT, environment=client_environment(version, url, tmp_path)))
    sentences = [
        "it has config.json, model.safetensors",
        "it has config.json, model.safetensors",
        "expected 'main'",
        "expected 'main'",
        "did you mean 'mip'?",
        "did you mean 'mip'?",
        "expected gen/<architecture>.<dataset>.<generator>.s<seed>",
        "there are models only",
        "there are models only",
        "there are models only",
        "Cannot have -- or .. in repo_id",
    ]
    assert [expected in said for expected, said in zip(sentences, told, strict=True)] == [True] * len(told), told


TWICE = """
import sys
from huggingface_hub import hf_hub_download, snapshot_download
for _ in range(2):
    hf_hub_download(sys.argv[1], "model.safetensors")
    print(snapshot_download(sys.argv[1]))
"""


@EVERY_VERSION
def test_what_is_in_the_cache_is_not_downloaded_again(service, tmp_path, version):
    with RecordingProxy(service[0]) as proxy:
        environment = client_environment(version, proxy.url, tmp_path)
        for _ in range(2):
            run_client(TWICE, REPOSITORY, environment=environment)
        assert len(proxy.asked("GET", "/model.safetensors")) == 1 and len(proxy.asked("GET", "/config.json")) == 1


RESUME = """
import hashlib, sys
from huggingface_hub import hf_hub_download
try:
    path = hf_hub_download(sys.argv[1], "model.safetensors")
except Exception:  # the older client asks again only when it is called again
    path = hf_hub_download(sys.argv[1], "model.safetensors")
print(hashlib.sha256(open(path, "rb").read()).hexdigest())
"""


@EVERY_VERSION
def test_a_download_that_breaks_off_is_resumed_by_range(service, tmp_path, version):
    """The clients write blocks of 10 MB, so only what is larger can be resumed."""
    url, run = service
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(write_safetensors([float(i) for i in range(6_000_000)]))
    name = f"sha/{run.artifacts.add(folder)}"
    with RecordingProxy(url, cut_after=15 * 2**20) as proxy:
        said = run_client(RESUME, name, environment=client_environment(version, proxy.url, tmp_path / "home"))
        assert said.strip() == run.artifacts.files(name[4:])[0].sha256
        first, second = proxy.asked("GET", "/model.safetensors")
        assert "range:" not in first.lower() and "range: bytes=10" in second.lower()


COMMAND = "import sys; from huggingface_hub.cli.hf import main; sys.argv[0] = 'hf'; main()"


@EVERY_VERSION
def test_the_hf_command_downloads_a_repository(service, tmp_path, version):
    url, _ = service
    place = tmp_path / "here"
    environment = client_environment(version, url, tmp_path / "home")
    said = run_client(COMMAND, "download", REPOSITORY, "--local-dir", str(place), environment=environment)
    assert str(place) in said
    assert {p.name for p in place.iterdir() if p.is_file()} == {"config.json", "model.safetensors"}
    assert (place / "model.safetensors").read_bytes() == write_safetensors([0.0] * 300)


FIRST = "import sys; from huggingface_hub import hf_hub_download as get; print(get(sys.argv[1], 'config.json'))"


@EVERY_VERSION
def test_weights_that_take_longer_are_asked_for_until_they_are_there(tmp_path, version):
    with live_service(tmp_path / "data", inline_seconds=0) as (url, run), RecordingProxy(url) as proxy:
        run_client(FIRST, REPOSITORY, environment=client_environment(version, proxy.url, tmp_path / "home"))
        assert len(proxy.asked("HEAD", "/config.json")) > 1 and len(run.runs) == 1


WHO = """
import sys
from huggingface_hub import HfApi, hf_hub_download
hf_hub_download(sys.argv[1], "config.json")
print(HfApi().whoami()["name"])
"""


@EVERY_VERSION
def test_a_key_of_the_service_is_a_token_of_the_client(tmp_path, version):
    keys = KeyStore(f"sqlite:///{tmp_path / 'data' / 'jobs.sqlite'}")
    keys.migrate()
    token, key = keys.make("maker", ["read", "generate"])
    reader, _ = keys.make("reader", ["read"])
    keys.close()
    with live_service(tmp_path / "data") as (url, run):
        said = run_client(WHO, REPOSITORY, environment=client_environment(version, url, tmp_path, token=token))
        assert said.strip() == key.id and len(run.runs) == 1
        environment = client_environment(version, url, tmp_path, token=reader)
        assert run_client(LOOK, REPOSITORY, environment=environment).strip() == "config.json"
        told = run_client(DENIED, REPOSITORY, environment=client_environment(version, url, tmp_path / "none"))
        assert "401" in told and "key" in told


LOOK = "import sys, huggingface_hub as h; print(h.HfApi().get_paths_info(sys.argv[1], ['config.json'])[0].path)"

DENIED = """
import sys
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError
try:
    HfApi().model_info(sys.argv[1])
except HfHubHTTPError as error:
    print(error)
"""
