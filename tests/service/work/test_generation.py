"""Names become an artifact: the same request the same one, other names refused before anything is loaded."""

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.artifacts.artifact_store import open_store
from service.errors import OverLimit
from service.jobs.runner import JobLost, Task
from service.work.catalogue import registered
from service.work.generation import STAGES, Generation, Loaded, check_names
from service.work.request_body import GenerationRequestBody
from service.work.size_limits import SizeLimits
from tests.helpers.paths import ROOT
from tests.helpers.upload_samples import npz_bytes, some_images, some_uploads, upload
from weightgen.delivery.artifact import read_artifact
from weightgen.errors import BadOption, UnknownName, UnsupportedTask

REQUEST = {"generator": "mip", "architecture": "cnn-tiny", "dataset": "digits", "support_per_class": 5, "seed": 0,
           "num_samples": 1, "fallback": True}  # fmt: skip


@pytest.fixture
def generation(tmp_path) -> Generation:
    artifacts = open_store(tmp_path / "artifacts")
    uploads = some_uploads(tmp_path)
    return Generation(artifacts, uploads, scratch=tmp_path / "scratch", max_generators=1, max_datasets=1)


def test_a_request_becomes_an_artifact_and_the_same_one_again(generation, tmp_path):
    told = []
    result = generation(REQUEST, lambda *progress: told.append(progress))
    assert told == [(stage, i, len(STAGES)) for i, stage in enumerate(STAGES)]
    artifact = result["artifact"]
    assert result["repository"] == f"sha/{artifact}"
    assert [file["name"] for file in result["files"]] == ["README.md", "config.json", "manifest.json",
                                                          "model.safetensors"]  # fmt: skip
    assert result["report"]["data"] == "digits"
    assert str(tmp_path) not in json.dumps(result)
    manifest = read_artifact(tmp_path / "artifacts" / artifact[:2] / artifact).manifest
    assert manifest["generator"] == result["report"]["generator"]
    assert generation(REQUEST, lambda *_: None)["artifact"] == artifact
    assert list((tmp_path / "scratch").glob("*/*")) == []


RUN_ALONE = """
import json, sys
from pathlib import Path
from service.app import open_artifacts, open_uploads
from service.work.generation import Generation
from service.settings import read_settings

folder, request = Path(sys.argv[1]), json.loads(sys.argv[2])
settings = read_settings(data_dir=folder)
artifacts, uploads = open_artifacts(settings), open_uploads(settings)
run = Generation(artifacts, uploads, scratch=folder / "scratch", max_generators=1, max_datasets=1)
print(run(request, lambda *_: None)["artifact"])
"""


@pytest.mark.parametrize("generator", ["mip", pytest.param("d2nwg", marks=pytest.mark.slow)])
def test_processes_that_know_nothing_of_each_other_make_the_same_bytes(tmp_path, generator):
    shas, contents = [], []
    for number, differences in enumerate([{"PYTHONHASHSEED": "1", "TZ": "UTC"}, {"PYTHONHASHSEED": "2", "TZ": "JST"}]):
        folder = tmp_path / f"data-{number}"
        command = [sys.executable, "-c", RUN_ALONE, str(folder), json.dumps(REQUEST | {"generator": generator})]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | differences
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
        shas.append(ran.stdout.strip())
        files = (folder / "artifacts" / shas[-1][:2] / shas[-1]).iterdir()
        contents.append({path.name: path.read_bytes() for path in files})
    assert shas[0] == shas[1] and contents[0] == contents[1]
    assert not any(str(tmp_path).encode() in content for content in contents[0].values())


@pytest.mark.parametrize(
    ("names", "error", "sentence"),
    [
        ({"generator": "mpi"}, UnknownName, "no generator is called 'mpi'; did you mean 'mip'?"),
        ({"generator": "model_zoo/released/mip.safetensors"}, UnknownName, "no generator is called 'model_zoo/"),
        ({"architecture": "cnn-tny"}, UnknownName, "did you mean 'cnn-tiny'?"),
        ({"architecture": "cnn-w99999"}, BadOption, "width of 'cnn-w99999' is 99999, expected 1 to"),
        ({"dataset": "digit"}, UnknownName, "did you mean 'digits'?"),
        ({"dataset": "hf:ylecun/mnist"}, UnknownName, "no data set is called"),
    ],
)
def test_only_registered_names_are_looked_up(generation, names, error, sentence):
    with pytest.raises(error, match=sentence.replace("?", r"\?")):
        generation(REQUEST | names, lambda *_: None)


def test_a_folder_or_file_is_no_data_set_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "own.npz").write_bytes(b"")
    for name in ("pictures", "own.npz", str(tmp_path)):
        with pytest.raises(UnknownName, match="no data set is called"):
            check_names(REQUEST | {"dataset": name})


def test_an_uploaded_data_set_is_used_until_it_is_forgotten(generation, tmp_path):
    images, labels = some_images()
    uploads = some_uploads(tmp_path)
    name = upload(uploads, npz_bytes(x=images, y=labels))
    request = REQUEST | {"dataset": name, "support_per_class": 2}
    report = generation(request, lambda *_: None)["report"]
    assert (report["data"], report["classes"]) == (name, 3)
    uploads.delete(name)
    with pytest.raises(UnknownName, match="upload it again"):
        generation(request, lambda *_: None)


def test_a_data_set_whose_file_was_exchanged_is_loaded_anew_and_is_another_request(generation, tmp_path, monkeypatch):
    monkeypatch.setenv("WEIGHTGEN_SHARED", str(tmp_path / "shared"))
    catalogue, request = registered(), REQUEST | {"dataset": "own", "support_per_class": 2}
    body = GenerationRequestBody.model_validate(request)
    digests, artifacts = [], []
    for sign in (1, -1, 1):
        write_image_set(tmp_path / "shared" / "images", sign)
        digests.append(body.digest(contents=catalogue.check(request)))
        artifacts.append(generation(request, lambda *_: None)["artifact"])
    assert digests[0] == digests[2] != digests[1]
    assert artifacts[0] == artifacts[2] != artifacts[1]


def write_image_set(folder: Path, sign: int) -> None:
    """The image set "own", or its negative."""
    images, labels = some_images()
    folder.mkdir(parents=True, exist_ok=True)
    images = images if sign > 0 else 255 - images
    (folder / "own.npz").write_bytes(npz_bytes(x_train=images, y_train=labels, x_test=images, y_test=labels))
    (folder / "own.json").write_text(json.dumps({"classes": ["a", "b", "c"], "licence": "MIT", "sha256": ""}))


def test_what_the_generator_cannot_serve_is_told(generation):
    with pytest.raises(UnsupportedTask):
        generation(REQUEST | {"architecture": "cnn-w7"}, lambda *_: None)


def test_a_lost_job_is_given_up_before_anything_is_stored(generation, tmp_path):
    def progress(stage: str, done: int, total: int) -> None:
        if stage == "generate":
            raise JobLost

    with pytest.raises(JobLost):
        generation(REQUEST, progress)
    assert not (tmp_path / "artifacts").exists()


def test_the_least_recently_used_goes_first():
    loads = []

    def load(key: str) -> str:
        loads.append(key)
        return key.upper()

    loaded = Loaded(load, 2)
    assert [loaded.get(key) for key in "abacab"] == list("ABACAB")
    assert loads == ["a", "b", "c", "b"]


def test_one_thread_loads_and_the_others_wait():
    loads, begun = [], threading.Barrier(4)

    def ask(_: int) -> str:
        begun.wait()
        return loaded.get("a")

    loaded = Loaded(lambda key: loads.append(key) or key, 2)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == ["a"] * 4
    assert loads == ["a"]


def test_what_fails_to_load_is_tried_again():
    answers = iter([OSError("busy"), "there"])

    def load(key: str) -> str:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return answer

    loaded = Loaded(load, 1)
    with pytest.raises(OSError, match="busy"):
        loaded.get("a")
    assert loaded.get("a") == "there"


def test_tasks_made_together_give_each_what_it_gets_alone(generation):
    requests = [REQUEST | {"seed": seed} for seed in range(3)] + [REQUEST | {"support_per_class": 1}]
    wrong = [REQUEST | {"dataset": "digit"}, REQUEST | {"num_samples": 2}]
    told = [[] for _ in [*requests, *wrong]]
    tasks = [Task(asked, lambda *progress, i=i: told[i].append(progress[0]))
             for i, asked in enumerate([*requests, *wrong])]  # fmt: skip
    *made, unknown, refused = generation.run_many(tasks)
    assert isinstance(unknown, UnknownName) and isinstance(refused, UnsupportedTask)
    assert told == [list(STAGES)] * len(requests) + [[], ["load", "generate"]]
    for request, outcome in zip(requests, made, strict=True):
        alone = generation(request, lambda *_: None)
        assert (outcome["artifact"], outcome["files"]) == (alone["artifact"], alone["files"])
        assert outcome["report"] | {"seconds": 0} == alone["report"] | {"seconds": 0}


def test_a_task_that_is_lost_does_not_hold_up_the_others(generation):
    def lose(stage: str, done: int, total: int) -> None:
        if stage == "store":
            raise JobLost

    lost, made = generation.run_many([Task(REQUEST, lose), Task(REQUEST | {"seed": 1}, lambda *_: None)])
    assert isinstance(lost, JobLost)
    assert made["report"]["seed"] == 1


def test_requests_are_grouped_where_their_generator_makes_them_in_one_pass(generation):
    assert generation.group_of(REQUEST) == generation.group_of(REQUEST | {"seed": 7, "fallback": False})
    assert generation.group_of(REQUEST) != generation.group_of(REQUEST | {"support_per_class": 6})
    alone = ({"generator": "d2nwg"}, {"architecture": "vit-tiny"}, {"num_samples": 2}, {"architecture": "cnn-tny"})
    assert [generation.group_of(REQUEST | names) for names in alone] == [None] * len(alone)


def test_a_generator_that_samples_gives_as_many_sets_of_weights_as_are_asked_for(generation):
    result = generation(REQUEST | {"generator": "d2nwg", "num_samples": 3}, lambda *_: None)
    samples = result.pop("samples")
    assert samples[0] == result
    assert len({sample["artifact"] for sample in samples}) == 3
    with pytest.raises(
        UnsupportedTask, match="'mip' makes one set of weights for a request: num_samples must be 1, got 2"
    ):
        generation(REQUEST | {"num_samples": 2}, lambda *_: None)


def test_what_jobs_need_is_imported_before_the_first_one():
    code = (
        "import sys, service.work.generation\n"
        "assert 'torch' not in sys.modules\n"
        "service.work.generation.import_libraries()\n"
        "before = set(sys.modules)\n"
        "service.work.generation.check_names({'generator': 'mip', 'architecture': 'cnn-tiny', 'dataset': 'digits'})\n"
        "new = {name for name in set(sys.modules) - before if name.partition('.')[0] in ('torch', 'model_zoo')}\n"
        "assert 'torch' in before and not new, new\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        (SizeLimits(9, 1000, 10**6), "has 10 classes, and this server takes at most 9"),
        (SizeLimits(10, 49, 10**6), "5 examples of each of 10 classes are 50, and this server takes at most 49"),
        (SizeLimits(10, 50, 1000), r"'cnn-tiny' has \d+ parameters or more, and this server takes at most 1000"),
    ],
    ids=["classes", "examples", "parameters"],
)
def test_what_is_over_a_limit_is_refused_before_anything_is_generated(tmp_path, limits, sentence):
    generation = Generation(
        open_store(tmp_path / "artifacts"), some_uploads(tmp_path), scratch=tmp_path / "scratch", max_generators=1,
        max_datasets=1, limits=limits,
    )  # fmt: skip
    told = []
    with pytest.raises(OverLimit, match=sentence):
        generation(REQUEST, lambda *progress: told.append(progress[0]))
    assert told == ["load"]
    with pytest.raises(OverLimit, match=sentence):
        generation.look_up(REQUEST)
