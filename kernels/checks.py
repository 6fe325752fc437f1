"""Argument checks shared by the operators: every message names the argument, what it was and what it may be."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


def check_points(points: Tensor, name: str = "points") -> None:
    """Raise unless `points` is a (B, N, 3) float32 or float64 tensor with at least one finite point per cloud."""
    if not isinstance(points, Tensor):
        raise TypeError(f"{name} must be a tensor of shape (B, N, 3), got {type(points).__name__}")
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"{name} must have shape (B, N, 3), got {tuple(points.shape)}")
    if points.dtype not in FLOATS:
        raise TypeError(f"{name} must be float32 or float64 (geometry needs the digits), got {points.dtype}")
    if points.numel() == 0:
        raise ValueError(f"{name} must hold clouds, and these points, got shape {tuple(points.shape)}")
    # one reduction: a NaN or an infinity survives the sum of products with zero
    if not torch.isfinite(points.detach().mul(0).sum()):
        bad = (~torch.isfinite(points).all(-1)).nonzero()
        cloud, point = bad[0].tolist()
        raise ValueError(
            f"{name} must be finite: {len(bad)} points hold NaN or infinity, the first is point {point} of cloud "
            f"{cloud}: {points[cloud, point].tolist()}"
        )


def check_normals(normals: Tensor, points: Tensor, name: str = "normals") -> None:
    """Raise unless `normals` matches `points` in shape and dtype and holds unit vectors (to 1 %)."""
    if not isinstance(normals, Tensor) or normals.shape != points.shape:
        got = tuple(normals.shape) if isinstance(normals, Tensor) else type(normals).__name__
        raise ValueError(f"{name} must have the shape of the points, {tuple(points.shape)}, got {got}")
    if normals.dtype != points.dtype:
        raise TypeError(f"{name} must have the dtype of the points, {points.dtype}, got {normals.dtype}")
    length = torch.linalg.vector_norm(normals.detach(), dim=-1)
    if not ((length - 1).abs() < 1e-2).all():
        bad = ((length - 1).abs() >= 1e-2) | length.isnan()
        cloud, point = bad.nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be unit vectors: {int(bad.sum())} are not, the first is of point {point} of cloud {cloud}: "
            f"{normals[cloud, point].tolist()}"
        )


def check_same_clouds(queries: Tensor, points: Tensor) -> None:
    """Raise unless queries (B, S, 3) and points (B, N, 3) agree in batch size, dtype and device."""
    check_points(points, "points")
    check_points(queries, "queries")
    if queries.shape[0] != points.shape[0]:
        raise ValueError(f"queries are of {queries.shape[0]} clouds, but points of {points.shape[0]}")
    if queries.dtype != points.dtype or queries.device != points.device:
        raise TypeError(
            f"queries ({queries.dtype}, {queries.device}) and points ({points.dtype}, {points.device}) must agree"
        )


def check_count(count: int, name: str, at_most: int, of_what: str, at_least: int = 1) -> None:
    """Raise unless `count` is an integer in `at_least`..`at_most`, the number of `of_what`."""
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} must be an integer, got {count!r}")
    if not at_least <= count <= at_most:
        raise ValueError(f"{name} must lie in {at_least}..{at_most} (the number of {of_what}), got {count}")
