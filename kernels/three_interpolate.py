"""Interpolation of features of coarse points at other points: weighted sums over the nearest, without a gather.

    three_nn             d_k² = |q - x_k|² of the 3 nearest,  w_k = 1 / (d_k² + 1e-8),  weight_k = w_k / Σ_j w_j
    three_interpolate    out = Σ_k weight_k · features[index_k]

Suffixes of names: M coarse points, C their channels, S queries, K coarse points around each, 3 as a rule.

Source: feature propagation of PointNet++, arXiv 1706.02413, section 3.4 (squared distances: its p = 2); the 1e-8 is in
the usual PyTorch versions.
"""

import torch
from torch import Tensor

from .checks import check_clouds, check_floats, check_integer, check_range, check_tensors, sum_dtype
from .dispatch import compiled, pick, tl, triton
from .gather import check_features, each_cloud, gather_neighbors, scatter_neighbors_op
from .neighbors import knn
from .tiles import item_rows, rows_by_channels


def three_nn(queries: Tensor, points: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """The nearest coarse points of every query and their weights, for `three_interpolate`.

    The weight is differentiable in queries and points.

    Args:
        queries: coordinates (B, S, 3), float32 or float64.
        points: coordinates (B, M, 3), in the same dtype and on the same device.
        k: number of coarse points; all of them in a cloud with fewer.

    Returns:
        index (B, S, min(k, M)), int64, nearest first; and weight, of the same shape and the dtype of the points,
        inversely proportional to the squared distances, with sum 1.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_clouds(queries, points, dimensions=None)
    check_integer(k, "k")
    index_BSK = knn(queries, points, min(k, points.shape[1]))
    distance_BSK = (gather_neighbors(points, index_BSK) - queries.unsqueeze(2)).square().sum(-1)
    weight_BSK = 1 / (distance_BSK + 1e-8)
    return index_BSK, weight_BSK / weight_BSK.sum(-1, keepdim=True)


def three_interpolate(features: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums of rows of `features`; differentiable in features and weight.

    Args:
        features: rows (B, M, C) of any floating-point dtype; half types are summed in float32.
        index: numbers of rows (B, S, K), int64, in 0..M-1.
        weight: factors of the rows (B, S, K), of any floating-point dtype.

    Returns:
        (B, S, C), in the dtype of the features.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype.
        IndexError: an index out of range (on a CPU).
    """
    check_tensors(weight=weight)
    check_features(features, index)
    if index.ndim != 3 or weight.shape != index.shape:
        raise ValueError(
            f"index and weight must both have shape (B, S, K), got {tuple(index.shape)} and {tuple(weight.shape)}"
        )
    check_floats(features=features, weight=weight)
    return three_interpolate_op(features, index, weight.to(sum_dtype(features)))


# Below, the dtype of the weight is that of sums: that of the features, or float32 for half types.


def three_interpolate_reference(features_BMC: Tensor, index_BSK: Tensor, weight_BSK: Tensor) -> Tensor:
    gathered_BSKC = gather_neighbors(features_BMC, index_BSK).to(weight_BSK.dtype)
    return torch.einsum("bskc,bsk->bsc", gathered_BSKC, weight_BSK).to(features_BMC.dtype)


def three_interpolate_backward_reference(grad_BSC: Tensor, index_BSK: Tensor, weight_BSK: Tensor, size: int) -> Tensor:
    copies_BSKC = grad_BSC.unsqueeze(2) * weight_BSK.unsqueeze(3)
    return scatter_neighbors_op(copies_BSKC.flatten(1, 2), index_BSK.flatten(1), size).to(grad_BSC.dtype)


def three_interpolate_weight_backward_reference(grad_BSC: Tensor, index_BSK: Tensor, features_BMC: Tensor) -> Tensor:
    dtype = sum_dtype(features_BMC)
    return torch.einsum("bskc,bsc->bsk", gather_neighbors(features_BMC, index_BSK).to(dtype), grad_BSC.to(dtype))


def _three_interpolate_cpu(features_BMC: Tensor, index_BSK: Tensor, weight_BSK: Tensor) -> Tensor:
    (batch, queries, _), channels = index_BSK.shape, features_BMC.shape[2]
    sum_BSC = torch.zeros(batch, queries, channels, dtype=weight_BSK.dtype)
    each_cloud(_weighted_sums, sum_BSC, features_BMC.to(sum_BSC.dtype), index_BSK, weight_BSK)
    return sum_BSC.to(features_BMC.dtype)


def _three_interpolate_backward_cpu(grad_BSC: Tensor, index_BSK: Tensor, weight_BSK: Tensor, size: int) -> Tensor:
    sum_BMC = torch.zeros(len(grad_BSC), size, grad_BSC.shape[2], dtype=weight_BSK.dtype)
    each_cloud(_add_weighted, sum_BMC, grad_BSC.to(sum_BMC.dtype), index_BSK, weight_BSK)
    return sum_BMC.to(grad_BSC.dtype)


def _three_interpolate_weight_backward_cpu(grad_BSC: Tensor, index_BSK: Tensor, features_BMC: Tensor) -> Tensor:
    product_BSK = torch.zeros(index_BSK.shape, dtype=sum_dtype(features_BMC))
    each_cloud(_products, product_BSK, grad_BSC.to(product_BSK.dtype), index_BSK, features_BMC.to(product_BSK.dtype))
    return product_BSK


@compiled
def _weighted_sums(sum_SC, features_MC, index_SK, weight_SK):
    for s in range(index_SK.shape[0]):
        for k in range(index_SK.shape[1]):
            m, weight = index_SK[s, k], weight_SK[s, k]
            for c in range(features_MC.shape[1]):
                sum_SC[s, c] += weight * features_MC[m, c]


@compiled
def _add_weighted(sum_MC, grad_SC, index_SK, weight_SK):
    for s in range(index_SK.shape[0]):
        for k in range(index_SK.shape[1]):
            m, weight = index_SK[s, k], weight_SK[s, k]
            for c in range(grad_SC.shape[1]):
                sum_MC[m, c] += weight * grad_SC[s, c]


@compiled(fastmath={"reassoc", "nsz", "contract"})  # for vector instructions in the sum over channels
def _products(product_SK, grad_SC, index_SK, features_MC):
    for s in range(index_SK.shape[0]):
        for k in range(index_SK.shape[1]):
            m, product = index_SK[s, k], product_SK[s, k]
            for c in range(grad_SC.shape[1]):
                product += grad_SC[s, c] * features_MC[m, c]
            product_SK[s, k] = product


def _launch(kernel, channel_blocks: bool, *tensors: Tensor, size: int) -> None:
    """Launch `kernel` over blocks of the queries of every cloud; the second of its `tensors` is the index.

    No autotuning: its trial runs of atomic additions would add up.
    """
    (batch, queries, k), channels = tensors[1].shape, tensors[0].shape[2]
    block_s, block_c = rows_by_channels(channels)
    grid = batch * triton.cdiv(queries, block_s), triton.cdiv(channels, block_c) if channel_blocks else 1
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](*(x.contiguous() for x in tensors), size, queries, channels, k, BLOCK_S=block_s, BLOCK_C=block_c)


def _three_interpolate_triton(features_BMC: Tensor, index_BSK: Tensor, weight_BSK: Tensor) -> Tensor:
    out_BSC = features_BMC.new_empty(*index_BSK.shape[:2], features_BMC.shape[2])
    if out_BSC.numel():
        size = features_BMC.shape[1]
        _launch(three_interpolate_fwd_kernel, True, features_BMC, index_BSK, weight_BSK, out_BSC, size=size)
    return out_BSC


def _three_interpolate_backward_triton(grad_BSC: Tensor, index_BSK: Tensor, weight_BSK: Tensor, size: int) -> Tensor:
    if torch.are_deterministic_algorithms_enabled():
        return three_interpolate_backward_reference(grad_BSC, index_BSK, weight_BSK, size)
    sum_BMC = weight_BSK.new_zeros(len(grad_BSC), size, grad_BSC.shape[2])
    if grad_BSC.numel():
        _launch(three_interpolate_bwd_kernel, True, grad_BSC, index_BSK, weight_BSK, sum_BMC, size=size)
    return sum_BMC.to(grad_BSC.dtype)


def _three_interpolate_weight_backward_triton(grad_BSC: Tensor, index_BSK: Tensor, features_BMC: Tensor) -> Tensor:
    product_BSK = features_BMC.new_zeros(index_BSK.shape, dtype=sum_dtype(features_BMC))
    if grad_BSC.numel():
        size = features_BMC.shape[1]
        _launch(three_interpolate_bwd_weight_kernel, False, grad_BSC, index_BSK, features_BMC, product_BSK, size=size)
    return product_BSK


@triton.jit
def _rows(queries, BLOCK_S: tl.constexpr):
    """The cloud of this program, its queries as rows of all clouds, and which of them exist."""
    cloud, s, inside = item_rows(queries, BLOCK_S)
    return cloud, cloud * queries + s, inside


@triton.jit(do_not_specialize=["size", "queries"])
def three_interpolate_fwd_kernel(
    features, index, weight, out, size, queries, channels, k, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr
):
    cloud, row, inside = _rows(queries, BLOCK_S)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = inside[:, None] & (c < channels)[None, :]
    value = tl.zeros((BLOCK_S, BLOCK_C), dtype=weight.dtype.element_ty)
    for i in range(k):
        m = cloud * size + tl.load(index + row * k + i, mask=inside, other=0)
        w = tl.load(weight + row * k + i, mask=inside, other=0)
        value += w[:, None] * tl.load(features + m[:, None] * channels + c, mask=mask, other=0)
    tl.store(out + row[:, None] * channels + c, value, mask=mask)


@triton.jit(do_not_specialize=["size", "queries"])
def three_interpolate_bwd_kernel(
    grad, index, weight, total, size, queries, channels, k, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Every query adds its weighted gradient to its coarse points, in any order."""
    cloud, row, inside = _rows(queries, BLOCK_S)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask = inside[:, None] & (c < channels)[None, :]
    value = tl.load(grad + row[:, None] * channels + c, mask=mask, other=0)
    for i in range(k):
        m = cloud * size + tl.load(index + row * k + i, mask=inside, other=0)
        w = tl.load(weight + row * k + i, mask=inside, other=0)
        tl.atomic_add(total + m[:, None] * channels + c, w[:, None] * value, mask=mask, sem="relaxed")


@triton.jit(do_not_specialize=["size", "queries"])
def three_interpolate_bwd_weight_kernel(
    grad, index, features, product, size, queries, channels, k, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr
):
    cloud, row, inside = _rows(queries, BLOCK_S)
    for i in range(k):
        m = cloud * size + tl.load(index + row * k + i, mask=inside, other=0)
        value = tl.zeros((BLOCK_S, BLOCK_C), dtype=product.dtype.element_ty)
        for first in range(0, channels, BLOCK_C):
            c = first + tl.arange(0, BLOCK_C)
            mask = inside[:, None] & (c < channels)[None, :]
            g = tl.load(grad + row[:, None] * channels + c, mask=mask, other=0).to(value.dtype)
            value += g * tl.load(features + m[:, None] * channels + c, mask=mask, other=0)
        tl.store(product + row * k + i, tl.sum(value, 1), mask=inside)


@torch.library.custom_op("attlas::three_interpolate", mutates_args=())
def three_interpolate_op(features: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    check_range(index, features.shape[1])
    return pick(
        features, reference=three_interpolate_reference, triton=_three_interpolate_triton, cpu=_three_interpolate_cpu
    )(features, index, weight)


@torch.library.custom_op("attlas::three_interpolate_backward", mutates_args=())
def three_interpolate_backward_op(grad: Tensor, index: Tensor, weight: Tensor, size: int) -> Tensor:
    return pick(
        grad,
        reference=three_interpolate_backward_reference,
        triton=_three_interpolate_backward_triton,
        cpu=_three_interpolate_backward_cpu,
    )(grad, index, weight, size)


@torch.library.custom_op("attlas::three_interpolate_weight_backward", mutates_args=())
def three_interpolate_weight_backward_op(grad: Tensor, index: Tensor, features: Tensor) -> Tensor:
    return pick(
        grad,
        reference=three_interpolate_weight_backward_reference,
        triton=_three_interpolate_weight_backward_triton,
        cpu=_three_interpolate_weight_backward_cpu,
    )(grad, index, features)


@three_interpolate_op.register_fake
def _(features, index, weight):
    return features.new_empty(*index.shape[:2], features.shape[2])


@three_interpolate_backward_op.register_fake
def _(grad, index, weight, size):
    return grad.new_empty(grad.shape[0], size, grad.shape[2])


@three_interpolate_weight_backward_op.register_fake
def _(grad, index, features):
    return features.new_empty(index.shape, dtype=sum_dtype(features))


def _setup_context(ctx, inputs, output):
    features, index, weight = inputs
    ctx.size = features.shape[1]
    # weights of fixed points need no gradient, and then the features are not saved
    ctx.save_for_backward(index, weight, features if ctx.needs_input_grad[2] else None)


def _backward(ctx, grad):
    index, weight, features = ctx.saved_tensors
    return (
        three_interpolate_backward_op(grad, index, weight, ctx.size) if ctx.needs_input_grad[0] else None,
        None,
        three_interpolate_weight_backward_op(grad, index, features) if ctx.needs_input_grad[2] else None,
    )


three_interpolate_op.register_autograd(_backward, setup_context=_setup_context)
