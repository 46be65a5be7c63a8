"""Data that architectures are run on: few-shot tasks, the classes of one data set, or texts as bytes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from model_zoo.data import load_data
from model_zoo.data.text import load_text
from model_zoo.spaces import GptMember, Member
from training.episodes import ClassPool, EpisodeConfig, load_pool
from training.logah.members import channels_of
from weightgen.errors import BadOption
from weightgen.labelled_data import match_channels


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples and the right answers."""

    inputs: Tensor
    """Images (n, c, h, w) or byte ids (n, t)."""
    answers: Tensor
    """Labels (n,) or, for texts, the ids that follow each id (n, t)."""
    num_classes: int


class Tasks:
    """Labelled images of few-shot tasks. Every class has two or more, so that each image can be left out of a head."""

    def __init__(self, data: Sequence[str], *, most: int, is_transformed: bool) -> None:
        """Tasks have about `most` images or fewer, and are changed at random if `is_transformed`.

        Tasks that are not transformed have ten classes or more, if the data set has them, and as many examples of each
        as fit.
        """
        self.pool: ClassPool = load_pool(list(data), "train")
        ways = min(40, most // 3)
        self.config = EpisodeConfig(max_support=most, num_query=1, max_ways=ways)
        if not is_transformed:
            self.config = replace(self.config, min_ways=min(10, ways), many_shots=1.0, mixed=0.0, transform=False)

    def draw(self, in_channels: int, *, rng: torch.Generator) -> Batch:
        task = self.pool.draw(self.config, rng=rng)
        images = torch.cat([task.support, task.query])
        if in_channels == 1:
            images = images.mean(1, keepdim=True)
        return Batch(images, torch.cat([task.support_labels, task.query_labels]), task.num_classes)


class Classes:
    """Labelled images of one data set, whose classes keep their order."""

    def __init__(self, data: str) -> None:
        loaded = load_data(data)
        self.images = {c: match_channels(loaded, c).x_train for c in (1, 3)}
        self.labels, self.num_classes = loaded.y_train, loaded.num_classes

    def draw(self, in_channels: int, size: int, *, rng: torch.Generator) -> Batch:
        rows = torch.randint(len(self.labels), (size,), generator=rng)
        return Batch(self.images[in_channels][rows], self.labels[rows], self.num_classes)


class Texts:
    """The training parts of text sets as one string of bytes."""

    def __init__(self, names: Sequence[str]) -> None:
        self.ids = torch.cat([load_text(name) for name in names]) if names else torch.empty(0, dtype=torch.long)

    def draw(self, context: int, size: int, *, rng: torch.Generator) -> Batch:
        if len(self.ids) <= context:
            raise BadOption("language models need texts to learn from: set `text`")
        starts = torch.randint(len(self.ids) - context, (size, 1), generator=rng)
        ids = self.ids[starts + torch.arange(context + 1)]
        return Batch(ids[:, :-1], ids[:, 1:], 256)


@dataclass(frozen=True, slots=True)
class Sources:
    """The images and texts of a run."""

    images: Tasks | Classes
    texts: Texts

    def draw(self, member: Member, *, size: int, texts: int, rng: torch.Generator) -> Batch:
        """A batch for this member: labelled images, or `texts` pieces of text for a language model.

        There are `size` images of one data set; tasks bring their own number.
        """
        if isinstance(member, GptMember):
            return self.texts.draw(member.context, texts, rng=rng)
        channels = channels_of(member)
        if isinstance(self.images, Tasks):
            return self.images.draw(channels, rng=rng)
        return self.images.draw(channels, size, rng=rng)
