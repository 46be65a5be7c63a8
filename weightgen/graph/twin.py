"""A module's structure on the meta device, and inputs that its forward pass may take.

The twin shares no tensor, container or hook with the module: running it does not change the module. Only Python
objects are copied, so that a twin of a module of any size takes milliseconds.
"""

import functools
import inspect
import itertools
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

SEQUENCE_LENGTH = 2
"""Length of a guessed sequence; short, because a module that loops over time adds nodes for every position."""
IMAGE_SIZES = (224, 32, 28, 64, 128, 256, 299, 384, 16, 8, 512)

_ATOMS = frozenset((int, float, str, bool, type(None), torch.Size, torch.dtype))
_SHARED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, torch.device)
_HOOKS = frozenset(
    name for name in vars(nn.Module()) if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called"))
)
_NOT_STRUCTURE = _HOOKS | {"training"}


class TwinMaker:
    """Copies modules, each object once. `tensors`: id of a module's tensor -> its twin on the meta device."""

    def __init__(self) -> None:
        self.tensors: dict[int, Tensor] = {}
        self._made: dict[int, Any] = {}
        self._alive: list[Any] = []  # an id is unique only while its object lives

    def copy(self, value: Any) -> Any:
        """The twin of a module, tensor or container; objects that can be neither changed nor run are shared."""
        kind = type(value)
        if kind in _ATOMS or isinstance(value, _SHARED):
            return value
        if id(value) in self._made:
            return self._made[id(value)]
        self._alive.append(value)
        if isinstance(value, Tensor):
            return self._keep(value, self._copy_tensor(value))
        if isinstance(value, nn.Module):
            return self._copy_module(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, self.copy(value.__self__))
        if kind is functools.partial:
            keywords = {name: self.copy(v) for name, v in value.keywords.items()}
            return functools.partial(self.copy(value.func), *map(self.copy, value.args), **keywords)
        if kind in (tuple, set, frozenset):
            return kind(map(self.copy, value)) if value else kind()
        if kind in (list, deque):
            twin = self._keep(value, kind())
            twin.extend(map(self.copy, value))
            return twin
        if kind in (dict, OrderedDict):
            twin = self._keep(value, kind())
            twin.update((key, self.copy(v)) for key, v in value.items())
            return twin
        return self._copy_object(value)

    def _keep(self, value: Any, twin: Any) -> Any:
        self._made[id(value)] = twin
        return twin

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if is_lazy(tensor):
            twin = torch.empty(0, device="meta")
        elif tensor.layout != torch.strided or tensor.is_quantized:
            twin = torch.empty(tensor.shape, device="meta")
        else:
            twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
        self.tensors[id(tensor)] = twin
        return twin

    def _copy_module(self, module: nn.Module) -> Any:
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(f"{type(module).__name__} is compiled to TorchScript")
        inner = _wrapped(module)
        if inner is not None:
            return self._keep(module, self.copy(inner))
        twin = self._keep(module, object.__new__(type(module)))
        own = vars(twin)
        for name, value in vars(module).items():
            if type(value) in _ATOMS:
                own[name] = value
            elif name in _HOOKS:
                # Only torch's own hooks that compute weights (weight_norm, spectral_norm) belong to the structure.
                ours = ((k, h) for k, h in value.items() if type(h).__module__.startswith("torch.nn.utils"))
                own[name] = OrderedDict((k, self.copy(h)) for k, h in ours) if value else OrderedDict()
            else:
                own[name] = self.copy(value)
        own["training"] = False
        return twin

    def _copy_object(self, value: Any) -> Any:
        kind = type(value)
        if not hasattr(value, "__dict__") or kind.__new__ is not object.__new__ or kind.__module__ == "torch":
            return value
        twin = self._keep(value, object.__new__(kind))
        vars(twin).update((name, self.copy(v)) for name, v in vars(value).items())
        return twin


def _wrapped(module: nn.Module) -> nn.Module | None:
    """The module inside a wrapper that changes where a network runs, not what it computes."""
    if isinstance(module, (DataParallel, DistributedDataParallel)):
        return module.module
    return module._modules.get("_orig_mod") if type(module).__name__ == "OptimizedModule" else None  # torch.compile


def guess_inputs(module: nn.Module) -> Iterator[tuple[tuple[Any, ...], dict[str, Any]]]:
    """Guessed arguments for forward on the meta device, the most likely first; floats have the module's own dtype."""
    module = _wrapped(module) or module
    floats = functools.partial(torch.empty, dtype=_find_dtype(module), device="meta")
    parameters = inspect.signature(module.forward).parameters
    config = getattr(module, "config", None)
    if hasattr(module, "main_input_name") and config is not None:
        given = _model_arguments(module, config, parameters, floats)
        yield (), given
        images = given.get("pixel_values")
        if images is not None:
            frames = images[:, None].expand(-1, getattr(config, "num_frames", 1), -1, -1, -1)
            yield (), given | {"pixel_values": frames}  # several images, or a video
            if "input_ids" in given:
                yield (), {name: value for name, value in given.items() if name != "pixel_values"}
        if "input_features" in given:
            yield (), given | {"input_features": given["input_features"].mT}  # time first
        if "input_values" in given:
            yield (), given | {"input_values": given["input_values"][:, None]}  # one channel
    required = [
        p
        for p in parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    takes_any = any(p.kind is p.VAR_POSITIONAL for p in parameters.values())
    count = max(len(required), 1 if takes_any or parameters else 0)
    for tensor in _guess_tensors(module, floats):
        yield (tensor,) * count, {}
        if count == 2:
            yield (tensor, floats(2)), {}  # a diffusion time step
            yield (tensor, torch.zeros(2, dtype=torch.long, device="meta")), {}


def _find_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of the first float tensor of more than one byte a number: one-byte floats only store weights."""
    dtypes = (t.dtype for t in itertools.chain(module.parameters(), module.buffers()))
    return next((dtype for dtype in dtypes if dtype.is_floating_point and dtype.itemsize > 1), torch.float32)


def _model_arguments(
    module: nn.Module, config: Any, parameters: Mapping[str, Any], floats: Callable[..., Tensor]
) -> dict[str, Any]:
    """Arguments of a Hugging Face model, from the name of its main input and its config."""
    name = str(module.main_input_name)
    if name not in parameters:
        name = next((p for p in parameters if p in ("input_ids", "input_features", "input_values")), name)
    vision = getattr(config, "vision_config", None) or config

    def ids() -> Tensor:
        return torch.zeros(1, SEQUENCE_LENGTH, dtype=torch.long, device="meta")

    given: dict[str, Any] = {}
    if name == "input_ids":
        given[name] = ids()
    elif name == "input_features":
        length = 2 * getattr(config, "max_source_positions", 50)
        given[name] = floats(1, getattr(config, "num_mel_bins", 80), length)
    elif name == "input_values":
        given[name] = floats(1, 4000)
    if "pixel_values" in parameters:
        size = getattr(vision, "image_size", 224)
        height, width = size if isinstance(size, (tuple, list)) else (size, size)
        given["pixel_values"] = floats(1, getattr(vision, "num_channels", 3), height, width)
    if "decoder_input_ids" in parameters and getattr(config, "is_encoder_decoder", False):
        given["decoder_input_ids"] = ids()
    if "use_cache" in parameters:
        given["use_cache"] = False
    return given


def _guess_tensors(module: nn.Module, floats: Callable[..., Tensor]) -> Iterator[Tensor]:
    """Inputs (2, ...) for the first submodule that takes a number of channels, features or ids."""
    first = next((m for m in module.modules() if _taken(m)), None)
    widths = [t.shape[-1] for t in module.parameters() if t.dim()]
    kind, width = _taken(first) if first is not None else ("features", widths[0] if widths else 8)
    sizes = [*_declared_sizes(module), *(size for size in IMAGE_SIZES)]
    if kind == "ids":
        yield torch.zeros(2, SEQUENCE_LENGTH, dtype=torch.long, device="meta")
        yield torch.zeros(2, dtype=torch.long, device="meta")
        kind, width = next((_taken(m) for m in module.modules() if _taken(m)[:1] not in ((), ("ids",))), ("", 0))
    if kind == "image" or kind == "channels":
        for size in dict.fromkeys(sizes):
            yield floats(2, width, size, size)
    if kind == "features":
        yield floats(2, width)
        for channels in (1, 3):
            side = round((width / channels) ** 0.5)
            if side > 1 and channels * side * side == width:
                yield floats(2, channels, side, side)
        yield floats(2, SEQUENCE_LENGTH, width)
        yield floats(2, 4, 4, width)
    if kind == "sequence":
        yield floats(2, SEQUENCE_LENGTH, width)
    if kind == "signal" or kind == "channels":
        yield from (floats(2, width, length) for length in (64, 1024, 16000))
    if kind == "volume" or kind == "channels":
        for depth, size in ((16, 16), (16, 224), (32, 32), (64, 64)):
            yield floats(2, width, depth, size, size)
    if kind == "channels":
        yield floats(2, width)


def _taken(module: nn.Module) -> tuple[Any, ...]:
    """The input of a layer as (kind, width); empty if the layer does not fix it."""
    convs = {1: "signal", 2: "image", 3: "volume"}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "ids", module.num_embeddings
    if isinstance(module, nn.modules.conv._ConvNd):
        return convs[len(module.kernel_size)], module.in_channels
    if isinstance(module, nn.MultiheadAttention):
        return "sequence", module.embed_dim
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "sequence" if isinstance(module, nn.RNNBase) else "features", module.input_size
    if isinstance(module, (nn.Linear, nn.Bilinear)):
        return "features", module.in_features if isinstance(module, nn.Linear) else module.in1_features
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return "channels", module.num_features
    if isinstance(module, nn.GroupNorm):
        return "channels", module.num_channels
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return "features", module.normalized_shape[-1]
    return ()


def _declared_sizes(module: nn.Module) -> Iterator[int]:
    """Image sizes in the attributes of the module and its parts."""
    described = getattr(module, "pretrained_cfg", None)  # of timm
    if isinstance(described, dict) and described.get("input_size"):
        yield described["input_size"][-1]
    for part in module.modules():
        for name in ("image_size", "img_size", "input_size"):
            size = vars(part).get(name)
            size = size[-1] if isinstance(size, (tuple, list)) and size else size
            if type(size) is int and 1 < size <= 4096 and not isinstance(part, (nn.RNNBase, nn.RNNCellBase)):
                yield size


def structure_key(module: nn.Module) -> Any:
    """A hashable value, equal for modules with the same classes, names, shapes, ties and hyperparameters.

    Functions and opaque objects are compared by identity, and live as long as the key.
    """
    return _Freezer().freeze(module)


class _ById:
    """Wraps an object; equal only to a wrapper of the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


class _Freezer:
    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []

    def freeze(self, value: Any) -> Any:
        kind = type(value)
        if kind is str or value is None or kind is torch.dtype:
            return value
        if kind in (int, float, bool):
            return kind, value  # 1, 1.0 and True are equal
        if kind in (tuple, list, deque):
            return kind, tuple(map(self.freeze, value))
        if kind in (dict, OrderedDict):
            return kind, tuple((self.freeze(k), self.freeze(v)) for k, v in value.items()) if value else ()
        if kind in (set, frozenset):
            return kind, frozenset(map(self.freeze, value))
        number = self._numbers.get(id(value))
        if number is not None:
            return _ById, number  # seen before: the number stands for the first occurrence
        if isinstance(value, (type, types.FunctionType)):
            return value
        if isinstance(value, Tensor):
            self._number(value)
            return ("tensor", tuple(value.shape), value.dtype) if not is_lazy(value) else "lazy"
        if isinstance(value, types.MethodType):
            return value.__func__, self.freeze(value.__self__)
        if hasattr(value, "__dict__") and (isinstance(value, nn.Module) or kind.__new__ is object.__new__):
            self._number(value)
            skipped = _NOT_STRUCTURE if isinstance(value, nn.Module) else ()
            return kind, tuple((k, self.freeze(v)) for k, v in vars(value).items() if k not in skipped)
        return _ById(value)

    def _number(self, value: Any) -> None:
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
