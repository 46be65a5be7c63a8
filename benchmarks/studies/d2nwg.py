"""Study of latent diffusion over weights: writes docs/results/d2nwg/SECTION.json.

    python -m benchmarks.studies.d2nwg all --zoo runs/zoo/training
    python -m benchmarks.studies.d2nwg tasks novelty --tasks 2        some sections

Held-out tasks are those of the zoo's `test` runs, which were used neither in training nor for choosing a recipe. Their
support sets come from the train part of the data, scores from the test part. Every accuracy is a mean over samples.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.speed.d2nwg import Bench
from benchmarks.studies.d2nwg_diversity import study_aim, study_diversity
from model_zoo.released import generator_file
from model_zoo.zoo.group_training import Job, Rows, train_group
from model_zoo.zoo.tasks import Task
from model_zoo.zoo.training_zoo import index_runs
from weightgen.condition import Condition, SupportSet
from weightgen.errors import BadOption, WeightgenError
from weightgen.evaluation.novelty import copying_statistic, find_nearest
from weightgen.files.storage import sha256_file, write_json
from weightgen.generators import load_generator
from weightgen.generators.d2nwg.generator import D2nwg
from weightgen.generators.d2nwg.method import SCHEDULERS, D2nwgOptions
from weightgen.references.noise import Noise
from weightgen.references.retrieval import Retrieval
from weightgen.references.soup import Soup
from weightgen.references.zoo import ABOVE_CHANCE
from weightgen.references.zoo_mean import ZooMean
from weightgen.request import GenerationRequest, WeightGenerator
from weightgen.target.predict import accuracy
from weightgen.weightspace.codecs.pca import PcaCodec, token_groups
from weightgen.weightspace.normal_form import to_normal_form

TRAINED_STEPS = 600
STEPS = (1, 2, 5, 10, 20, 50, 100)
OTHER_ARMS = ("unrefined", "retrieval_refined", "own_trunk", "own_trunk_refined", "shuffled_condition")
GUIDANCE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)


def study_tasks(bench: Bench) -> dict[str, Any]:
    """Held-out tasks of the zoo's data sets: accuracy of generated weights and of references."""
    result = {}
    for member, networks in bench.networks.items():
        zoo = bench.references(networks)
        arms: dict[str, WeightGenerator] = {
            "generated": bench.generator,
            "unconditioned_trunk": bench.generator.without_condition(),
            "generated_head": bench.generator.with_generated_head(),
        }
        if zoo is not None:
            embed = bench.generator.embed
            for reference in (
                Retrieval(zoo, embed=embed), Soup(zoo, embed=embed), ZooMean(zoo), Noise(zoo, embed=embed, sigma=0.1)
            ):  # fmt: skip
                arms[reference.name] = reference
        scores: dict[str, list[float]] = {arm: [] for arm in (*arms, *OTHER_ARMS)}
        prepared = [(row, *bench.prepare(networks, task)) for row, task in bench.held_out(networks)]
        for place, (row, target, support, part) in enumerate(prepared):
            for arm, source in arms.items():
                scores[arm].append(bench.score(source, target, support, part))
            plain = D2nwgOptions(refinements=0)
            scores["unrefined"].append(bench.score(bench.generator, target, support, part, options=plain))
            own = bench.score_trunk(target, bench.generator.layouts[member].decode(networks.tokens[row]), support, part)
            scores["own_trunk"].append(own["unrefined"])
            scores["own_trunk_refined"].append(own["refined"])
            if "retrieval" in arms:
                (found,) = arms["retrieval"].generate(GenerationRequest(target, Condition(support=support)))
                nearest = bench.score_trunk(target, to_normal_form(target, found, support.inputs), support, part)
                scores["retrieval_refined"].append(nearest["refined"])
            other = prepared[(place + 1) % len(prepared)][2]
            if len(prepared) > 1 and other.num_classes == support.num_classes:
                scores["shuffled_condition"].append(bench.score(bench.generator, target, other, part))
        result[member] = {
            "tasks": len(prepared), **{arm: statistics.fmean(found) for arm, found in scores.items() if found}
        }  # fmt: skip
        print(member, {k: round(v, 3) for k, v in result[member].items()}, file=sys.stderr)
    return result


def study_reconstruction(bench: Bench) -> dict[str, Any]:
    """Codecs on held-out runs: error of the weights in units of their variance, and accuracy under a solved head."""
    result: dict[str, Any] = {}
    for member, networks in bench.networks.items():
        layout, learnt = bench.generator.layouts[member], bench.generator.codec(member)
        train = networks.tokens[networks.rows("train")]
        codecs: dict[str, Any] = {"vae": learnt}
        for rank in (8, 32, 128):
            if rank <= layout.token_dim:
                codecs[f"pca {rank}"] = PcaCodec.fit(train, layout.mask, token_groups(layout), rank=rank)
        held = bench.held_out(networks)
        rows = torch.tensor([row for row, _ in held])
        found: dict[str, dict[str, Any]] = {}
        with torch.no_grad():
            decoded = {name: c.decode(c.encode(networks.tokens[rows])) for name, c in codecs.items()}
        decoded["original"] = networks.tokens[rows]
        for name, tokens in decoded.items():
            scores = []
            for i, (_, task) in enumerate(held):
                target, support, part = bench.prepare(networks, task)
                state = bench.generator.finish(target, layout.decode(tokens[i]), support)
                scores.append(accuracy(target, state, part.x_test, part.y_test))
            error = float(learnt.weight_loss(networks.tokens[rows], tokens))
            found[name] = {"accuracy": statistics.fmean(scores), "weight_error": error}
            if name in codecs:
                found[name]["latents"] = codecs[name].latent_shape[0] * codecs[name].latent_shape[1]
        result[member] = {"networks": len(held), "weights": int(layout.mask.sum()), "codecs": found}
        print(member, found, file=sys.stderr)
    return result


def study_published(bench: Bench) -> dict[str, Any]:
    """The published tiny network on MNIST and CIFAR-10: new seeds of tasks that the zoo has."""
    result: dict[str, Any] = {}
    for name, member in (("mnist", "cnn-tiny/1x28x28"), ("cifar10", "cnn-tiny/3x28x28")):
        networks = bench.networks[member]
        task = Task(name, tuple(range(10)))
        last: dict[str, float] = {}
        for run in index_runs(bench.zoo):
            if (run["arch"], run["dataset"], tuple(run["classes"])) == ("cnn-tiny", name, task.classes):
                last[run["run_id"]] = run["test_accuracy"][-1]
        learnt = [a for a in last.values() if a * task.ways > ABOVE_CHANCE]
        zoo = bench.references(networks)
        rows: dict[str, Any] = {
            "runs": len(last),
            "zoo_mean": statistics.fmean(last.values()),
            "zoo_mean_of_those_that_learnt": statistics.fmean(learnt),
        }
        for shots in (5, 20, 50):
            target, support, part = bench.prepare(networks, task, shots=shots)
            entry = {
                "generated": bench.score(bench.generator, target, support, part),
                "unconditioned_trunk": bench.score(bench.generator.without_condition(), target, support, part),
                "generated_head": bench.score(bench.generator.with_generated_head(), target, support, part),
                "unrefined": bench.score(bench.generator, target, support, part, options=D2nwgOptions(refinements=0)),
            }
            if zoo is not None:
                entry["soup"] = bench.score(Soup(zoo, embed=bench.generator.embed), target, support, part)
                entry["retrieval"] = bench.score(Retrieval(zoo, embed=bench.generator.embed), target, support, part)
            rows[f"{shots} examples a class"] = entry
        result[name] = rows
        print(name, rows, file=sys.stderr)
    return result


def study_steps(bench: Bench) -> dict[str, Any]:
    """Accuracy on held-out tasks of the first member, by scheduler and number of steps, and by guidance."""
    member, networks = next(iter(bench.networks.items()))
    prepared = [bench.prepare(networks, task) for _, task in bench.held_out(networks)]

    def score(options: D2nwgOptions) -> float:
        found = []
        for target, support, part in prepared:
            request = GenerationRequest(target, Condition(support=support), num_samples=bench.seeds, options=options)
            states = bench.generator.generate(request)
            found.append(statistics.fmean(accuracy(target, s, part.x_test, part.y_test) for s in states))
        return statistics.fmean(found)

    curves = {
        scheduler: {str(steps): score(D2nwgOptions(scheduler, steps)) for steps in STEPS} for scheduler in SCHEDULERS
    }
    guidance = {str(g): score(D2nwgOptions(guidance=g)) for g in GUIDANCE}
    return {"member": member, "tasks": len(prepared), "accuracy": curves, "guidance": guidance}


def study_speed(bench: Bench) -> dict[str, Any]:
    """Seconds for 64 networks sampled and finished, and for as many trained one by one like the zoo's.

    Samples are made with default options, and in one step without refinement.
    """
    member, networks = next(iter(bench.networks.items()))
    (_, task), *_ = bench.held_out(networks)
    target, support, part = bench.prepare(networks, task)
    request = GenerationRequest(target, Condition(support=support), num_samples=64)
    bench.generator.generate(replace(request, num_samples=2))
    seconds = {}
    for way, options in {"sample 64": None, "sample 64 plainly": D2nwgOptions(steps=1, refinements=0)}.items():
        start = time.perf_counter()
        bench.generator.generate(replace(request, options=options))
        seconds[way] = time.perf_counter() - start
    rows = Rows(pool=part.x_train, rows=torch.arange(len(part.y_train)), labels=part.y_train)
    trained_networks = 4
    jobs = [
        Job(rows, rows, seed=i, learning_rate=3e-3, weight_decay=0.01, augment=False) for i in range(trained_networks)
    ]
    start = time.perf_counter()
    for job in jobs:
        list(train_group(
            target, [job], batch_size=32, checkpoint_steps=[TRAINED_STEPS], eval_examples=1,
            device=torch.device("cpu"), stacked=False,
        ))  # fmt: skip
    trained = (time.perf_counter() - start) / trained_networks * 64
    return {
        "member": member,
        "seconds": {**seconds, "train 64": trained},
        "trained": f"{trained_networks} networks, times 16; {TRAINED_STEPS} steps each",
        "ratio": trained / seconds["sample 64"],
        "ratio_plainly": trained / seconds["sample 64 plainly"],
    }


def study_novelty(bench: Bench) -> dict[str, Any]:
    """Whether samples are copies, by distances to the nearest trunk of the zoo, and the gain of choosing a sample.

    A sample is novel if it is no nearer to a trunk of the zoo than 95 in 100 of these are to each other. It is accurate
    if it does no worse on the test part than the retrieved trunk. `chosen` is the best of 16 samples on five held-back
    support examples of every class; the samples are made from the other fifteen.
    """
    result: dict[str, Any] = {}
    for member, networks in bench.networks.items():
        zoo = bench.references(networks)
        if zoo is None:
            continue
        points, chosen, mean = [], [], []
        embed = bench.generator.embed
        others = {r.name: r for r in (Soup(zoo, embed=embed), ZooMean(zoo), Noise(zoo, embed=embed, sigma=0.1))}
        beside: dict[str, list[dict[str, float]]] = {name: [] for name in others}
        floor = float(zoo.leave_one_out.quantile(0.05))
        for _, task in bench.held_out(networks):
            target, support, part = bench.prepare(networks, task)
            retrieved = bench.score(Retrieval(zoo, embed=embed), target, support, part)
            for name, other in others.items():
                (state,) = other.generate(GenerationRequest(target, Condition(support=support)))
                distance = find_nearest(zoo, target, state).distance
                beside[name].append({
                    "distance": distance, "gain": accuracy(target, state, part.x_test, part.y_test) - retrieved
                })  # fmt: skip
            request = GenerationRequest(target, Condition(support=support), num_samples=bench.seeds)
            for state in bench.generator.generate(request):
                points.append({
                    "distance": find_nearest(zoo, target, state).distance,
                    "accuracy": accuracy(target, state, part.x_test, part.y_test),
                    "retrieval": retrieved,
                    "dataset": task.dataset,
                })  # fmt: skip
            kept, held = _hold_back(support, 5)
            states = bench.generator.generate(GenerationRequest(target, Condition(support=kept), num_samples=16))
            on_held = [accuracy(target, s, held.inputs, held.labels) for s in states]
            scores = [accuracy(target, s, part.x_test, part.y_test) for s in states]
            chosen.append(scores[max(range(len(states)), key=on_held.__getitem__)])
            mean.append(statistics.fmean(scores))
        good = [p for p in points if p["distance"] >= floor and p["accuracy"] >= p["retrieval"]]
        result[member] = {
            "samples": len(points),
            "leave_one_out_median": float(zoo.leave_one_out.median()),
            "novel_from": floor,
            "novel": sum(p["distance"] >= floor for p in points) / len(points),
            "accurate": sum(p["accuracy"] >= p["retrieval"] for p in points) / len(points),
            "novel_and_accurate": len(good) / len(points),
            "z_u": copying_statistic([p["distance"] for p in points], zoo.leave_one_out.tolist()),
            "best_of_16_on_held_back": {"mean_sample": statistics.fmean(mean), "chosen": statistics.fmean(chosen)},
            "references": {
                name: {key: statistics.fmean(row[key] for row in rows) for key in ("distance", "gain")}
                for name, rows in beside.items()
            },
            "points": points,
        }
        print(member, {k: v for k, v in result[member].items() if k != "points"}, file=sys.stderr)
    return result


def _hold_back(support: SupportSet, count: int) -> tuple[SupportSet, SupportSet]:
    """The support set without its last `count` examples of every class, and a support set of these."""
    place = torch.zeros_like(support.labels)
    for label in range(support.num_classes):
        here = support.labels == label
        place[here] = torch.arange(int(here.sum())).flip(0)
    parts = (place >= count, place < count)
    return tuple(SupportSet(support.inputs[p], support.labels[p], support.class_names) for p in parts)  # pyright: ignore


SECTIONS: dict[str, Callable[[Bench], dict[str, Any]]] = {
    "tasks": study_tasks,
    "reconstruction": study_reconstruction,
    "published": study_published,
    "steps": study_steps,
    "speed": study_speed,
    "novelty": study_novelty,
    "diversity": study_diversity,
    "aim": study_aim,
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sections", nargs="+", choices=[*SECTIONS, "all"])
    parser.add_argument("--generator", default="d2nwg")
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo/training"))
    parser.add_argument("--tasks", type=int, default=24, help="held-out tasks of each architecture")
    parser.add_argument("--samples", type=int, default=3, help="samples of each task")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results" / "d2nwg")
    options = parser.parse_args(argv)
    try:
        path = generator_file(options.generator)
        generator = load_generator(path)
        if not isinstance(generator, D2nwg):
            raise BadOption(f"{options.generator!r} is not a latent diffusion generator")
        bench = Bench(generator, options.zoo, num_tasks=options.tasks, seeds=options.samples)
        for section in SECTIONS if "all" in options.sections else options.sections:
            head = {"generator": {"name": options.generator, "sha256": sha256_file(path)}, "samples": options.samples}
            options.out.mkdir(parents=True, exist_ok=True)
            write_json(options.out / f"{section}.json", {**head, "results": SECTIONS[section](bench)})
    except WeightgenError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
