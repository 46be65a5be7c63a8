"""Scores of a `d2nwg` in training on the tasks of the zoo's runs: of its codecs and of its samples."""

from typing import Any

import torch

from model_zoo.architectures import build_target
from model_zoo.zoo.networks import Networks
from training.zoo_tasks import Images, draw_task
from weightgen.condition import Condition, SupportSet
from weightgen.generators.d2nwg.generator import D2nwg
from weightgen.request import GenerationRequest
from weightgen.spec import State
from weightgen.target.predict import accuracy


@torch.no_grad()
def evaluate(
    model: D2nwg, networks: dict[str, Networks], *, tasks_each: int, seed: int, split: str = "val"
) -> dict[str, Any]:
    """Mean accuracy under a solved head, over tasks of the runs of a split, on test images, with 20 shots.

    `original` is the run's own trunk. `decoded` is the trunk that its latents give back. `generated` is a sample for a
    support set of the task, `unrefined` is the same sample before refinement. `unconditioned` is a sample without a
    support set.
    """
    images, rng = Images("test"), torch.Generator().manual_seed(seed)
    found: dict[str, dict[str, float]] = {}
    for member, known in networks.items():
        rows = known.rows(split)
        if not rows and split == "val":
            rows = known.rows("train")  # a very small zoo has no `val` runs
        if not rows:
            continue
        rows = rows[:: max(1, len(rows) // tasks_each)][:tasks_each]
        scores: dict[str, list[float]] = {}
        for i in rows:
            task = draw_task(known, i, images, shots=20, queries=50, rng=rng)
            support = SupportSet(task.support, task.support_labels, tuple(str(c) for c in range(task.num_classes)))
            codec, layout = model.codec(member), model.layouts[member]
            trunks = {"original": layout.decode(known.tokens[i])}
            trunks["decoded"] = layout.decode(codec.decode(codec.encode(known.tokens[i : i + 1]))[0])
            target = build_target(
                known.target.spec.arch, num_classes=task.num_classes, in_channels=known.target.input_shape[0]
            )
            request = GenerationRequest(target, Condition(support=support), seed=seed)
            trunks["unrefined"] = _first(model.decode_trunks(member, model.sample(request)))
            trunks["unconditioned"] = _first(model.decode_trunks(member, model.sample(request, conditioned=False)))
            states = {name: model.finish(target, trunk, support) for name, trunk in trunks.items()}
            states["generated"] = model.finish(target, trunks["unrefined"], support, refinements=None)
            for name, state in states.items():
                scores.setdefault(name, []).append(accuracy(target, state, task.query, task.query_labels))
        found[member] = {name: round(sum(v) / len(v), 4) for name, v in scores.items()}
        held = known.tokens[rows]
        found[member]["weight_error"] = round(float(model.codec(member).weight_loss(
            held, model.codec(member).decode(model.codec(member).encode(held))
        )), 4)  # fmt: skip
    return found


def reconstruction(scores: dict[str, float]) -> dict[str, float]:
    """Those scores of `evaluate` that are about the codec."""
    return {key: scores[key] for key in ("original", "decoded", "weight_error")}


def _first(stacked: State) -> State:
    return {name: t[0] for name, t in stacked.items()}
