"""Scores of networks and data never seen, on tiny settings."""

import json

import pytest

from benchmarks.studies.logah_table import read_generator
from benchmarks.studies.logah_unseen import ARMS, DATA, NETWORKS, UnseenConfig, main, score_unseen, summarise
from model_zoo.data import EVALUATION_SETS
from model_zoo.spaces import HELD_OUT
from weightgen.errors import UnknownName
from weightgen.files.storage import read_json
from weightgen.generators.logah.generator import LogahConfig, new_logah

TINY = UnseenConfig(per_class=2, random_trunks=1, steps=1, learning_rates=(1e-3,), batch_size=8)
NAME = "cnn 24-48-40 no norm fc32"


@pytest.fixture
def generator(tmp_path):
    config = LogahConfig(rank=4, dim=8, num_layers=1, num_heads=2, encoding_dim=8)
    new_logah(config, seed=0).save(tmp_path / "generator.safetensors")
    return read_generator(tmp_path / "generator.safetensors")


@pytest.mark.slow
def test_every_arm_is_scored_once_and_those_of_another_generator_again(generator, tmp_path):
    path = tmp_path / "unseen.json"
    found = score_unseen(path, [NAME], ["digits"], ARMS, generator=generator, config=TINY)
    assert read_json(path) == found
    scores = found["networks"][NAME]["digits"]
    assert set(scores) == set(ARMS) and scores["random trunk"] > 15
    # Before training, nothing the generator is told makes a difference.
    assert scores["generated"] == scores["condition off"]
    kept = {**scores, "default, 100 steps": 1.0}
    found["networks"][NAME]["digits"] = dict(kept)
    path.write_text(json.dumps(found))
    assert score_unseen(path, [NAME], ["digits"], ARMS, generator=generator, config=TINY)["networks"][NAME] == {
        "digits": kept
    }
    other = generator[0], {**generator[1], "sha256": "another"}
    found = score_unseen(path, [], [], [], generator=other, config=TINY)
    assert set(found["networks"][NAME]["digits"]) == {"random trunk", "default, 100 steps"}


def test_means_count_where_the_generator_is_ahead():
    rows = {"a": {"generated": 70.0, "default, 100 steps": 60.0}, "b": {"generated": 50.0, "default, 100 steps": 60.0}}
    assert summarise({"n": rows}) == {
        "n": {"generated": 60.0, "default, 100 steps": 60.0, "ahead_of_default_on": 1, "of": 2}
    }
    del rows["a"]["generated"]
    assert summarise({"n": rows}) == {"n": {"default, 100 steps": 60.0}}


def test_networks_are_held_out_and_data_are_for_evaluation(tmp_path, capsys):
    assert set(NETWORKS) <= set(HELD_OUT) and set(DATA) == set(EVALUATION_SETS)
    with pytest.raises(UnknownName, match="network"):
        score_unseen(tmp_path / "u.json", ["cnn 1"], [], [], generator=None, config=TINY)
    assert main(["--data", "digits"]) == 2 and "need a generator" in capsys.readouterr().err
