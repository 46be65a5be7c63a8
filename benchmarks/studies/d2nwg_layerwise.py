"""Study of d2nwg-layerwise on networks larger than its context: reconstruction, generation, and memory.

    python -m benchmarks.studies.d2nwg_layerwise \\
        --zoo runs/zoo/resnet20 --generator runs/layerwise/denoiser.safetensors \\
        --json docs/results/d2nwg/layerwise.json

It takes about ten minutes on one thread. The networks are our ResNet-20s of CIFAR-10 and the published ResNet-32, -44
and -56. Some of our runs and the ResNet-56 are held out. All are scored in the same way on CIFAR-10's test images: with
BatchNorm's statistics and class head from one support set, also for references and originals. Scores are averaged over
samples; none is picked.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model_zoo.data import load_data
from model_zoo.published.cifar_resnets import KnownResNet, load_resnets, resnet_target, restack
from weightgen.condition import SupportSet
from weightgen.errors import WeightgenError
from weightgen.files.storage import read_json, write_json
from weightgen.generators.d2nwg.layerwise import D2nwgLayerwise
from weightgen.generators.d2nwg.method import SchedulerOptions
from weightgen.labelled_data import LabelledData, draw_support
from weightgen.references.zoo import trunk_distance
from weightgen.spec import State, StateSpec
from weightgen.target.network import Target
from weightgen.target.predict import accuracy
from weightgen.target.trunk import trunk_spec
from weightgen.weightspace.canonical import align, balance
from weightgen.weightspace.codecs.window_vae import WindowVae

SHOTS = (20, 50)
LINEAR_RANKS = (16, 36, 72, 96)
PARTS = ("references", "linear", "generators", "memory")
CONTEXTS, DEPTHS = (16, 64, 256, 1024), (20, 32, 56, 110)
DEPTH, DEEP = 20, 56
"""Depth of the generated networks, and of one deeper network, which is the depth of the held-out ResNet."""
ASKED = 0.93
"""The accuracy asked for: that of the published networks."""


@dataclass(frozen=True, slots=True)
class Judge:
    """One support set and the test images of its data set."""

    support: SupportSet
    data: LabelledData
    finish: Callable[[Target, Mapping[str, Tensor], SupportSet], State]

    def score(self, target: Target, trunk: Mapping[str, Tensor]) -> float:
        """Accuracy of a trunk with statistics and head from the support set."""
        return accuracy(target, self.finish(target, trunk, self.support), self.data.x_test, self.data.y_test)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--zoo", type=Path, required=True, help="folder of our ResNet-20s")
    parser.add_argument("--generator", type=Path, required=True, action="append", help="generator file; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add the figures to this file")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; repeatable; all if not given")
    parser.add_argument("--samples", type=int, default=3, help="networks generated in each way")
    parser.add_argument("--steps", type=int, default=SchedulerOptions().steps, help="steps of sampling, by default")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    try:
        known, data = load_resnets(options.zoo), load_data("cifar10")
        generators = {path.parent.name: D2nwgLayerwise.load(path) for path in options.generator}
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    first = next(iter(generators.values()))
    judges = {
        shots: Judge(draw_support(data, shots, rng=torch.Generator().manual_seed(0)), data, first.finish)
        for shots in SHOTS
    }
    parts = options.part or PARTS
    report: dict[str, Any] = read_json(options.json) if options.json and options.json.exists() else {}
    report["networks"] = describe_networks(known, first)
    for section in ("reconstruction", "generation", "training"):
        report.setdefault(section, {})
    if "references" in parts:
        report["references"] = score_references(known, judges)
    for rank in LINEAR_RANKS if "linear" in parts else ():
        linear = fit_linear(first, [k for k in known if not k.held_out], rank=rank)
        report["reconstruction"][f"linear, {rank} latents"] = say(f"linear {rank}", score_codec(linear, known, judges))
    for name, generator in generators.items() if "generators" in parts else ():
        report["training"][name] = generator.training_record
        label = f"{name}, {generator.config.latent_dim} latents"
        report["reconstruction"][label] = say(label, score_codec(generator, known, judges))
        if "denoiser" in generator.training_record.get("spent", {}):
            samples = score_samples(generator, known, judges, samples=options.samples, steps=options.steps)
            report["generation"][name] = say(name, samples)
    if "memory" in parts:
        report["memory"] = measure_memory(first)
    if options.json:
        write_json(options.json, report)
    return 0


def say(name: str, found: dict[str, Any]) -> dict[str, Any]:
    for key, value in found.items():
        print(f"{name}: {key} {value}", file=sys.stderr, flush=True)
    return found


def describe_networks(known: Sequence[KnownResNet], generator: D2nwgLayerwise) -> dict[str, Any]:
    """Architecture -> its size in parameters, tokens and windows, and its number of networks."""
    found: dict[str, Any] = {}
    for k in known:
        windows = generator.split(k.target.spec)
        learnt = {name for name, _ in k.target.skeleton.named_parameters()}
        about = found.setdefault(k.target.spec.arch, {
            "parameters": sum(t.numel for t in k.target.spec.tensors if t.name in learnt),
            "tokens": windows.num_tokens,
            "windows": len(list(windows.cut(generator.config.context))),
            "train": 0,
            "held_out": 0,
            "licence": k.licence,
        })  # fmt: skip
        about["held_out" if k.held_out else "train"] += 1
    return found


def group_networks(known: Sequence[KnownResNet]) -> dict[str, list[KnownResNet]]:
    """Name of a group -> networks that are reported together."""
    groups: dict[str, list[KnownResNet]] = {}
    for k in known:
        ours = k.target.spec.arch == f"resnet{DEPTH}"
        name = ("ours, " if ours else f"{k.name}, ") + ("held out" if k.held_out else "train")
        groups.setdefault(name, []).append(k)
    return groups


def fit_linear(like: D2nwgLayerwise, train: Sequence[KnownResNet], *, rank: int) -> D2nwgLayerwise:
    """The reference codec: principal components of the tokens of each kind of layer, without training."""
    config = replace(like.config, latent_dim=rank)
    linear = D2nwgLayerwise(like.statistics, like.input_shape, config).requires_grad_(False)
    linear.codec = WindowVae(num_kinds=len(like.statistics), token_dim=config.token_dim, latent_dim=rank)
    tokens, kinds = [], []
    for k in train:
        windows = like.split(k.target.spec)
        every = range(windows.num_tokens)
        tokens.append(windows.read(k.trunk, every))
        kinds.append(windows.kind_indices(every))
    linear.codec.set_components(torch.cat(tokens), torch.cat(kinds))
    return linear


def score_codec(generator: D2nwgLayerwise, known: Sequence[KnownResNet], judges: Mapping[int, Judge]) -> dict[str, Any]:
    """Errors of reconstructions: in weights, in units of their variance, and in accuracy."""
    found = {}
    for name, networks in group_networks(known).items():
        errors, scores = [], []
        for k in networks if "held out" in name else networks[:4]:
            decoded = generator.reconstruct(k.target.spec, k.trunk)
            errors.append(weight_error(generator, k.target.spec, k.trunk, decoded))
            scores.append(judges[SHOTS[0]].score(k.target, decoded))
        found[name] = {"weight_error": mean(errors), "accuracy": mean(scores)}
    return found


def weight_error(generator: D2nwgLayerwise, spec: StateSpec, trunk: State, decoded: State) -> float:
    """Mean squared error of tokens, divided by their mean square."""
    windows = generator.split(spec)
    a, b = (windows.read(t, range(windows.num_tokens)) for t in (trunk, decoded))
    return float((a - b).square().sum() / a.square().sum())


def score_references(known: Sequence[KnownResNet], judges: Mapping[int, Judge]) -> dict[str, Any]:
    """Accuracies of simple ways to make a ResNet-20, and of the networks, with solved statistics and heads."""
    target = resnet_target(DEPTH)
    ours = [k for k in known if k.target.spec.arch == target.spec.arch]
    train = [k for k in ours if not k.held_out]
    best = max(train, key=lambda k: k.accuracy)
    trunks = {
        "random trunk": [target.init_state(seed) for seed in range(3)],
        "mean of training runs": [average(train)],
        "mean of two training runs": [average(pair) for pair in list(zip(train[::2], train[1::2], strict=False))[:3]],
        "a training run": [k.trunk for k in train],
        "the training run of highest accuracy": [best.trunk],
        "held-out runs": [k.trunk for k in ours if k.held_out],
    }
    published = [k for k in known if k.target.spec.arch != target.spec.arch]
    trunks |= {f"blocks of {k.name}": [restack(k.trunk, target)] for k in published if not k.held_out}
    found: dict[str, Any] = {}
    for shots, judge in judges.items():
        rows = {name: mean([judge.score(target, t) for t in each]) for name, each in trunks.items()}
        rows |= {k.name: judge.score(k.target, k.trunk) for k in published}
        deep = resnet_target(DEEP)
        rows[f"random trunk of {deep.spec.arch}"] = judge.score(deep, deep.init_state(0))
        for k in (k for k in published if not k.held_out):
            rows[f"blocks of {k.name}, repeated in {deep.spec.arch}"] = judge.score(deep, restack(k.trunk, deep))
        found[f"{shots} a class"] = say(f"{shots} a class", rows)
    return found


def average(networks: Sequence[KnownResNet]) -> State:
    return {name: torch.stack([k.trunk[name] for k in networks]).mean(0) for name in networks[0].trunk}


def score_samples(
    generator: D2nwgLayerwise,
    known: Sequence[KnownResNet],
    judges: Mapping[int, Judge],
    *,
    samples: int,
    steps: int,
) -> dict[str, Any]:
    """Mean accuracy of `samples` networks generated in several ways, and their novelty."""
    target = resnet_target(DEPTH)
    found: dict[str, Any] = {}
    for shots, judge in judges.items():
        summary = generator.summarise(judge.support)
        by_support, asked = generator.condition(summary, None), generator.condition(summary, ASKED)
        count = -(-generator.split(target.spec).num_tokens // generator.config.context)
        shuffled = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
        ways: dict[str, tuple[Tensor, SchedulerOptions, dict[str, Any]]] = {
            "generated": (by_support, SchedulerOptions(steps=steps), {}),
            "one step": (by_support, SchedulerOptions(steps=1), {}),
            "three steps": (by_support, SchedulerOptions(steps=3), {}),
            f"accuracy {ASKED} asked for": (asked, SchedulerOptions(steps=steps), {}),
            "no condition": (generator.condition(None, None), SchedulerOptions(steps=steps), {}),
            "no tail": (by_support, SchedulerOptions(steps=steps), {"sees_tail": False}),
            "windows in shuffled order": (by_support, SchedulerOptions(steps=steps), {"order": shuffled}),
        }
        for name, (condition, sampling, options) in ways.items():
            if shots != SHOTS[0] and name not in ("generated", "one step"):
                continue
            trunks = [
                generator.sample_trunk(
                    target.spec, condition, sampling, rng=torch.Generator().manual_seed(seed), **options
                )
                for seed in range(samples)
            ]
            scores = [judge.score(target, t) for t in trunks]
            about = {"accuracy": mean(scores), "deviation": statistics.pstdev(scores)}
            if shots == SHOTS[0] and name in ("generated", "one step"):
                about |= measure_novelty(target, trunks, known)
            found[f"{name}, {shots} a class"] = about
    deep = resnet_target(DEEP)
    rng = torch.Generator().manual_seed(0)
    trunk = generator.sample_trunk(deep.spec, by_support, SchedulerOptions(steps=1), rng=rng)
    found[f"a ResNet-{DEEP}, one step, {SHOTS[-1]} a class"] = {"accuracy": judges[SHOTS[-1]].score(deep, trunk)}
    return found


def measure_novelty(target: Target, trunks: Sequence[State], known: Sequence[KnownResNet]) -> dict[str, Any]:
    """Distances of these trunks and of held-out ones to the nearest training network; unrelated: about 1.4."""
    spec, scalable = trunk_spec(target.spec), target.skeleton.SCALABLE
    train = [k.trunk for k in known if not k.held_out and k.target.spec.arch == target.spec.arch]
    train += [restack(k.trunk, target) for k in known if not k.held_out and k.target.spec.arch != target.spec.arch]
    held_out = [k.trunk for k in known if k.held_out and k.target.spec.arch == target.spec.arch]

    def nearest(trunk: State) -> float:
        return min(trunk_distance(target, align(trunk, other, spec), other) for other in train)

    made = []
    for trunk in trunks:
        full = target.spec.complete({**target.init_state(0), **trunk})
        balanced = balance(full, target.spec, scalable=scalable)  # pyright: ignore[reportArgumentType]
        made.append({t.name: balanced[t.name] for t in spec.tensors})
    pairs = [trunk_distance(target, a, b) for i, a in enumerate(made) for b in made[:i]]
    return {
        "nearest": mean([nearest(t) for t in made]),
        "nearest_of_held_out": mean([nearest(t) for t in held_out]),
        "between_samples": mean(pairs) if pairs else None,
    }


def measure_memory(like: D2nwgLayerwise) -> dict[str, Any]:
    """Peak tensor memory while a trunk is sampled, minus the trunk itself, by context and by depth."""

    def measure(depth: int, context: int) -> dict[str, int]:
        spec = resnet_target(depth).spec
        generator = D2nwgLayerwise(like.statistics, like.input_shape, replace(like.config, context=context))
        generator.load_state_dict(like.state_dict())
        condition, rng, made = generator.condition(None, None).detach(), torch.Generator().manual_seed(0), []
        options = SchedulerOptions(steps=3)
        peak = peak_memory(lambda: made.append(generator.sample_trunk(spec, condition, options, rng=rng)))
        held = sum(t.numel() * t.element_size() for t in made[0].values())
        return {"trunk_bytes": held, "bytes_besides": peak - held}

    context = like.config.context
    return {
        f"by context, resnet{DEPTH}": say("memory", {str(c): measure(DEPTH, c) for c in CONTEXTS}),
        f"by network, context {context}": say("memory", {f"resnet{d}": measure(d, context) for d in DEPTHS}),
    }


def peak_memory(run: Callable[[], Any]) -> int:
    """Peak bytes of the tensors that `run` makes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    assert profile.profiler is not None and profile.profiler.kineto_results is not None
    events: list[Any] = profile.profiler.kineto_results.events()
    moves = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    alive = peak = 0
    for _, size in sorted(moves, key=lambda move: move[0]):
        alive += size
        peak = max(peak, alive)
    return peak


def mean(values: Sequence[float]) -> float:
    return round(statistics.mean(values), 4)


if __name__ == "__main__":
    sys.exit(main())
