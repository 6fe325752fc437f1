"""Local reference axis (LRA): the direction of least spread of the points around a center, in place of a normal.

    d_i = x_i - center;  w_i = (d_max - |d_i|) / Σ_j (d_max - |d_j|);  axis = eigenvector of the smallest eigenvalue of
    Σ_i w_i d_i d_iᵀ, of unit length

The sign of an eigenvector is arbitrary. `sign="projection"` chooses it such that Σ_i w_i d_i·axis >= 0, which commutes
with rotation; `sign="solver"` keeps the sign of the eigen-solver, as the released RISurConv does, and breaks rotation
invariance. Offsets of equal length up to rounding (64 eps of the dtype, relative to the longest) get equal weights.

Source: Zhang et al., RIConv++, arXiv 2202.13094 and RISurConv, arXiv 2408.06110 (compute_LRA of the release).
"""

import torch
from torch import Tensor

from .checks import check_count, check_points
from .gather import gather_neighbors
from .neighbors import knn
from .surface_properties import ROUNDING

SIGNS = ("projection", "solver")


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
    check_points(points)
    check_count(k, "k", points.shape[1], "points", at_least=5)
    neighbors_BNK3 = gather_neighbors(points, knn(points, points, k))
    return principal_axis(neighbors_BNK3 - points.unsqueeze(2), sign)


@torch.no_grad()
def principal_axis(offsets: Tensor, sign: str = "projection") -> Tensor:
    """The reference axis of offsets from a center.

    Args:
        offsets: vectors (..., K, 3), float32 or float64.
        sign: "projection" or "solver".

    Returns:
        unit vectors (..., 3), in the dtype of the offsets. No gradient flows.

    Raises:
        ValueError: another `sign`.
    """
    if sign not in SIGNS:
        raise ValueError(f"sign must be one of {SIGNS}, got {sign!r}")
    with torch.autocast(offsets.device.type, enabled=False):  # eigenvectors need the digits
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
