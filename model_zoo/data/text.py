"""Texts of the shared data folder as bytes, for networks that predict the next byte.

Each set is text/<name>.jsonl.gz: one JSON object on each line, with "text" and, if given, its part under "split".
"""

import gzip
import json
import zlib

import torch
from torch import Tensor

from model_zoo.data.shared import shared_folder
from weightgen.errors import CorruptFile, NotFound


def load_text(name: str, part: str = "train") -> Tensor:
    """The bytes of a set's texts of one part, one text per line, (n,) int64; texts without a part belong to `train`.

    Raises NotFound for a set that is not in the shared folder or has no such part, CorruptFile for a bad file.
    """
    folder = shared_folder()
    path = folder / "text" / f"{name}.jsonl.gz" if folder else None
    if path is None or not path.is_file():
        raise NotFound(f"text set {name!r} is not there; set WEIGHTGEN_SHARED to the shared data folder")
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        texts = [(row.get("split", "train"), str(row["text"])) for row in rows]
    except (gzip.BadGzipFile, EOFError, zlib.error, ValueError, KeyError, AttributeError) as error:
        raise CorruptFile(f"text set {name!r}: expected gzipped lines of JSON objects with a 'text' each") from error
    chosen = [text for split, text in texts if split == part]
    if not chosen:
        raise NotFound(f"text set {name!r} has no part {part!r}; it has {', '.join(sorted({s for s, _ in texts}))}")
    return torch.frombuffer(bytearray("\n".join(chosen).encode()), dtype=torch.uint8).long()
