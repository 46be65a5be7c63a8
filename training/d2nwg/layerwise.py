"""Train the layer-wise mode of `d2nwg` on ResNets of CIFAR-10: our ResNet-20s, and the published ResNet-32 and -44.

    python -m model_zoo build --arch resnet20 --data cifar10 --in-channels 3 --out runs/zoo/resnet20 ...
    python -m training.d2nwg layerwise codec --zoo runs/zoo/resnet20 --out runs/layerwise       # windows to latents
    python -m training.d2nwg layerwise denoiser --zoo runs/zoo/resnet20 --out runs/layerwise    # latents from noise

The default options give a codec that is faithful to weights. Samples are better with few latents and a behaviour loss
in every step: `codec --latents 4 --base 1` and then `denoiser`, both with `--behaviour-every 1 --learning-rate 2e-3`.

The codec learns to give back the tokens of windows. Decoded networks also have to do CIFAR-10 under a solved head, and
their features have to be like those of a published network (behaviour). The denoiser learns to recover latents from
noise, given their places and the tail of the window before. Its own samples, decoded, have to behave in the same way.
Every fifth of our runs and the whole published ResNet-56 are held out.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from model_zoo.data import load_data
from model_zoo.published.cifar_resnets import KnownResNet, load_resnets
from training.command import RunFolder, StepsOption
from training.d2nwg.sampling import draw_few_levels, lower_noise
from training.loop import Group, LoopSettings, Losses, Recipe, Span, budget_of, train
from weightgen.errors import BadOption
from weightgen.files.storage import sha256_file
from weightgen.generators.d2nwg.diffusion import add_noise, draw_noise_levels
from weightgen.generators.d2nwg.layerwise import HEAD_STEPS, D2nwgLayerwise, LayerwiseConfig
from weightgen.labelled_data import LabelledData
from weightgen.solve.head import ridge_head, step_to_softmax
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.target.trunk import trunk_features
from weightgen.weightspace.codecs.vae import kl_divergence
from weightgen.weightspace.normal_form import fit_to_data
from weightgen.weightspace.windows import Windows, measure_statistics

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@dataclass(frozen=True)
class D2nwgLayerwiseTraining:
    """Settings of both stages."""

    model: LayerwiseConfig = field(default_factory=LayerwiseConfig)
    batch_size: int = 16
    """Windows in a step."""
    learning_rate: float = 1e-3
    published: float = 0.3
    """Share of windows that come from published networks; the others come from our own runs."""
    kl: float = 1e-5
    latent_noise: float = 0.2
    behaviour_every: int = 4
    """A whole network is run on images once in so many steps; 0 for never."""
    behaviour: float = 1.0
    similarity: float = 1.0
    """Weight of the similarity between the features of a trunk and those of a published one."""
    images: int = 200
    """Images in a behaviour loss: half of them are the support set, half are queries."""
    without_support: float = 0.15
    without_accuracy: float = 0.5
    without_tail: float = 0.15
    tail_noise: float = 0.2
    seed: int = 0

    def loop(self, budget: Span, *, seed: int) -> LoopSettings:
        return LoopSettings(
            budget=budget, seed=seed, warmup=30, fall="quarter cosine", floor=0.02, average=0.99, average_warmup=9
        )


@dataclass(frozen=True, eq=False)
class Tokens:
    """A network's tokens, all windows together."""

    known: KnownResNet
    windows: Windows
    tokens: Tensor
    """(n, d)"""
    kinds: Tensor
    places: Tensor
    mask: Tensor

    @classmethod
    def of(cls, known: KnownResNet, model: D2nwgLayerwise) -> "Tokens":
        windows = model.split(known.target.spec)
        every = range(windows.num_tokens)
        return cls(
            known, windows, windows.read(known.trunk, every), windows.kind_indices(every), windows.places(every),
            windows.mask(every),
        )  # fmt: skip

    def groups(self, context: int) -> Iterator[Tensor]:
        """Indices (b, k) of all windows in order: first the full ones together, then the shorter last one."""
        full = len(self.tokens) // context
        index = torch.arange(len(self.tokens))
        if full:
            yield index[: full * context].view(full, context)
        if full * context < len(self.tokens):
            yield index[None, full * context :]


class Images:
    """The training images of CIFAR-10, with the features that a published network has for each of them."""

    def __init__(self, data: LabelledData, teacher: KnownResNet | None) -> None:
        self.inputs, self.labels, self.num_classes = data.x_train, data.y_train, data.num_classes
        self.seen: Tensor | None = None
        if teacher is not None:
            with torch.no_grad():
                parts = [see(teacher, torch.cat([x, x.flip(3)])) for x in self.inputs.split(250)]
            both = [part.chunk(2) for part in parts]
            self.seen = torch.stack([torch.cat([p[i] for p in both]) for i in range(2)])

    def draw(self, count: int, *, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Images of all classes alike, half of them mirrored, with labels and the published network's features."""
        order = torch.randperm(len(self.labels), generator=rng)
        order = order[torch.argsort(self.labels[order], stable=True)]
        per_class = count // self.num_classes
        sizes = torch.bincount(self.labels, minlength=self.num_classes).tolist()
        rows = torch.stack([part[:per_class] for part in order.split(sizes)], 1).flatten()
        mirrored = torch.rand(len(rows), generator=rng) < 0.5
        x = torch.where(mirrored[:, None, None, None], self.inputs[rows].flip(3), self.inputs[rows])
        seen = None if self.seen is None else self.seen[mirrored.long(), rows]
        return x, self.labels[rows], seen


def see(known: KnownResNet, inputs: Tensor) -> Tensor:
    """The features (n, d) that the head of a known network gets for images, with the statistics of its training."""
    state = known.target.spec.complete({**known.trunk, **_no_head(known.target)})
    return trunk_features(known.target, state, inputs)


def behave(
    target: Target, trunk: State, images: Images, config: D2nwgLayerwiseTraining, *, rng: torch.Generator
) -> tuple[Tensor, float]:
    """Behaviour loss and accuracy of a trunk on some images.

    The head is solved on one half of them. The loss is the cross-entropy on the other half, divided by that of
    guessing, plus the distance between the trunk's features and those of the published network.
    """
    x, y, seen = images.draw(config.images, rng=rng)
    _, features = fit_to_data(target, trunk, x)
    half = len(x) // 2
    ridge = ridge_head(features[:half], y[:half], num_classes=images.num_classes)
    head = step_to_softmax(ridge, features[:half], y[:half], steps=HEAD_STEPS)
    logits = features[half:] @ head.weight.T + head.bias
    loss = F.cross_entropy(logits, y[half:]) / math.log(images.num_classes)
    if seen is not None:
        loss = loss + config.similarity * (1 - similarity(features, seen))
    return config.behaviour * loss, float((logits.argmax(1) == y[half:]).float().mean())


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment of features (n, d) and (n, e): Kornblith et al. 2019 (arXiv:1905.00414)."""
    a, b = a - a.mean(0), b - b.mean(0)
    return (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm()).clamp_min(1e-9)


def train_codec(
    model: D2nwgLayerwise,
    networks: Sequence[Tokens],
    images: Images,
    *,
    config: D2nwgLayerwiseTraining,
    budget: Span,
    folder: Path,
) -> dict[str, Any]:
    """Train the first stage and scale its latents to mean zero and unit variance; returns what was spent."""
    kinds = torch.cat([n.kinds for n in networks])
    model.codec.set_components(torch.cat([n.tokens for n in networks]), kinds)
    run = train(codec_recipe(model, networks, images, config), config.loop(budget, seed=config.seed), folder)
    latents = [encode_all(model, n, config.model.context) for n in networks]
    model.codec.set_latent_scaling(torch.cat(latents), kinds)
    return run.summary()


def codec_recipe(
    model: D2nwgLayerwise, networks: Sequence[Tokens], images: Images, config: D2nwgLayerwiseTraining
) -> Recipe:
    """In each step windows of one network are given back; every few steps a whole network is run on images."""

    def losses(steps: int, _progress: float, rng: torch.Generator) -> Losses:
        picked = _draw_network(networks, config, rng)
        index = _draw_windows(picked, config, rng)
        decoded, mean, log_var = _through(model, picked, index, config, rng)
        error = ((decoded - picked.tokens[index]).square() * picked.mask[index]).sum() / picked.mask[index].sum()
        terms, seen = {"error": error, "kl": config.kl * kl_divergence(mean, log_var)}, {}
        if config.behaviour_every and steps % config.behaviour_every == 0:
            whole = _draw_network(networks, config, rng)
            parts = [
                _through(model, whole, i, config, rng)[0].flatten(0, 1) for i in whole.groups(config.model.context)
            ]
            trunk = whole.windows.assemble(torch.cat(parts))
            terms["behaviour"], seen["accuracy"] = behave(whole.known.target, trunk, images, config, rng=rng)
        return Losses(terms, seen)

    return Recipe(
        name="codec",
        module=model,
        groups=[Group(list(model.codec.parameters()), config.learning_rate)],
        losses=losses,
        settings={**asdict(config), "networks": [n.known.name for n in networks]},
    )


@torch.no_grad()
def encode_all(model: D2nwgLayerwise, network: Tokens, context: int) -> Tensor:
    """Standardised latents (n, c) of all windows of a network."""
    parts = [
        model.codec.encode(network.tokens[i], network.kinds[i], network.places[i]).flatten(0, 1)
        for i in network.groups(context)
    ]
    return torch.cat(parts)


def train_denoiser(
    model: D2nwgLayerwise,
    networks: Sequence[Tokens],
    images: Images,
    *,
    config: D2nwgLayerwiseTraining,
    start: str,
    budget: Span,
    folder: Path,
) -> dict[str, Any]:
    """Train the second stage and return what was spent; `start` is the digest of the file that it builds on."""
    recipe = denoiser_recipe(model, networks, images, config, start)
    return train(recipe, config.loop(budget, seed=config.seed + 1), folder).summary()


def denoiser_recipe(
    model: D2nwgLayerwise, networks: Sequence[Tokens], images: Images, config: D2nwgLayerwiseTraining, start: str
) -> Recipe:
    """Training of the denoiser and the encoder of support sets, and of the decoder by its behaviour.

    The encoder of windows is not trained, so that latents keep their meaning.
    """
    context, length = config.model.context, config.model.tail
    latents = {id(n): encode_all(model, n, context) for n in networks}
    fixed = ("codec.linear_in", "codec.into", "codec.encoder", "codec.to_latents")
    small = [n for n in networks if n.known.target is networks[0].known.target]

    def losses(steps: int, _progress: float, rng: torch.Generator) -> Losses:
        picked = _draw_network(networks, config, rng)
        index, clean = _draw_windows(picked, config, rng), latents[id(picked)]
        before = (index[:, :1] - length + torch.arange(length)).clamp_min(0)
        has_tail = (index[:, 0] >= length) & (torch.rand(len(index), generator=rng) >= config.without_tail)
        tail = clean[before] + config.tail_noise * torch.randn(*before.shape, clean.shape[1], generator=rng)
        condition = _draw_condition(model, picked.known, images, config, rng)
        level = draw_noise_levels(len(index), rng=rng)
        guess = model.denoiser(
            add_noise(clean[index], level, rng=rng), level, condition.expand(len(index), -1),
            places=picked.places[index], tail=tail, tail_places=picked.places[before], has_tail=has_tail.float(),
        )  # fmt: skip
        weight = (level.exp() + 1).clamp(max=5.0) / 5.0
        terms, seen = {"denoising": (weight * (guess - clean[index]).square().mean((1, 2))).mean()}, {}
        if config.behaviour_every and steps % config.behaviour_every == 0:
            made = small[0] if torch.rand((), generator=rng) < 0.8 else _draw_network(networks, config, rng)
            support = None if torch.rand((), generator=rng) < config.without_support else _summarise(model, images, rng)
            trunk = sample_with_gradient(model, made, model.condition(support, None), rng=rng)
            terms["behaviour"], seen["accuracy"] = behave(made.known.target, trunk, images, config, rng=rng)
        return Losses(terms, seen)

    learnt = [p for n, p in model.named_parameters() if not n.startswith(fixed)]
    return Recipe(
        name="denoiser",
        module=model,
        groups=[Group(learnt, config.learning_rate)],
        losses=losses,
        settings={**asdict(config), "networks": [n.known.name for n in networks], "start": start},
    )


def sample_with_gradient(model: D2nwgLayerwise, like: Tokens, condition: Tensor, *, rng: torch.Generator) -> State:
    """A sampled trunk of the same spec as `like`; only the last step from noise has a gradient.

    Windows are sampled one after another, each with the tail of the one before. The last step is then taken for all
    windows together.
    """
    config = model.config
    levels = draw_few_levels(rng=rng)
    tail, tail_places, has_tail = model.first_tail()
    rows: list[tuple[Tensor, ...]] = []
    with torch.no_grad():
        for window in like.windows.cut(config.context):
            places = like.places[window.start : window.stop][None]
            noisy = torch.randn(1, len(window), config.latent_dim, generator=rng)
            seen = {"places": places, "tail": tail, "tail_places": tail_places, "has_tail": has_tail}
            clean = model.denoiser(noisy, levels[:1], condition, **seen)
            for level, after in pairwise(levels):
                noisy = lower_noise(noisy, clean, level, after)
                clean = model.denoiser(noisy, after[None], condition, **seen)
            rows.append((noisy, tail, tail_places, has_tail))
            tail, tail_places, has_tail = clean[:, -config.tail :], places[:, -config.tail :], torch.ones(1)
    parts = []
    for index in like.groups(config.context):
        noisy, tail, tail_places, has_tail = (torch.cat(column) for column in zip(*rows[: len(index)], strict=True))
        rows = rows[len(index) :]
        clean = model.denoiser(
            noisy, levels[-1:].expand(len(index)), condition.expand(len(index), -1),
            places=like.places[index], tail=tail, tail_places=tail_places, has_tail=has_tail,
        )  # fmt: skip
        parts.append(model.codec.decode(clean, like.kinds[index], like.places[index], like.mask[index]).flatten(0, 1))
    return like.windows.assemble(torch.cat(parts))


def _through(
    model: D2nwgLayerwise, network: Tokens, index: Tensor, config: D2nwgLayerwiseTraining, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Decoded tokens of windows (b, k) after noise on their latents; mean and log variance of the latents."""
    kinds, places = network.kinds[index], network.places[index]
    mean, log_var = model.codec.encode_distribution(network.tokens[index], kinds, places)
    spread = (log_var.exp() + config.latent_noise**2 * mean.detach().square().mean()).sqrt()
    noisy = mean + spread * torch.randn(mean.shape, generator=rng)
    return model.codec.decode_raw(noisy, kinds, places, network.mask[index]), mean, log_var


def _draw_windows(network: Tokens, config: D2nwgLayerwiseTraining, rng: torch.Generator) -> Tensor:
    """Indices (b, k) of random windows of a network; in one of four cases they are shorter than the context."""
    most = min(config.model.context, len(network.tokens))
    length = most if torch.rand((), generator=rng) < 0.75 else int(torch.randint(1, most + 1, (1,), generator=rng))
    first = torch.randint(len(network.tokens) - length + 1, (config.batch_size, 1), generator=rng)
    return first + torch.arange(length)


def _draw_network(networks: Sequence[Tokens], config: D2nwgLayerwiseTraining, rng: torch.Generator) -> Tokens:
    ours = [n for n in networks if n.known.target is networks[0].known.target]
    others = [n for n in networks if n.known.target is not networks[0].known.target]
    chosen = others if others and torch.rand((), generator=rng) < config.published else ours
    return chosen[int(torch.randint(len(chosen), (1,), generator=rng))]


def _draw_condition(
    model: D2nwgLayerwise, known: KnownResNet, images: Images, config: D2nwgLayerwiseTraining, rng: torch.Generator
) -> Tensor:
    """The condition of a network (1, e); parts of it are left out at random."""
    drawn = torch.rand(2, generator=rng).tolist()
    summary = None if drawn[0] < config.without_support else _summarise(model, images, rng)
    return model.condition(summary, None if drawn[1] < config.without_accuracy else known.accuracy)


def _summarise(model: D2nwgLayerwise, images: Images, rng: torch.Generator) -> Tensor:
    x, y, _ = images.draw(5 * images.num_classes, rng=rng)
    return model.encoder([x], [y], [images.num_classes])[1][0]


def _no_head(target: Target) -> State:
    return {name: torch.zeros(target.spec.by_name[name].shape) for name in target.spec.head}


@app.command()
def codec(
    zoo: Annotated[Path, typer.Option(help="Folder of the ResNet-20s.")],
    out: RunFolder,
    minutes: Annotated[float | None, typer.Option(help="Training time; 6 if not given.")] = None,
    steps: StepsOption = None,
    latents: Annotated[int, typer.Option(help="Latents of a token of 144 weights.")] = 72,
    base: Annotated[float, typer.Option(help="How much decoded tokens depend on place alone at first.")] = 0.0,
    behaviour_every: Annotated[int, typer.Option(help="Run a network on images once in so many steps; 0: never.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of AdamW.")] = 1e-3,
) -> None:
    """First stage: train the codec of windows."""
    torch.set_num_threads(1)
    budget = budget_of(minutes=minutes, steps=steps, default=Span(minutes=6))
    sizes = LayerwiseConfig(latent_dim=latents, codec_base=base)
    config = D2nwgLayerwiseTraining(model=sizes, behaviour_every=behaviour_every, learning_rate=learning_rate)
    known = [k for k in load_resnets(zoo) if not k.held_out]
    torch.manual_seed(config.seed)
    statistics = measure_statistics([(k.target.spec, k.trunk) for k in known])
    model = D2nwgLayerwise(statistics, known[0].target.input_shape, config.model)
    images = Images(load_data("cifar10"), _teacher(known) if behaviour_every else None)
    networks = [Tokens.of(k, model) for k in known]
    spent = train_codec(model, networks, images, config=config, budget=budget, folder=out / "codec")
    _save(model, out / "codec.safetensors", config, {"codec": spent}, known)


@app.command()
def denoiser(
    zoo: Annotated[Path, typer.Option(help="Folder of the ResNet-20s.")],
    out: Annotated[Path, typer.Option(help="Folder of this run, with its first stage.")],
    minutes: Annotated[float | None, typer.Option(help="Training time; 15 if not given.")] = None,
    steps: StepsOption = None,
    behaviour_every: Annotated[int, typer.Option(help="Run a sample on images once in so many steps; 0: never.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="Highest learning rate of AdamW.")] = 1e-3,
    start: Annotated[str, typer.Option(help="File of the folder to go on from.")] = "codec.safetensors",
) -> None:
    """Second stage: train the denoiser on the latents of the first."""
    torch.set_num_threads(1)
    if not (out / start).exists():
        raise BadOption(f"{out} has no {start}; run the stage before this one")
    budget = budget_of(minutes=minutes, steps=steps, default=Span(minutes=15))
    model = D2nwgLayerwise.load(out / start)
    config = D2nwgLayerwiseTraining(model=model.config, behaviour_every=behaviour_every, learning_rate=learning_rate)
    known = [k for k in load_resnets(zoo) if not k.held_out]
    torch.manual_seed(config.seed)
    images = Images(load_data("cifar10"), _teacher(known) if behaviour_every else None)
    before = model.training_record["spent"]
    stage = "denoiser" if "denoiser" not in before else f"denoiser, part {len(before)}"
    spent = train_denoiser(
        model,
        [Tokens.of(k, model) for k in known],
        images,
        config=config,
        start=sha256_file(out / start),
        budget=budget,
        folder=out / stage.replace(", part ", "-"),
    )
    _save(model, out / "denoiser.safetensors", config, {**before, stage: spent}, known)


def _teacher(known: Sequence[KnownResNet]) -> KnownResNet:
    """The network with the highest accuracy, among those that are learnt from."""
    return max(known, key=lambda k: k.accuracy)


def _save(
    model: D2nwgLayerwise,
    path: Path,
    config: D2nwgLayerwiseTraining,
    spent: dict[str, Any],
    known: Sequence[KnownResNet],
) -> None:
    networks = {k.name: {"accuracy": k.accuracy, "licence": k.licence} for k in known}
    model.training_record = {"config": asdict(config), "spent": spent, "networks": networks}
    model.save(path)
    typer.echo(json.dumps({"file": str(path), "bytes": path.stat().st_size, "spent": spent}, indent=1))
