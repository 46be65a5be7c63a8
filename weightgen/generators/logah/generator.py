"""LoGAH: weights for any module from its graph, as low-rank products (Zhou et al. 2024, arXiv:2405.16287).

A graph transformer (`layers.graphormer`) gives every tensor a token; a decoder (`layers.low_rank_decoder`) makes its
factors. Weights are made tensor by tensor: beside the target, memory holds no more than one tensor. A tensor that is
not predicted keeps the module's own initialisation, and the report lists it.

For a classifier with a support set, `generate` makes the trunk first and the head second. An encoding of the set, made
from class prototypes, shifts every token (by zero before training), so that the trunk depends on the data as well as on
the graph. The trunk is refined on the set by a few steps (`weightgen.solve.refinement`). The class head is solved on
the trunk's activations, so one generator serves any data set with any number of classes.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weightgen.condition import SupportSet
from weightgen.encoders.support_set import SupportSetEncoder
from weightgen.errors import BadOption, CorruptFile, UnsupportedTask
from weightgen.files.checkpoint import encode_state, load_state, save_state
from weightgen.generators.file import FORMAT, read_generator_manifest
from weightgen.generators.logah.method import LOGAH
from weightgen.generators.logah.plan import Kept, Predicted, WeightScale, graph_inputs, plan_weights
from weightgen.generators.logah.published import MAX_ROWS, PRIMITIVES, PublishedDecoder, PublishedEncoder
from weightgen.graph.arch_graph import OPS, ROLES, ArchGraph, build_graph
from weightgen.layers.graphormer import GraphEncoder, GraphInputs
from weightgen.layers.low_rank_decoder import Factors, LowRankDecoder, multiply, multiply_into
from weightgen.request import GenerationRequest, check_request, require_support
from weightgen.runtime.global_rng import borrowed_rng
from weightgen.solve.refinement import refine_trunk
from weightgen.solve.refit import refit
from weightgen.spec import State
from weightgen.target.trunk import take_trunk

VERSION = 1
_PRIMITIVE_OF_OP = {
    **{"input": "input", "output": "sum", "linear": "conv", "conv": "conv", "grouped_conv": "sep_conv"},
    **{"transposed_conv": "conv", "batch_norm": "bn", "instance_norm": "bn", "group_norm": "ln", "layer_norm": "ln"},
    **{"rms_norm": "ln", "embedding": "pos_enc", "parameter": "pos_enc", "attention": "msa", "activation": "sum"},
    **{"pooling": "glob_avg", "sum": "sum", "product": "cse", "concat": "concat", "recurrent": "conv"},
    **{"expert": "conv", "gate": "cse", "other": "sum"},
}


@dataclass(frozen=True, slots=True)
class LogahConfig:
    """The size of a graph hypernetwork, and the scale of its weights before training."""

    rank: int = 32
    num_layers: int = 3
    dim: int = 64
    num_heads: int = 8
    max_distance: int = 50
    """Longer paths between nodes count as this length."""
    scale: WeightScale = field(default_factory=WeightScale)
    as_published: bool = False
    """The paper's own encoder and decoder, with their dead rows, for comparison."""
    encoding_dim: int | None = None
    """Size of the encoding of a support set; None if weights depend on the graph alone."""
    refinement_rates: tuple[float, ...] = ()
    """Lengths of the steps that `generate` takes on a support set, each as a share of a tensor's size."""
    is_refined_on_augmented: bool = False
    """Whether each of these steps sees the images shifted, turned and scaled a little, with the request's seed."""

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or self.dim % 4:
            raise BadOption(f"dim is {self.dim}, expected a multiple of 4 and of num_heads, {self.num_heads}")
        if self.as_published and self.encoding_dim is not None:
            raise BadOption("the published generator knows no support sets: encoding_dim must be None")
        if not all(0 < rate < 1 for rate in self.refinement_rates):
            raise BadOption(f"refinement_rates are {self.refinement_rates}, expected shares above 0 and below 1")


def size_t(*, as_published: bool = False) -> LogahConfig:
    """Size T, published with 2.5 million parameters."""
    return _size(32, 3, 64, 8, as_published)


def size_s(*, as_published: bool = False) -> LogahConfig:
    """Size S, published with 21.4 million parameters."""
    return _size(90, 5, 128, 16, as_published)


def size_b(*, as_published: bool = False) -> LogahConfig:
    """Size B, published with 78.2 million parameters."""
    return _size(128, 5, 256, 16, as_published)


def size_l(*, as_published: bool = False) -> LogahConfig:
    """Size L, published with 289 million parameters."""
    return _size(256, 12, 256, 16, as_published)


SIZES = {"T": size_t, "S": size_s, "B": size_b, "L": size_l}


def _size(rank: int, num_layers: int, dim: int, num_heads: int, as_published: bool) -> LogahConfig:
    scale = WeightScale(is_published=as_published)
    return LogahConfig(rank, num_layers, dim, num_heads, scale=scale, as_published=as_published)


class Logah(nn.Module):
    """Makes weights for any module that has a graph."""

    method = LOGAH
    name = LOGAH.name

    def __init__(self, config: LogahConfig, *, training: Mapping[str, Any] | None = None) -> None:
        """Initialise from torch's global RNG; `new_logah` takes a seed instead."""
        super().__init__()
        self.config = config
        self.training_record = dict(training or {})
        self.encoder: GraphEncoder | PublishedEncoder
        self.decoder: LowRankDecoder | PublishedDecoder
        sizes = {"dim": config.dim, "num_layers": config.num_layers, "num_heads": config.num_heads}
        if config.as_published:
            self.encoder = PublishedEncoder(**sizes)
            self.decoder = PublishedDecoder(config.dim, config.rank)
        else:
            self.encoder = GraphEncoder(
                num_ops=len(OPS), num_roles=len(ROLES), max_distance=config.max_distance, **sizes
            )
            self.decoder = LowRankDecoder(config.dim, config.rank)
        self.support_encoder = None
        if config.encoding_dim is not None:
            self.support_encoder = SupportSetEncoder(width=16, dim=config.encoding_dim)
            self.of_support = nn.Linear(config.encoding_dim, 2 * config.dim, bias=False)
            nn.init.zeros_(self.of_support.weight)

    def plan(self, graph: ArchGraph) -> tuple[Predicted | Kept, ...]:
        """Whether each tensor of the graph's spec is predicted or kept, for all that are not tied to another."""
        plan = plan_weights(graph, self.config.scale)
        if not self.config.as_published:
            return plan
        why = f"wider than the published decoder's {MAX_ROWS:,} rows"
        return tuple(Kept(p.tensor, why) if isinstance(p, Predicted) and p.longest > MAX_ROWS else p for p in plan)

    def encode(self, images: Tensor, labels: Tensor, num_classes: int) -> Tensor | None:
        """The encoding (e,), of norm sqrt(e), of labelled images (n, 1 or 3, 28, 28); None without a condition."""
        if self.support_encoder is None:
            return None
        _, (summary,) = self.support_encoder([images], [labels], [num_classes])
        return F.normalize(summary, dim=0) * len(summary) ** 0.5

    def forward(self, graph: ArchGraph, encoding: Tensor | None = None) -> State:
        """The predicted tensors of a state, differentiable, float32; `encoding` (e,) is what `encode` gave."""
        chosen = _predicted(self.plan(graph))
        state = {}
        for p, made in self._make(graph, chosen, encoding):
            if isinstance(made, Factors):
                made = multiply(made, p.unfolded)
            state[p.tensor.name] = made.reshape(p.tensor.shape)
        return state

    def predict(
        self,
        target: ArchGraph | nn.Module,
        *,
        support: SupportSet | None = None,
        seed: int = 0,
        noise: float = 0.0,
        device: torch.device | None = None,
    ) -> Iterator[tuple[str, Tensor]]:
        """Name and value of every predicted tensor, in the spec's order and dtypes; each is made when it is asked for.

        `support` is the data that the weights are for, if the generator was trained with support sets. `noise` is the
        share of a weight's variance that is drawn at random, with `seed`; without noise the seed changes nothing.
        Tensors that are tied or not predicted are left out; `weightgen.init.report.report_of` lists them.
        """
        graph = target if isinstance(target, ArchGraph) else build_graph(target)
        chosen = _predicted(self.plan(graph))
        blanks = (torch.empty(p.tensor.shape, dtype=p.tensor.torch_dtype, device=device) for p in chosen)
        with torch.no_grad():
            encoding = self._read(support)
        return self._fill(graph, chosen, blanks, encoding, seed=seed, noise=noise)

    def fill(self, graph: ArchGraph, tensors: Mapping[str, Tensor], *, seed: int = 0, noise: float = 0.0) -> None:
        """Write the predicted values of a graph's tensors into `tensors`, in place."""
        chosen = _predicted(self.plan(graph))
        targets = (tensors[p.tensor.name] for p in chosen)
        for _ in self._fill(graph, chosen, targets, None, seed=seed, noise=noise):
            pass

    def check(self, request: GenerationRequest) -> None:
        check_request(request, LOGAH)

    def generate(self, request: GenerationRequest) -> list[State]:
        """One state: the trunk from graph and support set, BatchNorm's statistics and the class head from the set.

        Tensors that are not predicted keep the target's own initialisation, drawn with the request's seed.
        """
        return [self._generate(request, conditioned=True)]

    def without_condition(self) -> "Unconditioned":
        """The same generator with trunks from the graph alone, not refined; heads are solved on the support set."""
        return Unconditioned(self)

    def embed(self, support: SupportSet, *, arch: str) -> Tensor:
        """The unit-norm encoding (e,) of a support set, the same for every architecture.

        UnsupportedTask if the generator embeds no such support sets.
        """
        with torch.no_grad():
            encoding = self._read(support)
        if encoding is None:
            raise UnsupportedTask("this 'logah' generator was trained without support sets: it embeds none")
        return F.normalize(encoding, dim=0)

    def digest_of(self, arch: str) -> str:
        """sha256, hex, of the generator's file content, the same for every architecture."""
        return hashlib.sha256(encode_state(self.state_dict(), manifest=asdict(self.config))).hexdigest()

    def _generate(self, request: GenerationRequest, *, conditioned: bool) -> State:
        self.check(request)
        support, target = require_support(request), request.target
        graph = build_graph(target.skeleton, torch.zeros(1, *target.input_shape))
        made = dict(self.predict(graph, support=support if conditioned else None))
        state = target.spec.complete(target.init_state(request.seed) | made)
        if conditioned:
            augments = self.config.is_refined_on_augmented and support.inputs.ndim == 4
            rng = torch.Generator().manual_seed(request.seed) if augments else None
            state = refine_trunk(target, state, support, rates=self.config.refinement_rates, rng=rng)
        return refit(target, take_trunk(state, target.spec), support)

    def _read(self, support: SupportSet | None) -> Tensor | None:
        """The encoding (e,) of a support set; None if its inputs are not images that the encoder takes."""
        if support is None or support.inputs.shape[2:] != (28, 28):
            return None
        return self.encode(support.inputs, support.labels, support.num_classes)

    @torch.no_grad()
    def _fill(
        self,
        graph: ArchGraph,
        chosen: list[Predicted],
        targets: Iterator[Tensor],
        encoding: Tensor | None,
        *,
        seed: int,
        noise: float,
    ) -> Iterator[tuple[str, Tensor]]:
        if not 0 <= noise < 1:
            raise BadOption(f"noise is {noise}, expected a share from 0 to below 1")
        rng = torch.Generator().manual_seed(seed)
        for (p, made), target in zip(self._make(graph, chosen, encoding), targets, strict=True):
            if isinstance(made, Factors):
                multiply_into(target, made, p.unfolded)
                if noise:
                    drawn = torch.randn(p.tensor.shape, generator=rng).mul_(made.rms.cpu() * noise**0.5)
                    target.mul_((1 - noise) ** 0.5).add_(drawn.to(target))
            else:
                target.copy_(made.view(p.tensor.shape))
            yield p.tensor.name, target

    def _make(
        self, graph: ArchGraph, chosen: list[Predicted], encoding: Tensor | None
    ) -> Iterator[tuple[Predicted, Factors | Tensor]]:
        """Factors of weights and values of vectors; vectors are small and are made first, all at once."""
        if not chosen:
            return
        inputs = self._inputs(graph, chosen)
        if encoding is None:
            tokens = self.encoder(inputs)
        else:
            of_nodes, of_tokens = self.of_support(encoding).chunk(2)
            tokens = self.encoder(inputs, of_nodes) + of_tokens
        is_weight = torch.tensor([p.kind == "weight" for p in chosen], device=tokens.device)
        weights = [p for p in chosen if p.kind == "weight"]
        sizes = [p.tensor.numel for p in chosen if p.kind != "weight"]
        kinds = [p.kind for p in chosen if p.kind != "weight"]
        vectors = _activate(self.decoder.vectors(tokens[~is_weight], sizes), kinds)
        factors = iter(self.decoder(tokens[is_weight], [p.unfolded for p in weights]))
        for p in chosen:
            yield p, next(factors if p.kind == "weight" else vectors)

    def _inputs(self, graph: ArchGraph, chosen: list[Predicted]) -> GraphInputs:
        device = next(self.parameters()).device
        names = [p.tensor.name for p in chosen]
        inputs = graph_inputs(graph, names, max_distance=self.config.max_distance, device=device)
        if not self.config.as_published:
            return inputs
        ops = torch.tensor([PRIMITIVES.index(_PRIMITIVE_OF_OP[op]) for op in OPS], device=device)[inputs.ops]
        is_bias = torch.tensor([graph.owned[name].role.endswith("bias") for name in names], device=device)
        roles = torch.where(is_bias, PRIMITIVES.index("bias"), ops[inputs.owners])
        return inputs._replace(ops=ops, roles=roles)

    def save(self, path: str | Path) -> None:
        """Write a self-contained generator file: configuration and weights, in float32."""
        manifest = {
            "format": FORMAT, "method": self.name, "version": VERSION,
            "config": asdict(self.config), "training": self.training_record,
        }  # fmt: skip
        save_state(path, self.state_dict(), manifest=manifest)

    @classmethod
    def load(cls, path: str | Path) -> "Logah":
        """Read a generator file; CorruptFile if it is not one, UnsupportedTask if it is of another version."""
        manifest = read_generator_manifest(Path(path), method=cls.name, version=VERSION)
        tensors = load_state(path)
        try:
            config = dict(manifest["config"])
            config["scale"] = WeightScale(**config["scale"])
            config["refinement_rates"] = tuple(config.get("refinement_rates", ()))
            with torch.device("meta"):
                generator = cls(LogahConfig(**config), training=manifest["training"])
            generator.load_state_dict(tensors, assign=True)
        except (KeyError, TypeError, RuntimeError, BadOption) as error:
            raise CorruptFile(f"{path}: its tensors do not fit its own configuration") from error
        return generator.requires_grad_(False).eval()


class Unconditioned:
    """A Logah whose trunks do not depend on the data; it follows the generator protocol."""

    name = "logah-unconditioned"

    def __init__(self, generator: Logah) -> None:
        self._generator = generator

    def check(self, request: GenerationRequest) -> None:
        self._generator.check(request)

    def generate(self, request: GenerationRequest) -> list[State]:
        return [self._generator._generate(request, conditioned=False)]


def new_logah(config: LogahConfig, *, seed: int) -> Logah:
    """An untrained graph hypernetwork; the global RNG is left as it was."""
    with borrowed_rng(seed):
        return Logah(config)


def _activate(vectors: list[Tensor], kinds: list[str]) -> Iterator[Tensor]:
    """Vectors as norm weights, around 1, or as biases and the like, around 0; in two calls for all of them."""
    made: dict[int, Tensor] = {}
    for is_norm in (True, False):
        places = [i for i, kind in enumerate(kinds) if (kind == "norm weight") == is_norm]
        if places:
            values = torch.cat([vectors[i] for i in places])
            values = 2 * torch.sigmoid(values / 2) if is_norm else torch.tanh(values / 5)
            made |= dict(zip(places, values.split([len(vectors[i]) for i in places]), strict=True))
    return (made[i] for i in range(len(vectors)))


def _predicted(plan: tuple[Predicted | Kept, ...]) -> list[Predicted]:
    return [p for p in plan if isinstance(p, Predicted)]
