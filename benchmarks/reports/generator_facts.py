"""A generator's figures and card as JSON for programs: model_zoo/released/<name>.json.

    {about, architectures, scoreboards: [{architecture, support_per_class, seconds, accuracy, mean}]}

`about` is the first sentence of the card. `architectures` is null for a generator that takes any. Accuracies are
fractions, by data set and by arm.
"""

import re
from collections.abc import Sequence
from typing import Any

ARMS = (
    "generated",
    "scratch",
    "retrieval",
    "soup",
    "random_trunk_ridge",
    "unconditioned_trunk",
    "shuffled_condition",
    "default_init",
)


def describe_generator(card: str, manifest: dict[str, Any], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The facts of one generator, JSON values, from its card, its file's manifest and its files in docs/results."""
    archs = manifest.get("archs")
    return {
        "about": first_sentence(card),
        "architectures": sorted(archs) if archs is not None else None,
        "scoreboards": [_describe_scoreboard(result) for result in sorted(results, key=lambda r: r["arch"])],
    }


def first_sentence(card: str) -> str:
    """The first sentence below the card's title, without backticks."""
    paragraph = next(block for block in card.split("\n\n") if not block.startswith("#"))
    sentence = re.split(r"(?<=[a-z)`])\.\s+(?=[A-Z`])", paragraph, maxsplit=1)[0]
    return " ".join(sentence.replace("`", "").split()).rstrip(".") + "."


def _describe_scoreboard(result: dict[str, Any]) -> dict[str, Any]:
    scores = result["data"]
    arms = [arm for arm in ARMS if all(s["accuracy"].get(arm) is not None for s in scores.values())]
    accuracy = {name: {arm: round(s["accuracy"][arm], 4) for arm in arms} for name, s in sorted(scores.items())}
    return {
        "architecture": result["arch"],
        "support_per_class": result["per_class"],
        "seconds": {
            arm: round(_mean([s["seconds"][arm] for s in scores.values()]), 3) for arm in ("generate", "scratch")
        },
        "accuracy": accuracy,
        "mean": {arm: round(_mean([s["accuracy"][arm] for s in scores.values()]), 4) for arm in arms},
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
