"""Scores of a graph hypernetwork on held-out tasks of its training sets, and the choice of its refinements."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from model_zoo.spaces import CnnMember, Member, RegisteredMember, ViTMember, target_of
from training.episodes import Episode
from weightgen.condition import Condition, SupportSet
from weightgen.generators.logah.generator import Logah
from weightgen.references.default_init import RandomTrunkRidge
from weightgen.request import GenerationRequest, WeightGenerator
from weightgen.target.predict import accuracy

_COSINE = tuple(round(0.05 * (1 + math.cos(math.pi * i / 15)), 4) for i in range(15))
SCHEDULES: dict[str, dict[str, Any]] = {
    "none": {"refinement_rates": ()},
    "8 steps": {"refinement_rates": tuple(round(0.1 * 0.85**i, 4) for i in range(8))},
    "15 steps": {"refinement_rates": _COSINE},
    "15 steps, augmented": {"refinement_rates": _COSINE, "is_refined_on_augmented": True},
}
"""Refinements to choose from, as settings of the generator. Rates are shares of a tensor's size."""
NETWORKS: dict[str, Member] = {
    "cnn-tiny": RegisteredMember("cnn-tiny"),
    "cnn": RegisteredMember("cnn"),
    "vit-tiny": RegisteredMember("vit-tiny"),
    "resnet8": RegisteredMember("resnet8"),
    "mlp": RegisteredMember("mlp"),
    "cnn 26-34-42": CnnMember((26, 34, 42)),
    "cnn 30-46 no norm fc36": CnnMember((30, 46), batch_norm=False, hidden=36),
    "vit 60 x 2": ViTMember(60, 2, 4, mlp_ratio=2),
}
"""What held-out tasks are solved with; the last three have widths that no space has."""


def choose_schedule(hypernet: Logah, tasks: Sequence[Episode], networks: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The schedule of the highest mean accuracy over networks and tasks, and that of each."""
    found = {}
    for name, schedule in SCHEDULES.items():
        refined = with_refinement(hypernet, schedule)
        found[name] = statistics.fmean(score(refined, NETWORKS[network], tasks) for network in networks)
    return max(found, key=lambda name: found[name]), {name: round(value, 4) for name, value in found.items()}


def held_out_scores(hypernet: Logah, tasks: Sequence[Episode]) -> dict[str, dict[str, float]]:
    """Mean accuracy (a fraction) of every network over tasks, in four ways: generated, unrefined, without the support
    set, and with a random trunk."""
    arms: Mapping[str, WeightGenerator] = {
        "generated": hypernet,
        "unrefined": with_refinement(hypernet, SCHEDULES["none"]),
        "unconditioned": hypernet.without_condition(),
        "random trunk": RandomTrunkRidge(),
    }
    return {
        name: {arm: round(score(generator, member, tasks), 4) for arm, generator in arms.items()}
        for name, member in NETWORKS.items()
    }


def with_refinement(hypernet: Logah, schedule: Mapping[str, Any]) -> Logah:
    """A copy of the generator with other refinements."""
    config = replace(hypernet.config, **schedule)
    other = Logah(config, training=hypernet.training_record)
    other.load_state_dict(hypernet.state_dict())
    return other.requires_grad_(False).eval()


def score(generator: WeightGenerator, member: Any, tasks: Sequence[Episode]) -> float:
    """Mean accuracy on the grey queries of tasks, of the networks made from their support sets."""
    found = []
    for task in tasks:
        target = target_of(member, num_classes=task.num_classes)
        names = tuple(str(k) for k in range(task.num_classes))
        support = SupportSet(task.support.mean(1, keepdim=True), task.support_labels, names)
        (state,) = generator.generate(GenerationRequest(target, Condition(support=support)))
        found.append(accuracy(target, state, task.query.mean(1, keepdim=True), task.query_labels))
    return statistics.fmean(found)
