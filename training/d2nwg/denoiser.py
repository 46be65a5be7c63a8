"""Second stage of `d2nwg`: the encoder of support sets and the denoiser learn from the latents of the first stage.

Decoders and head go on learning behaviour, at a lower rate.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model_zoo.data import load_data
from model_zoo.zoo.networks import Networks
from training.d2nwg.recipe import D2nwgTraining, behaviour_loss, draw_member, draw_rows, own_behaviour
from training.d2nwg.sampling import draw_few_levels, lower_noise
from training.episodes import ClassPool, Episode
from training.loop import Group, Losses, Recipe, Span, train
from training.zoo_tasks import Images, draw_task
from weightgen.generators.d2nwg.diffusion import add_noise, draw_noise_levels
from weightgen.generators.d2nwg.generator import D2nwg
from weightgen.spec import State


def train_denoiser(
    model: D2nwg,
    networks: dict[str, Networks],
    *,
    config: D2nwgTraining,
    first_stage: Sequence[str],
    budget: Span,
    folder: Path,
) -> dict[str, Any]:
    """Train the second stage and return what was spent; `first_stage` are the digests of the files it builds on."""
    recipe = denoiser_recipe(model, networks, config, first_stage)
    return train(recipe, config.loop(budget, seed=config.seed + 1), folder).summary()


def denoiser_recipe(
    model: D2nwg, networks: dict[str, Networks], config: D2nwgTraining, first_stage: Sequence[str]
) -> Recipe:
    """In each step one member: noisy latents of its networks are cleaned, and new samples are run on new tasks."""
    images = Images("train")
    rows = {m: n.rows("train") for m, n in networks.items()}
    with torch.no_grad():
        latents = {m: torch.cat([model.codec(m).encode(t) for t in n.tokens.split(256)]) for m, n in networks.items()}
    names = sorted({n.datasets[i] for m, n in networks.items() for i in rows[m]})
    pool = ClassPool({name: images.pool(name, load_data(name).in_channels or 1) for name in names})
    project = nn.Linear(latents[next(iter(latents))][0].numel(), model.config.encoder_dim)
    fresh = [p for n, p in model.named_parameters() if p.requires_grad and not n.startswith(("codecs", "log_"))]
    heads = [p for n, p in model.named_parameters() if n.startswith("log_")]

    def losses(_steps: int, _progress: float, rng: torch.Generator) -> Losses:
        member = draw_member(rows, rng=rng)
        known = networks[member]
        picked = draw_rows(rows[member], config.latents_size, rng=rng)
        clean = latents[member][picked]
        shots = int(torch.randint(2, 7, (1,), generator=rng))  # few: they take most of a step
        tasks = [draw_task(known, i, images, shots=shots, queries=1, rng=rng) for i in picked]
        _, summaries = _encode(model, tasks)
        level = draw_noise_levels(len(picked), rng=rng)
        noisy = add_noise(clean, level, rng=rng)
        condition = _draw_condition(model, known, picked, summaries, config, rng)
        weight = (level.exp() + 1).clamp(max=5.0) / 5.0
        error = (model.denoiser(noisy, level, condition) - clean).square().mean((1, 2))
        terms = {"denoising": (weight * error).mean()}
        terms["alignment"] = config.alignment * _contrast(summaries, project(clean.flatten(1)), known, picked)
        decoded = model.codec(member).decode(clean)
        terms["weights"] = config.weights * model.codec(member).weight_loss(known.tokens[picked], decoded)
        own, kept = own_behaviour(model, known, decoded[:1], picked[:1], images, rng)
        terms["own behaviour"] = config.behaviour * own
        behaved, reached = _behave_on_samples(model, known, pool, config, rng)
        return Losses(terms | behaved, {f"accuracy {member}": reached, f"own {member}": kept})

    return Recipe(
        name="denoiser",
        module=nn.ModuleDict({"model": model, "project": project}),
        groups=[
            Group([*fresh, *project.parameters()], config.learning_rate),
            Group(list(model.codecs.parameters()), 0.3 * config.learning_rate),
            Group(heads, 0.01),
        ],
        losses=losses,
        settings={
            **asdict(config),
            "networks": {m: len(n.tokens) for m, n in networks.items()},
            "first_stage": list(first_stage),
        },
    )


def _behave_on_samples(
    model: D2nwg, known: Networks, pool: ClassPool, config: D2nwgTraining, rng: torch.Generator
) -> tuple[dict[str, Tensor], float]:
    """Losses and accuracy of the denoiser's own samples on new tasks.

    A sample takes a few steps from noise; only the last one has a gradient.
    """
    count = config.sample_size
    channels = known.target.input_shape[0]
    tasks = [_with_channels(pool.draw(config.episodes, rng=rng), channels) for _ in range(count)]
    prototypes, summaries = _encode(model, tasks)
    dropped = torch.rand(count, generator=rng) < config.without_support
    refined = float(torch.rand(1, generator=rng)) >= config.unrefined
    summaries = torch.where(dropped[:, None], model.no_support, summaries)
    condition = model.condition([known.member] * count, summaries, [None] * count)
    levels = draw_few_levels(rng=rng)
    noisy = torch.randn(count, model.config.num_latents, model.config.latent_dim, generator=rng)
    for i, level in enumerate(levels):
        last = i == len(levels) - 1
        with torch.set_grad_enabled(last):
            clean = model.denoiser(noisy, level.expand(count), condition if last else condition.detach())
        if not last:
            noisy = lower_noise(noisy, clean, level, levels[i + 1])
    trunks, found = model.decode_trunks(known.member, clean), []
    for i, task in enumerate(tasks):
        trunk: State = {n: t[i] for n, t in trunks.items()}
        if refined:
            trunk = model.refine(known.target, trunk, task.support, task.support_labels, task.num_classes)
        found.append(behaviour_loss(model, known.target, trunk, task))
    losses = {"behaviour": config.behaviour * torch.stack([loss for loss, _, _ in found]).mean()}
    by_rows = []
    for task, rows, latents, (_, _, features) in zip(tasks, prototypes, clean, found, strict=True):
        head = model.generate_head(known.member, rows, latents.detach())
        logits = features @ head.weight.T + head.bias
        by_rows.append(F.cross_entropy(logits, task.query_labels) / math.log(task.num_classes))
    losses["generated head"] = config.generated_head * torch.stack(by_rows).mean()
    return losses, sum(a for _, a, _ in found) / count


def _contrast(summaries: Tensor, latents: Tensor, known: Networks, picked: list[int]) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748): a task's summary belongs to its networks' latents."""
    logits = F.normalize(summaries, dim=1) @ F.normalize(latents, dim=1).T / 0.1
    tasks = [(known.datasets[i], known.classes[i]) for i in picked]
    same = torch.tensor([[float(a == b) for b in tasks] for a in tasks])
    wanted = same / same.sum(1, keepdim=True)
    return 0.5 * (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted))


def _draw_condition(
    model: D2nwg,
    known: Networks,
    picked: list[int],
    summaries: Tensor,
    config: D2nwgTraining,
    rng: torch.Generator,
) -> Tensor:
    """The condition of these networks; parts of it are left out at random."""
    draws = torch.rand(2, len(picked), generator=rng)
    summaries = torch.where((draws[0] < config.without_support)[:, None], model.no_support, summaries)
    accuracies = known.accuracies[picked].tolist()
    aims = [None if draw < config.without_accuracy else a for draw, a in zip(draws[1], accuracies, strict=True)]
    return model.condition([known.member] * len(picked), summaries, aims)


def _encode(model: D2nwg, tasks: Sequence[Episode]) -> tuple[list[Tensor], Tensor]:
    """Prototypes and summaries of the support sets of some tasks."""
    images, labels = [t.support for t in tasks], [t.support_labels for t in tasks]
    return model.encoder(images, labels, [t.num_classes for t in tasks])


def _with_channels(task: Episode, channels: int) -> Episode:
    """The same task with images of three channels, or with their mean as one."""
    if channels == 3:
        return task
    support, query = task.support.mean(1, keepdim=True), task.query.mean(1, keepdim=True)
    return Episode(support, task.support_labels, query, task.query_labels, task.num_classes)
