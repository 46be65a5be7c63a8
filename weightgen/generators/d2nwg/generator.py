"""d2nwg: latent diffusion over weights, one generator for many data sets and architectures; the head in closed form.

Soro et al. 2025, "Diffusion-Based Neural Network Weights Generation" (arXiv:2402.18153): a codec of networks, an
encoder of data sets and a diffusion model of latents given the data set. Here

    tokens    = trunks in normal form, units matched, one token for each unit   weightspace.normal_form
    latents   = TokenVae(tokens), one codec for each architecture               weightspace.codecs.vae
    condition = SupportSetEncoder(support), the architecture, the accuracy      encoders
    latents  <- noise, by a scheduler of diffusers and one denoiser for all     generators.d2nwg.diffusion
    trunk     = decoded tokens, every unit normalised on the support set        weightspace.normal_form
    trunk     = trunk - rate * |trunk| * g / |g|, a few times                   solve.refinement
    head      = calibrated ridge regression on the trunk's activations          solve.head

g is the gradient of the leave-one-out loss on the support set, so every sample is fitted to these classes. The head is
solved and not generated, because class rows fit a trunk only if they are made from its activations. For comparison,
`with_generated_head` generates the head, each row from the prototype of its class.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from einops import repeat
from torch import Tensor, nn

from weightgen.condition import SupportSet
from weightgen.encoders.clip import ClipSupportEncoder, ClipTower
from weightgen.encoders.support_set import SupportSetEncoder
from weightgen.errors import CorruptFile, UnknownName, UnsupportedTask
from weightgen.files.checkpoint import encode_state, load_state, save_state
from weightgen.generators.d2nwg.denoiser import Denoiser
from weightgen.generators.d2nwg.diffusion import guide, sample_latents
from weightgen.generators.d2nwg.method import D2NWG, D2nwgOptions
from weightgen.generators.file import FORMAT, read_generator_manifest
from weightgen.layers.transformer import embed_scalar
from weightgen.request import GenerationRequest, check_request
from weightgen.solve.head import LinearHead, RidgeHead, left_out_cross_entropy, ridge_head, step_to_softmax
from weightgen.solve.refinement import refine, shots_scale
from weightgen.spec import State, StateSpec
from weightgen.target.network import Target
from weightgen.target.trunk import head_names, trunk_spec
from weightgen.weightspace.codecs.vae import TokenVae
from weightgen.weightspace.normal_form import fit_to_data
from weightgen.weightspace.tokens import TokenLayout, neuron_layout

VERSION = 1
MAX_SHOTS = 50
ENCODED_SHOTS = 20
"""Examples of each class that the encoder reads; the head is solved on all."""
_ACCURACY_DIM = 32


@dataclass(frozen=True)
class D2nwgConfig:
    """Sizes of the generator."""

    num_latents: int = 16
    latent_dim: int = 16
    codec_dim: int = 128
    codec_depth: int = 2
    encoder_dim: int = 128
    denoiser_dim: int = 192
    denoiser_depth: int = 4
    head_steps: int = 12
    """Steps of the class head from ridge regression towards softmax regression."""
    max_classes: int = 64
    """Classes of the largest task it was trained on; tasks with more are refused."""
    refinements: int = 0
    """Steps that a sampled trunk takes along the gradient of the leave-one-out loss."""
    clip: str | None = None
    """Folder or hub name of a CLIP whose vision tower encodes the support set instead of a small network."""
    clip_digest: str | None = None
    """sha256 of that tower, set when it is loaded; the generator works with no other tower."""


class D2nwg(nn.Module):
    """A weight generator (see `weightgen.request`) for the architectures of its zoo; equal seeds, equal samples."""

    method = D2NWG
    name = D2NWG.name

    def __init__(
        self,
        specs: Mapping[str, StateSpec],
        config: D2nwgConfig,
        *,
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """`specs` holds one spec for every member (an architecture with its input shape, see `member_name`), with any
        number of classes."""
        super().__init__()
        self.specs, self.config, self.training_record = dict(specs), config, dict(training or {})
        self.layouts: dict[str, TokenLayout] = {}
        self.codecs = nn.ModuleDict()
        self.class_rows = nn.ModuleDict()
        self.rates, self.rates_by_shots = nn.ParameterDict(), nn.ParameterDict()
        for member, spec in specs.items():
            layout = trunk_layout(spec)
            self.class_rows[member] = nn.Linear(config.encoder_dim, spec.by_name[spec.head[0]].shape[1] + 1)
            self.layouts[member] = layout
            if config.refinements:
                shape = config.refinements, len(layout.spec.generated)
                self.rates[member] = nn.Parameter(torch.full(shape, 0.1))
                self.rates_by_shots[member] = nn.Parameter(torch.zeros(shape))
            self.codecs[member] = TokenVae(
                mask=layout.mask,
                group_sizes=[g.num_tokens for g in layout.groups],
                num_latents=config.num_latents,
                latent_dim=config.latent_dim,
                dim=config.codec_dim,
                depth=config.codec_depth,
            )
        if config.clip is None:
            self.encoder: nn.Module = SupportSetEncoder(dim=config.encoder_dim)
        else:
            tower = ClipTower.load(config.clip, digest=config.clip_digest)
            self.encoder = ClipSupportEncoder(tower, dim=config.encoder_dim)
            self.config = replace(config, clip_digest=tower.digest)
        self.member_embedding = nn.Embedding(len(specs), config.encoder_dim)
        self.accuracy = nn.Linear(_ACCURACY_DIM, _ACCURACY_DIM)
        self.no_support = nn.Parameter(0.02 * torch.randn(config.encoder_dim))
        self.no_accuracy = nn.Parameter(0.02 * torch.randn(_ACCURACY_DIM))
        self.denoiser = Denoiser(
            num_latents=config.num_latents,
            latent_dim=config.latent_dim,
            condition_dim=2 * config.encoder_dim + _ACCURACY_DIM,
            dim=config.denoiser_dim,
            depth=config.denoiser_depth,
        )
        self.trunk_summary = nn.Linear(config.num_latents * config.latent_dim, config.encoder_dim)
        self.class_row = nn.Sequential(
            nn.Linear(2 * config.encoder_dim, 2 * config.encoder_dim),
            nn.GELU(),
            nn.Linear(2 * config.encoder_dim, config.encoder_dim),
        )
        self.log_ridge = nn.Parameter(torch.tensor(math.log(0.1)))
        self.log_heat = nn.Parameter(torch.tensor(0.0))
        self.log_head_steps = nn.Parameter(torch.full((config.head_steps,), math.log(2.0)))
        self.eval()

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(self.specs)

    @cached_property
    def archs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(spec.arch for spec in self.specs.values()))

    def check(self, request: GenerationRequest) -> None:
        spec = request.target.spec
        if spec.arch not in self.archs:
            raise UnsupportedTask(f"{self.name!r} makes weights for {', '.join(self.archs)}, not for {spec.arch!r}")
        member = member_name(request.target)
        if member not in self.specs:
            inputs = [m.rpartition("/")[2] for m in self.members if m.rpartition("/")[0] == spec.arch]
            raise UnsupportedTask(
                f"{self.name!r} makes {spec.arch!r} for inputs of {' or '.join(inputs)}, "
                f"not of {member.rpartition('/')[2]}"
            )
        check_request(request, D2NWG, max_classes=self.config.max_classes, max_shots=MAX_SHOTS)
        steps = options_of(request).refinements
        if steps is not None and steps > self.config.refinements:
            raise UnsupportedTask(
                f"{self.name!r} has learnt {self.config.refinements} refinements of a sample, {steps} were asked for"
            )

    def generate(self, request: GenerationRequest) -> list[State]:
        return self._generate(request, conditioned=True)

    def without_condition(self) -> "Unconditioned":
        """The same generator without the denoiser's condition; the head is still solved on the support set."""
        return Unconditioned(self)

    def with_generated_head(self) -> "WithGeneratedHead":
        """The same generator with a generated head, for comparison."""
        return WithGeneratedHead(self)

    def embed(self, support: SupportSet, *, arch: str) -> Tensor:
        """The unit-norm summary (e,) of a support set; the same for all architectures."""
        if arch not in self.archs:
            raise UnknownName("architecture", arch, self.archs)
        with torch.no_grad():
            return nn.functional.normalize(self.encode(support)[1], dim=0)

    def digest_of(self, arch: str) -> str:
        """sha256, hex, of the generator's file content; equal for all architectures, which share its denoiser."""
        if arch not in self.archs:
            raise UnknownName("architecture", arch, self.archs)
        return hashlib.sha256(encode_state(self._stored(), manifest=self._describe())).hexdigest()

    def save(self, path: Path) -> None:
        """Write a self-contained generator file: configuration, specs and weights."""
        manifest = {"format": FORMAT, "method": self.name, "version": VERSION, "archs": list(self.archs)}
        save_state(path, self._stored(), manifest={**manifest, **self._describe(), "training": self.training_record})

    @classmethod
    def load(cls, path: Path) -> "D2nwg":
        """Read a generator file; CorruptFile if it is not one, UnsupportedTask if it is of another version."""
        manifest = read_generator_manifest(path, method=cls.name, version=VERSION)
        try:
            specs = {member: StateSpec.from_json(spec) for member, spec in manifest["specs"]}
            config = D2nwgConfig(**manifest["config"])
            generator = cls(specs, config, training=manifest.get("training"))
            tensors = load_state(path)
            whole = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
            generator.load_state_dict(generator.state_dict() | whole, strict=True)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CorruptFile(f"{path}: not a whole generator file: {str(error).splitlines()[0]}") from error
        return generator

    def encode(self, support: SupportSet) -> tuple[Tensor, Tensor]:
        """Prototypes (k, e) of the classes of a support set, and its summary (e,)."""
        seen = support.first_shots(ENCODED_SHOTS)
        prototypes, summaries = self.encoder([seen.inputs], [seen.labels], [seen.num_classes])
        return prototypes[0], summaries[0]

    def condition(self, members: Sequence[str], summaries: Tensor | None, accuracies: Sequence[float | None]) -> Tensor:
        """The denoiser's condition (b, e) of three parts: summaries or none, architectures, accuracies or none."""
        known = self.no_support.expand(len(members), -1) if summaries is None else summaries
        index = torch.tensor([list(self.specs).index(m) for m in members], device=known.device)
        aims = torch.tensor([-1.0 if a is None else a for a in accuracies], device=known.device)
        aimed = torch.where((aims < 0)[:, None], self.no_accuracy, self.accuracy(embed_scalar(aims, _ACCURACY_DIM)))
        return torch.cat([known, self.member_embedding(index), aimed], 1)

    def codec(self, member: str) -> TokenVae:
        """The codec of a member."""
        codec = self.codecs[member]
        assert isinstance(codec, TokenVae)
        return codec

    def decode_trunks(self, member: str, latents: Tensor) -> State:
        """Stacked trunks from standardised latents (b, k, c); every tensor has a leading axis of b."""
        return self.layouts[member].decode_batch(self.codec(member).decode(latents))

    def refine(
        self,
        target: Target,
        trunk: Mapping[str, Tensor],
        inputs: Tensor,
        labels: Tensor,
        num_classes: int,
        *,
        steps: int | None = None,
    ) -> dict[str, Tensor]:
        """A trunk in normal form, fitted to these examples by the first `steps` learnt steps, or by all if None.

        Differentiable in trunk and rates.
        """

        def left_out(leaves: Mapping[str, Tensor]) -> Tensor:
            _, features = fit_to_data(target, leaves, inputs)
            return left_out_cross_entropy(*self._solve(features, labels, num_classes), features, labels)

        if not self.config.refinements or steps == 0:
            return dict(trunk)
        member = member_name(target)
        names = [t.name for t in self.layouts[member].spec.generated]
        moved = {name: trunk[name] for name in names}
        by_shots = shots_scale(labels, num_classes)
        rates = self.rates[member] + by_shots * self.rates_by_shots[member]
        for each in rates[:steps]:
            moved = refine(moved, left_out, each)
        return {**trunk, **moved}

    def solve(self, features: Tensor, labels: Tensor, num_classes: int) -> LinearHead:
        """The class head on a trunk's activations (n, d): ridge regression, then steps towards softmax regression."""
        _, head = self._solve(features, labels, num_classes)
        heat = self.log_heat.exp()
        return LinearHead(weight=heat * head.weight, bias=heat * head.bias)

    def _solve(self, features: Tensor, labels: Tensor, num_classes: int) -> tuple[RidgeHead, LinearHead]:
        ridge = ridge_head(features, labels, num_classes=num_classes, ridge=self.log_ridge.exp())
        return ridge, step_to_softmax(ridge, features, labels, steps=self.log_head_steps.exp())

    def fit(
        self, target: Target, trunk: Mapping[str, Tensor], inputs: Tensor, labels: Tensor, num_classes: int
    ) -> tuple[State, LinearHead]:
        """The state, without head, of a trunk in normal form for these examples, and the head; differentiable."""
        state, features = fit_to_data(target, trunk, inputs)
        return state, self.solve(features, labels, num_classes)

    def generate_head(self, member: str, prototypes: Tensor, latents: Tensor) -> LinearHead:
        """A class head from prototypes (k, e) and the trunk's latents; each row comes from its class's prototype."""
        trunk = self.trunk_summary(latents.flatten())
        known = torch.cat([prototypes, trunk.expand(len(prototypes), -1)], 1)
        rows = self.class_rows[member](self.class_row(known))
        return LinearHead(weight=rows[:, :-1], bias=rows[:, -1])

    def sample(self, request: GenerationRequest, *, conditioned: bool = True) -> Tensor:
        """Standardised latents (num_samples, k, c) of a request."""
        options = options_of(request)
        member, support = member_name(request.target), request.condition.support
        assert support is not None
        count = request.num_samples
        aims = [request.condition.target_accuracy if conditioned else None] * count
        summaries = repeat(self.encode(support)[1], "e -> b e", b=count) if conditioned else None
        condition = self.condition([member] * count, summaries, aims)
        no_condition = self.condition([member] * count, None, aims)
        denoise = guide(
            lambda z, level: self.denoiser(z, level, condition),
            lambda z, level: self.denoiser(z, level, no_condition),
            options.guidance,
        )
        shape = (count, self.config.num_latents, self.config.latent_dim)
        return sample_latents(denoise, shape, options, rng=torch.Generator().manual_seed(request.seed))

    @torch.no_grad()
    def _generate(self, request: GenerationRequest, *, conditioned: bool) -> list[State]:
        target, support = request.target, request.condition.support
        assert support is not None
        trunks = self.decode_trunks(member_name(target), self.sample(request, conditioned=conditioned))
        steps = options_of(request).refinements if conditioned else 0
        return [
            self.finish(target, {name: t[i] for name, t in trunks.items()}, support, refinements=steps)
            for i in range(request.num_samples)
        ]

    @torch.no_grad()
    def finish(
        self, target: Target, trunk: Mapping[str, Tensor], support: SupportSet, *, refinements: int | None = 0
    ) -> State:
        """A full state of a trunk in normal form: refined, then given statistics and a head, all from the support set.

        None means as many refinements as were learnt.
        """
        given = support.inputs, support.labels, support.num_classes
        state, head = self.fit(target, self.refine(target, trunk, *given, steps=refinements), *given)
        weight, bias = head_names(target)
        return target.spec.complete({**state, weight: head.weight.contiguous(), bias: head.bias.contiguous()})

    def _describe(self) -> dict[str, Any]:
        specs = [[member, spec.to_json()] for member, spec in self.specs.items()]
        return {"specs": specs, "config": {k: v for k, v in asdict(self.config).items() if v}}  # not what is off

    def _stored(self) -> State:
        """The tensors of a file: floats as float16, without masks."""
        return {n: t.half() if t.is_floating_point() else t for n, t in self.state_dict().items() if "mask" not in n}


class Unconditioned:
    """A latent diffusion generator whose denoiser knows the architecture but not the support set."""

    def __init__(self, generator: D2nwg) -> None:
        self.generator = generator
        self.name = f"{generator.name} without condition"

    def check(self, request: GenerationRequest) -> None:
        self.generator.check(request)

    def generate(self, request: GenerationRequest) -> list[State]:
        return self.generator._generate(request, conditioned=False)


class WithGeneratedHead:
    """A latent diffusion generator whose class heads are generated like the rest, not solved on the support set."""

    def __init__(self, generator: D2nwg) -> None:
        self.generator = generator
        self.name = f"{generator.name} with generated head"

    def check(self, request: GenerationRequest) -> None:
        self.generator.check(request)

    @torch.no_grad()
    def generate(self, request: GenerationRequest) -> list[State]:
        made, target, support = self.generator, request.target, request.condition.support
        assert support is not None
        member, (weight, bias) = member_name(target), head_names(target)
        latents, prototypes = made.sample(request), made.encode(support)[0]
        trunks, states = made.decode_trunks(member, latents), []
        for i, each in enumerate(latents):
            state, _ = fit_to_data(target, {name: t[i] for name, t in trunks.items()}, support.inputs)
            head = made.generate_head(member, prototypes, each)
            tensors = {**state, weight: head.weight.contiguous(), bias: head.bias.contiguous()}
            states.append(target.spec.complete(tensors))
        return states


def options_of(request: GenerationRequest) -> D2nwgOptions:
    """The request's options, or the defaults if it has none."""
    options = request.options or D2nwgOptions()
    assert isinstance(options, D2nwgOptions)  # `check_request` has refused others
    return options


def trunk_layout(spec: StateSpec) -> TokenLayout:
    """A layout with one token for each unit of the trunk, as wide as the widest unit."""
    trunk = trunk_spec(spec)
    return neuron_layout(trunk, max(group.width for group in neuron_layout(trunk, 1).groups))


def member_name(target: Target) -> str:
    """An architecture and its input: `cnn-tiny/1x28x28`."""
    return f"{target.spec.arch}/{'x'.join(map(str, target.input_shape))}"
