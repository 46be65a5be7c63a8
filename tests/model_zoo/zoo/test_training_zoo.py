import json
from dataclasses import replace

import pytest

import model_zoo.zoo.training_zoo
from model_zoo.data import EVALUATION_SETS, TRAIN_SETS
from model_zoo.zoo.config import ZooConfig
from model_zoo.zoo.training_zoo import build_training_zoo, index_runs, training_zoo, write_index
from weightgen.errors import CorruptFile

SMALL = {
    "first": ZooConfig(arch="mlp-w4-d2", data=("wine",), num_runs=3, steps=4, seed=1),
    "second": ZooConfig(arch="mlp-w4-d2", data=("wine",), num_runs=2, steps=4, seed=2),
}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(model_zoo.zoo.training_zoo, "training_zoo", lambda: SMALL)


def test_it_is_large_enough_and_made_of_training_sets_alone():
    parts = training_zoo()
    assert sum(p.num_runs for p in parts.values()) >= 2000
    assert all(set(p.data) <= set(TRAIN_SETS) for p in parts.values())
    assert not {name for p in parts.values() for name in p.data} & EVALUATION_SETS
    assert {p.arch for p in parts.values()} >= {"cnn-tiny", "resnet8"}
    assert all(3 <= len(p.checkpoint_steps) <= 5 for p in parts.values())


def test_every_part_is_built_and_indexed_and_a_second_call_adds_nothing(small, tmp_path):
    told = []
    build_training_zoo(tmp_path / "zoo", report=lambda part, done, total: told.append((part, done, total)))
    assert told[-1] == ("second", 2, 2)
    summary = write_index(tmp_path / "zoo", tmp_path / "index.jsonl")
    assert (summary["runs"], summary["tasks"], summary["checkpoints"]) == (5, 1, 15)
    rows = [json.loads(line) for line in (tmp_path / "index.jsonl").read_text().splitlines()]
    assert rows == list(index_runs(tmp_path / "zoo"))
    assert len({row["run_id"] for row in rows}) == 5 and all(len(row["sha256"]) == 64 for row in rows)
    again = build_training_zoo(tmp_path / "zoo")
    assert [part["num_built"] for part in again.values()] == [0, 0]


def test_a_larger_part_keeps_what_there_is(small, monkeypatch, tmp_path):
    build_training_zoo(tmp_path)
    monkeypatch.setattr(
        model_zoo.zoo.training_zoo, "training_zoo", lambda: {**SMALL, "second": replace(SMALL["second"], num_runs=4)}
    )
    assert [p["num_built"] for p in build_training_zoo(tmp_path).values()] == [0, 2]


def test_a_foreign_record_is_named(tmp_path):
    (tmp_path / "part" / "runs" / "x").mkdir(parents=True)
    (tmp_path / "part" / "runs" / "x" / "run.json").write_text("{}")
    with pytest.raises(CorruptFile, match="not the record of a run"):
        list(index_runs(tmp_path))
