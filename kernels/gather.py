"""Gathering rows of a cloud by index: features (B, N, C) and index (B, S) or (B, S, K) -> (B, S[, K], C).

    gather_neighbors    out[b, s, k, :] = features[b, index[b, s, k], :]
    scatter_neighbors   out[b, n, :]    = Σ values[b, s, k, :] over the (s, k) with index[b, s, k] = n

Each is the backward of the other. On a CPU the order of a sum is fixed. On a GPU atomic additions happen in any order,
unless the user has called `torch.use_deterministic_algorithms(True)`: then the index is sorted, and each point sums its
copies in order.

Suffixes of names: R rows gathered from a cloud, S or S·K.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .checks import REALS, check_index, check_integer, check_range, check_tensors, sum_dtype
from .dispatch import compiled, each, pick, tl, triton
from .tiles import item_rows, load_rows, rows_by_channels, store_rows


def gather_neighbors(features: Tensor, index: Tensor) -> Tensor:
    """Rows of `features` at `index`, cloud by cloud; differentiable in the features.

    Args:
        features: rows (B, N, C) of any real dtype.
        index: numbers of rows (B, S) or (B, S, K), int64, in 0..N-1.

    Returns:
        (B, S, C) or (B, S, K, C), in the dtype of the features.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype.
        IndexError: an index out of range (on a CPU).
    """
    check_features(features, index)
    return gather_neighbors_op(features, index)


def scatter_neighbors(values: Tensor, index: Tensor, num_points: int) -> Tensor:
    """Sums of the rows that belong to each point, cloud by cloud; differentiable in the values.

    Args:
        values: rows (B, S, C) or (B, S, K, C) of any real dtype; half types are summed in float32.
        index: point of every row, (B, S) or (B, S, K), int64, in 0..num_points-1.
        num_points: number of points N of a cloud.

    Returns:
        (B, N, C), in the dtype of the values; zero for points without rows.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype.
        IndexError: an index out of range (on a CPU).
    """
    check_tensors(values=values, index=index)
    if values.ndim not in (3, 4) or values.shape[:-1] != index.shape:
        raise ValueError(
            "values must have shape (B, S, C) or (B, S, K, C) and index the same without C, got "
            f"{tuple(values.shape)} and {tuple(index.shape)}"
        )
    if values.dtype not in REALS:
        raise TypeError(f"values must be of a real dtype, got {values.dtype}")
    check_index(index, values, "values")
    check_integer(num_points, "num_points")
    return scatter_neighbors_op(values.flatten(1, -2), index.flatten(1), num_points)


def check_features(features: Tensor, index: Tensor) -> None:
    """Raise unless features are (B, N, C), and index (B, S) or (B, S, K) int64 into them on the same device."""
    check_tensors(features=features, index=index)
    if features.ndim != 3 or index.ndim not in (2, 3) or features.shape[0] != index.shape[0]:
        raise ValueError(
            "features must have shape (B, N, C) and index (B, S) or (B, S, K) with the same B, got "
            f"{tuple(features.shape)} and {tuple(index.shape)}"
        )
    if features.dtype not in REALS:
        raise TypeError(f"features must be of a real dtype, got {features.dtype}")
    check_index(index, features, "features")


def gather_neighbors_reference(features_BNC: Tensor, index_BSK: Tensor) -> Tensor:
    batch, size, channels = features_BNC.shape
    rows = flat_rows(index_BSK.flatten(1), size)
    return features_BNC.reshape(batch * size, channels).index_select(0, rows).view(*index_BSK.shape, channels)


def scatter_neighbors_reference(values_BRC: Tensor, index_BR: Tensor, size: int) -> Tensor:
    batch, _, channels = values_BRC.shape
    sum_PC = values_BRC.new_zeros(batch * size, channels, dtype=sum_dtype(values_BRC))
    sum_PC.index_add_(0, flat_rows(index_BR, size), values_BRC.flatten(0, 1).to(sum_PC.dtype))
    return sum_PC.view(batch, size, channels).to(values_BRC.dtype)


def flat_rows(index_BR: Tensor, size: int) -> Tensor:
    """Index (B, R) into clouds of `size` points -> index (B R,) into all their points in a row."""
    return (index_BR + size * torch.arange(index_BR.shape[0], device=index_BR.device).unsqueeze(1)).flatten()


def _scatter_neighbors_cpu(values_BRC: Tensor, index_BR: Tensor, size: int) -> Tensor:
    batch, _, channels = values_BRC.shape
    sum_BNC = torch.zeros(batch, size, channels, dtype=sum_dtype(values_BRC))
    each_cloud(_add_rows, sum_BNC, index_BR, values_BRC.to(sum_BNC.dtype))
    return sum_BNC.to(values_BRC.dtype)


def each_cloud(loop: Callable, *tensors: Tensor) -> None:
    """loop(*arrays) for every cloud; arrays of one layout, as Numba compiles for each that it meets."""
    each(lambda cloud: loop(*map(np.ascontiguousarray, cloud)), zip(*(tensor.numpy() for tensor in tensors)))


@compiled
def _add_rows(sum_NC, index_R, values_RC):
    for r in range(len(index_R)):
        n = index_R[r]
        for c in range(values_RC.shape[1]):
            sum_NC[n, c] += values_RC[r, c]


@triton.jit
def _place(index, size, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr):
    """Offsets into gathered rows and into features, and the mask, of this program's tile of rows by channels."""
    cloud, r, inside = item_rows(rows, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = inside[:, None] & (c < channels)[None, :]
    n = tl.load(index + cloud * rows + r, mask=inside, other=0)
    return (cloud * rows + r)[:, None] * channels + c, (cloud * size + n)[:, None] * channels + c, mask


@triton.jit(do_not_specialize=["size", "rows"])
def gather_neighbors_fwd_kernel(
    features, index, gathered, size, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    row, point, mask = _place(index, size, rows, channels, BLOCK_R, BLOCK_C)
    tl.store(gathered + row, tl.load(features + point, mask=mask), mask=mask)


@triton.jit(do_not_specialize=["size", "rows"])
def scatter_neighbors_fwd_kernel(
    values, index, total, size, rows, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Every row adds its values to its point, in any order."""
    row, point, mask = _place(index, size, rows, channels, BLOCK_R, BLOCK_C)
    value = tl.load(values + row, mask=mask).to(total.dtype.element_ty)
    tl.atomic_add(total + point, value, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["points"])
def scatter_neighbors_fwd_ordered_kernel(
    values, order, start, total, points, channels, BLOCK_R: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Every point sums the values of its rows: order[start[p]], ..., order[start[p + 1] - 1]."""
    p = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    first = tl.load(start + p, mask=p < points, other=0)
    copies = tl.load(start + p + 1, mask=p < points, other=0) - first
    value = tl.zeros((BLOCK_R, BLOCK_C), dtype=total.dtype.element_ty)
    for i in range(tl.max(copies, 0)):
        row = tl.load(order + first + i, mask=i < copies, other=0)
        value += load_rows(values, row, c, i < copies, channels).to(total.dtype.element_ty)
    store_rows(total, value, p, c, p < points, channels)


def _gather_neighbors_triton(features_BNC: Tensor, index_BSK: Tensor) -> Tensor:
    batch, size, channels = features_BNC.shape
    gathered = features_BNC.new_empty(*index_BSK.shape, channels)
    if gathered.numel():
        rows, (block_r, block_c) = index_BSK[0].numel(), rows_by_channels(channels)
        grid = batch * triton.cdiv(rows, block_r), triton.cdiv(channels, block_c)
        with torch.cuda.device_of(features_BNC):
            gather_neighbors_fwd_kernel[grid](
                features_BNC.contiguous(), index_BSK.contiguous(), gathered, size, rows, channels,
                BLOCK_R=block_r, BLOCK_C=block_c,
            )  # fmt: skip
    return gathered


def _scatter_neighbors_triton(values_BRC: Tensor, index_BR: Tensor, size: int) -> Tensor:
    batch, rows, channels = values_BRC.shape
    sum_BNC = values_BRC.new_zeros(batch, size, channels, dtype=sum_dtype(values_BRC))
    if sum_BNC.numel() and values_BRC.numel():
        values_BRC, points = values_BRC.contiguous(), batch * size
        block_r, block_c = rows_by_channels(channels)  # no autotuning: its trial runs would add up
        tile, channel_blocks = {"BLOCK_R": block_r, "BLOCK_C": block_c}, triton.cdiv(channels, block_c)
        with torch.cuda.device_of(values_BRC):
            if torch.are_deterministic_algorithms_enabled():
                sorted_point, order = flat_rows(index_BR, size).sort(stable=True)
                start = torch.searchsorted(sorted_point, torch.arange(points + 1, device=values_BRC.device))
                scatter_neighbors_fwd_ordered_kernel[triton.cdiv(points, block_r), channel_blocks](
                    values_BRC, order, start, sum_BNC, points, channels, **tile
                )
            else:
                scatter_neighbors_fwd_kernel[batch * triton.cdiv(rows, block_r), channel_blocks](
                    values_BRC, index_BR.contiguous(), sum_BNC, size, rows, channels, **tile
                )
    return sum_BNC.to(values_BRC.dtype)


@torch.library.custom_op("attlas::gather_neighbors", mutates_args=())
def gather_neighbors_op(features: Tensor, index: Tensor) -> Tensor:
    check_range(index, features.shape[1])
    return pick(features, reference=gather_neighbors_reference, triton=_gather_neighbors_triton)(features, index)


@torch.library.custom_op("attlas::scatter_neighbors", mutates_args=())
def scatter_neighbors_op(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sums (B, N, C) of values (B, R, C) over the rows of every point; index (B, R), N = size."""
    check_range(index, size)
    return pick(
        values, reference=scatter_neighbors_reference, triton=_scatter_neighbors_triton, cpu=_scatter_neighbors_cpu
    )(values, index, size)


@gather_neighbors_op.register_fake
def _(features, index):
    return features.new_empty(*index.shape, features.shape[-1])


@scatter_neighbors_op.register_fake
def _(values, index, size):
    return values.new_empty(values.shape[0], size, values.shape[2])


def _save_gathered(ctx, inputs, output):
    features, index = inputs
    ctx.save_for_backward(index)
    ctx.size = features.shape[1]


def _gather_backward(ctx, grad):
    (index,) = ctx.saved_tensors
    return scatter_neighbors_op(grad.flatten(1, -2), index.flatten(1), ctx.size), None


def _save_scattered(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _scatter_backward(ctx, grad):
    (index,) = ctx.saved_tensors
    return gather_neighbors_op(grad, index), None, None


gather_neighbors_op.register_autograd(_gather_backward, setup_context=_save_gathered)
scatter_neighbors_op.register_autograd(_scatter_backward, setup_context=_save_scattered)
