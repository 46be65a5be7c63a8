"""First stage of `d2nwg`: a codec for every member of the zoo, from tokens to a few latents and back."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model_zoo.zoo.networks import Networks
from training.d2nwg.recipe import D2nwgTraining, draw_member, draw_rows, own_behaviour
from training.loop import Group, Losses, Recipe, Span, train
from training.zoo_tasks import Images
from weightgen.generators.d2nwg.generator import D2nwg
from weightgen.weightspace.codecs.vae import kl_divergence


def train_codecs(
    model: D2nwg, networks: dict[str, Networks], *, config: D2nwgTraining, budget: Span, folder: Path
) -> dict[str, Any]:
    """Train all codecs, one batch of one member in each step, and scale their latents; returns what was spent."""
    rows = {m: n.rows("train") for m, n in networks.items()}
    for member, known in networks.items():
        model.codec(member).set_scaling(known.tokens[rows[member]])
    run = train(codec_recipe(model, networks, config), config.loop(budget, seed=config.seed), folder)
    for member, known in networks.items():
        model.codec(member).set_latent_scaling(known.tokens[rows[member]])
    return run.summary()


def codec_recipe(model: D2nwg, networks: dict[str, Networks], config: D2nwgTraining) -> Recipe:
    """In each step the networks of one member: their tokens, their latents and their behaviour."""
    images = Images("train")
    rows = {m: n.rows("train") for m, n in networks.items()}
    heads = [p for n, p in model.named_parameters() if n.startswith("log_")]

    def losses(_steps: int, _progress: float, rng: torch.Generator) -> Losses:
        member = draw_member(rows, rng=rng)
        known, codec = networks[member], model.codec(member)
        picked = draw_rows(rows[member], config.batch_size, rng=rng)
        tokens = known.tokens[picked]
        mean, log_var = codec.encode_distribution(tokens)
        noise = (log_var.exp() + config.latent_noise**2 * mean.detach().var(0)).sqrt()
        decoded = codec.decode_raw(mean + noise * torch.randn(mean.shape, generator=rng))
        size = config.behaviour_size
        behaviour, accuracy = own_behaviour(model, known, decoded[:size], picked[:size], images, rng)
        terms = {
            "weights": config.weights * codec.weight_loss(tokens, decoded),
            "kl": config.kl * kl_divergence(mean, log_var),
            "behaviour": config.behaviour * behaviour,
        }
        return Losses(terms, {f"accuracy {member}": accuracy})

    return Recipe(
        name="codec",
        module=model,
        groups=[Group(list(model.codecs.parameters()), config.learning_rate), Group(heads, 0.01)],
        losses=losses,
        settings={**asdict(config), "networks": {m: len(n.tokens) for m, n in networks.items()}},
    )
