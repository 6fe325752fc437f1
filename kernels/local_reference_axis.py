"""Local reference axis (LRA): the direction of least spread of the points around a center, in place of a normal.

    d_i = x_i - center;  w_i = (d_max - |d_i|) / Σ_j (d_max - |d_j|);  axis = eigenvector of the smallest eigenvalue of
    Σ_i w_i d_i d_iᵀ, of unit length

The sign of an eigenvector is arbitrary. `sign="projection"` chooses it such that Σ_i w_i d_i·axis >= 0, which commutes
with rotation; `sign="solver"` keeps the sign of the eigen-solver, as the released RISurConv does, and breaks rotation
invariance. Offsets of equal length up to rounding (64 eps of the dtype, relative to the longest) get equal weights.

Coordinates may have any size that their dtype holds: they are scaled before they are squared.

Source: Zhang et al., RIConv++, arXiv 2202.13094 and RISurConv, arXiv 2408.06110 (compute_LRA of the release).
"""

import torch
from torch import Tensor

from .checks import COORDINATES, can_look, check_choice, check_count, check_points, check_tensors
from .dispatch import without_autocast
from .gather import gather_neighbors
from .neighbors import knn
from .surface_properties import ROUNDING

SIGNS = ("projection", "solver")
ROWS = 1 << 16  # points at a time: a scene of a million would need gigabytes for its neighbors


@torch.no_grad()
def local_reference_axis(points: Tensor, k: int = 32, sign: str = "projection") -> Tensor:
    """The reference axis of every point's neighborhood; it rotates with the points.

    Where a neighborhood is symmetric about its axis, rounding decides the sign.

    Args:
        points: coordinates (B, N, 3), float32 or float64.
        k: number of nearest neighbors, 5..N. The point itself has offset 0, the farthest neighbor has weight 0, and
            three more offsets are needed for one direction of least spread.
        sign: "projection" or "solver".

    Returns:
        unit vectors (B, N, 3), in the dtype of the points. No gradient flows.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_points(points, any_magnitude=True)
    check_count(k, "k", points.shape[1], "points", at_least=5)
    points = _unit_scale(points.detach(), (1, 2))
    axes = [
        principal_axis(gather_neighbors(points, index_BSK) - centers_BS3.unsqueeze(2), sign)
        for index_BSK, centers_BS3 in zip(knn(points, points, k).split(ROWS, dim=1), points.split(ROWS, dim=1))
    ]
    return torch.cat(axes, dim=1)


@torch.no_grad()
def principal_axis(offsets: Tensor, sign: str = "projection") -> Tensor:
    """The reference axis of offsets from a center.

    Args:
        offsets: vectors (..., K, 3), float32 or float64.
        sign: "projection" or "solver".

    Returns:
        unit vectors (..., 3), in the dtype of the offsets. No gradient flows.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_tensors(offsets=offsets)
    if offsets.ndim < 2 or offsets.shape[-1] != 3 or offsets.shape[-2] < 1:
        raise ValueError(f"offsets must have shape (..., K, 3) with K >= 1, got {tuple(offsets.shape)}")
    if offsets.dtype not in COORDINATES:
        raise TypeError(f"offsets must be float32 or float64, got {offsets.dtype}")
    if can_look(offsets) and not torch.isfinite(offsets).all():
        raise ValueError(f"offsets must be finite: {int((~torch.isfinite(offsets)).sum())} coordinates are not")
    check_choice(sign, "sign", SIGNS)
    offsets = _unit_scale(offsets, (-2, -1))
    with without_autocast(offsets):  # eigenvectors need the digits
        length_K = torch.linalg.vector_norm(offsets, dim=-1)
        longest = length_K.amax(-1, keepdim=True)
        weight_K, rounding = longest - length_K, ROUNDING * torch.finfo(length_K.dtype).eps * longest
        all_equal = weight_K.amax(-1, keepdim=True) <= rounding
        weight_K = torch.where(all_equal, 1.0, weight_K / weight_K.sum(-1, keepdim=True))
        covariance = (weight_K.unsqueeze(-1) * offsets).mT @ offsets
        axis = torch.linalg.eigh(covariance, UPLO="U").eigenvectors[..., 0]
        axis = axis / torch.linalg.vector_norm(axis, dim=-1, keepdim=True)
        if sign == "projection":
            projection = (weight_K * (offsets @ axis.unsqueeze(-1)).squeeze(-1)).sum(-1, keepdim=True)
            axis = torch.where(projection < 0, -axis, axis)
    return axis


def _unit_scale(vectors: Tensor, axes: tuple[int, int]) -> Tensor:
    """The vectors times a power of two, so that the largest coordinate over `axes` is about 1: no square overflows."""
    largest, tiny = vectors.abs().amax(axes, keepdim=True), torch.finfo(vectors.dtype).tiny
    factor = torch.frexp(largest).mantissa / largest  # exact
    return vectors * torch.where(largest > 0, factor.clamp(tiny, 1 / tiny), 1)
