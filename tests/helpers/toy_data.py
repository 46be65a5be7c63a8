"""Labelled images of random numbers, a few to a class."""

import torch

from weightgen.labelled_data import LabelledData


def make_data(counts=(5, 3, 4), channels=1, **changes) -> LabelledData:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    rng = torch.Generator().manual_seed(0)
    fields = {
        "name": "toy",
        "x_train": torch.rand(len(labels), channels, 6, 6, generator=rng),
        "y_train": labels,
        "x_test": torch.rand(len(counts), channels, 6, 6, generator=rng),
        "y_test": torch.arange(len(counts)),
        "class_names": tuple("abcdefgh"[: len(counts)]),
    }
    return LabelledData(**{**fields, **changes})
