from typing import Any

import pytest
import torch

from model_zoo.architectures import make_meta
from model_zoo.spaces import (
    MAX_VIT,
    SPACES,
    CnnMember,
    GptMember,
    MlpMember,
    RegisteredMember,
    ResNetMember,
    ViTMember,
    draw_member,
    target_of,
)
from weightgen.errors import BadOption, UnknownName

NAMES = list(SPACES)


def make_inputs(space: str, rng: torch.Generator) -> torch.Tensor:
    if space in ("gpts", "small_gpts"):
        return torch.randint(256, (2, 16), generator=rng)
    return torch.rand(2, 1, 28, 28, generator=rng)


@pytest.mark.parametrize("space", NAMES)
def test_members_build_and_answer(space, rng):
    for _ in range(3):
        member = draw_member(space, rng)
        logits = member.build()(make_inputs(space, rng))
        assert logits.shape == ((2, 16, 256) if space in ("gpts", "small_gpts") else (2, 10)) and bool(
            logits.isfinite().all()
        )


@pytest.mark.parametrize("space", NAMES)
def test_equal_seeds_draw_equal_members_and_there_are_many(space):
    def draw(seed: int) -> list[Any]:
        rng = torch.Generator().manual_seed(seed)
        return [draw_member(space, rng) for _ in range(30)]

    assert draw(0) == draw(0)
    assert len(set(draw(0))) >= {"resnets": 6, "registered": 15}.get(space, 20)


def count(member: Any) -> int:
    return sum(p.numel() for p in make_meta(member.build).parameters())


def test_transformers_stay_within_the_published_bounds(rng):
    vits: list[Any] = [draw_member("vits", rng) for _ in range(100)]
    assert all(count(v) <= MAX_VIT and v.width <= 512 and v.depth <= 9 and v.width % v.num_heads == 0 for v in vits)
    gpts: list[Any] = [draw_member("gpts", rng) for _ in range(50)]
    assert all(count(g) <= 30_000_000 and 72 <= g.width <= 256 and 3 <= g.depth <= 9 for g in gpts)
    assert all(g.width % g.num_heads == 0 for g in gpts)


@pytest.mark.parametrize(
    ("member", "parameters"),
    [
        (CnnMember((32, 32, 32)), 19_242),
        (MlpMember((64,)), 50_890),
        (ResNetMember(8, 16), 77_562),
        (ViTMember(48, 2, 4, mlp_ratio=2), 41_770),
        (GptMember(72, 3, 4), 217_224),
    ],
)
def test_sizes_are_what_they_were(member, parameters):
    assert count(member) == parameters


def test_a_head_of_a_language_model_is_its_embedding():
    module: Any = GptMember(72, 3, 4).build()
    assert module.head.weight is module.embedding.weight


def test_later_words_of_a_language_model_do_not_change_earlier_ones(rng):
    module = GptMember(72, 3, 4).build().eval()
    ids = make_inputs("gpts", rng)
    changed = ids.clone()
    changed[:, 8:] = 0
    assert torch.allclose(module(ids)[:, :8], module(changed)[:, :8], atol=1e-5)


def test_unknown_spaces_are_refused(rng):
    with pytest.raises(UnknownName, match="space"):
        draw_member("cnn", rng)


def test_members_that_classify_are_targets(rng):
    member = CnnMember((8, 12), hidden=20, in_channels=3, num_classes=4)
    target = target_of(member)
    assert target.spec.head == ("head.weight", "head.bias") and target.input_shape == (3, 28, 28)
    assert target.run(target.init_state(0), torch.rand(2, 3, 28, 28, generator=rng)).shape == (2, 4)
    assert target_of(member, num_classes=7).spec.by_name["head.weight"].shape == (7, 20)
    assert target_of(MlpMember((16,), in_features=3 * 784)).input_shape == (3, 28, 28)
    assert target_of(RegisteredMember("vit-tiny")).spec.num_parameters == count(RegisteredMember("vit-tiny"))
    with pytest.raises(BadOption, match="has no class head"):
        target_of(GptMember(72, 3, 4))
