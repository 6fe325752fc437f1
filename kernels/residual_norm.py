"""Batch normalization with the residual and the ReLU around it: y = x + ReLU(γ (t - μ) / √(σ² + ε) + β).

μ and σ² are the mean and the (biased) variance of each channel over all rows of t. PyTorch's operators write five
tensors of the size of t; this one reads t twice, and twice in the backward.

Rows are all axes but the last: M rows, C channels.

Source: Ioffe & Szegedy, arXiv 1502.03167; its place: Point Cloud Transformer, arXiv 2012.09688.
"""

import numpy as np
import torch
from torch import Tensor

from .checks import FLOATS, check_devices, check_number, check_tensors
from .dispatch import compiled, each, pick, slices, tl, triton

# Rows of a partial sum. Partial sums make the result independent of the number of threads, and round less.
ROWS = 2048


def residual_norm(x: Tensor, t: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x + ReLU(batch norm of t); differentiable in all tensors.

    Args:
        x, t: residual and tensor to normalize (..., M, C), of one shape and floating-point dtype.
        weight, bias: γ and β (C,), float32, or float64 for float64 tensors.
        eps: summand ε of the variance, at least 0.

    Returns:
        y like x, and the mean and the biased variance (C,) of t in the dtype of `weight`, for running averages; no
        gradient flows through these two.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype, or tensors without rows.
    """
    check_tensors(x=x, t=t, weight=weight, bias=bias)
    if x.ndim < 2 or x.shape != t.shape or x.dtype != t.dtype:
        raise ValueError(
            f"x and t must be (..., M, C) and agree in shape and dtype, got {tuple(x.shape)} {x.dtype} and "
            f"{tuple(t.shape)} {t.dtype}"
        )
    if t.dtype not in FLOATS:
        raise TypeError(f"x and t must be floating point (float16 to float64), got {t.dtype}")
    if weight.shape != t.shape[-1:] or bias.shape != weight.shape:
        raise ValueError(
            f"weight and bias must have shape ({t.shape[-1]},), got {tuple(weight.shape)}, {tuple(bias.shape)}"
        )
    wide = torch.promote_types(t.dtype, torch.float32)
    if weight.dtype != wide or bias.dtype != wide:
        raise TypeError(f"weight and bias must be {wide} for t of {t.dtype}, got {weight.dtype} and {bias.dtype}")
    if t.numel() == 0:
        raise ValueError(f"t must have rows to take statistics of, got shape {tuple(t.shape)}")
    check_devices(x=x, t=t, weight=weight, bias=bias)
    check_number(eps, "eps")
    return residual_norm_op(x, t, weight, bias, eps)


def residual_norm_reference(x: Tensor, t: Tensor, weight: Tensor, bias: Tensor, eps: float):
    rows = t.flatten(0, -2).to(weight.dtype)
    variance, mean = torch.var_mean(rows, dim=0, correction=0)
    normalized = (t.to(weight.dtype) - mean) * (weight * torch.rsqrt(variance + eps)) + bias
    return (x + normalized.relu().to(x.dtype)).contiguous(), mean, variance


def residual_norm_backward_reference(grad: Tensor, t: Tensor, weight: Tensor, bias: Tensor, mean, variance, eps: float):
    """Gradients of t, weight and bias; that of x is `grad` itself."""
    inverse = torch.rsqrt(variance + eps)
    normalized = ((t.to(weight.dtype) - mean) * inverse).flatten(0, -2)
    grad = torch.where(normalized * weight + bias > 0, grad.flatten(0, -2).to(weight.dtype), 0.0)
    grad_bias, grad_weight = grad.sum(0), (grad * normalized).sum(0)
    grad_t = (weight * inverse) * (grad - (grad_bias + normalized * grad_weight) / len(grad))
    return grad_t.contiguous().view(t.shape).to(t.dtype), grad_weight, grad_bias


# The CPU's path: threads take blocks of rows; the innermost loop runs over channels.


@compiled(fastmath={"contract", "reassoc"})
def _sums(t, first, total, squares):
    """Sums of t - first and of its squares; subtracting the first row keeps the digits when the mean is large."""
    for m in range(t.shape[0]):
        for c in range(t.shape[1]):
            value = t[m, c] - first[c]
            total[c] += value
            squares[c] += value * value


@compiled(fastmath={"contract"})
def _apply(x, t, mean, scale, bias, y):
    zero = t.dtype.type(0)
    for m in range(t.shape[0]):
        for c in range(t.shape[1]):
            y[m, c] = x[m, c] + max((t[m, c] - mean[c]) * scale[c] + bias[c], zero)


@compiled(fastmath={"contract", "reassoc"})
def _gradient_sums(grad, t, mean, scale, bias, total, products):
    zero = t.dtype.type(0)
    for m in range(t.shape[0]):
        for c in range(t.shape[1]):
            centered = t[m, c] - mean[c]
            passed = grad[m, c] if centered * scale[c] + bias[c] > zero else zero
            total[c] += passed
            products[c] += passed * centered


@compiled(fastmath={"contract"})
def _gradient(grad, t, mean, scale, bias, constant, slope, grad_t):
    zero = t.dtype.type(0)
    for m in range(t.shape[0]):
        for c in range(t.shape[1]):
            centered = t[m, c] - mean[c]
            passed = grad[m, c] if centered * scale[c] + bias[c] > zero else zero
            grad_t[m, c] = passed * scale[c] + (centered * slope[c] + constant[c])


def _summed(function, rows: int, channels: int, dtype) -> np.ndarray:
    """Two sums over all rows, (2, C) float64: function(block, sum, other sum) for each block, then over the blocks."""
    blocks = slices(0, rows, ROWS)
    partial = np.zeros((len(blocks), 2, channels), dtype)
    each(lambda i: function(blocks[i], partial[i, 0], partial[i, 1]), range(len(blocks)))
    return partial.sum(0, dtype=np.float64)


def _numpy(*tensors: Tensor) -> list[np.ndarray]:
    return [(x.detach().flatten(0, -2) if x.ndim > 1 else x.detach()).contiguous().numpy() for x in tensors]


@np.errstate(all="ignore")  # infinities, and NaN from them, are results as in PyTorch
def _residual_norm_cpu(x: Tensor, t: Tensor, weight: Tensor, bias: Tensor, eps: float):
    if t.dtype != weight.dtype:
        return residual_norm_reference(x, t, weight, bias, eps)
    y = torch.empty_like(t, memory_format=torch.contiguous_format)
    x_rows, t_rows, y_rows, gamma, beta = _numpy(x, t, y, weight, bias)
    rows, channels = t_rows.shape
    first = t_rows[0].copy()
    total, squares = _summed(lambda part, *sums: _sums(t_rows[part], first, *sums), rows, channels, t_rows.dtype)
    mean = total / rows
    variance = np.maximum(squares / rows - mean * mean, 0)
    mean += first
    scale = (gamma / np.sqrt(variance + eps)).astype(t_rows.dtype)
    center = mean.astype(t_rows.dtype)
    each(lambda part: _apply(x_rows[part], t_rows[part], center, scale, beta, y_rows[part]), slices(0, rows, ROWS))
    return y, torch.from_numpy(center), torch.from_numpy(variance).to(weight)


@np.errstate(all="ignore")
def _residual_norm_backward_cpu(grad: Tensor, t: Tensor, weight: Tensor, bias: Tensor, mean, variance, eps: float):
    if t.dtype != weight.dtype:
        return residual_norm_backward_reference(grad, t, weight, bias, mean, variance, eps)
    grad_t = torch.empty_like(t, memory_format=torch.contiguous_format)
    grad_rows, t_rows, out_rows, gamma, beta, center, spread = _numpy(grad, t, grad_t, weight, bias, mean, variance)
    rows, channels = t_rows.shape
    inverse = 1 / np.sqrt(spread.astype(np.float64) + eps)
    scale = (gamma * inverse).astype(t_rows.dtype)
    grad_bias, products = _summed(
        lambda part, *sums: _gradient_sums(grad_rows[part], t_rows[part], center, scale, beta, *sums),
        rows,
        channels,
        t_rows.dtype,
    )
    grad_weight = products * inverse
    slope = (-gamma * inverse * inverse * grad_weight / rows).astype(t_rows.dtype)
    constant = (-gamma * inverse * grad_bias / rows).astype(t_rows.dtype)
    each(
        lambda part: _gradient(grad_rows[part], t_rows[part], center, scale, beta, constant, slope, out_rows[part]),
        slices(0, rows, ROWS),
    )
    return grad_t, torch.from_numpy(grad_weight).to(weight), torch.from_numpy(grad_bias).to(bias)


# Triton: the kernels sum blocks of rows, and PyTorch adds these sums in a fixed order.


@triton.jit(do_not_specialize=["rows"])
def residual_norm_fwd_sums_kernel(
    t_MC, first_C, sums_P2C, rows, channels, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    """For each block of rows, the sums of t - first and of its squares."""
    block = tl.program_id(0).to(tl.int64)
    m, c = block * BLOCK_M + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (m < rows)[:, None] & (c < channels)[None, :]
    t = tl.load(t_MC + m[:, None] * channels + c[None, :], mask=inside, other=0.0).to(sums_P2C.dtype.element_ty)
    first = tl.load(first_C + c, mask=c < channels, other=0.0)
    value = tl.where(inside, t - first[None, :], 0.0)
    out = sums_P2C + block * 2 * channels + c
    tl.store(out, tl.sum(value, 0), mask=c < channels)
    tl.store(out + channels, tl.sum(value * value, 0), mask=c < channels)


@triton.jit(do_not_specialize=["rows"])
def residual_norm_fwd_kernel(
    x_MC, t_MC, mean_C, scale_C, bias_C, y_MC, rows, channels, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (m < rows)[:, None] & (c < channels)[None, :]
    at = m[:, None] * channels + c[None, :]
    mean = tl.load(mean_C + c, mask=c < channels, other=0.0)[None, :]
    scale = tl.load(scale_C + c, mask=c < channels, other=0.0)[None, :]
    bias = tl.load(bias_C + c, mask=c < channels, other=0.0)[None, :]
    centered = tl.load(t_MC + at, mask=inside, other=0.0).to(scale.dtype) - mean
    x = tl.load(x_MC + at, mask=inside, other=0.0).to(scale.dtype)
    value = centered * scale + bias
    tl.store(y_MC + at, x + tl.where(value <= 0, 0.0, value), mask=inside)  # so that NaN propagates


@triton.jit(do_not_specialize=["rows"])
def residual_norm_bwd_sums_kernel(
    grad_MC, t_MC, mean_C, scale_C, bias_C, sums_P2C, rows, channels, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr
):
    """For each block of rows, the sums of the gradient that the ReLU passes, and of its product with t - mean."""
    block = tl.program_id(0).to(tl.int64)
    m, c = block * BLOCK_M + tl.arange(0, BLOCK_M), tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (m < rows)[:, None] & (c < channels)[None, :]
    at = m[:, None] * channels + c[None, :]
    mean = tl.load(mean_C + c, mask=c < channels, other=0.0)[None, :]
    scale = tl.load(scale_C + c, mask=c < channels, other=0.0)[None, :]
    bias = tl.load(bias_C + c, mask=c < channels, other=0.0)[None, :]
    centered = tl.load(t_MC + at, mask=inside, other=0.0).to(scale.dtype) - mean
    grad = tl.load(grad_MC + at, mask=inside, other=0.0).to(scale.dtype)
    passed = tl.where(centered * scale + bias > 0, grad, 0.0)
    out = sums_P2C + block * 2 * channels + c
    tl.store(out, tl.sum(passed, 0), mask=c < channels)
    tl.store(out + channels, tl.sum(passed * centered, 0), mask=c < channels)


@triton.jit(do_not_specialize=["rows"])
def residual_norm_bwd_kernel(
    grad_MC,
    t_MC,
    mean_C,
    scale_C,
    bias_C,
    constant_C,
    slope_C,
    out_MC,
    rows,
    channels,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (m < rows)[:, None] & (c < channels)[None, :]
    at = m[:, None] * channels + c[None, :]
    mean = tl.load(mean_C + c, mask=c < channels, other=0.0)[None, :]
    scale = tl.load(scale_C + c, mask=c < channels, other=0.0)[None, :]
    bias = tl.load(bias_C + c, mask=c < channels, other=0.0)[None, :]
    constant = tl.load(constant_C + c, mask=c < channels, other=0.0)[None, :]
    slope = tl.load(slope_C + c, mask=c < channels, other=0.0)[None, :]
    centered = tl.load(t_MC + at, mask=inside, other=0.0).to(scale.dtype) - mean
    grad = tl.load(grad_MC + at, mask=inside, other=0.0).to(scale.dtype)
    passed = tl.where(centered * scale + bias > 0, grad, 0.0)
    tl.store(out_MC + at, passed * scale + (centered * slope + constant), mask=inside)


def _launch(kernel, rows: int, channels: int, *arguments, block_m: int = 64) -> None:
    block_c = min(64, triton.next_power_of_2(channels))
    with torch.cuda.device_of(arguments[0]):
        kernel[(triton.cdiv(rows, block_m), triton.cdiv(channels, block_c))](
            *arguments, rows, channels, BLOCK_M=block_m, BLOCK_C=block_c, num_warps=4
        )


def _sums_triton(kernel, t: Tensor, rows: int, dtype: torch.dtype, *arguments) -> Tensor:
    """(2, C): the sums of the kernel's blocks of 256 rows."""
    channels, block = t.shape[-1], 256
    sums_P2C = torch.empty(triton.cdiv(rows, block), 2, channels, dtype=dtype, device=t.device)
    _launch(kernel, rows, channels, *arguments, sums_P2C, block_m=block)
    return sums_P2C.sum(0)


def _residual_norm_triton(x: Tensor, t: Tensor, weight: Tensor, bias: Tensor, eps: float):
    x, t, bias = x.contiguous(), t.contiguous(), bias.contiguous()
    rows = t.numel() // t.shape[-1]
    first = t.flatten(0, -2)[0].to(weight.dtype)
    total, squares = _sums_triton(residual_norm_fwd_sums_kernel, t, rows, weight.dtype, t, first)
    shifted = total / rows
    variance = (squares / rows - shifted * shifted).clamp_(min=0)
    mean = first + shifted
    scale = weight * torch.rsqrt(variance + eps)
    y = torch.empty_like(t)
    _launch(residual_norm_fwd_kernel, rows, t.shape[-1], x, t, mean, scale, bias, y)
    return y, mean, variance


def _residual_norm_backward_triton(grad: Tensor, t: Tensor, weight: Tensor, bias: Tensor, mean, variance, eps: float):
    grad, t, bias = grad.contiguous(), t.contiguous(), bias.contiguous()
    rows = t.numel() // t.shape[-1]
    inverse = torch.rsqrt(variance + eps)
    scale = weight * inverse
    grad_bias, products = _sums_triton(residual_norm_bwd_sums_kernel, t, rows, weight.dtype, grad, t, mean, scale, bias)
    grad_weight = products * inverse
    slope = -scale * inverse * grad_weight / rows
    grad_t = torch.empty_like(t)
    constant = -scale * grad_bias / rows
    _launch(residual_norm_bwd_kernel, rows, t.shape[-1], grad, t, mean, scale, bias, constant, slope, grad_t)
    return grad_t, grad_weight, grad_bias


@torch.library.custom_op("attlas::residual_norm", mutates_args=())
def residual_norm_op(x: Tensor, t: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    run = pick(t, reference=residual_norm_reference, triton=_residual_norm_triton, cpu=_residual_norm_cpu)
    return run(x, t, weight, bias, eps)


@residual_norm_op.register_fake
def _(x, t, weight, bias, eps):
    return torch.empty_like(t, memory_format=torch.contiguous_format), torch.empty_like(weight), torch.empty_like(bias)


@torch.library.custom_op("attlas::residual_norm_backward", mutates_args=())
def residual_norm_backward_op(
    grad: Tensor, t: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    run = pick(
        t,
        reference=residual_norm_backward_reference,
        triton=_residual_norm_backward_triton,
        cpu=_residual_norm_backward_cpu,
    )
    return run(grad, t, weight, bias, mean, variance, eps)


@residual_norm_backward_op.register_fake
def _(grad, t, weight, bias, mean, variance, eps):
    return torch.empty_like(t, memory_format=torch.contiguous_format), torch.empty_like(weight), torch.empty_like(bias)


def _save(ctx, inputs, output):
    _, t, weight, bias, ctx.eps = inputs
    _, mean, variance = output
    ctx.save_for_backward(t, weight, bias, mean, variance)
    ctx.mark_non_differentiable(mean, variance)


def _backward(ctx, grad, *_):
    return grad, *residual_norm_backward_op(grad, *ctx.saved_tensors, ctx.eps), None


residual_norm_op.register_autograd(_backward, setup_context=_save)
