"""What a d2nwg under training is scored on: the runs of a split, and no others."""

import pytest
import torch

from model_zoo.zoo.builder import build_zoo
from model_zoo.zoo.config import ZooConfig
from model_zoo.zoo.networks import load_networks
from tests.helpers.paths import shared_path
from training.d2nwg.scores import evaluate, reconstruction
from weightgen.generators.d2nwg.generator import D2nwg, D2nwgConfig

SMALL = D2nwgConfig(
    num_latents=2, latent_dim=4, codec_dim=16, codec_depth=1, encoder_dim=16, denoiser_dim=16, denoiser_depth=1
)


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    shared_path("images/devnum.npz")
    folder = tmp_path_factory.mktemp("zoo")
    config = ZooConfig(
        arch="cnn-tiny", data=("bccd_cells", "devnum"), num_runs=8, steps=60, ways=3, in_channels=1, eval_examples=100
    )
    build_zoo(config, folder / "part")
    return load_networks(folder, held_out=["devnum"])


def test_every_score_is_a_share_and_a_split_without_runs_has_none(networks):
    torch.manual_seed(0)
    model = D2nwg({m: n.target.spec for m, n in networks.items()}, SMALL)
    for member, known in networks.items():
        model.codec(member).set_scaling(known.tokens[known.rows("train")])
    (scores,) = evaluate(model, networks, tasks_each=2, seed=0, split="left out").values()
    assert all(0 <= scores[arm] <= 1 for arm in ("original", "decoded", "generated", "unrefined", "unconditioned"))
    assert reconstruction(scores).keys() == {"original", "decoded", "weight_error"}
    assert evaluate(model, networks, tasks_each=2, seed=0, split="no such split") == {}
