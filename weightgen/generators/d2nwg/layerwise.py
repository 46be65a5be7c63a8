"""d2nwg-layerwise: latent diffusion over networks larger than one context, window by window.

The layer-wise mode of D2NWG (Soro et al. 2025, arXiv:2402.18153, section 3.1): a trunk is cut layer by layer into chunk
tokens, and `context` of them make a window. One codec and one denoiser serve all windows of networks of any depth:

    tokens    = balanced, aligned trunks without BatchNorm's statistics     weightspace.windows
    latents   = WindowVae(tokens, their places)                             weightspace.codecs.window_vae
    condition = SupportSetEncoder(support), the accuracy asked for          encoders
    latents  <- noise, their places, and the tail of the window before      generators.d2nwg.window_denoiser
    trunk     = decoded windows, statistics measured on the support set     weightspace.normal_form
    head      = calibrated ridge regression on the trunk's activations      solve.head

Memory holds the state that is being written and one window, whose size depends on the context, not on the network.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from weightgen.condition import SupportSet
from weightgen.encoders.support_set import SupportSetEncoder
from weightgen.errors import BadOption, CorruptFile, UnsupportedTask
from weightgen.files.checkpoint import load_state, save_state
from weightgen.generators.d2nwg.diffusion import guide, sample_latents
from weightgen.generators.d2nwg.method import D2NWG_LAYERWISE, SchedulerOptions
from weightgen.generators.d2nwg.window_denoiser import WindowDenoiser
from weightgen.generators.file import FORMAT, read_generator_manifest
from weightgen.layers.transformer import embed_scalar
from weightgen.request import GenerationRequest, check_request
from weightgen.solve.head import ridge_head, step_to_softmax
from weightgen.spec import State, StateSpec
from weightgen.target.network import Target
from weightgen.target.trunk import head_names
from weightgen.weightspace.codecs.window_vae import WindowVae
from weightgen.weightspace.normal_form import fit_to_data
from weightgen.weightspace.windows import PLACE_DIM, Statistics, Windows, split_windows

VERSION = 1
MAX_CLASSES, MAX_SHOTS = 64, 50
ENCODED_SHOTS = 20
"""Examples of each class that the encoder reads; the head is solved on all."""
HEAD_STEPS = torch.full((12,), 2.0)
"""Lengths of the head's steps from ridge regression towards softmax regression."""
_ACCURACY_DIM = 32


@dataclass(frozen=True)
class LayerwiseConfig:
    """Sizes of the generator."""

    context: int = 64
    """Tokens in a window."""
    tail: int = 8
    """Last tokens of the window before that the denoiser reads."""
    token_dim: int = 144
    latent_dim: int = 72
    codec_dim: int = 96
    codec_depth: int = 2
    codec_base: float = 0.0
    """See `WindowVae`."""
    encoder_dim: int = 64
    denoiser_dim: int = 160
    denoiser_depth: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.tail <= self.context:
            raise BadOption(f"a tail of {self.tail} tokens, expected 1 to {self.context}, the context")


class D2nwgLayerwise(nn.Module):
    """A weight generator (see `weightgen.request`) for trunks of any depth made of layers it knows."""

    method = D2NWG_LAYERWISE
    name = D2NWG_LAYERWISE.name

    def __init__(
        self,
        statistics: Statistics,
        input_shape: tuple[int, ...],
        config: LayerwiseConfig,
        *,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """`statistics` holds those of every kind of layer it knows (`measure_statistics`)."""
        super().__init__()
        self.statistics, self.input_shape, self.config = dict(statistics), tuple(input_shape), config
        self.training_record = dict(training or {})
        self.codec = WindowVae(
            num_kinds=len(statistics),
            token_dim=config.token_dim,
            latent_dim=config.latent_dim,
            dim=config.codec_dim,
            depth=config.codec_depth,
            base=config.codec_base,
        )
        self.encoder = SupportSetEncoder(dim=config.encoder_dim)
        self.accuracy = nn.Linear(_ACCURACY_DIM, _ACCURACY_DIM)
        self.no_support = nn.Parameter(0.02 * torch.randn(config.encoder_dim))
        self.no_accuracy = nn.Parameter(0.02 * torch.randn(_ACCURACY_DIM))
        self.denoiser = WindowDenoiser(
            latent_dim=config.latent_dim,
            place_dim=PLACE_DIM,
            condition_dim=config.encoder_dim + _ACCURACY_DIM,
            dim=config.denoiser_dim,
            depth=config.denoiser_depth,
        )
        self.eval()

    def check(self, request: GenerationRequest) -> None:
        target, spec = request.target, request.target.spec
        self.split(spec)
        if target.input_shape != self.input_shape:
            wanted, got = ("x".join(map(str, shape)) for shape in (self.input_shape, target.input_shape))
            raise UnsupportedTask(f"{self.name!r} makes weights for inputs of {wanted}, not of {got}")
        check_request(request, D2NWG_LAYERWISE, max_classes=MAX_CLASSES, max_shots=MAX_SHOTS)

    @torch.no_grad()
    def generate(self, request: GenerationRequest) -> list[State]:
        self.check(request)
        support, aim = request.condition.support, request.condition.target_accuracy
        assert support is not None
        condition, rng = self.condition(self.summarise(support), aim), torch.Generator().manual_seed(request.seed)
        options = request.options or SchedulerOptions()
        assert isinstance(options, SchedulerOptions)
        states = []
        for _ in range(request.num_samples):
            trunk = self.sample_trunk(request.target.spec, condition, options, rng=rng)
            states.append(self.finish(request.target, trunk, support))
        return states

    def split(self, spec: StateSpec) -> Windows:
        """The tokens of a spec's trunks."""
        return split_windows(spec, self.statistics, token_dim=self.config.token_dim)

    def summarise(self, support: SupportSet) -> Tensor:
        """The summary (e,) of the first examples of every class of a support set."""
        seen = support.first_shots(ENCODED_SHOTS)
        return self.encoder([seen.inputs], [seen.labels], [seen.num_classes])[1][0]

    def condition(self, summary: Tensor | None, accuracy: float | None) -> Tensor:
        """The denoiser's condition (1, e): the summary (e,) of a support set or none, and an accuracy or none."""
        aimed = self.no_accuracy if accuracy is None else self.accuracy(_embed_accuracy(accuracy))
        return torch.cat([self.no_support if summary is None else summary, aimed])[None]

    @torch.no_grad()
    def sample_trunk(
        self,
        spec: StateSpec,
        told: Tensor,
        options: SchedulerOptions,
        *,
        rng: torch.Generator,
        sees_tail: bool = True,
        order: Sequence[int] | None = None,
    ) -> State:
        """A trunk of a spec, without BatchNorm's statistics, for a condition (1, e); window after window.

        Without `sees_tail` every window is sampled as if it were the first. `order` gives the numbers of the windows in
        the order in which they are made; the tail is always that of the window made just before.
        """
        windows, untold = self.split(spec), self.condition(None, None)
        trunk = windows.allocate()
        tail, tail_places, has_tail = self.first_tail()
        cut = list(windows.cut(self.config.context))
        for window in cut if order is None else [cut[i] for i in order]:
            places = windows.places(window)[None]
            seen = {"places": places, "tail": tail, "tail_places": tail_places, "has_tail": has_tail}
            denoise = guide(
                lambda z, level, seen=seen: self.denoiser(z, level, told, **seen),
                lambda z, level, seen=seen: self.denoiser(z, level, untold, **seen),
                options.guidance,
            )
            latents = sample_latents(denoise, (1, len(window), self.config.latent_dim), options, rng=rng)
            kinds, mask = windows.kind_indices(window)[None], windows.mask(window)[None]
            windows.write(self.codec.decode(latents, kinds, places, mask)[0], window, out=trunk)
            if sees_tail:
                tail, tail_places = latents[:, -self.config.tail :], places[:, -self.config.tail :]
                has_tail = torch.ones(1)
        return trunk

    def first_tail(self) -> tuple[Tensor, Tensor, Tensor]:
        """Tail, its places and `has_tail` for the first window."""
        length = self.config.tail
        return torch.zeros(1, length, self.config.latent_dim), torch.zeros(1, length, PLACE_DIM), torch.zeros(1)

    @torch.no_grad()
    def reconstruct(self, spec: StateSpec, trunk: Mapping[str, Tensor]) -> State:
        """A trunk encoded and decoded by the codec, window after window."""
        windows = self.split(spec)
        decoded = windows.allocate()
        for window in windows.cut(self.config.context):
            kinds, places = windows.kind_indices(window)[None], windows.places(window)[None]
            latents = self.codec.encode(windows.read(trunk, window)[None], kinds, places)
            tokens = self.codec.decode(latents, kinds, places, windows.mask(window)[None])
            windows.write(tokens[0], window, out=decoded)
        return decoded

    @torch.no_grad()
    def finish(self, target: Target, trunk: Mapping[str, Tensor], support: SupportSet) -> State:
        """A full state of a trunk, with statistics and head from the support set."""
        state, features = fit_to_data(target, trunk, support.inputs)
        ridge = ridge_head(features, support.labels, num_classes=support.num_classes)
        head = step_to_softmax(ridge, features, support.labels, steps=HEAD_STEPS)
        weight, bias = head_names(target)
        return target.spec.complete({**state, weight: head.weight.contiguous(), bias: head.bias.contiguous()})

    def save(self, path: str | Path) -> None:
        manifest = {
            "format": FORMAT,
            "method": D2NWG_LAYERWISE.name,
            "version": VERSION,
            "statistics": [[kind, [list(pair) for pair in pairs]] for kind, pairs in self.statistics.items()],
            "input_shape": list(self.input_shape),
            "config": asdict(self.config),
            "training": self.training_record,
        }
        save_state(path, {n: t.half() for n, t in self.state_dict().items()}, manifest=manifest)

    @classmethod
    def load(cls, path: str | Path) -> "D2nwgLayerwise":
        path = Path(path)
        manifest = read_generator_manifest(path, method=D2NWG_LAYERWISE.name, version=VERSION)
        try:
            statistics = {kind: [(float(m), float(d)) for m, d in pairs] for kind, pairs in manifest["statistics"]}
            config = LayerwiseConfig(**manifest["config"])
            shape = tuple(int(n) for n in manifest["input_shape"])
            generator = cls(statistics, shape, config, training=manifest.get("training"))
            generator.load_state_dict({name: t.float() for name, t in load_state(path).items()}, strict=True)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CorruptFile(f"{path}: not a whole generator file: {str(error).splitlines()[0]}") from error
        return generator


def _embed_accuracy(accuracy: float) -> Tensor:
    return embed_scalar(torch.tensor([accuracy]), _ACCURACY_DIM)[0]
