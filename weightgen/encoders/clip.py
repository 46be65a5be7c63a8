"""A class-aware encoder of support sets that sees images through a frozen CLIP; needs the extra 'clip'.

The set encoder of D2NWG (Soro et al. 2025, arXiv:2402.18153, section 3.3): features of CLIP (Radford et al. 2021,
arXiv:2103.00020), attention among the images of a class, then among the classes. It pools by mean and spread where the
paper pools by attention. It is called like `SupportSetEncoder`, and both share all steps after the images of a class.

    tower   = ClipTower.load("path/to/clip-vit-base-patch32")       a folder, or a repository of the Hugging Face hub
    encoder = ClipSupportEncoder(tower, dim=128)

No generator file holds the tower. A file names it and its digest (`describe`), and `load` refuses another tower.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from weightgen.encoders.support_set import describe_classes, pool_members, relate_members
from weightgen.errors import CorruptFile, NotFound, WeightgenError
from weightgen.files.checkpoint import load_foreign
from weightgen.files.storage import read_json
from weightgen.layers.transformer import Block
from weightgen.spec import State

MEAN, DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation of the colours of CLIP's training images, by channel; its towers expect normalised images."""
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_KINDS = ("clip", "clip_vision_model")
_BATCH = 64
"""Images in a forward pass; bounds the memory of activations."""


class ClipTower:
    """A frozen CLIP vision tower with its projection; it moves to the device of its images.

    Not an nn.Module on purpose: a module that holds a tower neither trains nor saves it, and its copies share it.
    """

    def __init__(self, network: nn.Module, *, image_size: int, dim: int, source: str) -> None:
        self.network = network.eval().requires_grad_(False)
        self.image_size, self.dim, self.source = image_size, dim, source

    @classmethod
    def load(cls, source: str | Path, *, digest: str | None = None) -> "ClipTower":
        """The tower in a folder that transformers saved (a whole CLIP or its vision part), or in a repository of the
        hub; CorruptFile if it is not a CLIP tower, or its digest is not `digest`."""
        try:
            import transformers
        except ImportError as error:
            raise WeightgenError(
                "the CLIP encoder needs transformers; install it with: pip install 'weightgen[clip]'"
            ) from error
        folder = Path(source) if Path(source).is_dir() else _fetch(str(source))
        config = _read_config(folder)
        with torch.random.fork_rng(devices=[]):  # the constructor draws weights, which are overwritten
            network = transformers.CLIPVisionModelWithProjection(config)
        network.load_state_dict(_read_weights(folder, network.state_dict()))
        tower = cls(network, image_size=config.image_size, dim=config.projection_dim, source=str(source))
        if digest not in (None, tower.digest):
            raise CorruptFile(f"{source}: a CLIP tower of digest {tower.digest[:12]}…, expected {str(digest)[:12]}…")
        return tower

    def features(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features (n, d) of unit mean square for images in [0, 1] of any size; without gradient.

        About nine billion operations an image for ViT-B/32: encode images that are used often only once.
        """
        self.network.to(images.device)
        mean, deviation = (images.new_tensor(values)[:, None, None] for values in (MEAN, DEVIATION))
        size, found = (self.image_size, self.image_size), []
        with torch.no_grad():
            for batch in images.split(_BATCH):
                resized = F.interpolate(batch, size, mode="bicubic", antialias=True).clamp(0, 1)
                found.append(self.network(pixel_values=(resized - mean) / deviation).image_embeds)
        return F.normalize(torch.cat(found), dim=1) * math.sqrt(self.dim)

    @cached_property
    def digest(self) -> str:
        """sha256, hex, of the tower's names, shapes and float32 weights; the stored dtype does not matter."""
        sha = hashlib.sha256()
        for name, t in sorted(self.network.state_dict().items()):
            sha.update(f"{name}{tuple(t.shape)}".encode())
            sha.update(t.detach().cpu().float().contiguous().numpy().tobytes())
        return sha.hexdigest()

    def describe(self) -> dict[str, str]:
        """The entry for the tower in a generator file; `ClipTower.load(**described)` finds the tower again."""
        return {"source": self.source, "digest": self.digest}

    def __deepcopy__(self, memo: dict[int, Any]) -> "ClipTower":
        return self


class ClipSupportEncoder(nn.Module):
    """Labelled images (n, 1 or 3, h, w) in [0, 1] to class prototypes (k, e) and a summary (e,).

    The order of examples and of classes has the same effect as for `SupportSetEncoder`. The tower is not part of its
    parameters or its state.
    """

    def __init__(self, tower: ClipTower, *, dim: int = 128, heads: int = 4, depth: int = 2) -> None:
        super().__init__()
        self.tower = tower
        self.embed = nn.Linear(tower.dim, dim)
        self.image_blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.image_norm = nn.LayerNorm(dim)
        self.class_in = nn.Linear(2 * dim + 7, dim)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.summary = nn.Linear(2 * dim, dim)

    def forward(
        self, images: Sequence[Tensor], labels: Sequence[Int[Tensor, " _"]], num_classes: Sequence[int]
    ) -> tuple[list[Float[Tensor, "_ e"]], Float[Tensor, "b e"]]:
        """Prototypes of each of b support sets, and their summaries."""
        embedded = self.embed(self.tower.features(torch.cat([x.expand(-1, 3, -1, -1) for x in images])))
        related = self._relate_images(embedded.split([len(x) for x in images]), labels)
        tokens = [
            self.class_in(describe_classes(e, x, y, k))
            for e, x, y, k in zip(related, images, labels, num_classes, strict=True)
        ]
        prototypes = relate_members(tokens, self.blocks, self.norm)
        return prototypes, self.summary(pool_members(prototypes))

    def _relate_images(self, embedded: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """Every set's embedded images (n, e), in their order, after attention among the images of one class."""
        orders = [torch.argsort(y, stable=True) for y in labels]
        sizes = [torch.bincount(y).tolist() for y in labels]
        classes = [c for e, order, of in zip(embedded, orders, sizes, strict=True) for c in e[order].split(of)]
        related = torch.cat(relate_members(classes, self.image_blocks, self.image_norm))
        sets = related.split([len(y) for y in labels])
        return [x[torch.argsort(order)] for x, order in zip(sets, orders, strict=True)]


def _read_config(folder: Path) -> Any:
    """The CLIPVisionConfig in a folder's config.json; a whole CLIP has it in the part vision_config."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CLIPVisionConfig

    path = folder / "config.json"
    about = read_json(path)
    kind = about.get("model_type") if isinstance(about, dict) else None
    if kind not in _KINDS:
        raise CorruptFile(f"{path}: describes a model of type {kind!r}, expected {' or '.join(map(repr, _KINDS))}")
    if kind == "clip":
        vision = about.get("vision_config")
        if not isinstance(vision, dict):
            raise CorruptFile(f"{path}: describes a CLIP without a vision_config")
        about = {**vision, "projection_dim": about.get("projection_dim", 512)}
    try:
        config = CLIPVisionConfig(**about)
    except (StrictDataclassError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise CorruptFile(f"{path}: describes no CLIP vision tower: {reason}") from error
    if not isinstance(config.image_size, int):
        raise CorruptFile(f"{path}: image_size is {config.image_size}, expected one number, for square images")
    return config


def _read_weights(folder: Path, expected: Mapping[str, Tensor]) -> State:
    """The tower's tensors in float32, from a file that may hold the text tower too."""
    path = next((folder / name for name in _WEIGHT_FILES if (folder / name).is_file()), None)
    if path is None:
        raise NotFound(f"{folder}: holds no weights, expected {' or '.join(_WEIGHT_FILES)}")
    found = load_foreign(path)
    wrong = [name for name, t in expected.items() if name not in found or found[name].shape != t.shape]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CorruptFile(f"{path}: lacks {wrong[0]!r}{more}, or has them in shapes that its config.json does not say")
    return {name: found[name].float() for name in expected}


def _fetch(repository: str) -> Path:
    """The folder of a repository's config and weights in the hub's cache, downloaded if they are not there yet."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, RemoteEntryNotFoundError

    try:
        folder = Path(hf_hub_download(repository, "config.json")).parent
        for name in _WEIGHT_FILES:
            try:
                hf_hub_download(repository, name)
                break
            except RemoteEntryNotFoundError:  # older repositories have only the other file
                continue
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise NotFound(f"{repository}: no such folder, and the hub does not give it: {reason}") from error
    return folder
