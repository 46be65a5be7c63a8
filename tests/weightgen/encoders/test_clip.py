"""The CLIP encoder on a tiny CLIP of random weights: the laws of the other encoder, and what is refused."""

import copy
import json
import sys

import pytest
import torch

from tests.helpers.standins import make_support
from weightgen.encoders.clip import ClipSupportEncoder, ClipTower
from weightgen.errors import CorruptFile, NotFound, WeightgenError

transformers = pytest.importorskip("transformers", reason="needs the extra 'clip'")
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**SIZES, "image_size": 32, "patch_size": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A vision tower with its projection, as transformers saves it."""
    torch.manual_seed(0)
    network = transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**VISION, projection_dim=12))
    path = tmp_path_factory.mktemp("clip")
    network.save_pretrained(path)
    return path


@pytest.fixture
def encoder(folder):
    torch.manual_seed(0)
    return ClipSupportEncoder(ClipTower.load(folder), dim=16, heads=2, depth=1)


def change_config(folder, path, **changes):
    """A copy of the folder whose config says something else."""
    path.mkdir()
    (path / "model.safetensors").symlink_to(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text()) | changes
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_orders_of_examples_and_classes_matter_only_to_prototypes(encoder, rng):
    support, order = make_support(num_classes=4, shots=3), torch.tensor([2, 0, 3, 1])
    renamed = torch.argsort(order)[support.labels]  # class order[i] is class i now
    mixed = torch.randperm(len(renamed), generator=rng)
    (before,), summary = encoder([support.inputs], [support.labels], [4])
    (after,), same = encoder([support.inputs[mixed]], [renamed[mixed]], [4])
    assert torch.allclose(after, before[order], atol=1e-5)
    assert torch.allclose(summary, same, atol=1e-5)
    assert (before.shape, summary.shape) == ((4, 16), (1, 16))


def test_sets_in_one_call_do_not_see_each_other(encoder):
    sets = [make_support(num_classes=k, shots=n, channels=c) for k, n, c in ((3, 2, 1), (5, 2, 3), (3, 4, 3))]
    alone = [encoder([s.inputs], [s.labels], [s.num_classes]) for s in sets]
    prototypes, summaries = encoder([s.inputs for s in sets], [s.labels for s in sets], [3, 5, 3])
    for (p, s), together, summary in zip(alone, prototypes, summaries, strict=True):
        assert torch.allclose(p[0], together, atol=1e-5) and torch.allclose(s[0], summary, atol=1e-5)


def test_features_are_those_of_transformers_own_model_on_the_same_pixels(folder):
    tower, images = ClipTower.load(folder), torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    mean, deviation = torch.tensor([0.4815, 0.4578, 0.4082]), torch.tensor([0.2686, 0.2613, 0.2758])
    pixels = (images - mean[:, None, None]) / deviation[:, None, None]  # of the size of the tower's: no resizing
    expected = model(pixel_values=pixels).image_embeds
    found = tower.features(images)
    assert torch.allclose(torch.nn.functional.normalize(expected, dim=1), found / 12**0.5, atol=1e-3)


def test_images_of_any_size_and_number_are_seen(folder, rng):
    tower, images = ClipTower.load(folder), torch.rand(70, 3, 28, 28, generator=rng)
    together = tower.features(images)
    assert torch.allclose(together[66:], tower.features(images[66:]), atol=1e-5)
    assert torch.allclose(together.square().mean(1), torch.ones(70), atol=1e-4)


def test_the_tower_is_neither_trained_nor_saved_nor_copied(encoder):
    support = make_support(num_classes=3, shots=2)
    _, summaries = encoder.train()([support.inputs], [support.labels], [3])
    summaries.square().sum().backward()
    assert all(p.grad is not None for p in encoder.parameters())
    assert not [n for n in encoder.state_dict() if "vision_model" in n or "tower" in n]
    assert all(not p.requires_grad and p.grad is None for p in encoder.tower.network.parameters())
    assert not encoder.tower.network.training
    assert copy.deepcopy(encoder).tower is encoder.tower


def test_a_tower_is_found_again_by_what_a_file_says_of_it(folder):
    tower = ClipTower.load(folder)
    assert ClipTower.load(**tower.describe()).digest == tower.digest
    with pytest.raises(CorruptFile, match="a CLIP tower of digest .*, expected 0000"):
        ClipTower.load(folder, digest="0" * 64)


def test_a_whole_clip_has_the_tower_that_its_vision_part_has(folder, tmp_path):
    text = {**SIZES, "vocab_size": 40, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=12)
    whole = transformers.CLIPModel(config)
    part = transformers.CLIPVisionModelWithProjection.from_pretrained(folder)
    whole.load_state_dict(whole.state_dict() | part.state_dict())
    whole.save_pretrained(tmp_path)
    assert ClipTower.load(tmp_path).digest == ClipTower.load(folder).digest
    (tmp_path / "model.safetensors").unlink()
    torch.save(whole.state_dict(), tmp_path / "pytorch_model.bin")
    assert ClipTower.load(tmp_path).digest == ClipTower.load(folder).digest


def test_loading_draws_no_random_number(folder):
    before = torch.get_rng_state()
    ClipTower.load(folder)
    assert torch.equal(before, torch.get_rng_state())


def test_a_folder_that_is_no_clip_is_refused(folder, tmp_path):
    with pytest.raises(NotFound, match=r"config.json: no such file"):
        ClipTower.load(tmp_path)
    with pytest.raises(CorruptFile, match="type 'bert', expected 'clip' or 'clip_vision_model'"):
        ClipTower.load(change_config(folder, tmp_path / "bert", model_type="bert"))
    with pytest.raises(CorruptFile, match="a CLIP without a vision_config"):
        ClipTower.load(change_config(folder, tmp_path / "blind", model_type="clip"))
    with pytest.raises(CorruptFile, match=r"describes no CLIP vision tower: .*heads \(3\)"):
        ClipTower.load(change_config(folder, tmp_path / "odd", num_attention_heads=3))
    with pytest.raises(CorruptFile, match=r"image_size is .*, expected one number"):
        ClipTower.load(change_config(folder, tmp_path / "oblong", image_size=[32, 16]))
    with pytest.raises(CorruptFile, match=r"lacks 'vision_model.encoder.layers.2.* and 15 more"):
        ClipTower.load(change_config(folder, tmp_path / "deeper", num_hidden_layers=3))
    bare = change_config(folder, tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(NotFound, match=r"holds no weights, expected model.safetensors or pytorch_model.bin"):
        ClipTower.load(bare)


def test_what_is_no_folder_is_asked_of_the_hub(folder, monkeypatch):
    from huggingface_hub.errors import LocalEntryNotFoundError

    asked = []

    def download(repository, name):
        asked.append((repository, name))
        if repository == "someone/nothing":
            raise LocalEntryNotFoundError("no connection")
        return str(folder / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert ClipTower.load("someone/clip").describe()["source"] == "someone/clip"
    assert asked == [("someone/clip", "config.json"), ("someone/clip", "model.safetensors")]
    with pytest.raises(NotFound, match="someone/nothing: no such folder, and the hub does not give it: no conn"):
        ClipTower.load("someone/nothing")


def test_without_transformers_the_extra_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightgenError, match=r"pip install 'weightgen\[clip\]'"):
        ClipTower.load(folder)
