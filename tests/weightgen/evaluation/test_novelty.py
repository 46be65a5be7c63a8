import math

import pytest
import torch

from model_zoo.architectures import build_target
from tests.helpers.standins import make_zoo
from weightgen.errors import BadOption
from weightgen.evaluation.novelty import copying_statistic, describe_nearest, error_overlap, find_nearest
from weightgen.references.zoo import trunk_distance


@pytest.mark.parametrize("arch", ["cnn-tiny", "cnn-w4-d3", "resnet8"])
def test_a_reordered_and_rescaled_copy_is_found(arch):
    target = build_target(arch, num_classes=3)
    zoo = make_zoo(target)
    rng = torch.Generator().manual_seed(0)
    copied = target.init_state(102)
    orders = {word: torch.randperm(n, generator=rng) for word, n in target.spec.hidden.items()}
    state = {n: 3 * t if t.is_floating_point() else t for n, t in target.spec.permute(copied, orders).items()}
    nearest = find_nearest(zoo, target, state)
    assert nearest.index == 2
    assert nearest.ratio < 1e-3
    assert describe_nearest(zoo, nearest)["run_id"] == "run2"


def test_an_unrelated_trunk_is_as_far_as_the_zoo_from_itself():
    target = build_target("cnn-w8-d2", num_classes=3)
    assert 0.6 < find_nearest(make_zoo(target), target, target.init_state(0)).ratio < 1.1


def test_distance_counts_learnt_tensors_only_and_no_scale():
    target = build_target("cnn-w4-d2")
    a = target.init_state(0)
    b = {n: t + 5 if "running" in n else 2 * t for n, t in a.items()}
    assert trunk_distance(target, a, b) == pytest.approx(0, abs=1e-6)
    opposite = {n: -t for n, t in a.items()}
    assert trunk_distance(target, a, opposite) == pytest.approx(2, rel=0.05)  # zero biases do not move


def test_z_u_is_the_normal_form_of_the_mann_whitney_statistic():
    from scipy.stats import mannwhitneyu

    rng = torch.Generator().manual_seed(0)
    g, h = torch.rand(40, generator=rng).tolist(), (0.3 + torch.rand(50, generator=rng)).tolist()
    result = mannwhitneyu(g, h, alternative="less", method="asymptotic", use_continuity=False)
    z = copying_statistic(g, h)
    assert 0.5 * math.erfc(-z / math.sqrt(2)) == pytest.approx(result.pvalue, rel=1e-6)
    assert z < -3
    assert copying_statistic(h, h) == 0
    with pytest.raises(BadOption, match="0 generated and 50 held-out"):
        copying_statistic([], h)


def test_error_overlap_is_intersection_over_union():
    a, b = torch.tensor([1, 1, 0, 0]).bool(), torch.tensor([0, 1, 1, 0]).bool()
    assert error_overlap(a, b) == pytest.approx(1 / 3)
    assert error_overlap(a, a) == 1
    assert error_overlap(a & ~a, b & ~b) is None
