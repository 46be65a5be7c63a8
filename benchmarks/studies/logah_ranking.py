"""Whether predicted weights rank architectures as training does; writes docs/results/logah/ranking.json.

    python -m benchmarks.studies.logah_ranking  train every architecture; resumes after an interruption
    python -m benchmarks.studies.logah_ranking --generator FILE    rank them by a graph hypernetwork

This is the question of an architecture search: which of 50 architectures will be the most accurate, before any of them
is trained? A proxy is a number for each architecture; Kendall's tau compares its order with that of the accuracies
after training. Proxies are the number of parameters, the floating-point operations of one image, and the accuracy of a
network with a class head solved on a support set. The network's trunk is predicted, generated (also refined on the
support set) or random. Results that need no generator are kept in ranking_truth.json, so that another generator needs
no new training.

Architectures are drawn from `model_zoo.spaces`, and their sizes are moved by half a step from those in the spaces. So
no recipe that learns from the spaces has used one of them.
"""

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ROOT
from benchmarks.studies.logah_table import read_generator
from model_zoo.architectures import make_meta
from model_zoo.data import load_data
from model_zoo.spaces import CnnMember, Member, MlpMember, ResNetMember, ViTMember, draw_member
from weightgen.condition import Condition, SupportSet
from weightgen.errors import BadOption, CorruptFile, NotFound, WeightgenError
from weightgen.files.storage import read_json, write_json
from weightgen.generators.logah.generator import Logah
from weightgen.graph.arch_graph import build_graph
from weightgen.labelled_data import LabelledData, draw_support
from weightgen.references.default_init import RandomTrunkRidge
from weightgen.request import GenerationRequest, WeightGenerator
from weightgen.solve.statistics import recalibrate_batchnorm
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.predict import accuracy

FOLDER = ROOT / "docs" / "results" / "logah"
PROXIES = ("predicted", "generated", "random trunk", "flops", "parameters")
KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (CnnMember, MlpMember, ResNetMember, ViTMember)}
RESAMPLES = 1000
"""Number of draws of the bootstrap over architectures."""


@dataclass(frozen=True, slots=True)
class TruthConfig:
    """The ranked architectures, their training, and the support sets for class heads."""

    spaces: tuple[tuple[str, int], ...] = (("cnns", 20), ("mlps", 10), ("resnets", 8), ("small_vits", 12))
    """(name of a space, number of architectures drawn from it)"""
    seed: int = 1_000_003
    data: str = "fashion_mnist"
    steps: int = 400
    batch_size: int = 64
    learning_rates: tuple[float, ...] = (2e-3, 8e-3)
    warmup: int = 20
    """Steps over which the learning rate rises linearly; it follows one cosine to 0."""
    weight_decay: float = 1e-4
    seeds: int = 2
    """Training runs of each architecture at its learning rate, with different seeds."""
    choice_examples: int = 400
    """Training images that are left out for the choice of the learning rate."""
    calibration_examples: int = 512
    """Training images on which BatchNorm's statistics are measured after training."""
    shots: int = 20
    """Images of each class in a support set, drawn from the training part."""
    supports: int = 3
    """Number of support sets; a proxy is the mean accuracy over them. Each has its own random trunk."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--generator", type=Path, help="file of a graph hypernetwork; without one, the training is done"
    )
    parser.add_argument("--name", default="ranking", help="name of the file that is written with a generator")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    truth = FOLDER / "ranking_truth.json"
    try:
        if options.generator is None:
            train_all(truth, TruthConfig())
        else:
            result = rank_all(truth, TruthConfig(), read_generator(options.generator))
            write_json(FOLDER / f"{options.name}.json", result)
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def train_all(path: Path, config: TruthConfig) -> dict[str, Any]:
    """Train every architecture that is not trained yet, and write the file after each."""
    settings = _settings(config)
    truth = read_json(path) if path.exists() else {"settings": settings, "architectures": draw_architectures(config)}
    _check_settings(path, truth, settings)
    data = load_data(config.data)
    for row in truth["architectures"]:
        if "trained" in row:
            continue
        target = build_ranked(row)
        row["flops"] = count_flops(target)
        row["random trunk"] = score_trunks(target, RandomTrunkRidge(), data, config)
        row["trained"] = train_ranked(target, data, config)
        write_json(path, truth)
        print(row["name"], row["random trunk"]["accuracy"], row["trained"], file=sys.stderr, flush=True)
    return truth


def rank_all(path: Path, config: TruthConfig, generator: tuple[Logah, Mapping[str, Any]]) -> dict[str, Any]:
    """Accuracies of a generator's networks for the trained architectures, and every proxy's tau."""
    if not path.exists():
        raise NotFound(f"{path}: not there; run without --generator first, which trains the architectures")
    truth = read_json(path)
    _check_settings(path, truth, _settings(config))
    rows = truth["architectures"]
    missing = [row["name"] for row in rows if "trained" not in row]
    if missing:
        raise BadOption(
            f"{path}: {len(missing)} of {len(rows)} architectures are not trained yet, the first is {missing[0]!r}; "
            "run without --generator to go on"
        )
    for row in rows:
        row["digest"] = digest_graph(build_ranked(row).skeleton)
    hypernet, about = generator
    check_unseen(hypernet.training_record, rows, config)
    data = load_data(config.data)
    for row in rows:
        row["predicted"] = score_trunks(build_ranked(row), hypernet.without_condition(), data, config)
        row["generated"] = score_trunks(build_ranked(row), hypernet, data, config)
        print(row["name"], row["predicted"]["accuracy"], row["trained"]["accuracy"], file=sys.stderr, flush=True)
    return {
        "settings": truth["settings"],
        "generator": dict(about),
        "resamples": RESAMPLES,
        "tau": {
            group: compare_proxies([row for row in rows if group in ("all", row["space"])])
            for group in ("all", *(space for space, _ in config.spaces))
        },
        "architectures": rows,
    }


def check_unseen(training: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], config: TruthConfig) -> None:
    """Raise BadOption if the generator learnt from one of the architectures or from the data, by its record."""
    seen = set(training.get("member_digests", ()))
    known = [row["name"] for row in rows if row["digest"] in seen]
    if known:
        raise BadOption(
            f"the generator has learnt from {len(known)} of the architectures that are ranked, the first is "
            f"{known[0]!r}; expected none, train it without them"
        )
    learnt = training.get("config", {}).get("data", ())
    if config.data in ([learnt] if isinstance(learnt, str) else learnt):
        raise BadOption(f"the generator has learnt from {config.data!r}, which is for evaluation; expected other data")


def draw_architectures(config: TruthConfig) -> list[dict[str, Any]]:
    """A row (name, space, member, parameters) for each architecture; all graphs are different."""
    rng = torch.Generator().manual_seed(config.seed)
    rows: list[dict[str, Any]] = []
    drawn: set[str] = set()
    for space, count in config.spaces:
        found, misses = 0, 0
        while found < count:
            member = move_off_grid(draw_member(space, rng))
            module = make_meta(member.build)
            digest = digest_graph(module)
            if digest in drawn:
                misses += 1
                if misses > 20 * count:
                    raise BadOption(f"space {space!r} has fewer than {count} different architectures")
                continue
            drawn.add(digest)
            about = {"kind": type(member).__name__, **_plain(member)}
            parameters = sum(p.numel() for p in module.parameters())
            rows.append({"name": f"{space} {found}", "space": space, "member": about, "parameters": parameters})
            found += 1
    return rows


def digest_graph(module: nn.Module) -> str:
    return build_graph(module, torch.zeros(1, 1, 28, 28)).digest


def move_off_grid(member: Member) -> Member:
    """The member with every width half way between sizes of its space; BadOption for an unranked kind of member."""
    if isinstance(member, CnnMember):
        hidden = member.hidden and _between(member.hidden, 8, 64)
        return replace(member, widths=tuple(_between(w, 4, 64) for w in member.widths), hidden=hidden)
    if isinstance(member, MlpMember):
        return replace(member, widths=tuple(_between(w, 8, 256) for w in member.widths))
    if isinstance(member, ResNetMember):
        return replace(member, width=_between(member.width, 4, 24))
    if isinstance(member, ViTMember):
        return replace(member, width=_between(member.width, 8, 96))
    raise BadOption(f"a {type(member).__name__} is not ranked; expected one of {', '.join(KINDS)}")


def _between(size: int, step: int, largest: int) -> int:
    return min(size, largest - step) + step // 2


def build_ranked(row: Mapping[str, Any]) -> Target:
    """The target network of a row; CorruptFile if its number of parameters is not the recorded one."""
    about = {key: tuple(v) if isinstance(v, list) else v for key, v in row["member"].items() if key != "kind"}
    member = KINDS[row["member"]["kind"]](**about)
    module: Any = make_meta(member.build)
    parameters = sum(p.numel() for p in module.parameters())
    if parameters != row["parameters"]:
        raise CorruptFile(
            f"{row['name']!r} has {parameters:,} parameters, expected {row['parameters']:,} as when it was drawn; "
            "delete ranking_truth.json and train again"
        )
    axes = {"head.weight": f"CLASSES in{module.head.in_features}", "head.bias": "CLASSES"}
    return Target.from_module(member.build, axes, arch=row["name"], config={}, input_shape=(1, 28, 28))


def count_flops(target: Target) -> int:
    """Floating-point operations of one image in eval mode, two for each multiply-add of a matrix or convolution."""
    # On the meta device, because fused attention on the CPU is not counted.
    with FlopCounterMode(display=False) as counter:
        target.skeleton(torch.zeros(1, *target.input_shape, device="meta"))
    return counter.get_total_flops()


def score_trunks(target: Target, source: WeightGenerator, data: LabelledData, config: TruthConfig) -> dict[str, Any]:
    """Test accuracies in percent of a source's networks for each support set, and their mean."""
    found = []
    for seed, support in enumerate(draw_supports(data, config)):
        state = source.generate(GenerationRequest(target, Condition(support=support), seed=seed))[0]
        found.append(100 * accuracy(target, state, data.x_test, data.y_test))
    return _mean_of(found)


def draw_supports(data: LabelledData, config: TruthConfig) -> list[SupportSet]:
    rng = torch.Generator().manual_seed(config.seed)
    return [draw_support(data, config.shots, rng=rng) for _ in range(config.supports)]


def train_ranked(target: Target, data: LabelledData, config: TruthConfig) -> dict[str, Any]:
    """Mean test accuracy over seeds in percent after training, at the rate that is best on left-out training images.

    The rate is chosen with the first seed.
    """
    order = torch.randperm(len(data.y_train), generator=torch.Generator().manual_seed(config.seed))
    rest, chosen = order[config.choice_examples :], order[: config.choice_examples]
    learnt = data.x_train[rest], data.y_train[rest]
    choice, states = {}, {}
    for rate in config.learning_rates:
        states[rate] = train(target, learnt, config, rate=rate, seed=0)
        choice[rate] = 100 * accuracy(target, states[rate], data.x_train[chosen], data.y_train[chosen])
    best = max(choice, key=lambda rate: choice[rate])
    ends = [states[best], *(train(target, learnt, config, rate=best, seed=s) for s in range(1, config.seeds))]
    tested = [100 * accuracy(target, state, data.x_test, data.y_test) for state in ends]
    return {"learning_rate": best, "choice": [round(v, 2) for v in choice.values()], **_mean_of(tested)}


def train(target: Target, learnt: tuple[Tensor, Tensor], config: TruthConfig, *, rate: float, seed: int) -> State:
    """The state after AdamW on images and labels from the target's own initialisation."""
    rng = torch.Generator().manual_seed(seed)
    # Convolutions of few channels are 1.5 times as fast in this memory format.
    module = target.load(target.init_state(seed)).train().to(memory_format=torch.channels_last)  # pyright: ignore
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=config.weight_decay)
    for step in range(config.steps):
        rise = min(1.0, (step + 1) / (config.warmup + 1))
        for group in optimizer.param_groups:
            group["lr"] = rate * rise * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        rows = torch.randint(len(learnt[1]), (config.batch_size,), generator=rng)
        images = learnt[0][rows].to(memory_format=torch.channels_last)
        loss = F.cross_entropy(module(images), learnt[1][rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    state = {name: t.detach().contiguous() for name, t in module.state_dict().items()}
    return recalibrate_batchnorm(target, state, learnt[0][: config.calibration_examples])


def compare_proxies(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Each proxy's tau against the accuracies after training, and the lead of `predicted` over the others.

    All have 90 % intervals from the same bootstrap over architectures. `trained again` is the tau of the first seed's
    accuracies against the second's: the most that noise allows.
    """
    trained = np.array([row["trained"]["accuracy"] for row in rows])
    pairs = {proxy: (np.array([_value(row[proxy]) for row in rows]), trained) for proxy in PROXIES}
    first, second = (np.array([row["trained"]["each"][seed] for row in rows]) for seed in (0, 1))
    pairs["trained again"] = first, second
    rng = np.random.default_rng(0)
    draws = [np.arange(len(rows)), *rng.integers(len(rows), size=(RESAMPLES, len(rows)))]
    found = {proxy: np.array([kendall_tau(a[d], b[d]) for d in draws]) for proxy, (a, b) in pairs.items()}
    return {
        "architectures": len(rows),
        **{proxy: _with_interval(taus) for proxy, taus in found.items()},
        "lead": {proxy: _with_interval(found["predicted"] - found[proxy]) for proxy in PROXIES[1:]},
    }


def kendall_tau(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's tau-b of numbers a (n,) and b (n,), -1 to 1; 0 if one of them is constant."""
    of_a, of_b = np.sign(a[:, None] - a), np.sign(b[:, None] - b)
    norm = math.sqrt(np.square(of_a).sum() * np.square(of_b).sum())
    return float((of_a * of_b).sum()) / norm if norm else 0.0


def _value(proxy: Mapping[str, Any] | float) -> float:
    return proxy["accuracy"] if isinstance(proxy, Mapping) else proxy


def _with_interval(values: np.ndarray) -> dict[str, float]:
    """The first value, and the 5th and 95th percentile of the rest."""
    low, high = np.percentile(values[1:], [5, 95])
    return {"value": round(float(values[0]), 3), "low": round(float(low), 3), "high": round(float(high), 3)}


def _mean_of(found: Sequence[float]) -> dict[str, Any]:
    return {"accuracy": round(statistics.mean(found), 2), "each": [round(v, 2) for v in found]}


def _settings(config: TruthConfig) -> dict[str, Any]:
    return {**_plain(config), "spaces": dict(config.spaces)}


def _plain(value: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON values."""
    return {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(value).items()}


def _check_settings(path: Path, truth: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    if truth.get("settings") != settings:
        raise BadOption(f"{path} was begun with other settings; delete it to begin again")


if __name__ == "__main__":
    sys.exit(main())
