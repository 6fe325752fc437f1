"""Neighbours in order around the normal, and the fourteen rotation-invariant properties of the surface they span.

Order. A query p with normal n looks down on its neighbours x_i: their offsets d_i = x_i - p are projected on the
tangent plane, u_i = unit(d_i - (d_i·n) n), and sorted by the angle from the longest projection r, once round:

    key_i = s_i (u_i·r) - (1 - s_i),  s_i = sign((u_i × r)·n),  descending from 1 (at r) to -3

Two signs are set by hand: the slot-0 neighbour gets s = +1, and so does r itself (and whatever lies in its direction),
which comes first then. In the release the sign of r is that of a rounding error, which changes under rotation; so it is
with `reference_sign="rounding"`. Neighbours of one angle but different length, as on a straight line, stay in the order
that rounding gives them.

Properties. A neighbour a, its predecessor b and successor c in that order (cyclic, `step` places away) with normals
n_a, n_b, n_c span two triangles with p; unit(v) = v / (|v| + 1e-7), and all coordinates are relative to p:

     0  |a|                              7  -unit(a-b)·n_a
     1  unit(p-a)·(-n_p)                 8  unit(a-b)·n_b
     2  unit(p-a)·n_a                    9  unit(c-p)·unit(a-p)
     3  unit(p-a)·unit(p-b)             10  unit(c-p)·unit(c-a)
     4  unit(p-b)·(-n_p)                11  unit(c-a)·n_c
     5  unit(p-b)·n_b                   12  unit(a-p)·n_c
     6  unit(b-p)·unit(b-a)             13  (unit(c-p) × unit(a-p))·(unit(b-p) × unit(a-p))

Source: RISurConv, ECCV 2024, arXiv 2408.06110; cszyzhang/RISurConv@27c48dd (RISP_features).
"""

import torch
from torch import Tensor

from .checks import check_normals, check_same_clouds
from .gather import gather_neighbors

EPSILON = 1e-7
REFERENCE_SIGNS = ("fixed", "rounding")


@torch.no_grad()
def surface_properties(
    points_BN3: Tensor,
    normals_BN3: Tensor,
    queries_BS3: Tensor,
    query_normals_BS3: Tensor,
    index_BSK: Tensor,
    step: int = 1,
    reference_sign: str = "fixed",
) -> tuple[Tensor, Tensor]:
    """The fourteen properties of every neighbour, in order around the query's normal. No gradient flows.

    Args:
        points_BN3, normals_BN3: (B, N, 3) the cloud that the neighbours are taken from, unit normals.
        queries_BS3, query_normals_BS3: (B, S, 3) the centres and their unit normals.
        index_BSK: (B, S, K) int64 neighbours of every query; the first of each list is the slot-0 neighbour.
        step: how many places around predecessor and successor are.
        reference_sign: "fixed" to +1, or "rounding".

    Returns:
        properties (B, S, K, 14) in the dtype of the points, and the index (B, S, K) in that order.
    """
    check_same_clouds(queries_BS3, points_BN3)
    check_normals(normals_BN3, points_BN3)
    check_normals(query_normals_BS3, queries_BS3, "query_normals")
    offsets_3BSK = _planes(gather_neighbors(points_BN3, index_BSK)) - _planes(queries_BS3).unsqueeze(-1)
    normal_3BS1 = _planes(query_normals_BS3).unsqueeze(-1)
    order_BSK = _order(offsets_3BSK, normal_3BS1, reference_sign)
    index_BSK = index_BSK.gather(-1, order_BSK)
    offsets_3BSK = offsets_3BSK.gather(-1, order_BSK.expand_as(offsets_3BSK))
    return _properties(offsets_3BSK, _planes(gather_neighbors(normals_BN3, index_BSK)), normal_3BS1, step), index_BSK


@torch.no_grad()
def surface_order(offsets_BSK3: Tensor, normals_BS3: Tensor, reference_sign: str = "fixed") -> Tensor:
    """Places (B, S, K) int64 that sort neighbours with offsets (B, S, K, 3) once around normals (B, S, 3)."""
    return _order(_planes(offsets_BSK3), _planes(normals_BS3).unsqueeze(-1), reference_sign)


@torch.no_grad()
def ordered_properties(
    points_BN3: Tensor, normals_BN3: Tensor, axis_B3: Tensor, reference_sign: str = "fixed"
) -> tuple[Tensor, Tensor]:
    """Order and properties of a whole cloud as one neighbourhood (the group-all layer).

    The order is taken about the cloud's centroid and `axis_B3`; the properties are taken about the origin, as in the
    release, so the cloud has to be centred by whoever calls. Returns properties (B, 1, N, 14) and index (B, 1, N).
    """
    points_3B1N, axis_3B11 = _planes(points_BN3).unsqueeze(2), _planes(axis_B3)[..., None, None]
    index_B1N = _order(points_3B1N - points_3B1N.mean(-1, keepdim=True), axis_3B11, reference_sign)
    normals_B1N3 = gather_neighbors(normals_BN3, index_B1N)
    ordered_3B1N = points_3B1N.gather(-1, index_B1N.expand_as(points_3B1N))
    return _properties(ordered_3B1N, _planes(normals_B1N3), axis_3B11, step=1), index_B1N


def _planes(vectors: Tensor) -> Tensor:
    """(..., 3) -> (3, ...) contiguous: sums over three planes vectorise, sums over a last axis of three do not."""
    return vectors.movedim(-1, 0).contiguous()


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _unit(a: Tensor) -> Tensor:
    return a / (_dot(a, a).sqrt() + EPSILON)


def _order(offsets_3BSK: Tensor, normal_3BS1: Tensor, reference_sign: str) -> Tensor:
    if reference_sign not in REFERENCE_SIGNS:
        raise ValueError(f"reference_sign must be one of {REFERENCE_SIGNS}, got {reference_sign!r}")
    projected_3BSK = offsets_3BSK - _dot(offsets_3BSK, normal_3BS1) * normal_3BS1
    length_BSK = _dot(projected_3BSK, projected_3BSK).sqrt()
    around_3BSK = torch.where(length_BSK > 0, projected_3BSK / length_BSK, 0.0)
    longest_BS1 = length_BSK.argmax(-1, keepdim=True)
    reference_3BS1 = around_3BSK.gather(-1, longest_BS1.expand(3, *longest_BS1.shape))
    # (u × r)·n = u·(r × n): one cross product per query instead of one per neighbour
    side_BSK = _dot(around_3BSK, torch.linalg.cross(reference_3BS1, normal_3BS1, dim=0))
    turn_BSK = _dot(around_3BSK, reference_3BS1)
    rounding = 64 * torch.finfo(side_BSK.dtype).eps
    at_reference_BSK = (side_BSK.abs() < rounding) & (turn_BSK > 0)
    side_BSK = side_BSK.sign_()
    if reference_sign == "fixed":  # of the reference, and of its copies and whatever else lies in its direction
        side_BSK[at_reference_BSK] = 1
    side_BSK[..., 0] = 1
    key_BSK = side_BSK * turn_BSK - (1 - side_BSK)
    return key_BSK.argsort(dim=-1, descending=True, stable=True)


def _properties(a: Tensor, normal_a: Tensor, normal_p: Tensor, step: int) -> Tensor:
    length = _dot(a, a).sqrt()
    to_a = a / (length + EPSILON)
    a_to_b = _unit(a.roll(step, -1) - a)
    to_b, to_c = to_a.roll(step, -1), to_a.roll(-step, -1)
    # What triangle (p, a, c) asks of its corner c is what triangle (p, a, b) of the successor asks of its corner a,
    # seen from the other end: computed once and rolled.
    elevation, tilt, turn = _dot(to_a, normal_p), -_dot(to_a, normal_a), _dot(to_a, to_b)
    along, rise = _dot(to_a, a_to_b), _dot(a_to_b, normal_a)
    next_turn = turn.roll(-step, -1)
    properties = [
        length,
        elevation,
        tilt,
        turn,
        elevation.roll(step, -1),
        tilt.roll(step, -1),
        _dot(to_b, a_to_b),
        rise,
        -_dot(a_to_b, normal_a.roll(step, -1)),
        next_turn,
        -along.roll(-step, -1),
        -rise.roll(-step, -1),
        _dot(to_a, normal_a.roll(-step, -1)),
        # (c × a)·(b × a) by Lagrange's identity
        _dot(to_c, to_b) * _dot(to_a, to_a) - next_turn * turn,
    ]
    return torch.stack(properties, dim=-1)
