"""Episodes from the tasks that the runs of a zoo were trained on, with their own classes and unchanged images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from model_zoo.data import load_data
from model_zoo.zoo.networks import Networks
from training.episodes import Episode
from weightgen.labelled_data import match_channels


class Images:
    """Images of the training sets by class, uint8, at one or three channels."""

    def __init__(self, part: str, *, most: int = 600) -> None:
        self.part, self.most = part, most
        self._pools: dict[tuple[str, int], list[Tensor]] = {}

    def pool(self, name: str, in_channels: int) -> list[Tensor]:
        key = (name, in_channels)
        if key not in self._pools:
            data = match_channels(load_data(name), in_channels)
            x, y = (data.x_train, data.y_train) if self.part == "train" else (data.x_test, data.y_test)
            self._pools[key] = [
                x[y == label][: self.most].mul(255).round().to(torch.uint8) for label in range(data.num_classes)
            ]
        return self._pools[key]

    def draw(
        self, name: str, classes: Sequence[int], in_channels: int, *, shots: int, queries: int, rng: torch.Generator
    ) -> Episode:
        """A support set and queries of these classes of a data set."""
        pool = self.pool(name, in_channels)
        parts: tuple[list[Tensor], list[Tensor]] = ([], [])
        for label in classes:
            images = pool[label]
            order = torch.randperm(len(images), generator=rng)[: shots + queries]
            k = max(1, min(shots, len(images) - 1, round(0.7 * len(images))))
            for part, rows in zip(parts, (order[:k], order[k:]), strict=True):
                part.append(images[rows].float() / 255)
        labels = [torch.cat([torch.full((len(x),), i) for i, x in enumerate(part)]) for part in parts]
        return Episode(torch.cat(parts[0]), labels[0], torch.cat(parts[1]), labels[1], len(classes))


def draw_task(
    known: Networks, index: int, images: Images, *, shots: int, queries: int, rng: torch.Generator
) -> Episode:
    """A support set and queries of the task that a network was trained on."""
    channels = known.target.input_shape[0]
    return images.draw(known.datasets[index], known.classes[index], channels, shots=shots, queries=queries, rng=rng)
