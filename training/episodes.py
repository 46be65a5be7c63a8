"""Episodes: classification tasks for meta-training, drawn from image data sets and transformed at random.

An episode is a support set and queries of the same classes. Its classes come from one data set or are mixed from
several. Some transformations are the same for the whole episode (its images are turned, mirrored, inverted, coloured,
thickened, blurred, coarsened or put on a textured background). Others are drawn for each image (small affine changes,
noise). All images are (n, 3, 28, 28); grey ones have three equal channels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model_zoo.data import load_data


@dataclass(frozen=True, eq=False)
class Episode:
    """Support (n, 3, h, w) and query (m, 3, h, w) images in [0, 1] with labels 0 .. num_classes - 1."""

    support: Tensor
    support_labels: Tensor
    query: Tensor
    query_labels: Tensor
    num_classes: int


@dataclass(frozen=True)
class EpisodeConfig:
    """Settings of `ClassPool.draw`."""

    max_support: int = 200
    """Most images in a support set, all classes together."""
    num_query: int = 120
    max_ways: int = 40
    min_ways: int = 2
    max_shots: int = 50
    many_shots: float = 0.6
    """Share of episodes with a dozen or more examples per class, or as many as fit; others have any number."""
    mixed: float = 0.25
    """Share of episodes whose classes come from several data sets."""
    transform: bool = True
    """Whether images are transformed; off for held-out tasks."""


class ClassPool:
    """The images of several data sets by class, uint8 (n, c, h, w) each."""

    def __init__(self, classes: Mapping[str, Sequence[Tensor]]) -> None:
        self.classes = {name: list(images) for name, images in classes.items()}
        self.names = list(self.classes)
        # Square root: a data set with many classes is drawn more often, but not in proportion to them.
        self.weights = torch.tensor([len(c) for c in self.classes.values()]).float().clamp(max=60).sqrt()

    def draw(self, config: EpisodeConfig, *, rng: torch.Generator, name: str | None = None) -> Episode:
        """One random episode; only from the data set `name`, if it is given."""
        if name is None and _chance(config.mixed, rng):
            picked = torch.multinomial(self.weights, min(4, len(self.names)), generator=rng).tolist()
            pool = [c for i in picked for c in _sample(self.classes[self.names[i]], 12, rng)]
        else:
            name = name or self.names[int(torch.multinomial(self.weights, 1, generator=rng))]
            pool = self.classes[name]
        ways = _draw_ways(min(config.max_ways, len(pool)), config, rng)
        classes = _sample(pool, ways, rng)
        shots = _draw_shots(config, ways, rng)
        per_query = max(1, config.num_query // ways)
        turns = _class_turns(ways, rng) if config.transform else [0] * ways
        support, query = [], []
        for images, turn in zip(classes, turns, strict=True):
            k = max(1, min(shots, len(images) - 1, round(len(images) * 0.8)))
            order = torch.randperm(len(images), generator=rng)[: k + per_query]
            chosen = _to_float(images[order])
            chosen = torch.rot90(chosen, turn, (2, 3)) if turn else chosen
            support.append(chosen[:k])
            query.append(chosen[k:])
        images = torch.cat(support + query)
        if config.transform:
            images = transform_episode(images, self, rng=rng)
        num_support = sum(len(s) for s in support)
        return Episode(
            support=images[:num_support],
            support_labels=_labels(support),
            query=images[num_support:],
            query_labels=_labels(query),
            num_classes=ways,
        )


def load_pool(names: list[str], part: str, *, most: int = 1500) -> ClassPool:
    """The first images of every class of these data sets, up to `most`, as bytes; `part` is "train" or "test"."""
    pools = {}
    for name in names:
        data = load_data(name)
        x, y = (data.x_train, data.y_train) if part == "train" else (data.x_test, data.y_test)
        groups = [x[y == label][:most].mul(255).round().to(torch.uint8) for label in range(data.num_classes)]
        pools[name] = [g for g in groups if len(g) >= 2]
    return ClassPool(pools)


def draw_tasks(pool: ClassPool, *, each: int, seed: int) -> dict[str, list[Episode]]:
    """`each` tasks on every data set of the pool, without transformations; equal seeds give equal tasks."""
    rng = torch.Generator().manual_seed(seed)
    config = EpisodeConfig(transform=False, mixed=0.0, num_query=200)
    return {name: [pool.draw(config, rng=rng, name=name) for _ in range(each)] for name in pool.names}


def transform_episode(images: Tensor, pool: ClassPool, *, rng: torch.Generator) -> Tensor:
    """The images (n, 3, h, w) of one task after random transformations of the task and of each image."""
    n, _, size, _ = images.shape
    is_grey = bool((images[:, 0] == images[:, 1]).all())
    if _chance(0.35, rng):
        images = images.flip(3)
    if _chance(0.5, rng):
        images = torch.rot90(images, int(torch.randint(4, (1,), generator=rng)), (2, 3))
    if is_grey and _chance(0.2, rng):
        grown = F.max_pool2d(images if _chance(0.6, rng) else -images, 3, 1, 1)
        images = grown.abs()
    images = _affine(images, rng)
    if _chance(0.15, rng):
        coarse = int(torch.randint(8, 17, (1,), generator=rng))
        images = F.interpolate(F.interpolate(images, coarse, mode="area"), size, mode="bilinear")
    if _chance(0.15, rng):
        images = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    if is_grey and _chance(0.12, rng):
        ground = pool.classes[pool.names[int(torch.randint(len(pool.names), (1,), generator=rng))]]
        pictures = _sample(ground, 1, rng)[0]
        texture = _to_float(pictures[torch.randperm(len(pictures), generator=rng)[:n]])
        texture = texture.repeat(-(-n // len(texture)), 1, 1, 1)[:n]
        images = torch.maximum(images, _uniform(0.2, 0.7, rng) * texture.mean(1, keepdim=True))
    if _chance(0.4, rng):
        images = images.clamp(0, 1) ** float(torch.empty(1).uniform_(-0.7, 0.7, generator=rng).exp())
    if _chance(0.45, rng):
        images = 1 - images
    if is_grey and _chance(0.25, rng):
        low, high = torch.rand(2, 1, 3, 1, 1, generator=rng)
        images = low + (high - low) * images
    elif not is_grey and _chance(0.35, rng):
        images = images.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    elif not is_grey and _chance(0.3, rng):
        images = images[:, torch.randperm(3, generator=rng)]
    if _chance(0.5, rng):
        gain = 1 + 0.25 * torch.randn(n, 1, 1, 1, generator=rng)
        images = gain * images + 0.08 * torch.randn(n, 1, 1, 1, generator=rng)
    if _chance(0.3, rng):
        images = images + _uniform(0.01, 0.15, rng) * torch.randn(images.shape, generator=rng)
    return images.clamp(0, 1)


def _affine(images: Tensor, rng: torch.Generator) -> Tensor:
    """Images turned, scaled and sheared as a task and, a little, each for itself, in one resampling."""
    n = len(images)

    def draw(task: float, image: float) -> Tensor:
        return task * torch.randn(1, generator=rng) + image * torch.randn(n, generator=rng)

    strength = _uniform(0.0, 1.0, rng) if _chance(0.8, rng) else 0.0
    task = 1.0 if _chance(0.5, rng) else 0.0
    angle = draw(0.35 * task, 0.12 * strength)
    scale_x, scale_y = draw(0.12 * task, 0.08 * strength).exp(), draw(0.12 * task, 0.08 * strength).exp()
    shear = draw(0.15 * task, 0.08 * strength)
    shift = torch.stack([draw(0.03 * task, 0.07 * strength), draw(0.03 * task, 0.07 * strength)], 1)
    cos, sin = angle.cos(), angle.sin()
    rows = torch.stack([torch.stack([scale_x * cos, shear - sin], 1), torch.stack([sin, scale_y * cos], 1)], 1)
    grid = F.affine_grid(torch.cat([rows, shift[:, :, None]], 2), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def _draw_ways(limit: int, config: EpisodeConfig, rng: torch.Generator) -> int:
    kind = float(torch.rand(1, generator=rng))
    if kind < 0.45:
        ways = 10
    elif kind < 0.75:
        ways = int(torch.randint(config.min_ways, 11, (1,), generator=rng))
    else:
        ways = int(torch.randint(min(10, config.max_ways), config.max_ways + 1, (1,), generator=rng))
    return max(2, min(ways, limit))


def _draw_shots(config: EpisodeConfig, ways: int, rng: torch.Generator) -> int:
    most = max(1, min(config.max_shots, config.max_support // ways))
    if _chance(config.many_shots, rng):
        return min(most, int(torch.randint(12, 24, (1,), generator=rng)))
    return int(torch.randint(1, most + 1, (1,), generator=rng))


def _class_turns(ways: int, rng: torch.Generator) -> list[int]:
    """Quarter turns for every class: mostly 0; sometimes random ones, which make classes that no data set has."""
    if _chance(0.15, rng):
        return torch.randint(4, (ways,), generator=rng).tolist()
    return [0] * ways


def _sample(items: list[Tensor], count: int, rng: torch.Generator) -> list[Tensor]:
    return [items[i] for i in torch.randperm(len(items), generator=rng)[:count].tolist()]


def _labels(groups: list[Tensor]) -> Tensor:
    return torch.cat([torch.full((len(g),), label) for label, g in enumerate(groups)])


def _to_float(images: Tensor) -> Tensor:
    return (images.float() / 255).expand(-1, 3, -1, -1)


def _uniform(low: float, high: float, rng: torch.Generator) -> float:
    return float(torch.empty(1).uniform_(low, high, generator=rng))


def _chance(probability: float, rng: torch.Generator) -> bool:
    return float(torch.rand(1, generator=rng)) < probability
