"""How the generator `d2nwg` is trained: settings, and what both stages have in common.

Codecs (`training.d2nwg.codecs`) learn to give back the tokens of canonical states. Decoded trunks also have to do the
task of their run under a solved head (behaviour loss). The denoiser (`training.d2nwg.denoiser`) learns to recover the
latents of a run from noise, given a support set of its task. Its own samples also have to do new tasks
(`training.episodes`), through decoder, refinement and head, while decoders go on giving back the networks of the zoo.
Only runs of the zoo's `train` split are learnt from; scores are measured on `val`.
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from model_zoo.zoo.networks import Networks
from training.episodes import Episode, EpisodeConfig
from training.loop import LoopSettings, Span
from training.zoo_tasks import Images, draw_task
from weightgen.generators.d2nwg.generator import D2nwg, D2nwgConfig
from weightgen.spec import State
from weightgen.target.network import Target
from weightgen.weightspace.normal_form import fitted_features


@dataclass(frozen=True)
class D2nwgTraining:
    """Settings of both stages."""

    model: D2nwgConfig = field(default_factory=lambda: D2nwgConfig(refinements=3))
    held_out: tuple[str, ...] = ()
    """Training sets left out whole, to choose a recipe by; none for a release."""
    batch_size: int = 24
    """Networks in a step of the first stage."""
    latents_size: int = 12
    """Networks in a step of the second stage, whose latents are to be recovered from noise."""
    behaviour_size: int = 4
    """Networks in a batch that are run on images."""
    sample_size: int = 2
    """Samples of the denoiser that are run on images, each on a new task of its own."""
    unrefined: float = 0.2
    """Share of steps in which samples are not refined."""
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    weights: float = 4.0
    """Weight of the error of decoded tokens; at 1 the behaviour loss wins, and codecs no longer give tokens back."""
    kl: float = 1e-4
    latent_noise: float = 0.2
    """Standard deviation of the noise on a latent of unit variance while codecs are trained."""
    behaviour: float = 1.0
    """Weight of the behaviour loss."""
    generated_head: float = 0.3
    """Weight of the loss of generated class rows; it has no gradient for trunks."""
    alignment: float = 0.05
    """Weight of the contrastive loss between summaries and latents."""
    without_support: float = 0.15
    without_accuracy: float = 0.5
    episodes: EpisodeConfig = field(default_factory=lambda: EpisodeConfig(max_ways=20))
    seed: int = 0

    def loop(self, budget: Span, *, seed: int) -> LoopSettings:
        return LoopSettings(budget=budget, seed=seed, weight_decay=self.weight_decay, average=0.998)


def behaviour_loss(model: D2nwg, target: Target, trunk: State, task: Episode) -> tuple[Tensor, float, Tensor]:
    """Loss and accuracy of a trunk under a solved head on the queries, and the features of the queries.

    The loss is the cross-entropy divided by that of guessing.
    """
    state, head = model.fit(target, trunk, task.support, task.support_labels, task.num_classes)
    features = fitted_features(target, state, task.query)
    logits = features @ head.weight.T + head.bias
    loss = F.cross_entropy(logits, task.query_labels) / math.log(task.num_classes)
    return loss, float((logits.argmax(1) == task.query_labels).float().mean()), features.detach()


def own_behaviour(
    model: D2nwg,
    known: Networks,
    decoded: Tensor,
    picked: list[int],
    images: Images,
    rng: torch.Generator,
) -> tuple[Tensor, float]:
    """Mean behaviour loss and accuracy of decoded networks on their own tasks."""
    trunks = model.layouts[known.member].decode_batch(decoded)
    found = []
    for row, index in enumerate(picked):
        task = draw_task(known, index, images, shots=12, queries=10, rng=rng)
        found.append(behaviour_loss(model, known.target, {n: t[row] for n, t in trunks.items()}, task))
    return torch.stack([loss for loss, _, _ in found]).mean(), sum(a for _, a, _ in found) / len(found)


def draw_member(rows: dict[str, list[int]], *, rng: torch.Generator) -> str:
    """A random member; chances are in proportion to the square root of the number of networks."""
    weights = torch.tensor([len(r) for r in rows.values()]).float().sqrt()
    return list(rows)[int(torch.multinomial(weights, 1, generator=rng))]


def draw_rows(rows: list[int], count: int, *, rng: torch.Generator) -> list[int]:
    """Random networks of a member, drawn with repetition."""
    return [rows[i] for i in torch.randint(len(rows), (count,), generator=rng).tolist()]
