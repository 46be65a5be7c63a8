"""The ranking of architectures on tiny settings: what is drawn, trained, compared and refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kendalltau

from benchmarks.studies import logah_ranking
from benchmarks.studies.logah_ranking import (
    FOLDER,
    KINDS,
    PROXIES,
    TruthConfig,
    build_ranked,
    check_unseen,
    compare_proxies,
    count_flops,
    digest_graph,
    draw_architectures,
    draw_supports,
    kendall_tau,
    main,
    move_off_grid,
    rank_all,
    train,
    train_all,
    train_ranked,
)
from benchmarks.studies.logah_table import read_generator
from model_zoo.data import EVALUATION_SETS, load_data
from model_zoo.spaces import CnnMember, GptMember, MlpMember, ViTMember, draw_member
from tests.helpers.paths import shared_path
from weightgen.errors import BadOption, CorruptFile, NotFound
from weightgen.files.storage import read_json, write_json
from weightgen.generators.logah.generator import LogahConfig, new_logah
from weightgen.labelled_data import LabelledData
from weightgen.target.predict import accuracy

TINY = TruthConfig(
    spaces=(("mlps", 2), ("small_vits", 1)), steps=2, batch_size=8, learning_rates=(1e-3, 1e-2), warmup=1,
    choice_examples=20, calibration_examples=8, shots=2, supports=2,
)  # fmt: skip


@pytest.fixture
def data(rng) -> LabelledData:
    """Ten classes of noise, each with a bright row of its own."""
    y = torch.arange(120) % 10
    x = 0.1 * torch.rand(120, 1, 28, 28, generator=rng)
    x[torch.arange(120), 0, 2 * y] += 0.8
    return LabelledData("rows", x[:80], y[:80], x[80:], y[80:], tuple("abcdefghij"))


@pytest.fixture
def generator(tmp_path):
    config = LogahConfig(rank=4, dim=8, num_layers=1, num_heads=2)
    new_logah(config, seed=0).save(tmp_path / "generator.safetensors")
    return read_generator(tmp_path / "generator.safetensors")


def row_of(member):
    about = {"kind": type(member).__name__, **{name: getattr(member, name) for name in member.__dataclass_fields__}}
    parameters = sum(p.numel() for p in member.build().parameters())
    return {"name": "one", "space": "cnns", "member": about, "parameters": parameters}


def test_drawn_architectures_are_different_and_rebuilt_from_their_rows():
    config = replace(TruthConfig(), spaces=(("cnns", 4), ("mlps", 2), ("resnets", 3), ("small_vits", 2)))
    rows = draw_architectures(config)
    assert rows == draw_architectures(config)
    assert [row["space"] for row in rows] == ["cnns"] * 4 + ["mlps"] * 2 + ["resnets"] * 3 + ["small_vits"] * 2
    targets = [build_ranked(row) for row in rows]
    assert len({digest_graph(target.skeleton) for target in targets}) == len({row["name"] for row in rows}) == 11
    for row, target in zip(rows, targets, strict=True):
        assert row["parameters"] == sum(p.numel() for p in target.make().parameters())
        assert target.spec.head == ("head.weight", "head.bias")


@pytest.mark.parametrize(("space", "sizes", "step"), [("cnns", "widths", 4), ("mlps", "widths", 8),
                                                      ("resnets", "width", 4), ("small_vits", "width", 8)])  # fmt: skip
def test_no_width_is_one_that_a_space_has(space, sizes, step, rng):
    for _ in range(30):
        drawn = draw_member(space, rng)
        before, after = getattr(drawn, sizes), getattr(move_off_grid(drawn), sizes)
        for old, width in zip(*((v if isinstance(v, tuple) else (v,)) for v in (before, after)), strict=True):
            assert width % step == step // 2 and abs(width - old) == step // 2


def test_a_hidden_layer_is_moved_where_there_is_one():
    assert move_off_grid(CnnMember((64, 8), hidden=64)) == CnnMember((62, 10), hidden=60)
    assert move_off_grid(CnnMember((12,))) == CnnMember((14,))
    with pytest.raises(BadOption, match="GptMember is not ranked; expected one of CnnMember"):
        move_off_grid(GptMember(72, 3, 4))


def test_a_space_with_too_few_architectures_is_refused():
    with pytest.raises(BadOption, match="'resnets' has fewer than 13 different architectures"):
        draw_architectures(replace(TINY, spaces=(("resnets", 13),)))


def test_a_row_that_is_built_otherwise_today_is_refused():
    row = row_of(CnnMember((6,)))
    with pytest.raises(CorruptFile, match="'one' has 220 parameters, expected 136 as when it was drawn"):
        build_ranked({**row, "member": {**row["member"], "widths": [10]}})


def test_operations_are_those_of_matrices_convolutions_and_attention():
    assert count_flops(build_ranked(row_of(MlpMember((20,))))) == 2 * (784 * 20 + 20 * 10)
    assert count_flops(build_ranked(row_of(CnnMember((6,))))) == 2 * (28 * 28 * 9 * 6 + 6 * 10)
    tokens, width = 17, 12
    layers = tokens * (4 * width**2 + 2 * 2 * width**2) + 2 * tokens**2 * width
    patches = 16 * 49 * width
    vit = ViTMember(width, 1, 2, patch=7, mlp_ratio=2)
    assert count_flops(build_ranked(row_of(vit))) == 2 * (patches + layers + 10 * width)


def test_support_sets_differ_and_come_from_the_training_part(data):
    first, second = draw_supports(data, TINY)
    assert first.shots == second.shots == [2] * 10
    assert not torch.equal(first.inputs, second.inputs)
    assert all((data.x_train == image).flatten(1).all(1).any() for image in first.inputs)


def test_training_learns_and_equal_seeds_give_equal_states(data):
    target = build_ranked(row_of(MlpMember((20,), batch_norm=True)))
    config = replace(TINY, steps=40, calibration_examples=80)
    learnt = data.x_train, data.y_train
    before = torch.get_rng_state()
    once, again, other = (train(target, learnt, config, rate=1e-2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert not torch.equal(once["head.weight"], other["head.weight"])
    assert accuracy(target, once, data.x_test, data.y_test) > 0.8
    assert accuracy(target, target.init_state(1), data.x_test, data.y_test) < 0.4


def test_the_learning_rate_is_chosen_on_images_that_no_training_sees(data, monkeypatch):
    target, seen = build_ranked(row_of(MlpMember((20,)))), []

    def spy(target, learnt, config, *, rate, seed):
        seen.append((len(learnt[1]), rate, seed))
        return train(target, learnt, config, rate=rate, seed=seed)

    monkeypatch.setattr(logah_ranking, "train", spy)
    best = 1e-2  # after 40 steps the other rate has hardly moved
    found = train_ranked(target, data, replace(TINY, steps=40, learning_rates=(1e-6, best)))
    assert seen == [(60, 1e-6, 0), (60, best, 0), (60, best, 1)]
    assert found["learning_rate"] == best and found["choice"][1] > found["choice"][0]
    assert len(found["each"]) == 2 and found["accuracy"] == pytest.approx(sum(found["each"]) / 2, abs=0.01)


def test_tau_is_scipys_and_zero_for_what_never_changes():
    a, b = np.random.default_rng(0).integers(6, size=(2, 12))  # with ties
    assert kendall_tau(a, b) == pytest.approx(kendalltau(a, b)[0])
    assert kendall_tau(a, np.full(12, 3)) == 0


def test_proxies_are_compared_with_the_accuracies_after_training():
    rows = [
        {
            "parameters": 7, "flops": -i, "predicted": {"accuracy": i**2}, "generated": {"accuracy": -i},
            "random trunk": {"accuracy": [0, 2, 1, 4, 3, 6, 5, 7][i]}, "trained": {"accuracy": i, "each": [i, i + 1]},
        }
        for i in range(8)
    ]  # fmt: skip
    found = compare_proxies(rows)
    assert found["architectures"] == 8
    assert found["predicted"] == found["trained again"] == {"value": 1, "low": 1, "high": 1}
    assert found["flops"]["value"] == -1 and found["parameters"]["value"] == 0
    random = found["random trunk"]
    assert random["value"] == pytest.approx(1 - 2 * 3 / 28, abs=1e-3) and random["low"] < random["value"]
    assert found["lead"]["flops"] == {"value": 2, "low": 2, "high": 2}
    assert found["lead"]["random trunk"]["value"] == pytest.approx(2 * 3 / 28, abs=1e-3)


def test_what_was_trained_is_kept_and_ranked_by_any_generator(generator, tmp_path, monkeypatch):
    shared_path("images/fashion_mnist.npz")
    path = tmp_path / "truth.json"
    truth = train_all(path, TINY)
    assert read_json(path) == truth
    forgotten = truth["architectures"][1].pop("trained")
    write_json(path, truth)
    with pytest.raises(BadOption, match="1 of 3 architectures are not trained yet, the first is 'mlps 1'"):
        rank_all(path, TINY, generator)
    trained = []

    def spy(target, data, config):
        trained.append(target.spec.arch)
        return train_ranked(target, data, config)

    monkeypatch.setattr(logah_ranking, "train_ranked", spy)
    assert train_all(path, TINY)["architectures"][1]["trained"] == forgotten and trained == ["mlps 1"]

    result = rank_all(path, TINY, generator)
    monkeypatch.setattr(logah_ranking, "FOLDER", tmp_path)
    monkeypatch.setattr(logah_ranking, "TruthConfig", lambda: TINY)
    path.rename(tmp_path / "ranking_truth.json")
    assert main(["--generator", str(tmp_path / "generator.safetensors"), "--name", "ranked"]) == 0
    assert read_json(tmp_path / "ranked.json") == result
    assert main([]) == 0 and trained == ["mlps 1"]

    assert set(result["tau"]) == {"all", "mlps", "small_vits"} and result["tau"]["mlps"]["architectures"] == 2
    assert set(PROXIES) < set(result["tau"]["all"])
    assert result["generator"]["sha256"] == generator[1]["sha256"]
    data, row = load_data(TINY.data), result["architectures"][0]
    assert row["parameters"] == truth["architectures"][0]["parameters"] and len(row["predicted"]["each"]) == 2
    assert row["generated"] == logah_ranking.score_trunks(build_ranked(row), generator[0], data, TINY)
    assert row["predicted"] != row["random trunk"]
    assert row["digest"] == digest_graph(build_ranked(row).make())
    with pytest.raises(BadOption, match="begun with other settings; delete it"):
        train_all(tmp_path / "ranking_truth.json", replace(TINY, steps=3))


def test_a_generator_that_has_seen_an_architecture_or_the_data_is_refused():
    rows = [{"name": "mlps 0", "digest": "ab"}, {"name": "cnns 3", "digest": "cd"}]
    check_unseen({}, rows, TINY)
    check_unseen({"member_digests": ["ef"], "config": {"data": ["mnist", "devnum"]}}, rows, TINY)
    with pytest.raises(BadOption, match="learnt from 1 of the architectures that are ranked, the first is 'cnns 3'"):
        check_unseen({"member_digests": ["cd", "ef"]}, rows, TINY)
    for learnt in ("fashion_mnist", ["mnist", "fashion_mnist"]):
        with pytest.raises(BadOption, match="learnt from 'fashion_mnist', which is for evaluation"):
            check_unseen({"config": {"data": learnt}}, rows, TINY)


def test_a_missing_truth_is_said_before_anything_is_scored(generator, tmp_path, monkeypatch, capsys):
    with pytest.raises(NotFound, match="run without --generator first"):
        rank_all(tmp_path / "truth.json", TINY, generator)
    monkeypatch.setattr(logah_ranking, "FOLDER", tmp_path)
    assert main(["--generator", str(tmp_path / "generator.safetensors")]) == 5
    assert "run without --generator first" in capsys.readouterr().err


def test_the_stored_truth_is_of_architectures_that_are_still_drawn():
    path = FOLDER / "ranking_truth.json"
    truth, config = read_json(path), TruthConfig()
    assert config.data in EVALUATION_SETS and len(truth["architectures"]) == 50
    assert {row["member"]["kind"] for row in truth["architectures"]} == set(KINDS)
    drawn = draw_architectures(config)
    assert [row["member"] for row in truth["architectures"]] == [row["member"] for row in drawn]
