import json
import shutil

import pytest
import torch

from model_zoo.zoo.networks import load_networks
from tests.helpers.tiny_zoos import build_tiny_zoo
from weightgen.errors import BadOption, NotFound


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return build_tiny_zoo(tmp_path_factory.mktemp("zoo"), num_runs=8)


def test_networks_come_in_normal_form_with_their_tasks(zoo):
    (networks,) = load_networks(zoo).values()
    assert networks.member == "cnn-tiny/1x28x28"
    assert networks.tokens.shape[1:] == (38, 201) and torch.isfinite(networks.tokens).all()
    assert set(networks.datasets) == {"bccd_cells", "devnum"} and {len(c) for c in networks.classes} == {3}


def test_a_data_set_left_out_has_no_part_in_what_the_others_are_aligned_to(zoo, tmp_path):
    (networks,) = load_networks(zoo, held_out=["devnum"]).values()
    left_out = networks.rows("left out")
    assert {networks.datasets[i] for i in left_out} == {"devnum"} and len(left_out) < len(networks.split)
    assert all(networks.datasets[i] == "bccd_cells" for s in ("train", "val", "test") for i in networks.rows(s))
    for run in (zoo / "part" / "runs").iterdir():
        if json.loads((run / "run.json").read_text())["task"]["dataset"] == "bccd_cells":
            shutil.copytree(run, tmp_path / "part" / "runs" / run.name)
    (alone,) = load_networks(tmp_path).values()
    assert torch.equal(alone.tokens, networks.tokens[[i for i, s in enumerate(networks.split) if s != "left out"]])
    with pytest.raises(BadOption, match="was trained on a data set that is held out"):
        load_networks(zoo, held_out=["devnum", "bccd_cells"])


def test_the_same_networks_give_the_same_tokens(zoo):
    (a,), (b,) = load_networks(zoo).values(), load_networks(zoo).values()
    assert torch.equal(a.tokens, b.tokens) and a.split == b.split


def test_what_is_not_there_is_named(zoo, tmp_path):
    with pytest.raises(NotFound, match="no run of a zoo"):
        load_networks(tmp_path)
    with pytest.raises(BadOption, match="the zoo has no 'resnet8/1x28x28'; it has cnn-tiny/1x28x28"):
        load_networks(zoo, members=["resnet8/1x28x28"])
