"""The table of LoGAH on tiny settings: what it scores, what it keeps, what it refuses."""

from dataclasses import replace

import pytest
import torch

from benchmarks.studies.logah_table import (
    ARMS,
    PREDICTED,
    PUBLISHED,
    TableConfig,
    begin,
    calibrate,
    compare,
    draw_rows,
    fill_table,
    main,
    read_generator,
    train_and_score,
)
from model_zoo.spaces import HELD_OUT, CnnMember
from tests.helpers.paths import shared_path
from weightgen.errors import BadOption, UnknownName
from weightgen.files.storage import read_json
from weightgen.generators.logah.generator import LogahConfig, new_logah

TINY = TableConfig(
    steps=(0, 1, 2), batch_size=4, learning_rates=(1e-3, 1e-2), choice_steps=(1,), choice_examples=20,
    calibration_examples=8, support_per_class=3,
)  # fmt: skip
NAME = "cnn 24-48-40 no norm fc32"


@pytest.fixture
def generator(tmp_path):
    config = LogahConfig(
        rank=4,
        dim=8,
        num_layers=1,
        num_heads=2,
    )
    hypernet = new_logah(config, seed=0)
    hypernet.save(tmp_path / "generator.safetensors")
    return read_generator(tmp_path / "generator.safetensors")


def test_a_table_holds_every_arm_and_the_generators_record(generator, tmp_path):
    shared_path("images/fashion_mnist.npz")
    path = tmp_path / "table.json"
    table = fill_table(path, [NAME], ARMS, generator=generator, seeds=2, config=TINY)
    assert read_json(path) == table
    row = table["networks"][NAME]
    assert row["parameters"] == sum(p.numel() for p in HELD_OUT[NAME].build().parameters())
    for arm in ARMS:
        assert len(row[arm]["accuracy"]) == len(row[arm]["sd"]) == 3 and row[arm]["learning_rate"] in (1e-3, 1e-2)
    assert table["generator"]["parameters"] == sum(p.numel() for p in generator[0].parameters())
    assert row[PREDICTED]["accuracy"][0] != row["default, solved head"]["accuracy"][0]


def test_other_arms_stay_but_those_of_another_generator_go(generator, tmp_path):
    shared_path("images/fashion_mnist.npz")
    path = tmp_path / "table.json"
    fill_table(path, [NAME], ["default", PREDICTED], generator=generator, seeds=1, config=TINY)
    other = generator[0], {**generator[1], "sha256": "another"}
    table = fill_table(path, [], [PREDICTED], generator=other, seeds=1, config=TINY)
    assert set(table["networks"][NAME]) == {"parameters", "default"}
    table = fill_table(path, [], ["default"], generator=None, seeds=1, config=replace(TINY, batch_size=5))
    assert table["networks"] == {}


def test_a_prediction_is_ahead_when_its_first_steps_beat_the_last_of_others():
    row = {PREDICTED: {"accuracy": [1, 50, 60]}, "default": {"accuracy": [0, 9, 49]}}
    assert compare(row, TINY) == {}
    row |= {"default, solved head": {"accuracy": [0, 9, 99]}, "orthogonal": {"accuracy": [0, 9, 51]}}
    assert compare(row, TINY) == {"is_ahead_of_default": True, "is_ahead_of_orthogonal": False}


def test_arms_begin_as_they_say(generator, rng):
    member = CnnMember((4, 8), num_classes=3)
    support = draw_rows(torch.rand(20, 1, 28, 28, generator=rng), torch.arange(20) % 3, 4, seed=0)
    states = {arm: begin(member, arm, generator[0], support, seed=0).state_dict() for arm in ARMS}
    again = {arm: begin(member, arm, generator[0], support, seed=0).state_dict() for arm in ARMS}
    assert all(torch.equal(states[arm][n], again[arm][n]) for arm in ARMS for n in states[arm])
    flat = states["orthogonal"]["convs.1.weight"].flatten(1)
    assert torch.allclose(flat @ flat.T, torch.eye(8), atol=1e-5)
    predicted = dict(generator[0].predict(begin(member, "default", None, seed=1)))
    for name in ("convs.0.weight", "norms.1.bias"):
        assert torch.allclose(states[PREDICTED][name], predicted[name], atol=1e-6)
        assert torch.equal(states["default, solved head"][name], states["default"][name])
    assert not torch.equal(states[PREDICTED]["head.weight"], states["default, solved head"]["head.weight"])


def test_support_rows_are_as_many_of_every_class():
    images, labels = torch.arange(30.0).view(30, 1, 1, 1), torch.arange(30) % 3
    support = draw_rows(images, labels, 4, seed=0)
    assert support.shots == [4, 4, 4] and torch.equal(support.inputs.flatten().long() % 3, support.labels)
    assert not torch.equal(support.inputs, draw_rows(images, labels, 4, seed=1).inputs)


def test_equal_seeds_see_equal_batches_and_training_learns(rng):
    y = torch.arange(40) % 2
    x = 0.1 * torch.rand(40, 1, 28, 28, generator=rng) + 0.9 * y[:, None, None, None]
    config = replace(TINY, batch_size=16, warmup=1)

    def run(seed):
        module = begin(CnnMember((8, 8), num_classes=2), "default", None, seed=0)
        return train_and_score(module, (x, y), (x, y), x, config, 1e-2, seed=seed, steps=(0, 20))

    first = run(1)
    assert first == run(1) and first[20] == 100


def test_statistics_are_those_of_the_images(rng):
    module = CnnMember((4,)).build()
    images = torch.rand(600, 1, 28, 28, generator=rng)
    calibrate(module, images)
    module.eval()
    seen = []
    module.get_submodule("norms.0").register_forward_hook(lambda _, inputs, output: seen.append(output))
    with torch.no_grad():
        module(images)
    assert seen[0].mean((0, 2, 3)).abs().max() < 1e-3 and (seen[0].std((0, 2, 3)) - 1).abs().max() < 0.02


def test_published_figures_are_of_held_out_networks():
    for name, row in PUBLISHED["networks"].items():
        assert name in HELD_OUT and len(row["predicted"]) == len(row["default"]) + 1 == len(PUBLISHED["steps"])


def test_unknown_networks_and_a_missing_generator_are_refused(tmp_path, capsys):
    with pytest.raises(UnknownName, match="network"):
        fill_table(tmp_path / "t.json", ["cnn 1"], ["default"], generator=None, seeds=1, config=TINY)
    with pytest.raises(BadOption, match="need a generator"):
        read_generator(None)
    assert main(["--networks", NAME]) == 2 and "need a generator" in capsys.readouterr().err
