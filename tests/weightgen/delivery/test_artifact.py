import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import ModelCard

from model_zoo.architectures import ARCHITECTURES, build_target
from tests.helpers.hub_loader import hub_class
from tests.helpers.standins import StandIn, make_request, make_support
from weightgen.delivery.artifact import describe_artifact, read_artifact, write_artifact
from weightgen.delivery.gate import generate_verified
from weightgen.errors import CorruptFile, NotFound, SpecMismatch, StorageFailed, UnsupportedTask


def make_artifact(folder, *, arch="cnn-tiny", num_classes=3, scoreboard=None):
    target = build_target(arch, num_classes=num_classes)
    request = make_request(target, make_support(num_classes=num_classes, shots=4), seed=3)
    (weights,) = generate_verified(StandIn(), request, references=[])
    manifest = describe_artifact(
        request, weights, generator="stand-in", generator_sha256="0" * 64, nearest={"run_id": "r"}, data={"name": "s"}
    )
    written = write_artifact(folder, target, weights.state, manifest=manifest, scoreboard=scoreboard)
    return target, weights.state, written


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "cnn-w4-d2", "mlp-w8-d1"])
def test_from_pretrained_gives_identical_logits(arch, tmp_path, capsys):
    target, state, _ = make_artifact(tmp_path / "a", arch=arch)
    skeleton: Any = target.skeleton
    module = hub_class(skeleton).from_pretrained(tmp_path / "a")
    inputs = make_support().inputs
    with torch.no_grad():
        logits = module(inputs)
        assert torch.equal(getattr(logits, "logits", logits), target.load(state)(inputs))
    assert not module.training


def test_config_holds_the_arguments_of_the_class_and_nothing_else(tmp_path):
    make_artifact(tmp_path / "a", arch="cnn-w4-d2")
    assert json.loads((tmp_path / "a/config.json").read_text()) == {
        "num_classes": 3,
        "in_channels": 1,
        "width": 4,
        "depth": 2,
    }


def test_a_network_of_transformers_is_loaded_by_its_auto_classes_with_the_classes_names(tmp_path):
    target, _, written = make_artifact(tmp_path / "a", arch="vit-hf-tiny")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "a")
    assert config.model_type == "vit" and config.id2label == {0: "class 0", 1: "class 1", 2: "class 2"}
    prepared = transformers.AutoImageProcessor.from_pretrained(tmp_path / "a", backend="pil")
    grey = np.full((9, 9, 1), 255, dtype=np.uint8)
    assert torch.equal(prepared(grey, return_tensors="pt").pixel_values, torch.ones(1, 1, 28, 28))
    assert read_artifact(tmp_path / "a", target=target).manifest == written
    card = (tmp_path / "a/README.md").read_text()
    assert "library_name: transformers" in card and "AutoModelForImageClassification.from_pretrained" in card


def test_reading_gives_back_what_was_written(tmp_path):
    target, state, written = make_artifact(tmp_path / "a", arch="resnet8")
    artifact = read_artifact(tmp_path / "a", target=target)
    assert artifact.manifest == written
    assert artifact.spec.digest() == target.spec.digest()
    assert list(artifact.state) == list(state)
    assert all(torch.equal(artifact.state[n], state[n]) for n in state)


def test_the_manifest_says_where_the_weights_come_from(tmp_path):
    _, _, written = make_artifact(tmp_path / "a")
    assert written["format"] == "weightgen.artifact"
    assert written["generator"] == {"name": "stand-in", "sha256": "0" * 64}
    assert written["seed"] == written["request"]["seed"] == 3
    assert written["request"]["support"]["shots"] == [4, 4, 4]
    assert written["nearest_checkpoint"] == {"run_id": "r"}
    assert written["verification"]["passed"] is True
    assert written["module"] == "model_zoo.architectures.cnn_tiny:CnnTiny"


def test_the_same_request_writes_the_same_bytes(tmp_path):
    make_artifact(tmp_path / "a")
    make_artifact(tmp_path / "b")
    for name in ("model.safetensors", "config.json", "README.md", "manifest.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_card_can_be_read_by_the_hub_and_shows_the_scores(tmp_path):
    make_artifact(tmp_path / "a", scoreboard={"accuracy": {"generated": 0.975, "scratch": 0.9, "soup": None}})
    card = ModelCard.load(tmp_path / "a/README.md")
    assert card.data.library_name == "weightgen"  # pyright: ignore
    assert "pytorch_model_hub_mixin" in card.data.tags  # pyright: ignore
    assert "| generated | 97.5% |" in card.text
    assert "soup" not in card.text
    assert "from model_zoo.architectures.cnn_tiny import CnnTiny" in card.text
    assert "Licence" in card.text


def test_class_names_cannot_break_out_of_the_card(tmp_path):
    target = build_target("cnn-tiny", num_classes=2)
    names = ("```\n# pwned", "日本")
    request = make_request(target, replace(make_support(num_classes=2), class_names=names))
    (weights,) = generate_verified(StandIn(), request, references=[])
    manifest = describe_artifact(request, weights, generator="stand-in", generator_sha256="0" * 64)
    write_artifact(tmp_path / "a", target, weights.state, manifest=manifest)
    block = (tmp_path / "a/README.md").read_text().split("```json\n")[1].split("\n```")[0]
    assert tuple(json.loads(block)) == names


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/mine.txt").write_text("mine")
    with pytest.raises(StorageFailed, match="not empty"):
        make_artifact(tmp_path / "a")
    assert [p.name for p in tmp_path.rglob("*")] == ["a", "mine.txt"]


def test_a_state_that_does_not_fit_leaves_nothing_behind(tmp_path):
    target = build_target("cnn-tiny")
    with pytest.raises(SpecMismatch, match="missing"):
        write_artifact(tmp_path / "a", target, {}, manifest={})
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_an_altered_file_is_named(tmp_path, name):
    make_artifact(tmp_path / "a")
    path = tmp_path / "a" / name
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFile, match=rf"{name}: sha256 .*the manifest says"):
        read_artifact(tmp_path / "a")


def change_manifest(folder, changes):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= changes(manifest) if callable(changes) else changes
    (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("changes", "error", "sentence"),
    [
        ({"format": "zip"}, CorruptFile, "not the manifest of an artifact"),
        ({"version": 2}, UnsupportedTask, "version 2"),
        ({"files": {}}, CorruptFile, "expected the sha256 of"),
        (lambda m: {"files": {**m["files"], "../x.json": "0"}}, CorruptFile, "is no file of an artifact"),
        ({"spec": {"arch": "x"}}, CorruptFile, "the spec cannot be read"),
        ({"spec": {"arch": "x", "config": {}, "tensors": []}}, CorruptFile, "not the configuration"),
    ],
)
def test_an_altered_manifest_is_refused(tmp_path, changes, error, sentence):
    make_artifact(tmp_path / "a")
    change_manifest(tmp_path / "a", changes)
    with pytest.raises(error, match=sentence):
        read_artifact(tmp_path / "a")


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(NotFound, match="no such folder"):
        read_artifact(tmp_path / "a")
    make_artifact(tmp_path / "a")
    (tmp_path / "a/README.md").unlink()
    with pytest.raises(NotFound, match=r"README.md"):
        read_artifact(tmp_path / "a")


def test_an_artifact_of_another_target_is_refused(tmp_path):
    make_artifact(tmp_path / "a")
    with pytest.raises(SpecMismatch, match=r"holds a 'cnn-tiny' .*expected 'cnn-tiny'"):
        read_artifact(tmp_path / "a", target=build_target("cnn-tiny", num_classes=4))
