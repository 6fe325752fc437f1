"""The rules of relevance propagation, one function for each kind of operation; `relevance.py` says what they are.

A rule is a function (rules, operation, *its arguments) that gives what the operation gives, with a graph of autograd
whose gradient is the modified one. PyTorch's own gradient needs no function.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from ...kernels.neighbor_moments import neighbor_moments_reference
from ...kernels.residual_norm import residual_norm_reference
from ...kernels.surface_attention import surface_attention_reference

LAYER_RULES = ("plain", "positive_weights", "positive_parts")
STABILIZER = 1e-9  # of the sums that the positive rules divide by


@dataclass(frozen=True)
class Rules:
    """Which of several published rules an operation has.

    Args:
        convolution, linear: "plain" splits by x w; with the bias in the divisor, so that its share stays with it.
            "positive_weights" (z+) splits by x max(w, 0), without the bias; meant for inputs of one sign.
            "positive_parts" splits by max(x w, 0), without the bias, for inputs of any sign.
        epsilon: stabilizer at least 0 of the "plain" rule: y / (y + epsilon sign(y)) of the relevance is passed on.
        overlap: of a max pooling, whether an input that wins in several windows gets the "sum", or what the last one
            brings ("overwrite"; the rest is lost, as in the published notebooks).
        weights: whether what softmax, sigmoid and exp give is "constant", or passes the "gradient".
    """

    convolution: str = "plain"
    linear: str = "plain"
    epsilon: float = 0.0
    overlap: str = "sum"
    weights: str = "constant"

    def __post_init__(self):
        for name, choices in (
            ("convolution", LAYER_RULES),
            ("linear", LAYER_RULES),
            ("overlap", ("sum", "overwrite")),
            ("weights", ("constant", "gradient")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {choices}")
        if not 0 <= self.epsilon < float("inf"):
            raise ValueError(f"epsilon={self.epsilon} must be a finite number of at least 0")


PLAIN = Rules()
PAPER = Rules(linear="positive_weights")  # of arXiv 1712.08268; its notebooks have overlap="overwrite", too


class _Instead(torch.autograd.Function):
    """The value of one tensor, with the gradient of another."""

    @staticmethod
    def forward(ctx, value: Tensor, carrier: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx, grad: Tensor):
        return None, grad


class _Half(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad / 2


def _carries(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


def _constant(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def cut(rules: Rules, func, *args, **options):
    """What gives weights or a scale: its output is constant."""
    args, options = tree_map(_constant, (args, options))
    return func(*args, **options)


def _weights(rules: Rules, func, *args, **options):
    return (func if rules.weights == "gradient" else partial(cut, rules, func))(*args, **options)


def _product(rules: Rules, func, *args, **options):
    """Half to each factor. The first argument of `addcmul` and `baddbmm` is added."""
    first = 1 if func.name().startswith(("aten::addcmul", "aten::baddbmm")) else 0
    factors = [x for x in args[first:] if _carries(x)]
    if len(factors) > 1:
        args = (*args[:first], *(_Half.apply(x) if _carries(x) else x for x in args[first:]))
    return func(*args, **options)


def _quotient(rules: Rules, func, x, y, **options):
    return func(x, _constant(y), **options)


def _secant(rules: Rules, func, x: Tensor, *args, **options):
    """g (f(x) - f(0)) / x; near 0 by a point at a small distance from it."""
    args, options = tree_map(_constant, (args, options))
    constant = x.detach()
    least = torch.full_like(constant, 1e-3)
    apart = torch.where(constant.abs() < least, torch.where(constant < 0, -least, least), constant)
    slope = (func(apart, *args, **options) - func(torch.zeros_like(constant), *args, **options)) / apart
    return _Instead.apply(func(constant, *args, **options), x * slope)


def _power(rules: Rules, func, x, exponent):
    if isinstance(x, Tensor) and not isinstance(exponent, Tensor) and exponent > 0:
        return _secant(rules, func, x, exponent)
    return _weights(rules, func, x, exponent) if not isinstance(x, Tensor) else cut(rules, func, x, exponent)


def _variance(rules: Rules, func, x, *args, **options):
    return func(_Half.apply(x), *args, **options)


def _variance_and_mean(rules: Rules, func, x, *args, **options):
    return func(_Half.apply(x), *args, **options)[0], func(x, *args, **options)[1]


def _pass_on(rules: Rules, func, x, *args, **options):
    """The value of an operation, whose relevance goes to x unchanged."""
    return _Instead.apply(func(x.detach(), *args, **options), x)


def _not_detached(rules: Rules, func, x):
    return x.view_as(x)


def _first_linear(rules: Rules, func, x, *args, **options):
    """Linear in the first argument; the others, such as places, are weights."""
    args, options = tree_map(_constant, (args, options))
    return func(x, *args, **options)


def _lerp(rules: Rules, func, start, end, weight):
    return func(start, end, _constant(weight))


def _max_pool(rules: Rules, func, x, *args, **options):
    y, index = func(x, *args, **options)
    if rules.overlap == "sum":
        return y, index
    axes = len(args[0])
    flat = index.flatten(-axes)
    order = torch.arange(flat.shape[-1], device=x.device).expand_as(flat)
    last = torch.full_like(x.detach().flatten(-axes), -1, dtype=torch.int64).scatter_reduce(-1, flat, order, "amax")
    wins = (last.gather(-1, flat) == order).view_as(y)
    return _Instead.apply(y.detach(), y * wins), index


# Layers with constant weights.


@dataclass
class _Layer:
    """A linear map x, w -> y without its bias, so that a rule can run it on other weights."""

    run: Callable[[Tensor, Tensor], Tensor]
    x: Tensor
    weight: Tensor
    out_axis: int | None  # of the weight, None where a batch norm cannot be merged into it
    version: int = field(default=0)

    def relevant(self, value: Tensor, rule: str, scale: Tensor | None = None) -> Tensor:
        """`value`, with the relevance of a positive rule; `scale` of the outputs is merged into the weights."""
        weight = self.weight
        if scale is not None:
            shape = [1] * weight.ndim
            shape[self.out_axis or 0] = -1
            weight = weight * scale.view(shape)
        x, value = self.x, value.detach()
        if rule == "positive_weights":
            z = self.run(x, weight.clamp(min=0))
        else:
            z = self.run(x.clamp(min=0), weight.clamp(min=0)) + self.run(x.clamp(max=0), weight.clamp(max=0))
        return _Instead.apply(value, z * (value / (z + STABILIZER)).detach())


def _damped(rules: Rules, y: Tensor) -> Tensor:
    if not rules.epsilon:
        return y
    value = y.detach()
    share = value.abs() / (value.abs() + rules.epsilon)
    return _Instead.apply(value, y * share)


def _with_layer(rules: Rules, rule: str, plain: Tensor, layer: _Layer) -> Tensor:
    if rule == "plain" and not rules.epsilon:
        return plain
    y = _damped(rules, plain) if rule == "plain" else layer.relevant(plain, rule)
    layer.version = y._version
    # for a batch norm that follows
    y._layer = (layer, rule, plain)  # type: ignore[attr-defined]
    return y


def _convolution(rules: Rules, func, x, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    options = (stride, padding, dilation, transposed, output_padding, groups)
    if _carries(weight):
        x = _Half.apply(x) if _carries(x) else x
        return func(x, _Half.apply(weight) if _carries(x) else weight, bias, *options)
    layer = _Layer(lambda x, weight: func(x, weight, None, *options), x, weight, None if transposed else 0)
    return _with_layer(rules, rules.convolution, func(x, weight, bias, *options), layer)


def _matrices(rules: Rules, func, *args, **options):
    """mm(x, w) and addmm(bias, x, w)."""
    *bias, x, weight = args
    if _carries(x) and _carries(weight):
        return func(*bias, _Half.apply(x), _Half.apply(weight), **options)
    y = func(*args, **options)
    if not _carries(x) or (bias and _carries(bias[0])) or options:
        return y
    return _with_layer(rules, rules.linear, y, _Layer(torch.mm, x, weight, 1))


def _batch_norm(rules: Rules, func, x, weight, bias, mean, variance, training, momentum, eps):
    out = func(x, weight, bias, mean, variance, training, momentum, eps)
    if training:  # statistics of the batch, or of an instance
        axes = [axis for axis in range(x.ndim) if axis != 1]
        value = x.detach()
        scale = (value.var(axes, correction=0, keepdim=True) + eps).rsqrt()
        if weight is not None:
            scale = scale * weight.view(-1, *[1] * (x.ndim - 2))
        return _Instead.apply(out[0].detach(), (x - x.mean(axes, keepdim=True)) * scale), *out[1:]
    layer, rule, plain = getattr(x, "_layer", (None, "", None))
    if layer is None or layer.out_axis is None or layer.version != x._version:
        return out
    scale = (variance + eps).rsqrt() * (1 if weight is None else weight)
    if rule == "plain":
        return _damped(rules, func(plain, weight, bias, mean, variance, training, momentum, eps)[0]), *out[1:]
    return layer.relevant(out[0], rule, scale), *out[1:]


def _layer_norm(rules: Rules, func, x, shape, weight, bias, eps):
    y, mean, scale = func(x.detach(), shape, weight, bias, eps)
    axes = tuple(range(x.ndim - len(shape), x.ndim))
    carrier = (x - x.mean(axes, keepdim=True)) * scale
    return _Instead.apply(y, carrier if weight is None else carrier * weight), mean, scale


def _group_norm(rules: Rules, func, x, weight, bias, n, channels, size, groups, eps):
    y, mean, scale = func(x.detach(), weight, bias, n, channels, size, groups, eps)
    rows = x.reshape(n, groups, -1)
    carrier = ((rows - rows.mean(-1, keepdim=True)) * scale.view(n, groups, 1)).view(x.shape)
    if weight is not None:
        carrier = carrier * weight.view(-1, *[1] * (x.ndim - 2))
    return _Instead.apply(y, carrier), mean, scale


def _rms_norm(rules: Rules, func, x, shape, weight, eps):
    y, scale = func(x.detach(), shape, weight, eps)
    return _Instead.apply(y, x * scale if weight is None else x * scale * weight), scale


# What stands for several operations.


def _flash_attention(q, k, v, dropout_p=0.0, is_causal=False, *, attn_mask=None, scale=None):
    logits = q @ k.mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        ahead = torch.ones(logits.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        logits = logits.masked_fill(ahead, float("-inf"))
    if attn_mask is not None:
        logits = logits + attn_mask
    return logits.softmax(-1) @ v, logits.logsumexp(-1)


def _glu(x, dim=-1):
    a, b = x.chunk(2, dim)
    return a * b.sigmoid()


FUSED = {"_scaled_dot_product_flash_attention_for_cpu": _flash_attention, "glu": _glu}


def references() -> dict:
    """Operators of ours that exports keep whole, by their definitions."""
    ours = torch.ops.attlas
    return {
        ours.neighbor_moments.default: neighbor_moments_reference,
        ours.residual_norm.default: residual_norm_reference,
        ours.surface_attention.default: surface_attention_reference,
    }


_NATIVE = {
    "linear": """
        view _unsafe_view _reshape_alias reshape alias permute transpose t expand slice select unbind split
        split_with_sizes unsafe_split chunk unsqueeze squeeze diagonal unfold as_strided clone copy _to_copy lift_fresh
        cat stack constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
        replication_pad3d roll flip repeat index _unsafe_index index_select gather scatter scatter_add index_add
        index_copy index_put _index_put_impl index_fill masked_fill masked_scatter masked_select where take tril triu
        pixel_shuffle pixel_unshuffle channel_shuffle im2col col2im add sub rsub neg sum nansum mean cumsum trace
        avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d upsample_nearest1d upsample_nearest2d
        upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d upsample_linear1d upsample_bilinear2d
        upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _fft_r2c _fft_c2r
        _fft_c2c complex real imag view_as_real view_as_complex _conj conj conj_physical resolve_conj _neg_view fill
        slice_scatter select_scatter diag_embed scatter_reduce attlas::gather_neighbors attlas::scatter_neighbors""",
    "scales with its input": """
        relu leaky_relu prelu _prelu_kernel rrelu_with_noise threshold abs amax amin max min maximum minimum fmax fmin
        aminmax topk sort cummax cummin kthvalue median linalg_vector_norm norm std cdist _cdist_forward _euclidean_dist
        hypot attlas::gather_max""",
}
_MADE: dict[str, tuple[Callable, str]] = {
    "activation": (
        _secant,
        """gelu silu tanh erf elu celu selu hardswish hardtanh relu6 softplus softshrink hardshrink mish clamp clamp_min
        clamp_max sqrt square log1p expm1 sin cos tan sinh asinh atan""",
    ),
    "power": (_power, "pow"),
    "weights": (_weights, "_softmax _safe_softmax softmax sigmoid hardsigmoid exp exp2 logsumexp"),
    "constant": (cut, "new_zeros new_ones new_empty new_full zeros_like ones_like empty_like full_like"),
    "scale": (
        cut,
        "log log2 log10 rsqrt reciprocal floor ceil round trunc sign heaviside floor_divide remainder fmod",
    ),
    "shift by a constant": (_pass_on, "_log_softmax"),
    "product": (_product, "mul bmm baddbmm addcmul mv dot linalg_cross"),
    "to the numerator": (_quotient, "div true_divide"),
    "square": (_variance, "var"),
    "square and mean": (_variance_and_mean, "var_mean"),
    "linear in the first": (_first_linear, "grid_sampler_2d grid_sampler_3d embedding attlas::three_interpolate"),
    "linear in both ends": (_lerp, "lerp"),
    "value kept": (_not_detached, "detach"),
    "max pooling": (
        _max_pool,
        "max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d",
    ),
    "convolution": (_convolution, "convolution"),
    "linear layer": (_matrices, "mm addmm"),
    "batch norm": (_batch_norm, "native_batch_norm cudnn_batch_norm"),
    "layer norm": (_layer_norm, "native_layer_norm"),
    "group norm": (_group_norm, "native_group_norm"),
    "RMS norm": (_rms_norm, "_fused_rms_norm"),
}
_RULES: dict[str, tuple[str, Callable | None]] = {
    **{name: (rule, None) for rule, names in _NATIVE.items() for name in names.split()},
    **{name: (rule, function) for rule, (function, names) in _MADE.items() for name in names.split()},
}


def rule_of(name: str) -> tuple[str, Callable | None] | None:
    """The rule of an operation: its name, and a function that runs it, None for PyTorch's own gradient."""
    return _RULES.get(name)
