"""What each torch function means for an ArchGraph, by name, and the result shapes of the most common ones."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


VIEWS = _words(
    "view reshape transpose permute t swapaxes swapdims movedim moveaxis T mT H mH data real imag unsqueeze squeeze "
    "flatten unflatten expand expand_as view_as reshape_as narrow select chunk split tensor_split unbind __iter__ "
    "unfold detach as_strided diagonal adjoint split_with_sizes hsplit vsplit dsplit ravel broadcast_to "
    "requires_grad_ squeeze_ unsqueeze_ transpose_ t_ retain_grad resolve_conj broadcast_tensors atleast_1d "
    "atleast_2d atleast_3d alias view_as_real view_as_complex refine_names rename"
)
"""The result is the same memory in another shape."""

COPIES = _words(
    "contiguous clone to type type_as float half bfloat16 double cuda cpu int long bool "
    "native_dropout __getitem__ index_select gather "
    "take_along_dim take roll flip fliplr flipud rot90 pad constant_pad_nd repeat tile repeat_interleave neg "
    "masked_fill masked_select nan_to_num round floor ceil trunc sign pixel_shuffle pixel_unshuffle channel_shuffle "
    "tril triu diag diag_embed sort argsort argmax argmin clamp clip clamp_min clamp_max pin_memory unflatten im2col "
    "col2im fold __neg__ positive zeros_ _to_copy lift_fresh gumbel_softmax one_hot cumsum identity deepcopy nonzero "
    "meshgrid trapezoid diff zero_ fill_ copysign logical_not __invert__ topk kthvalue conj bitwise_not isnan isinf "
    "eq ne gt lt ge le searchsorted bucketize unique unique_consecutive bincount histc"
)
"""The result holds the same numbers, or some of them, or integers computed from them: no node."""

DROPOUTS = _words("dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout feature_alpha_dropout")
"""In evaluation mode the result is the argument."""

ACTIVATIONS = _words(
    "relu relu6 gelu silu mish hardswish hardsigmoid hardtanh elu selu celu leaky_relu prelu rrelu sigmoid tanh "
    "softplus softsign logsigmoid softmax _softmax log_softmax _log_softmax softmin exp expm1 log log1p log2 sqrt "
    "rsqrt pow __pow__ __rpow__ square abs sin cos tan atan erf reciprocal tanhshrink hardshrink softshrink glu "
    "threshold sinc logit log_sigmoid float_power rpow absolute"
)
POOLINGS = _words(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d lp_pool1d lp_pool2d lp_pool3d "
    "max_pool2d_with_indices fractional_max_pool2d fn mean sum amax amin max min logsumexp norm vector_norm "
    "linalg_vector_norm var std var_mean std_mean median prod all any nansum nanmean count_nonzero"
)
SUMS = _words(
    "add sub subtract rsub __rsub__ __radd__ __add__ __sub__ __iadd__ __isub__ where maximum minimum lerp index_add "
    "scatter_add scatter_reduce addcmul addcdiv logaddexp hypot masked_scatter remainder fmod"
)
ASSEMBLIES = _words("__setitem__ index_put index_copy copy index_fill scatter masked_scatter")
"""Functions that write into a part of a tensor."""
CONCATS = _words("cat concat concatenate stack hstack vstack dstack column_stack row_stack block_diag")
PRODUCTS = _words(
    "mul multiply div divide true_divide __mul__ __rmul__ __truediv__ __rtruediv__ __rdiv__ __imul__ __itruediv__ "
    "outer ger kron cross"
)
MATMULS = _words(
    "matmul mm bmm mv dot __matmul__ __rmatmul__ einsum addmm addbmm baddbmm tensordot vdot inner addmv _grouped_mm "
    "grouped_mm chain_matmul multi_dot"
)
ATTENTIONS = _words("scaled_dot_product_attention flex_attention _scaled_dot_product_flash_attention")
RECURRENT = _words("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")

# Role -> (keyword, position) of the argument that holds it.
Slots = dict[str, tuple[str, int]]
_NORM_WITH_STATISTICS: Slots = {
    "running mean": ("running_mean", 1),
    "running var": ("running_var", 2),
    "norm weight": ("weight", 3),
    "norm bias": ("bias", 4),
}
OWNERS: dict[str, tuple[str, Slots]] = {
    "linear": ("linear", {"weight": ("weight", 1), "bias": ("bias", 2)}),
    "bilinear": ("linear", {"weight": ("weight", 2), "bias": ("bias", 3)}),
    "layer_norm": ("layer_norm", {"norm weight": ("weight", 2), "norm bias": ("bias", 3)}),
    "native_layer_norm": ("layer_norm", {"norm weight": ("weight", 2), "norm bias": ("bias", 3)}),
    "rms_norm": ("rms_norm", {"norm weight": ("weight", 2)}),
    "group_norm": ("group_norm", {"norm weight": ("weight", 2), "norm bias": ("bias", 3)}),
    "batch_norm": ("batch_norm", _NORM_WITH_STATISTICS),
    "instance_norm": ("instance_norm", _NORM_WITH_STATISTICS),
    "normalize": ("rms_norm", {}),
    "local_response_norm": ("other", {}),
    "prelu": ("activation", {"raw": ("weight", 1)}),
} | {f"conv{d}d": ("conv", {"weight": ("weight", 1), "bias": ("bias", 2)}) for d in (1, 2, 3)}
OWNERS["convolution"] = OWNERS["conv2d"]
OWNERS |= {f"conv_transpose{d}d": ("transposed_conv", OWNERS["conv2d"][1]) for d in (1, 2, 3)}
# torch.batch_norm, which no layer calls but some code does, has the statistics last.
RAW_BATCH_NORM: Slots = {
    "norm weight": ("weight", 1),
    "norm bias": ("bias", 2),
    "running mean": ("running_mean", 3),
    "running var": ("running_var", 4),
}

FACTORIES = _words(
    "empty zeros ones full rand randn randint randperm arange range linspace logspace eye tensor as_tensor "
    "scalar_tensor empty_strided normal hann_window hamming_window blackman_window bartlett_window kaiser_window "
    "tril_indices triu_indices from_numpy asarray complex polar sparse_coo_tensor fftfreq rfftfreq"
)
FACTORIES_LIKE = _words(
    "empty_like zeros_like ones_like full_like rand_like randn_like randint_like new_empty new_zeros new_ones "
    "new_full new_tensor new_empty_strided"
)
"""They take shape and device from a tensor, but none of its numbers."""

QUIET = _words(
    "dim size stride numel nelement __len__ ndimension is_floating_point is_complex element_size storage_offset "
    "is_contiguous data_ptr untyped_storage storage get_device is_tensor is_same_size __hash__ __repr__ "
    "broadcast_shapes result_type can_cast promote_types is_nonzero _is_view is_inference is_signed has_names "
    "_set_grad_enabled set_grad_enabled set_autocast_enabled finfo iinfo shape dtype device ndim requires_grad "
    "is_meta is_cuda is_cpu layout grad grad_fn is_leaf is_sparse is_quantized is_nested names itemsize nbytes is_mps "
    "is_xpu is_mkldnn is_vulkan _base _version output_nr register_hook backward_hooks name is_xla is_mtia is_hpu "
    "is_sparse_csr is_ipu is_maia volatile retains_grad manual_seed initial_seed get_rng_state set_rng_state "
    "get_default_dtype is_autocast_enabled is_grad_enabled"
)
"""Functions whose result is not a tensor made from their argument."""


def is_in_place(name: str) -> bool:
    """Whether a function writes its result into its first argument."""
    return name in ("__iadd__", "__isub__", "__imul__", "__itruediv__") or (name[-1] == "_" and name[-2:] != "__")


def _empty_like(x: Tensor) -> Tensor:
    # On the meta device empty_like is a hundred times slower than empty.
    return torch.empty(x.shape, dtype=x.dtype, device="meta") if x.is_contiguous() else torch.empty_like(x)


def _like_input(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if not args or not args[0].dtype.is_floating_point or kwargs.get("dtype") or isinstance(args[-1], torch.dtype):
        return NotImplemented
    return _empty_like(args[0])


def _by_element(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Result of a call on a floating point tensor and numbers, or tensors of the same dtype and no larger shape."""
    if kwargs or not isinstance(args[0], Tensor) or not args[0].dtype.is_floating_point:
        return NotImplemented
    x = args[0]
    for other in args[1:]:
        if isinstance(other, Tensor):
            dims = other.dim()
            if other.dtype != x.dtype or dims > x.dim() or (dims and other.shape != x.shape[-dims:]):
                return NotImplemented
        elif not isinstance(other, (int, float)):
            return NotImplemented
    return _empty_like(x)


def _linear(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    x, weight = args[0], args[1] if len(args) > 1 else kwargs["weight"]
    if weight.dim() != 2 or x.dim() == 0:
        return NotImplemented
    if x.shape[-1] != weight.shape[1]:
        raise RuntimeError(f"a linear layer takes {weight.shape[1]} features and gets {x.shape[-1]}")
    return torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device="meta")


def _addmm(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if len(args) < 3 or args[1].dim() != 2 or args[2].dim() != 2:
        return NotImplemented
    if args[1].shape[1] != args[2].shape[0]:
        raise RuntimeError(f"a matrix with {args[2].shape[0]} rows meets {args[1].shape[1]} columns")
    return torch.empty((args[1].shape[0], args[2].shape[1]), dtype=args[1].dtype, device="meta")


def _grouped_mm(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if len(args) < 2 or args[0].dim() != 2 or args[1].dim() != 3:
        return NotImplemented
    return torch.empty((args[0].shape[0], args[1].shape[2]), dtype=args[0].dtype, device="meta")


def _recur(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """For sequences that are not packed: (x, hidden, weights, has_biases, layers, dropout, train, both ways, ...)."""
    if len(args) != 9 or isinstance(args[2], Tensor) or (isinstance(args[1], Tensor) and args[1].dim() == 1):
        return NotImplemented
    hidden = [args[1]] if isinstance(args[1], Tensor) else list(args[1])
    shape = (*args[0].shape[:-1], hidden[0].shape[-1] * (2 if args[7] else 1))
    return (torch.empty(shape, dtype=args[0].dtype, device="meta"), *map(_empty_like, hidden))


def _attend(args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    if len(args) < 3:
        return NotImplemented
    query, value = args[0], args[2]
    # Contiguous in the order (positions, heads), like the fused kernels' result: the view that follows depends on it.
    shape = (*query.shape[:-1], value.shape[-1])
    if len(shape) != 4:
        return torch.empty(shape, dtype=query.dtype, device="meta")
    b, h, n, d = shape
    return torch.empty((b, n, h, d), dtype=query.dtype, device="meta").transpose(1, 2)


SHORTCUTS: dict[str, Callable[[Sequence[Any], dict[str, Any]], Any]] = {
    **dict.fromkeys(ACTIVATIONS - {"glu", "prelu"}, _by_element),
    **dict.fromkeys(("add", "sub", "mul", "div", "__rsub__", "__radd__", "__rmul__", "neg"), _by_element),
    **dict.fromkeys(("layer_norm", "rms_norm", "group_norm", "batch_norm", "prelu", "softmax", "gelu"), _like_input),
    "linear": _linear,
    "addmm": _addmm,
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _recur),
    **dict.fromkeys(("grouped_mm", "_grouped_mm"), _grouped_mm),
    "scaled_dot_product_attention": _attend,
}
"""Results of the calls that large models make most: torch itself takes up to a millisecond each on the meta device."""
