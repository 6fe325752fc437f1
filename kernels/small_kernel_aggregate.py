"""Dynamic depthwise convolution (SKA): every pixel has its own small kernels, which groups of channels share.

    out[b, c, i, j] = Σ_{y, x} weight[b, c mod Cw, y k + x, i, j] · x[b, c, i + y - p, j + x - p],    p = (k - 1) / 2

over the taps inside the map. The C / Cw channels c, c + Cw, c + 2 Cw, ... share a kernel. PyTorch's `unfold` would copy
x for each of the k² taps; no path here does.

Source: LSNet, "See Large, Focus Small", arXiv 2503.23135.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_floats, check_tensors, sum_dtype
from .dispatch import compiled, decompose, each, pick, tl, triton
from .tiles import item_rows, rows_by_channels, triton_dtype

# Rows of a map that a thread takes at a time.
ROWS = 32


def small_kernel_aggregate(x: Tensor, weight: Tensor) -> Tensor:
    """Sums of the k x k neighbors of every pixel, weighted by the kernels of that pixel; differentiable in both.

    Maps that are channels-last in memory are fastest.

    Args:
        x: map (B, C, H, W) of any floating-point dtype and memory format; half types are summed in float32.
        weight: kernels (B, Cw, k², H, W) of any floating-point dtype, taps in row-major order; k is odd, Cw divides C.

    Returns:
        (B, C, H, W), in the dtype and the memory format of x.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype.
    """
    check_tensors(x=x, weight=weight)
    if x.ndim != 4:
        raise ValueError(f"x must have shape (B, C, H, W), got {tuple(x.shape)}")
    batch, channels, height, width = x.shape
    if weight.ndim != 5 or (weight.shape[0], *weight.shape[3:]) != (batch, height, width):
        raise ValueError(
            f"weight must have shape (B, Cw, k², H, W) with B, H, W = {batch}, {height}, {width} of x, "
            f"got {tuple(weight.shape)}"
        )
    kernels, taps = weight.shape[1:3]
    if math.isqrt(taps) ** 2 != taps or taps % 2 == 0:
        raise ValueError(f"weight must hold k² taps of an odd k (1, 9, 25, ...) on its axis 2, got {taps}")
    if kernels == 0 or channels % kernels:
        raise ValueError(f"the kernels of weight (its axis 1) must divide the {channels} channels of x, got {kernels}")
    check_floats(x=x, weight=weight)
    return small_kernel_aggregate_op(x, weight)


def _sides(x: Tensor, weight: Tensor) -> tuple[torch.dtype, int, int]:
    """The dtype of sums, k and the padding p."""
    k = math.isqrt(weight.shape[2])
    return torch.promote_types(sum_dtype(x), weight.dtype), k, k // 2


def _inside(length: int, k: int, device: torch.device) -> Tensor:
    """(k, length): whether a tap of a pixel lies inside the map, along one axis."""
    place = torch.arange(k, device=device).unsqueeze(1) - k // 2 + torch.arange(length, device=device)
    return (place >= 0) & (place < length)


def _seen(weight: Tensor, k: int) -> Tensor:
    """The weight, zero for taps outside the map, whatever it holds there."""
    height, width = weight.shape[3:]
    rows, columns = _inside(height, k, weight.device), _inside(width, k, weight.device)
    return weight.where((rows[:, None, :, None] & columns[:, None, :]).flatten(0, 1), 0)


def small_kernel_aggregate_reference(x: Tensor, weight: Tensor) -> Tensor:
    (height, width), kernels, (wide, k, p) = x.shape[2:], weight.shape[1], _sides(x, weight)
    padded = F.pad(x.to(wide), (p, p, p, p)).unflatten(1, (-1, kernels))  # channels as (C / Cw, Cw)
    weight = _seen(weight, k)
    out = torch.zeros_like(padded[..., :height, :width])
    for tap in range(k * k):
        i, j = divmod(tap, k)
        out = out + padded[..., i : i + height, j : j + width] * weight[:, None, :, tap].to(wide)
    return out.flatten(1, 2).to(x.dtype)


def small_kernel_aggregate_backward_reference(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of x and weight."""
    (height, width), kernels, (wide, k, p) = x.shape[2:], weight.shape[1], _sides(x, weight)
    grad = grad.to(wide).unflatten(1, (-1, kernels))
    padded = F.pad(x.to(wide), (p, p, p, p)).unflatten(1, (-1, kernels))
    grad_padded, grad_weight = torch.zeros_like(padded), []
    for tap in range(k * k):
        i, j = divmod(tap, k)
        grad_padded[..., i : i + height, j : j + width] += grad * weight[:, None, :, tap].to(wide)
        grad_weight.append((grad * padded[..., i : i + height, j : j + width]).sum(1))
    grad_x = grad_padded[..., p : p + height, p : p + width].flatten(1, 2)
    return _like(x, grad_x), _like(weight, _seen(torch.stack(grad_weight, 2), k))


def _like(tensor: Tensor, values: Tensor) -> Tensor:
    """`values` in the dtype and the memory layout of `tensor`."""
    return torch.empty_like(tensor).copy_(values)


# The CPU's path. x becomes C / Cw planes of H rows; a row holds L = W · Cw numbers, the Cw channels of one pixel after
# those of another, and its kernels are a row of the same length. A tap shifts these rows against each other. From
# channels-last memory the planes are copied in long runs; for other formats, too, the long rows are worth the copy.


def _planes(x: Tensor, kernels: int, wide: torch.dtype) -> Tensor:
    """(B, C, H, W) -> (B, C / Cw, H, L)."""
    return x.unflatten(1, (-1, kernels)).permute(0, 1, 3, 4, 2).to(wide).contiguous().flatten(3)


def _kernel_rows(weight: Tensor, wide: torch.dtype) -> Tensor:
    """(B, Cw, k², H, W) -> (B, k², H, L)."""
    return weight.permute(0, 2, 3, 4, 1).to(wide).contiguous().flatten(3)


def _from_planes(planes: Tensor, like: Tensor, kernels: int) -> Tensor:
    return _like(like, planes.unflatten(3, (-1, kernels)).permute(0, 1, 4, 2, 3).reshape(like.shape))


def _from_kernel_rows(rows: Tensor, like: Tensor) -> Tensor:
    return _like(like, rows.unflatten(3, (-1, like.shape[1])).permute(0, 4, 1, 2, 3))


def _each_block(loop, k: int, kernels: int, *tensors: Tensor) -> None:
    """loop(arrays of an image, k, Cw, first row, last row) for all blocks of rows of all images."""
    height, arrays = tensors[0].shape[2], [tensor.numpy() for tensor in tensors]
    blocks = [(b, first) for b in range(len(tensors[0])) for first in range(0, height, ROWS)]
    each(lambda at: loop(*(a[at[0]] for a in arrays), k, kernels, at[1], min(at[1] + ROWS, height)), blocks)


@compiled
def _shift(tap, k, kernels, i, height, length):
    """The row that `tap` adds to row i, the shift in it, and the part of row i for which it lies inside the map."""
    row = i + tap // k - k // 2
    shift = (tap % k - k // 2) * kernels
    if row < 0 or row >= height or abs(shift) >= length:
        return 0, 0, 0, 0
    return row, shift, max(0, -shift), min(length, length - shift)


@compiled(fastmath={"contract"})
def _add_products(total, a, b):
    for s in range(len(total)):
        total[s] += a[s] * b[s]


@compiled
def _aggregate(x, weight, out, k, kernels, first, last):
    planes, height, length = x.shape
    for i in range(first, last):
        for n in range(planes):
            out[n, i] = 0
            for tap in range(k * k):
                row, shift, start, stop = _shift(tap, k, kernels, i, height, length)
                seen = x[n, row, start + shift : stop + shift]
                _add_products(out[n, i, start:stop], weight[tap, i, start:stop], seen)


@compiled
def _x_gradient(grad, weight, grad_x, k, kernels, first, last):
    planes, height, length = grad.shape
    for i in range(first, last):
        for n in range(planes):
            grad_x[n, i] = 0
            for tap in range(k * k):  # the pixels that see this one by a tap lie at the opposite tap
                row, shift, start, stop = _shift(k * k - 1 - tap, k, kernels, i, height, length)
                seen_by = grad[n, row, start + shift : stop + shift]
                _add_products(grad_x[n, i, start:stop], weight[tap, row, start + shift : stop + shift], seen_by)


@compiled
def _weight_gradient(grad, x, grad_weight, k, kernels, first, last):
    planes, height, length = x.shape
    for i in range(first, last):
        for tap in range(k * k):
            grad_weight[tap, i] = 0
            row, shift, start, stop = _shift(tap, k, kernels, i, height, length)
            for n in range(planes):
                seen = x[n, row, start + shift : stop + shift]
                _add_products(grad_weight[tap, i, start:stop], grad[n, i, start:stop], seen)


def _small_kernel_aggregate_cpu(x: Tensor, weight: Tensor) -> Tensor:
    (wide, k, _), kernels = _sides(x, weight), weight.shape[1]
    planes = _planes(x, kernels, wide)
    out = torch.empty_like(planes)
    _each_block(_aggregate, k, kernels, planes, _kernel_rows(weight, wide), out)
    return _from_planes(out, x, kernels)


def _small_kernel_aggregate_backward_cpu(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    (wide, k, _), kernels = _sides(x, weight), weight.shape[1]
    grad, planes, rows = _planes(grad, kernels, wide), _planes(x, kernels, wide), _kernel_rows(weight, wide)
    grad_x, grad_weight = torch.empty_like(planes), torch.empty_like(rows)
    _each_block(_x_gradient, k, kernels, grad, rows, grad_x)
    _each_block(_weight_gradient, k, kernels, grad, planes, grad_weight)
    return _from_planes(grad_x, x, kernels), _from_kernel_rows(grad_weight, weight)


# Triton: tiles of pixels by channels, addressed by strides, so that no memory format needs a copy.

# Elements of a tile.
ELEMENTS = 512


@triton.jit
def _tile(channels, height, width, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Image, rows, columns and channels of this program, and which of its elements exist."""
    image, pixel, inside = item_rows(height * width, BLOCK_P)
    pixel, c = pixel[:, None], tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    return image, pixel // width, pixel % width, c, inside[:, None] & (c < channels)


@triton.jit
def _at(b, c, i, j, stride_b, stride_c, stride_h, stride_w):
    return b * stride_b + c.to(tl.int64) * stride_c + i.to(tl.int64) * stride_h + j * stride_w


@triton.jit(do_not_specialize=["height", "width"])
def small_kernel_aggregate_fwd_kernel(
    x, weight, out, channels, kernels, height, width,
    x_b, x_c, x_h, x_w, w_b, w_c, w_t, w_h, w_w, o_b, o_c, o_h, o_w,
    K: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, i, j, c, inside = _tile(channels, height, width, BLOCK_P, BLOCK_C)
    weight += _at(b, c % kernels, i, j, w_b, w_c, w_h, w_w)
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=WIDE)
    for tap in range(K * K):
        row, column = i + tap // K - K // 2, j + tap % K - K // 2
        seen = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        value = tl.load(x + _at(b, c, row, column, x_b, x_c, x_h, x_w), mask=seen, other=0).to(WIDE)
        total += value * tl.load(weight, mask=seen, other=0).to(WIDE)
        weight += w_t
    tl.store(out + _at(b, c, i, j, o_b, o_c, o_h, o_w), total, mask=inside)


@triton.jit(do_not_specialize=["height", "width"])
def small_kernel_aggregate_bwd_x_kernel(
    grad, weight, grad_x, channels, kernels, height, width,
    g_b, g_c, g_h, g_w, w_b, w_c, w_t, w_h, w_w, o_b, o_c, o_h, o_w,
    K: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Every pixel collects from the pixels that see it: by a tap, those at the opposite tap."""
    b, i, j, c, inside = _tile(channels, height, width, BLOCK_P, BLOCK_C)
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=WIDE)
    for tap in range(K * K):
        row, column = i - tap // K + K // 2, j - tap % K + K // 2
        seen = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        value = tl.load(grad + _at(b, c, row, column, g_b, g_c, g_h, g_w), mask=seen, other=0).to(WIDE)
        kernel = tl.load(weight + _at(b, c % kernels, row, column, w_b, w_c, w_h, w_w), mask=seen, other=0)
        total += value * kernel.to(WIDE)
        weight += w_t
    tl.store(grad_x + _at(b, c, i, j, o_b, o_c, o_h, o_w), total, mask=inside)


@triton.jit(do_not_specialize=["height", "width"])
def small_kernel_aggregate_bwd_weight_kernel(
    grad, x, grad_weight, channels, kernels, height, width,
    g_b, g_c, g_h, g_w, x_b, x_c, x_h, x_w, w_b, w_c, w_t, w_h, w_w,
    K: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of pixels by kernels; every kernel sums over the channels that use it."""
    b, i, j, q, inside = _tile(kernels, height, width, BLOCK_P, BLOCK_C)
    for tap in range(K * K):
        row, column = i + tap // K - K // 2, j + tap % K - K // 2
        seen = inside & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        total = tl.zeros((BLOCK_P, BLOCK_C), dtype=WIDE)
        for first in range(0, channels, kernels):
            c = first + q
            value = tl.load(x + _at(b, c, row, column, x_b, x_c, x_h, x_w), mask=seen, other=0).to(WIDE)
            total += value * tl.load(grad + _at(b, c, i, j, g_b, g_c, g_h, g_w), mask=seen, other=0).to(WIDE)
        tl.store(grad_weight + _at(b, q, i, j, w_b, w_c, w_h, w_w), total, mask=inside)
        grad_weight += w_t


def _launch(kernel, tiled: int, wide: torch.dtype, k: int, shape, kernels: int, *tensors: Tensor) -> None:
    """Launch `kernel` over tiles of pixels by `tiled` channels (or kernels) of all images of `shape` (B, C, H, W)."""
    batch, channels, height, width = shape
    if batch * tiled * height * width == 0:
        return
    block_p, block_c = rows_by_channels(tiled, 64, ELEMENTS)
    grid = batch * triton.cdiv(height * width, block_p), triton.cdiv(tiled, block_c)
    strides = [stride for tensor in tensors for stride in tensor.stride()]
    options = dict(K=k, WIDE=triton_dtype(wide), BLOCK_P=block_p, BLOCK_C=block_c)
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](*tensors, channels, kernels, height, width, *strides, **options)


def _small_kernel_aggregate_triton(x: Tensor, weight: Tensor) -> Tensor:
    (wide, k, _), kernels, out = _sides(x, weight), weight.shape[1], torch.empty_like(x)
    _launch(small_kernel_aggregate_fwd_kernel, x.shape[1], wide, k, x.shape, kernels, x, weight, out)
    return out


def _small_kernel_aggregate_backward_triton(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    (wide, k, _), kernels = _sides(x, weight), weight.shape[1]
    grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
    _launch(small_kernel_aggregate_bwd_x_kernel, x.shape[1], wide, k, x.shape, kernels, grad, weight, grad_x)
    _launch(small_kernel_aggregate_bwd_weight_kernel, kernels, wide, k, x.shape, kernels, grad, x, grad_weight)
    return grad_x, grad_weight


@torch.library.custom_op("attlas::small_kernel_aggregate", mutates_args=())
def small_kernel_aggregate_op(x: Tensor, weight: Tensor) -> Tensor:
    return pick(
        x,
        reference=lambda x, weight: _like(x, small_kernel_aggregate_reference(x, weight)),
        triton=_small_kernel_aggregate_triton,
        cpu=_small_kernel_aggregate_cpu,
    )(x, weight)


@small_kernel_aggregate_op.register_fake
def _(x, weight):
    return torch.empty_like(x)


@torch.library.custom_op("attlas::small_kernel_aggregate_backward", mutates_args=())
def small_kernel_aggregate_backward_op(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return pick(
        x,
        reference=small_kernel_aggregate_backward_reference,
        triton=_small_kernel_aggregate_backward_triton,
        cpu=_small_kernel_aggregate_backward_cpu,
    )(grad, x, weight)


@small_kernel_aggregate_backward_op.register_fake
def _(grad, x, weight):
    return torch.empty_like(x), torch.empty_like(weight)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    return small_kernel_aggregate_backward_op(grad, *ctx.saved_tensors)


small_kernel_aggregate_op.register_autograd(_backward, setup_context=_save)
decompose(small_kernel_aggregate_op, small_kernel_aggregate_reference)
