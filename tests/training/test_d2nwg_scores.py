"""What a d2nwg under training is scored on: the runs of a split, and no others."""

import pytest
import torch

from model_zoo.zoo.networks import load_networks
from tests.helpers.tiny_generators import TINY_D2NWG
from tests.helpers.tiny_zoos import build_tiny_zoo
from training.d2nwg.scores import evaluate, reconstruction
from weightgen.generators.d2nwg.generator import D2nwg


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    folder = build_tiny_zoo(tmp_path_factory.mktemp("zoo"), num_runs=8)
    return load_networks(folder, held_out=["devnum"])


def test_every_score_is_a_share_and_a_split_without_runs_has_none(networks):
    torch.manual_seed(0)
    model = D2nwg({m: n.target.spec for m, n in networks.items()}, TINY_D2NWG)
    for member, known in networks.items():
        model.codec(member).set_scaling(known.tokens[known.rows("train")])
    (scores,) = evaluate(model, networks, tasks_each=2, seed=0, split="left out").values()
    assert all(0 <= scores[arm] <= 1 for arm in ("original", "decoded", "generated", "unrefined", "unconditioned"))
    assert reconstruction(scores).keys() == {"original", "decoded", "weight_error"}
    assert evaluate(model, networks, tasks_each=2, seed=0, split="no such split") == {}
