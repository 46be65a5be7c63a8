"""Image sets of the shared data folder: those for training zoos and generators, and those only for evaluation.

The folder is not part of the repository. It is $WEIGHTGEN_SHARED, or `shared/data` beside the checkout. Each set is
images/<name>.npz with a <name>.json of classes and licence.
"""

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from model_zoo.data.convert import convert_arrays
from model_zoo.data.npz import ARRAYS, DEFAULT_MAX_BYTES, read_arrays
from weightgen.errors import CorruptFile, NotFound
from weightgen.labelled_data import LabelledData

TRAIN_SETS = (
    "ahcd_arabic_letters",
    "bccd_cells",
    "cifar10",
    "cifar100",
    "cmater_devanagari",
    "devnum",
    "dig_mnist",
    "fsdd_spectrograms",
    "gtsrb",
    "kannada_mnist",
    "madbase_arabic_digits",
    "mnist",
    "notmnist",
    "omniglot",
)
"""Sets that may be used to build zoos and to train generators."""
EVALUATION_SETS = frozenset(
    {"cmater_bangla", "coil20", "fashion_mnist", "hoda_persian", "mednist", "oracle_mnist", "sign_digits", "digits"}
)
"""Sets only for scores: never used in a zoo, in training or in tuning. omniglot_held_out is one of them too."""
HELD_OUT_ALPHABETS = ("Sanskrit", "Tagalog")
"""Alphabets of Omniglot's evaluation part, the set omniglot_held_out."""


def shared_folder() -> Path | None:
    """The folder that holds images/, checkpoints/ and so on; None if there is none."""
    chosen = os.environ.get("WEIGHTGEN_SHARED")
    folder = Path(chosen) if chosen else Path(__file__).resolve().parents[3] / "shared" / "data"
    return folder if folder.is_dir() else None


def list_image_sets() -> list[str]:
    """Names of the image sets found in the shared folder; Omniglot as its two parts."""
    folder = shared_folder()
    found = sorted(p.stem for p in (folder / "images").glob("*.npz")) if folder else []
    names = [n for n in found if n != "omniglot_small"]
    return sorted([*names, "omniglot", "omniglot_held_out"]) if "omniglot_small" in found else names


def load_image_set(name: str, *, image_size: int | None = 28, max_bytes: int = DEFAULT_MAX_BYTES) -> LabelledData:
    """An image set of the shared folder by name. `omniglot` is its train alphabets, `omniglot_held_out` the others."""
    is_omniglot = name in ("omniglot", "omniglot_held_out")
    path, about = _find("omniglot_small" if is_omniglot else name)
    arrays = read_arrays(path, ARRAYS, image_size=image_size, max_bytes=max_bytes, label=name)
    classes = tuple(str(c) for c in about["classes"])
    convert = partial(convert_arrays, name, image_size=image_size)
    if not is_omniglot:
        return convert(arrays, class_names=classes)
    held_out = np.array([c.split("/")[0] in HELD_OUT_ALPHABETS for c in classes])
    chosen = np.flatnonzero(held_out if name == "omniglot_held_out" else ~held_out)
    label_of = np.full(len(classes), -1)
    label_of[chosen] = np.arange(len(chosen))
    for part in ("train", "test"):
        labels = label_of[arrays[f"y_{part}"]]
        arrays |= {f"x_{part}": arrays[f"x_{part}"][labels >= 0], f"y_{part}": labels[labels >= 0]}
    return convert(arrays, class_names=tuple(classes[c] for c in chosen))


def describe_image_set(name: str) -> dict[str, Any]:
    """The content of the .json beside the set: "licence", "permissive", "source", "sha256", "notes" and more."""
    return _find("omniglot_small" if name in ("omniglot", "omniglot_held_out") else name)[1]


def image_set_files(name: str) -> tuple[Path, Path]:
    """The arrays of an image set and their description."""
    path, _ = _find("omniglot_small" if name in ("omniglot", "omniglot_held_out") else name)
    return path, path.with_suffix(".json")


def find_evaluation_files() -> dict[str, str]:
    """sha256 of the file -> name, for every evaluation set of the shared folder, images and tables."""
    names = [n for n in list_image_sets() if n in EVALUATION_SETS or n == "omniglot_held_out"]
    files = {describe_image_set(n)["sha256"]: n for n in names}
    folder = shared_folder()
    for about in sorted((folder / "tabular").glob("*.json")) if folder else []:
        tables = json.loads(about.read_text(encoding="utf-8"))
        files |= {t["sha256"]: name for name, t in tables.items()}
    return files


def _find(name: str) -> tuple[Path, dict[str, Any]]:
    folder = shared_folder()
    path = folder / "images" / f"{name}.npz" if folder else None
    if path is None or not path.is_file():
        where = f"in {folder}" if folder else "because there is no shared data folder; set WEIGHTGEN_SHARED to it"
        raise NotFound(f"data set {name!r} is not there, {where}")
    about = path.with_suffix(".json")
    try:
        return path, json.loads(about.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound(f"data set {name!r}: its description {about} is not there") from error
    except ValueError as error:
        raise CorruptFile(f"data set {name!r}: its description {about} is not JSON") from error
