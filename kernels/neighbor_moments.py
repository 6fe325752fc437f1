"""First and second moments of local quantities and gathered features, without gathering the features.

    z[b, s, k] = [local[b, s, k]; features[b, index[b, s, k]]]        of D + C channels
    first[b] = Σ_sk z[b, s, k],  second[b] = Σ_sk z[b, s, k] z[b, s, k]ᵀ

They give the mean and the variance of any linear map of z, hence the batch statistics of a normalization after the map,
before the map is computed. A point counts as often as it is a neighbor, and its feature multiplies the sum of the local
quantities around it: one scatter of `local` replaces all products of local quantities and gathered features.
"""

import functools

import torch
from torch import Tensor

from .checks import COORDINATES, check_devices, check_tensors
from .dispatch import compiled, pick
from .gather import check_features, each_cloud, gather_neighbors_op, scatter_neighbors_op


def neighbor_moments(
    local: Tensor, index: Tensor | None = None, features: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sums of z and of z zᵀ over the neighbors of each cloud; differentiable in local quantities and features.

    Args:
        local: local quantities (B, S, K, D), float32 or float64.
        index: rows of the neighbors (B, S, K), int64, in 0..N-1; given with `features` only.
        features: rows (B, N, C) in the dtype of `local`; None for local quantities alone (C = 0).

    Returns:
        first (B, D + C) and second (B, D + C, D + C).

    Raises:
        ValueError, TypeError: an argument of another shape or dtype.
        IndexError: an index out of range (on a CPU).
    """
    check_tensors(local=local)
    if local.ndim != 4 or local.dtype not in COORDINATES:
        raise ValueError(f"local must be (B, S, K, D), float32 or float64, got {tuple(local.shape)} {local.dtype}")
    if (features is None) != (index is None):
        raise ValueError("index and features must be given together, got one of them")
    if features is None or index is None:
        return neighbor_moments_op(local, None, None)[:2]
    check_features(features, index)
    check_devices(local=local, features=features)
    if index.shape != local.shape[:3] or features.dtype != local.dtype:
        raise ValueError(
            "index must have the shape of local without D, and features its dtype, got "
            f"{tuple(index.shape)} beside {tuple(local.shape)}, {features.dtype} beside {local.dtype}"
        )
    return neighbor_moments_op(local, index, features)[:2]


def neighbor_moments_reference(local_BSKD: Tensor, index_BSK: Tensor | None, features_BNC: Tensor | None):
    """first, second, and for the backward: around (B, N, D), the sum of the local quantities at each point."""
    rows = local_BSKD.flatten(1, 2)
    first, second = rows.sum(1), rows.mT @ rows
    if features_BNC is None or index_BSK is None:
        return first, second, rows.new_empty(0)
    around = scatter_neighbors_op(rows, index_BSK.flatten(1), features_BNC.shape[1])
    counted = features_BNC * _copies(index_BSK, features_BNC)
    cross = around.mT @ features_BNC
    first = torch.cat([first, counted.sum(1)], dim=1)
    second = torch.cat([torch.cat([second, cross], 2), torch.cat([cross.mT, counted.mT @ features_BNC], 2)], 1)
    return first, second, around


def _copies(index_BSK: Tensor, features_BNC: Tensor) -> Tensor:
    """The number of times that each point is a neighbor, (B, N, 1)."""
    index = index_BSK.flatten(1)
    copies = features_BNC.new_zeros(features_BNC.shape[:2])
    return copies.scatter_add_(1, index, copies.new_ones(()).expand_as(index)).unsqueeze(2)


def _gradients(grad_first, grad_second, local_BSKD, index_BSK, features_BNC, around, add_gathered):
    grad_second = grad_second + grad_second.mT  # z occurs twice in z zᵀ
    depth = local_BSKD.shape[-1]
    of_rows, grad_row = grad_second[:, :depth, :depth], grad_first[:, None, :depth]
    rows = local_BSKD.flatten(1, 2)
    if features_BNC is None:
        return torch.baddbmm(grad_row, rows, of_rows).view(local_BSKD.shape), rows.new_empty(0)
    cross, of_features = grad_second[:, :depth, depth:], grad_second[:, depth:, depth:]
    at_point = torch.baddbmm(grad_row, features_BNC, cross.mT)  # (B, N, D): the same for all copies of a point
    grad_rows = add_gathered(rows @ of_rows, at_point, index_BSK.flatten(1))
    grad_features = features_BNC @ of_features + grad_first[:, None, depth:]
    grad_features = torch.baddbmm(grad_features * _copies(index_BSK, features_BNC), around, cross)
    return grad_rows.view(local_BSKD.shape), grad_features


def _add_gathered(rows_BRD: Tensor, values_BND: Tensor, index_BR: Tensor) -> Tensor:
    return rows_BRD + gather_neighbors_op(values_BND, index_BR)


def _add_gathered_cpu(rows_BRD: Tensor, values_BND: Tensor, index_BR: Tensor) -> Tensor:
    each_cloud(_add_at, rows_BRD, values_BND, index_BR)
    return rows_BRD


@compiled
def _add_at(rows_RD, values_ND, index_R):
    for r in range(len(index_R)):
        n = index_R[r]
        for d in range(rows_RD.shape[1]):
            rows_RD[r, d] += values_ND[n, d]


neighbor_moments_backward_reference = functools.partial(_gradients, add_gathered=_add_gathered)
_neighbor_moments_backward_cpu = functools.partial(_gradients, add_gathered=_add_gathered_cpu)


@torch.library.custom_op("attlas::neighbor_moments", mutates_args=())
def neighbor_moments_op(local: Tensor, index: Tensor | None, features: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    return pick(local, reference=neighbor_moments_reference, triton=neighbor_moments_reference)(local, index, features)


@neighbor_moments_op.register_fake
def _(local, index, features):
    depth = local.shape[3] + (0 if features is None else features.shape[2])
    around = (0,) if features is None else (*features.shape[:2], local.shape[3])
    return local.new_empty(len(local), depth), local.new_empty(len(local), depth, depth), local.new_empty(around)


@torch.library.custom_op("attlas::neighbor_moments_backward", mutates_args=())
def neighbor_moments_backward_op(
    grad_first: Tensor,
    grad_second: Tensor,
    local: Tensor,
    index: Tensor | None,
    features: Tensor | None,
    around: Tensor,
) -> tuple[Tensor, Tensor]:
    reference = neighbor_moments_backward_reference
    run = pick(local, reference=reference, triton=reference, cpu=_neighbor_moments_backward_cpu)
    return run(grad_first, grad_second, local, index, features, around)


@neighbor_moments_backward_op.register_fake
def _(grad_first, grad_second, local, index, features, around):
    grad_features = local.new_empty(0 if features is None else features.shape)
    return local.new_empty(local.shape), grad_features


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, output[2])
    ctx.mark_non_differentiable(output[2])


def _backward(ctx, grad_first, grad_second, _):
    grad_local, grad_features = neighbor_moments_backward_op(grad_first, grad_second, *ctx.saved_tensors)
    return grad_local, None, grad_features if ctx.needs_input_grad[2] else None


neighbor_moments_op.register_autograd(_backward, setup_context=_save)
