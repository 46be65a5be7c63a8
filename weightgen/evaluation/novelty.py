"""Whether generated trunks are copies of trained ones: distances, the Z_U statistic, overlap of errors."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from weightgen.errors import BadOption
from weightgen.references.zoo import ReferenceZoo, nearest_trunk
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.trunk import take_trunk


@dataclass(frozen=True, slots=True)
class Nearest:
    """The trained trunk nearest to a generated one."""

    index: int
    distance: float
    """`weightgen.references.zoo.trunk_distance` after matching hidden units; unrelated trunks are at about 1.4."""
    ratio: float
    """Distance over the median distance of a zoo trunk to its nearest other; near 0 for a copy, near 1 if new."""


def find_nearest(zoo: ReferenceZoo, target: Target, state: State) -> Nearest:
    """The trunk of the zoo that is nearest to the state's, hidden units matched."""
    index, distance = nearest_trunk(zoo, target, take_trunk(state, target.spec))
    usual = float(zoo.leave_one_out.median())
    return Nearest(index=index, distance=distance, ratio=distance / usual if usual > 0 else math.inf)


def describe_nearest(zoo: ReferenceZoo, nearest: Nearest) -> dict[str, Any]:
    """JSON of the nearest checkpoint and its distance."""
    run = zoo.runs[nearest.index]
    kept = {key: run[key] for key in ("run_id", "dataset", "classes", "sha256")}
    return {**kept, "distance": nearest.distance, "ratio": nearest.ratio}


def copying_statistic(generated: Sequence[float], held_out: Sequence[float]) -> float:
    """Z_U of Meehan, Chaudhuri, Dasgupta 2020, "A Non-Parametric Test to Detect Data-Copying" (arXiv:2004.05675).

    `generated` (m) and `held_out` (n) are distances to the nearest training example, from generated and from held-out
    true examples. U = number of pairs (g, h) with g > h, ties count half; Z_U = (U - mn/2) / sqrt(mn(m + n + 1)/12).
    Far below zero means copying. Here the held-out ones are the zoo's own trunks, each compared with the others. With
    m = 1 it cannot go below about -1.7: only many tasks give it power.
    """
    m, n = len(generated), len(held_out)
    if m == 0 or n == 0:
        raise BadOption(f"Z_U of {m} generated and {n} held-out distances, expected at least one of each")
    g = torch.tensor(generated, dtype=torch.float64)[:, None]
    h = torch.tensor(held_out, dtype=torch.float64)[None]
    wins = float((g > h).double().sum() + 0.5 * (g == h).double().sum())
    return (wins - m * n / 2) / math.sqrt(m * n * (m + n + 1) / 12)


def error_overlap(wrong_a: Bool[Tensor, " n"], wrong_b: Bool[Tensor, " n"]) -> float | None:
    """Intersection over union of two error sets, bool (n,) each; None if neither makes an error."""
    union = int((wrong_a | wrong_b).sum())
    return int((wrong_a & wrong_b).sum()) / union if union else None
