"""Scores of networks and data that were not used in training; writes docs/results/logah/unseen.json.

    python -m benchmarks.studies.logah_unseen --arms "random trunk" "default, 100 steps"
    python -m benchmarks.studies.logah_unseen --generator FILE --arms generated "condition off" "random trunk, refined"

For networks of `model_zoo.spaces.HELD_OUT` and all evaluation sets, with a support set of 20 examples per class, it
measures the accuracy on the set's test part for these arms:

- `generated`: a graph hypernetwork's network: a trunk from the graph and the support set, refined on the set by the
  steps in its settings, and a class head solved on the set;
- `condition off`: a trunk from the graph alone, not refined, with a solved head: no training step of any kind;
- `random trunk`: a trunk at default initialisation with a solved head, mean of three;
- `random trunk, refined`: one of these, refined by the same steps as `generated`;
- `default, 100 steps`: default initialisation after 100 steps of AdamW on the support set, at the best of three
  learning rates on the test part, which favours this arm.

`learnt_from` lists the networks from which the generator has learnt with another number of classes or channels: their
trunks are not unseen.

Earlier content of the file for other arms stays if the settings are the same. Several runs may fill it at once.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.studies.logah_table import read_generator
from model_zoo.data import EVALUATION_SETS, load_data
from model_zoo.spaces import HELD_OUT, Member, target_of
from weightgen.condition import Condition, SupportSet
from weightgen.errors import UnknownName, WeightgenError
from weightgen.evaluation.training import FinetuneConfig, finetune
from weightgen.files.storage import read_json, write_json
from weightgen.generators.logah.generator import Logah
from weightgen.graph.arch_graph import build_graph
from weightgen.labelled_data import LabelledData, draw_support, match_channels
from weightgen.references.default_init import RandomTrunkRidge
from weightgen.request import GenerationRequest, WeightGenerator
from weightgen.solve.refinement import refine_trunk
from weightgen.solve.refit import refit
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import accuracy
from weightgen.target.trunk import take_trunk

REFERENCES = ("random trunk", "default, 100 steps")
ARMS = ("generated", "condition off", "random trunk, refined", *REFERENCES)
NETWORKS = (
    *("cnn 32-32-32", "cnn 32-48x5", "cnn 24-48-40 no norm fc32", "cnn 64-80-96 no norm", "cnn 24-32-48 kernel 7"),
    *("resnet8 16", "vit 48 x 2", "vit 64 x 6"),
)
MAX_KNOWN_CLASSES = 40
DATA = tuple(sorted(EVALUATION_SETS))


@dataclass(frozen=True, slots=True)
class UnseenConfig:
    """Settings that all arms share."""

    per_class: int = 20
    random_trunks: int = 3
    steps: int = 100
    learning_rates: tuple[float, ...] = (5e-4, 2e-3, 8e-3)
    batch_size: int = 64
    seed: int = 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--generator", type=Path, help="file of a graph hypernetwork, for the first three arms")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names in model_zoo.spaces.HELD_OUT")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--data", nargs="+", default=list(DATA))
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        needs = set(options.arms) - set(REFERENCES)
        generator = read_generator(options.generator) if needs else None
        path = ROOT / "docs" / "results" / "logah" / "unseen.json"
        score_unseen(path, options.networks, options.data, options.arms, generator=generator)
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def score_unseen(
    path: Path,
    networks: Sequence[str],
    data: Sequence[str],
    arms: Sequence[str],
    *,
    generator: tuple[Logah, dict[str, Any]] | None,
    config: UnseenConfig | None = None,
) -> dict[str, Any]:
    """Score these arms and write them to the file at `path`, one network at a time."""
    config = config or UnseenConfig()
    for name in networks:
        if name not in HELD_OUT:
            raise UnknownName("network", name, HELD_OUT)
    settings = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(config).items()}
    found = read_json(path) if path.exists() else {}
    if found.get("settings") != settings:
        found = {"settings": settings, "networks": {}}
    if generator is not None and found.get("generator") != generator[1]:
        found["generator"] = generator[1]
        found["learnt_from"] = find_known(set(generator[0].training_record.get("member_digests", ())))
        for row in found["networks"].values():
            for scores in row.values():
                for arm in set(ARMS) - set(REFERENCES):
                    scores.pop(arm, None)
    loaded = {name: match_channels(load_data(name), 1) for name in data}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, found)
    for network in networks:
        there = found["networks"].get(network, {})
        todo = [(name, arm) for name in data for arm in arms if arm not in there.get(name, {})]
        scored = [
            (name, arm, score_arm(HELD_OUT[network], arm, generator and generator[0], loaded[name], config))
            for name, arm in todo
        ]
        found = read_json(path)  # another run may have added other arms meanwhile
        for name, arm, score in scored:
            found["networks"].setdefault(network, {}).setdefault(name, {})[arm] = score
        found["mean"] = summarise(found["networks"])
        write_json(path, found)
        print(network, found["mean"].get(network), file=sys.stderr, flush=True)
    return found


def find_known(digests: set[str]) -> list[str]:
    """Names of networks whose graph is among these digests, with 2 to MAX_KNOWN_CLASSES classes and 1 or 3 channels."""

    def is_known(name: str, num_classes: int, in_channels: int) -> bool:
        target = target_of(HELD_OUT[name], num_classes=num_classes, in_channels=in_channels)
        return build_graph(target.skeleton, torch.zeros(1, *target.input_shape)).digest in digests

    counts = range(2, MAX_KNOWN_CLASSES + 1)
    return [name for name in NETWORKS if any(is_known(name, k, c) for k in counts for c in (1, 3))]


def score_arm(member: Member, arm: str, hypernet: Logah | None, data: LabelledData, config: UnseenConfig) -> float:
    """Accuracy in percent of one arm for one network and data set."""
    target = target_of(member, num_classes=data.num_classes)
    support = draw_support(data, config.per_class, rng=torch.Generator().manual_seed(config.seed))
    if arm == "default, 100 steps":
        return max(_train(target, support, data, config, rate) for rate in config.learning_rates)
    if arm == "random trunk":
        seeds = range(config.seed, config.seed + config.random_trunks)
        return statistics.fmean(_generate(RandomTrunkRidge(), target, support, data, seed) for seed in seeds)
    assert hypernet is not None
    if arm == "random trunk, refined":
        return _percent(accuracy(target, _refine_random(target, support, hypernet, config), data.x_test, data.y_test))
    generator = hypernet if arm == "generated" else hypernet.without_condition()
    return _generate(generator, target, support, data, config.seed)


def summarise(networks: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, Any]]:
    """Network -> mean of each arm over data sets, and the number of sets on which `generated` is above `default`."""
    means: dict[str, dict[str, Any]] = {}
    for network, row in networks.items():
        arms = [arm for arm in ARMS if all(arm in scores for scores in row.values())]
        means[network] = {arm: round(statistics.fmean(scores[arm] for scores in row.values()), 2) for arm in arms}
        if {"generated", "default, 100 steps"} <= set(arms):
            ahead = sum(scores["generated"] > scores["default, 100 steps"] for scores in row.values())
            means[network] |= {"ahead_of_default_on": ahead, "of": len(row)}
    return means


def _generate(generator: WeightGenerator, target: Target, support: SupportSet, data: LabelledData, seed: int) -> float:
    (state,) = generator.generate(GenerationRequest(target, Condition(support=support), seed=seed))
    return _percent(accuracy(target, state, data.x_test, data.y_test))


def _refine_random(target: Target, support: SupportSet, hypernet: Logah, config: UnseenConfig) -> State:
    rng = torch.Generator().manual_seed(config.seed) if hypernet.config.is_refined_on_augmented else None
    rates = hypernet.config.refinement_rates
    state = refine_trunk(target, target.init_state(config.seed), support, rates=rates, rng=rng)
    return refit(target, take_trunk(state, target.spec), support)


def _train(target: Target, support: SupportSet, data: LabelledData, config: UnseenConfig, rate: float) -> float:
    settings = FinetuneConfig(
        learning_rate=rate, record_at=(config.steps,), cycle=config.steps, batch_size=config.batch_size
    )
    rng = torch.Generator().manual_seed(config.seed)
    states = finetune(target, target.init_state(config.seed), support, settings, rng=rng)
    return _percent(accuracy(target, states[config.steps], data.x_test, data.y_test))


def _percent(fraction: float) -> float:
    return round(100 * fraction, 2)


if __name__ == "__main__":
    sys.exit(main())
