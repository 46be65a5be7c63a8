"""Diversity of d2nwg's samples, and whether they reach the accuracy asked for.

These are two sections of the study of d2nwg. Run them by `python -m benchmarks.studies.d2nwg diversity aim`.
"""

import statistics
import sys
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import torch
from jaxtyping import Float, Int
from scipy.stats import rankdata
from torch import Tensor

from benchmarks.speed.d2nwg import Bench
from model_zoo.architectures import build_target
from model_zoo.zoo.networks import Networks, draw_task_support
from weightgen.condition import Condition
from weightgen.evaluation.novelty import error_overlap
from weightgen.references.zoo import ReferenceZoo
from weightgen.request import GenerationRequest
from weightgen.solve.refit import refit
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import predict
from weightgen.weightspace.normal_form import to_normal_form

COMPARED = 16
"""Number of networks for each task that are compared and that vote."""
AIMS = (None, 0.3, 0.5, 0.7, 0.9)


def study_diversity(bench: Bench) -> dict[str, Any]:
    """Diversity of sixteen samples for each held-out task, and of the sixteen trunks of the zoo with the nearest tasks.

    The zoo's trunks are finished like samples: in normal form, refined, statistics and head from the support set.
    """
    result: dict[str, Any] = {}
    for member, networks in bench.networks.items():
        zoo = bench.references(networks)
        if zoo is None:
            continue
        trunks = _normal_trunks(networks, zoo)
        found: dict[str, list[dict[str, float | None]]] = {"samples": [], "zoo": []}
        for _, task in bench.held_out(networks):
            target, support, part = bench.prepare(networks, task)
            request = GenerationRequest(target, Condition(support=support), num_samples=COMPARED)
            nearest = zoo.nearest(request, bench.generator.embed)[:COMPARED]
            kinds = {
                "samples": bench.generator.generate(request),
                "zoo": [bench.generator.finish(target, trunks[i], support, refinements=None) for i in nearest],
            }
            for kind, states in kinds.items():
                found[kind].append(compare_networks(_probabilities(target, states, part.x_test), part.y_test))
        result[member] = {
            "tasks": len(found["samples"]), "networks": COMPARED,
            **{kind: _mean_of_each(rows) for kind, rows in found.items()},
        }  # fmt: skip
        print(member, result[member], file=sys.stderr)
    return result


def study_aim(bench: Bench) -> dict[str, Any]:
    """Accuracy and entropy (nats) of samples by the accuracy asked for, and the rank correlation of asked and reached.

    The correlation is Spearman's over the samples for one task, averaged over tasks.
    """
    result: dict[str, Any] = {}
    for member, networks in bench.networks.items():
        rows: dict[str, list[dict[str, float]]] = {_name(aim): [] for aim in AIMS}
        correlations = []
        for _, task in bench.held_out(networks):
            target, support, part = bench.prepare(networks, task)
            asked, reached = [], []
            for aim in AIMS:
                condition = Condition(support=support, target_accuracy=aim)
                states = bench.generator.generate(GenerationRequest(target, condition, num_samples=bench.seeds))
                p = _probabilities(target, states, part.x_test)
                scores = (p.argmax(2) == part.y_test).double().mean(1).tolist()
                entropy = float(torch.special.entr(p).sum(2).mean())
                rows[_name(aim)].append({"accuracy": statistics.fmean(scores), "entropy": entropy})
                if aim is not None:
                    asked += [aim] * len(scores)
                    reached += scores
            correlations.append(rank_correlation(asked, reached))
        result[member] = {
            "tasks": len(correlations),
            "asked": {aim: _mean_of_each(found) for aim, found in rows.items()},
            "rank_correlation": statistics.fmean(correlations),
        }
        print(member, result[member], file=sys.stderr)
    return result


def _name(aim: float | None) -> str:
    return "none" if aim is None else str(aim)


def compare_networks(p: Float[Tensor, "m n k"], labels: Int[Tensor, " n"]) -> dict[str, float | None]:
    """Differences of m networks' predictions, from their probabilities on n labelled examples of k classes.

    disagreement: share of examples on which two networks differ, mean over pairs. ensemble_gain: accuracy of
    the mean probabilities minus the mean accuracy. error_overlap: intersection over union of two networks'
    errors, mean over pairs; None if no network makes an error.
    """
    named = p.argmax(2)
    wrong = named != labels
    pairs = list(combinations(range(len(p)), 2))
    accuracy = float((~wrong).double().mean())
    together = float((p.mean(0).argmax(1) == labels).double().mean())
    overlaps = [o for i, j in pairs if (o := error_overlap(wrong[i], wrong[j])) is not None]
    return {
        "accuracy": accuracy,
        "disagreement": statistics.fmean(float((named[i] != named[j]).double().mean()) for i, j in pairs),
        "ensemble_gain": together - accuracy,
        "error_overlap": statistics.fmean(overlaps) if overlaps else None,
    }


def rank_correlation(asked: Sequence[float], reached: Sequence[float]) -> float:
    """Spearman's rank correlation, ties at their mean rank; 0 if one sequence is constant."""
    ranks = torch.stack([torch.from_numpy(rankdata(values)) for values in (asked, reached)])
    centred = ranks - ranks.mean(1, keepdim=True)
    sizes = centred.norm(dim=1).prod()
    return float(centred.prod(0).sum() / sizes) if sizes > 0 else 0.0


def _normal_trunks(networks: Networks, zoo: ReferenceZoo) -> list[State]:
    """The zoo's trunks in normal form, each measured on its own task."""
    arch, channels = networks.target.spec.arch, networks.target.input_shape[0]
    trunks = []
    for i, run in enumerate(zoo.runs):
        own = draw_task_support(run, channels)
        target = build_target(arch, num_classes=own.num_classes, in_channels=channels)
        trunks.append(to_normal_form(target, refit(target, zoo.trunk(i), own), own.inputs))
    return trunks


def _probabilities(target: Target, states: Sequence[State], inputs: Tensor) -> Tensor:
    """Class probabilities of each of m networks for the inputs, (m, n, k)."""
    return torch.stack([predict(target, state, inputs).softmax(1) for state in states])


def _mean_of_each(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The mean of every key over the rows that have it."""
    known = {key: [row[key] for row in rows if row[key] is not None] for key in rows[0]}
    return {key: statistics.fmean(values) if values else None for key, values in known.items()}
