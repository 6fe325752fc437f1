"""Neighbors in order around the normal, and fourteen rotation-invariant properties of the surface that they span.

Order. The offsets d_i = x_i - p of the neighbors x_i of a query p with normal n are projected on the tangent plane,
u_i = unit(d_i - (d_i·n) n), and sorted by the angle from the longest projection r, once around:

    key_i = s_i (u_i·r) - (1 - s_i),  s_i = sign((u_i × r)·n),  descending from 1 (at r) to -3

Some signs are fixed: the neighbor in slot 0 gets s = +1, and so do r and all neighbors in its direction, which come
first. In the release the sign of r is that of a rounding error, which changes under rotation;
`reference_sign="rounding"` has this behavior. Rounding decides the order of neighbors at one angle, as on a line.

Rounding. If queries and points were rotated in separate products, a query that is one of the points can be a few units
in the last place away from it, and the direction of that offset is noise. The rounding of a product is proportional to
the coordinates, so every length is compared with a multiple of their size in the neighborhood:

    tolerance = 64 eps (|p| + max_i |d_i|)        64 eps = 8e-6 for float32, 1.4e-14 for float64

A length up to the tolerance counts as zero: that of an offset (the neighbor coincides with the query: u_i and its units
below are 0, and key_i is -1, or 0 in slot 0), of the difference of two neighbors, of a projection (the neighbor lies on
the normal: u_i is 0), and the distance of a neighbor from the line along r (the neighbor lies in r's direction).

Properties. A neighbor a, its predecessor b and successor c in that order (cyclic, `step` places away) with normals
n_a, n_b, n_c span two triangles with p; unit(v) = v / (|v| + 1e-7), and all coordinates are relative to p:

     0  |a|                              7  -unit(a-b)·n_a
     1  unit(p-a)·(-n_p)                 8  unit(a-b)·n_b
     2  unit(p-a)·n_a                    9  unit(c-p)·unit(a-p)
     3  unit(p-a)·unit(p-b)             10  unit(c-p)·unit(c-a)
     4  unit(p-b)·(-n_p)                11  unit(c-a)·n_c
     5  unit(p-b)·n_b                   12  unit(a-p)·n_c
     6  unit(b-p)·unit(b-a)             13  (unit(c-p) × unit(a-p))·(unit(b-p) × unit(a-p))

Source: RISurConv, ECCV 2024, arXiv 2408.06110; cszyzhang/RISurConv@27c48dd (RISP_features).

Suffixes of names: P points and Q queries of all clouds (B·N and B·S), L queries side by side.

All paths work in two steps: the order permutes the index, and the properties gather through the permuted index. This
reads the index twice (and needs two launches on a GPU), but then any thread finds a neighbor's predecessor and
successor, for any K. The kernels sort by comparing all pairs; for more than `MOST_COUNTED` neighbors the reference
computes the order. The lower bound of the time is the memory traffic: 6 numbers for each point and query, and 14
numbers and twice an index for each neighbor.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .checks import check_choice, check_clouds, check_index, check_integer, check_normals, check_points, check_range
from .dispatch import autotune, compiled, each, pick, tl, triton

EPSILON = 1e-7
# The tolerance in units of eps. Two products, each followed by a translation, differ by 7 units at most.
ROUNDING = 64
REFERENCE_SIGNS = ("fixed", "rounding")
MOST_COUNTED = 128
LANES = 16


@torch.no_grad()
def surface_properties(
    points: Tensor,
    normals: Tensor,
    queries: Tensor,
    query_normals: Tensor,
    index: Tensor,
    step: int = 1,
    reference_sign: str = "fixed",
) -> tuple[Tensor, Tensor]:
    """The fourteen properties of every neighbor, in order around the query's normal. No gradient flows.

    Args:
        points, normals: coordinates and unit normals (B, N, 3) of the cloud, float32 or float64.
        queries, query_normals: coordinates and unit normals (B, S, 3) of the queries, in the same dtype.
        index: neighbors of every query (B, S, K), int64, in 0..N-1; the first of each list is in slot 0.
        step: distance in the order from a neighbor to its predecessor and successor, at least 1.
        reference_sign: sign of r: "fixed" to +1, or "rounding".

    Returns:
        properties (B, S, K, 14), in the dtype of the points, and the index (B, S, K) in the same order.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
        IndexError: an index out of range (on a CPU).
    """
    check_clouds(queries, points)
    check_normals(normals, points)
    check_normals(query_normals, queries, "query_normals")
    check_index(index, points, "points")
    if index.shape[:-1] != queries.shape[:-1] or index.shape[-1] < 1:
        batch, number, _ = queries.shape
        raise ValueError(f"index must have shape ({batch}, {number}, K) with K >= 1, got {tuple(index.shape)}")
    check_integer(step, "step")
    fixed_sign = _is_fixed(reference_sign)
    return surface_properties_op(points, normals, queries, query_normals, queries, index, step, fixed_sign)


@torch.no_grad()
def ordered_properties(
    points: Tensor, normals: Tensor, axis: Tensor, reference_sign: str = "fixed"
) -> tuple[Tensor, Tensor]:
    """Order and properties of a whole cloud as one neighborhood (the group-all layer). No gradient flows.

    The order is about the cloud's centroid, but the properties are about the origin, as in the release: center the
    cloud first.

    Args:
        points, normals: coordinates and unit normals (B, N, 3), float32 or float64.
        axis: unit vector (B, 3) in place of the query's normal, in the same dtype.
        reference_sign: sign of r: "fixed" to +1, or "rounding".

    Returns:
        properties (B, 1, N, 14), in the dtype of the points, and index (B, 1, N).

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_points(points)
    check_normals(normals, points)
    batch, size, _ = points.shape
    if not isinstance(axis, Tensor) or axis.shape != (batch, 3):
        got = tuple(axis.shape) if isinstance(axis, Tensor) else type(axis).__name__
        raise ValueError(f"axis must be a tensor of shape ({batch}, 3), got {got}")
    centroid_B13, axis_B13 = points.mean(1, keepdim=True), axis.unsqueeze(1)
    check_normals(axis_B13, centroid_B13, "axis")
    index_B1N = torch.arange(size, device=points.device).expand(batch, 1, size)
    fixed_sign = _is_fixed(reference_sign)
    return surface_properties_op(
        points, normals, torch.zeros_like(centroid_B13), axis_B13, centroid_B13, index_B1N, 1, fixed_sign
    )


def _is_fixed(reference_sign: str) -> bool:
    check_choice(reference_sign, "reference_sign", REFERENCE_SIGNS)
    return reference_sign == "fixed"


def surface_properties_reference(
    points_BN3: Tensor,
    normals_BN3: Tensor,
    queries_BS3: Tensor,
    query_normals_BS3: Tensor,
    centers_BS3: Tensor,
    index_BSK: Tensor,
    step: int,
    fixed_sign: bool,
) -> tuple[Tensor, Tensor]:
    """Properties about the queries, in an order about `centers_BS3`, which are usually the queries."""
    index_BSK, tolerance_BS1 = _ordered_index(points_BN3, query_normals_BS3, centers_BS3, index_BSK, fixed_sign)
    offsets_3BSK = _neighbor_planes(points_BN3, index_BSK) - _planes(queries_BS3).unsqueeze(-1)
    normals_3BSK = _neighbor_planes(normals_BN3, index_BSK)
    query_normals_3BS1 = _planes(query_normals_BS3).unsqueeze(-1)
    return _properties(offsets_3BSK, normals_3BSK, query_normals_3BS1, tolerance_BS1, step), index_BSK


def _ordered_index(
    points_BN3: Tensor, query_normals_BS3: Tensor, centers_BS3: Tensor, index_BSK: Tensor, fixed_sign: bool
) -> tuple[Tensor, Tensor]:
    """The index in order, and the tolerance (B, S, 1) of every neighborhood."""
    centers_3BS1 = _planes(centers_BS3).unsqueeze(-1)
    offsets_3BSK = _neighbor_planes(points_BN3, index_BSK) - centers_3BS1
    magnitude_BS1 = _length(centers_3BS1) + _length(offsets_3BSK).amax(-1, keepdim=True)
    tolerance_BS1 = ROUNDING * torch.finfo(points_BN3.dtype).eps * magnitude_BS1
    order_BSK = _order(offsets_3BSK, _planes(query_normals_BS3).unsqueeze(-1), tolerance_BS1, fixed_sign)
    return index_BSK.gather(-1, order_BSK), tolerance_BS1


def _planes(vectors: Tensor) -> Tensor:
    """(..., 3) -> (3, ...), contiguous: a sum of three planes is vectorized, a sum over a last axis of three is not."""
    return vectors.movedim(-1, 0).contiguous()


def _neighbor_planes(vectors_BN3: Tensor, index_BSK: Tensor) -> Tensor:
    index_3BR = index_BSK.flatten(1).expand(3, -1, -1)
    return _planes(vectors_BN3).gather(-1, index_3BR).unflatten(-1, index_BSK.shape[1:])


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _length(a: Tensor) -> Tensor:
    return _dot(a, a).sqrt()


def _unit(a: Tensor, length: Tensor, tolerance: Tensor) -> Tensor:
    return torch.where(length <= tolerance, 0.0, a / (length + EPSILON))


def _order(offsets_3BSK: Tensor, normal_3BS1: Tensor, tolerance_BS1: Tensor, fixed_sign: bool) -> Tensor:
    projected_3BSK = offsets_3BSK - _dot(offsets_3BSK, normal_3BS1) * normal_3BS1
    length_BSK = _length(projected_3BSK)
    around_3BSK = torch.where(length_BSK <= tolerance_BS1, 0.0, projected_3BSK / length_BSK)
    longest_BS1 = length_BSK.argmax(-1, keepdim=True)
    reference_3BS1 = around_3BSK.gather(-1, longest_BS1.expand(3, *longest_BS1.shape))
    # (u × r)·n = u·(r × n): one cross product per query instead of one per neighbor
    side_BSK = _dot(around_3BSK, torch.linalg.cross(reference_3BS1, normal_3BS1, dim=0))
    turn_BSK = _dot(around_3BSK, reference_3BS1)
    sign_BSK = side_BSK.sign()
    if fixed_sign:  # of r, its copies, and all others in its direction
        beside_BSK = side_BSK.abs() * length_BSK
        sign_BSK.masked_fill_((beside_BSK <= tolerance_BS1) & (turn_BSK > 0), 1)
    sign_BSK[..., 0] = 1
    key_BSK = sign_BSK * turn_BSK - (1 - sign_BSK)
    return key_BSK.argsort(dim=-1, descending=True, stable=True)


def _properties(a: Tensor, normal_a: Tensor, normal_p: Tensor, tolerance: Tensor, step: int) -> Tensor:
    length, side = _length(a), a.roll(step, -1) - a
    to_a, a_to_b = _unit(a, length, tolerance), _unit(side, _length(side), tolerance)
    length = torch.where(length <= tolerance, 0.0, length)
    to_b, to_c = to_a.roll(step, -1), to_a.roll(-step, -1)
    # Triangle (p, a, c) of neighbor a is triangle (p, a, b) of its successor c: the properties at corner c are those at
    # corner a there. They are computed once and rolled.
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


def _surface_properties_cpu(
    points_BN3: Tensor,
    normals_BN3: Tensor,
    queries_BS3: Tensor,
    query_normals_BS3: Tensor,
    centers_BS3: Tensor,
    index_BSK: Tensor,
    step: int,
    fixed_sign: bool,
) -> tuple[Tensor, Tensor]:
    batch, queries, count = index_BSK.shape
    total, size, counted = batch * queries, points_BN3.shape[1], count <= MOST_COUNTED
    if counted:
        ordered_BSK = torch.empty(batch, queries, count, dtype=torch.int64)
        tolerance_BS1 = torch.empty(batch, queries, 1, dtype=points_BN3.dtype)
    else:
        ordered_BSK, tolerance_BS1 = _ordered_index(points_BN3, query_normals_BS3, centers_BS3, index_BSK, fixed_sign)
    properties_BSK14 = points_BN3.new_empty(batch, queries, count, 14)
    inputs = points_BN3, normals_BN3, queries_BS3, query_normals_BS3, centers_BS3, index_BSK
    points_P3, normals_P3, queries_Q3, query_normals_Q3, centers_Q3, index_QK = _flat_arrays(*inputs)
    ordered_QK, tolerance_Q1, properties_QK14 = _flat_arrays(ordered_BSK, tolerance_BS1, properties_BSK14)
    number = points_P3.dtype.type
    rounding = number(ROUNDING * torch.finfo(points_BN3.dtype).eps)

    def work(part: range) -> None:
        clouds = queries, size, part.start, part.stop
        if counted:
            outputs = ordered_QK, tolerance_Q1
            _order_loop(points_P3, centers_Q3, query_normals_Q3, index_QK, *clouds, rounding, fixed_sign, *outputs)
        _properties_loop(
            points_P3,
            normals_P3,
            queries_Q3,
            query_normals_Q3,
            ordered_QK,
            tolerance_Q1,
            *clouds,
            step % count,
            number(EPSILON),
            properties_QK14,
        )

    length = LANES * math.ceil(total / (LANES * torch.get_num_threads()))
    each(work, (range(start, min(start + length, total)) for start in range(0, total, length)))
    return properties_BSK14, ordered_BSK


def _flat_arrays(*tensors: Tensor) -> list[np.ndarray]:
    return [x.contiguous().flatten(0, 1).numpy() for x in tensors]


# The innermost loops run over LANES queries side by side; lanes after the last query hold old numbers, which are not
# used. With a fixed length and no branch they become vector instructions for every K, unlike loops over three
# coordinates or eight neighbors. The compiler must also see that no array is written and read at once, and checks only
# a few arrays: hence rows (R) of one array hold several vectors. Constants have the dtype of the points, as a wider one
# would widen everything; indices of points are unsigned, as signed ones might be negative, which costs a comparison.


@compiled
def _vector(rows_RL, row, q):
    return rows_RL[row, q], rows_RL[row + 1, q], rows_RL[row + 2, q]


@compiled
def _inner(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@compiled
def _scaled(a, factor):
    return a[0] * factor, a[1] * factor, a[2] * factor


@compiled
def _minus(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@compiled
def _order_loop(
    points_P3,
    centers_Q3,
    normals_Q3,
    index_QK,
    queries,
    size,
    first,
    last,
    rounding,
    fixed_sign,
    ordered_QK,
    tolerance_Q1,
):
    number = points_P3.dtype.type
    zero, one = number(0), number(1)
    count = index_QK.shape[1]
    around_RL = np.zeros((3 * count, LANES), points_P3.dtype)
    NORMAL, REFERENCE, ACROSS, LONGEST, REACH, TOLERANCE = 0, 3, 6, 9, 10, 11  # rows of
    frame_RL = np.zeros((12, LANES), points_P3.dtype)
    # first the lengths of the projections; whole blocks of eight for the comparisons
    key_KL = np.full(((count + 7) // 8 * 8, LANES), number(-np.inf))
    place_KL = np.zeros((count, LANES), points_P3.dtype)
    taken_K = np.zeros(count, np.int64)
    for start in range(first, last, LANES):
        lanes = min(LANES, last - start)
        for q in range(lanes):
            row = (start + q) // queries * size
            for axis in range(3):
                frame_RL[NORMAL + axis, q] = normals_Q3[start + q, axis]
            for k in range(count):
                point = np.uint64(row + index_QK[start + q, k])
                for axis in range(3):
                    around_RL[3 * k + axis, q] = points_P3[point, axis] - centers_Q3[start + q, axis]
        frame_RL[LONGEST] = -one
        frame_RL[REACH] = zero
        for k in range(count):
            for q in range(LANES):
                offset, normal = _vector(around_RL, 3 * k, q), _vector(frame_RL, NORMAL, q)
                frame_RL[REACH, q] = max(frame_RL[REACH, q], _inner(offset, offset))
                projected = _minus(offset, _scaled(normal, _inner(offset, normal)))
                length = math.sqrt(_inner(projected, projected))
                key_KL[k, q] = length
                u = _scaled(projected, one / length if length > zero else zero)
                longer = length > frame_RL[LONGEST, q]
                frame_RL[LONGEST, q] = length if longer else frame_RL[LONGEST, q]
                around_RL[3 * k, q], around_RL[3 * k + 1, q], around_RL[3 * k + 2, q] = u
                frame_RL[REFERENCE, q] = u[0] if longer else frame_RL[REFERENCE, q]
                frame_RL[REFERENCE + 1, q] = u[1] if longer else frame_RL[REFERENCE + 1, q]
                frame_RL[REFERENCE + 2, q] = u[2] if longer else frame_RL[REFERENCE + 2, q]
        for q in range(lanes):
            center = centers_Q3[start + q]
            frame_RL[TOLERANCE, q] = rounding * (math.sqrt(_inner(center, center)) + math.sqrt(frame_RL[REACH, q]))
            tolerance_Q1[start + q, 0] = frame_RL[TOLERANCE, q]
        for q in range(LANES):
            nx, ny, nz = _vector(frame_RL, NORMAL, q)
            rx, ry, rz = _vector(frame_RL, REFERENCE, q)
            frame_RL[ACROSS, q] = ry * nz - rz * ny
            frame_RL[ACROSS + 1, q] = rz * nx - rx * nz
            frame_RL[ACROSS + 2, q] = rx * ny - ry * nx
        for k in range(count):
            for q in range(LANES):
                u, length, tolerance = _vector(around_RL, 3 * k, q), key_KL[k, q], frame_RL[TOLERANCE, q]
                u = _scaled(u, zero if length <= tolerance else one)
                turn = _inner(u, _vector(frame_RL, REFERENCE, q))
                side = _inner(u, _vector(frame_RL, ACROSS, q))
                at_reference = fixed_sign & (abs(side) * length <= tolerance) & (turn > zero)
                sign = one if (side > zero) | at_reference | (k == 0) else (-one if side < zero else zero)
                key_KL[k, q] = sign * turn - (one - sign)
        # a neighbor's place is the number of larger keys: for K <= 128 fewer instructions than a sort, and no branches.
        # Eight comparisons at a time keep the sum in a register.
        place_KL[:] = zero
        for k in range(count):
            for i in range(0, len(key_KL), 8):
                for q in range(LANES):
                    larger = zero
                    for j in range(8):
                        larger += one if key_KL[i + j, q] > key_KL[k, q] else zero
                    place_KL[k, q] += larger
        taken_K[:] = -1
        for q in range(lanes):
            for k in range(count):
                place = int(place_KL[k, q])
                while taken_K[place] == q:  # equal keys have the same number: they follow each other
                    place += 1
                taken_K[place] = q
                ordered_QK[start + q, place] = index_QK[start + q, k]


@compiled
def _properties_loop(
    points_P3,
    normals_P3,
    queries_Q3,
    query_normals_Q3,
    index_QK,
    tolerance_Q1,
    queries,
    size,
    first,
    last,
    step,
    epsilon,
    properties_QK14,
):
    number = points_P3.dtype.type
    zero, one = number(0), number(1)
    count = index_QK.shape[1]
    OFFSET, NORMAL, UNIT, LENGTH, ROWS = 0, 3, 6, 9, 10  # rows of
    near_RL = np.zeros((ROWS * count, LANES), points_P3.dtype)
    query_normal_RL = np.zeros((3, LANES), points_P3.dtype)
    tolerance_L = np.zeros(LANES, points_P3.dtype)
    out_RL = np.zeros((14, LANES), points_P3.dtype)
    for start in range(first, last, LANES):
        lanes = min(LANES, last - start)
        for q in range(lanes):
            row = (start + q) // queries * size
            tolerance_L[q] = tolerance_Q1[start + q, 0]
            for axis in range(3):
                query_normal_RL[axis, q] = query_normals_Q3[start + q, axis]
            for k in range(count):
                point = np.uint64(row + index_QK[start + q, k])
                for axis in range(3):
                    near_RL[ROWS * k + OFFSET + axis, q] = points_P3[point, axis] - queries_Q3[start + q, axis]
                    near_RL[ROWS * k + NORMAL + axis, q] = normals_P3[point, axis]
        for k in range(count):
            for q in range(LANES):
                a = _vector(near_RL, ROWS * k + OFFSET, q)
                length = math.sqrt(_inner(a, a))
                length = zero if length <= tolerance_L[q] else length
                to_a = _scaled(a, zero if length == zero else one / (length + epsilon))
                row = ROWS * k + UNIT
                near_RL[row, q], near_RL[row + 1, q], near_RL[row + 2, q] = to_a
                near_RL[ROWS * k + LENGTH, q] = length
        for k in range(count):
            row_a, row_b, row_c = ROWS * k, ROWS * ((k - step) % count), ROWS * ((k + step) % count)
            for q in range(LANES):
                a, to_a = _vector(near_RL, row_a + OFFSET, q), _vector(near_RL, row_a + UNIT, q)
                b, to_b = _vector(near_RL, row_b + OFFSET, q), _vector(near_RL, row_b + UNIT, q)
                c, to_c = _vector(near_RL, row_c + OFFSET, q), _vector(near_RL, row_c + UNIT, q)
                normal_a, normal_b = _vector(near_RL, row_a + NORMAL, q), _vector(near_RL, row_b + NORMAL, q)
                normal_c, normal_p = _vector(near_RL, row_c + NORMAL, q), _vector(query_normal_RL, 0, q)
                a_to_b, a_to_c = _minus(b, a), _minus(c, a)
                length_b, length_c = math.sqrt(_inner(a_to_b, a_to_b)), math.sqrt(_inner(a_to_c, a_to_c))
                a_to_b = _scaled(a_to_b, zero if length_b <= tolerance_L[q] else one / (length_b + epsilon))
                a_to_c = _scaled(a_to_c, zero if length_c <= tolerance_L[q] else one / (length_c + epsilon))
                turn_b, turn_c = _inner(to_a, to_b), _inner(to_a, to_c)
                out_RL[0, q] = near_RL[row_a + LENGTH, q]
                out_RL[1, q] = _inner(to_a, normal_p)
                out_RL[2, q] = -_inner(to_a, normal_a)
                out_RL[3, q] = turn_b
                out_RL[4, q] = _inner(to_b, normal_p)
                out_RL[5, q] = -_inner(to_b, normal_b)
                out_RL[6, q] = _inner(to_b, a_to_b)
                out_RL[7, q] = _inner(a_to_b, normal_a)
                out_RL[8, q] = -_inner(a_to_b, normal_b)
                out_RL[9, q] = turn_c
                out_RL[10, q] = _inner(to_c, a_to_c)
                out_RL[11, q] = _inner(a_to_c, normal_c)
                out_RL[12, q] = _inner(to_a, normal_c)
                out_RL[13, q] = _inner(to_c, to_b) * _inner(to_a, to_a) - turn_b * turn_c
            for q in range(lanes):
                for p in range(14):
                    properties_QK14[start + q, k, p] = out_RL[p, q]


@triton.jit
def _load_vector(vectors_ptr, row, mask):
    start = vectors_ptr + row * 3
    return tl.load(start, mask, 0.0), tl.load(start + 1, mask, 0.0), tl.load(start + 2, mask, 0.0)


@triton.jit
def _dot_tiles(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


@triton.jit
def _scale_tiles(a, factor):
    return a[0] * factor, a[1] * factor, a[2] * factor


@triton.jit
def _subtract_tiles(a, b):
    return a[0] - b[0], a[1] - b[1], a[2] - b[2]


@triton.jit
def _length_tiles(a, tolerance):
    """Lengths; 0 up to the tolerance."""
    length = tl.sqrt(_dot_tiles(a, a))
    return tl.where(length <= tolerance, 0.0, length)


@triton.jit
def _unit_tiles(a, tolerance, EPSILON: tl.constexpr):
    length = _length_tiles(a, tolerance)
    return _scale_tiles(a, tl.where(length == 0, 0.0, 1.0 / (length + EPSILON)))


# A tile of comparisons has TILE · BLOCK_K entries: for K = 128, 128 in each thread, the most that registers hold.
@autotune([{"TILE": 256, "num_warps": 8}, {"TILE": 128, "num_warps": 4}], key=["BLOCK_K"])
@triton.jit(do_not_specialize=["total", "queries", "size", "count"])
def surface_properties_fwd_order_kernel(
    points_ptr,
    centers_ptr,
    query_normals_ptr,
    index_ptr,
    ordered_ptr,
    tolerance_ptr,
    total,
    queries,
    size,
    count,
    ROUNDING: tl.constexpr,
    FIXED_SIGN: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):
    query = tl.program_id(0).to(tl.int64) * (TILE // BLOCK_K) + tl.arange(0, TILE // BLOCK_K)[:, None]
    slot = tl.arange(0, BLOCK_K)[None, :]
    here = query < total
    known = here & (slot < count)
    index = tl.load(index_ptr + query * count + slot, known, 0)
    points = _load_vector(points_ptr, query // queries * size + index, known)
    normal = _load_vector(query_normals_ptr, query, here)
    center = _load_vector(centers_ptr, query, here)
    offset = _subtract_tiles(points, center)
    reach = tl.sqrt(tl.max(tl.where(known, _dot_tiles(offset, offset), 0.0), 1, keep_dims=True))
    tolerance = ROUNDING * (tl.sqrt(_dot_tiles(center, center)) + reach)
    tl.store(tolerance_ptr + query, tolerance, here)
    projected = _subtract_tiles(offset, _scale_tiles(normal, _dot_tiles(offset, normal)))
    length = _length_tiles(projected, tolerance)
    # without a length there is no direction
    around = _scale_tiles(projected, 1.0 / tl.where(length == 0, float("inf"), length))

    longest = slot == tl.argmax(tl.where(known, length, -1.0), 1, keep_dims=True)
    rx = tl.sum(tl.where(longest, around[0], 0.0), 1, keep_dims=True)
    ry = tl.sum(tl.where(longest, around[1], 0.0), 1, keep_dims=True)
    rz = tl.sum(tl.where(longest, around[2], 0.0), 1, keep_dims=True)
    nx, ny, nz = normal
    turn = _dot_tiles(around, (rx, ry, rz))
    side = _dot_tiles(around, (ry * nz - rz * ny, rz * nx - rx * nz, rx * ny - ry * nx))
    first_half = (side > 0) | (slot == 0)
    if FIXED_SIGN:
        first_half = first_half | ((tl.abs(side) * length <= tolerance) & (turn > 0))
    sign = tl.where(first_half, 1.0, tl.where(side < 0, -1.0, 0.0))
    key = sign * turn - (1 - sign)
    key = tl.where(key == key, key, -4.0)  # NaN, which a GPU does not check for, comes last
    key = tl.where(known, key, float("-inf"))

    # a neighbor's place is the number of those before it
    mine, others = key[:, :, None], key[:, None, :]
    earlier = slot[:, None, :] < slot[:, :, None]
    before = (others > mine) | ((others == mine) & earlier)
    place = tl.sum(before.to(tl.int32), 2)
    tl.store(ordered_ptr + query * count + place, index, known)


@triton.jit
def _stack_tiles(a, b, c, d):
    return tl.join(tl.join(a, c), tl.join(b, d))


@autotune(
    [{"TILE": 512, "num_warps": 8}, {"TILE": 256, "num_warps": 8}, {"TILE": 128, "num_warps": 4}], key=["BLOCK_K"]
)
@triton.jit(do_not_specialize=["total", "queries", "size", "count", "step"])
def surface_properties_fwd_kernel(
    points_ptr,
    normals_ptr,
    queries_ptr,
    query_normals_ptr,
    index_ptr,
    tolerance_ptr,
    properties_ptr,
    total,
    queries,
    size,
    count,
    step,
    EPSILON: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TILE: tl.constexpr,
):
    BLOCK_S: tl.constexpr = TILE // BLOCK_K
    query = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)[:, None]
    k = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    here = query < total
    known = here & (k < count)
    list_ptr = index_ptr + query * count
    row = query // queries * size
    row_a = row + tl.load(list_ptr + k, known, 0)
    row_b = row + tl.load(list_ptr + tl.where(k < step, k + count - step, k - step), known, 0)
    row_c = row + tl.load(list_ptr + tl.where(k + step < count, k + step, k + step - count), known, 0)

    origin, normal_p = _load_vector(queries_ptr, query, here), _load_vector(query_normals_ptr, query, here)
    a = _subtract_tiles(_load_vector(points_ptr, row_a, known), origin)
    b = _subtract_tiles(_load_vector(points_ptr, row_b, known), origin)
    c = _subtract_tiles(_load_vector(points_ptr, row_c, known), origin)
    normal_a, normal_b = _load_vector(normals_ptr, row_a, known), _load_vector(normals_ptr, row_b, known)
    normal_c = _load_vector(normals_ptr, row_c, known)
    tolerance = tl.load(tolerance_ptr + query, here, 0.0)
    to_a, to_b = _unit_tiles(a, tolerance, EPSILON), _unit_tiles(b, tolerance, EPSILON)
    to_c = _unit_tiles(c, tolerance, EPSILON)
    a_to_b = _unit_tiles(_subtract_tiles(b, a), tolerance, EPSILON)
    a_to_c = _unit_tiles(_subtract_tiles(c, a), tolerance, EPSILON)

    turn_b, turn_c = _dot_tiles(to_a, to_b), _dot_tiles(to_a, to_c)
    p0 = _length_tiles(a, tolerance)
    p1 = _dot_tiles(to_a, normal_p)
    p2 = -_dot_tiles(to_a, normal_a)
    p4 = _dot_tiles(to_b, normal_p)
    p5 = -_dot_tiles(to_b, normal_b)
    p6 = _dot_tiles(to_b, a_to_b)
    p7 = _dot_tiles(a_to_b, normal_a)
    p8 = -_dot_tiles(a_to_b, normal_b)
    p10 = _dot_tiles(to_c, a_to_c)
    p11 = _dot_tiles(a_to_c, normal_c)
    p12 = _dot_tiles(to_a, normal_c)
    p13 = _dot_tiles(to_c, to_b) * _dot_tiles(to_a, to_a) - turn_b * turn_c

    # side by side in a last axis of 16, a power of two, so that a row is written at once
    rows = _stack_tiles(
        _stack_tiles(p0, p4, p8, p12),
        _stack_tiles(p1, p5, turn_c, p13),
        _stack_tiles(p2, p6, p10, p13),
        _stack_tiles(turn_b, p7, p11, p13),
    )
    rows = tl.reshape(rows, (BLOCK_S, BLOCK_K, 16))
    p = tl.arange(0, 16)[None, None, :]
    target = properties_ptr + (query * count + k)[:, :, None] * 14 + p
    tl.store(target, rows, known[:, :, None] & (p < 14))


def _surface_properties_triton(
    points_BN3: Tensor,
    normals_BN3: Tensor,
    queries_BS3: Tensor,
    query_normals_BS3: Tensor,
    centers_BS3: Tensor,
    index_BSK: Tensor,
    step: int,
    fixed_sign: bool,
) -> tuple[Tensor, Tensor]:
    batch, queries, count = index_BSK.shape
    total, size = batch * queries, points_BN3.shape[1]
    points_BN3, normals_BN3, queries_BS3, query_normals_BS3, centers_BS3, index_BSK = (
        x.contiguous() for x in (points_BN3, normals_BN3, queries_BS3, query_normals_BS3, centers_BS3, index_BSK)
    )
    block = min(triton.next_power_of_2(count), MOST_COUNTED)
    properties_BSK14 = points_BN3.new_empty(batch, queries, count, 14)

    def grid(meta):
        return triton.cdiv(total, meta["TILE"] // block), triton.cdiv(count, block)

    with torch.cuda.device_of(points_BN3):
        if count <= MOST_COUNTED:
            ordered_BSK = torch.empty_like(index_BSK)
            tolerance_BS1 = points_BN3.new_empty(batch, queries, 1)
            surface_properties_fwd_order_kernel[grid](
                points_BN3,
                centers_BS3,
                query_normals_BS3,
                index_BSK,
                ordered_BSK,
                tolerance_BS1,
                total,
                queries,
                size,
                count,
                ROUNDING=ROUNDING * torch.finfo(points_BN3.dtype).eps,
                FIXED_SIGN=fixed_sign,
                BLOCK_K=block,
            )
        else:
            inputs = points_BN3, query_normals_BS3, centers_BS3, index_BSK
            ordered_BSK, tolerance_BS1 = _ordered_index(*inputs, fixed_sign)
        surface_properties_fwd_kernel[grid](
            points_BN3,
            normals_BN3,
            queries_BS3,
            query_normals_BS3,
            ordered_BSK,
            tolerance_BS1,
            properties_BSK14,
            total,
            queries,
            size,
            count,
            step % count,
            EPSILON=EPSILON,
            BLOCK_K=block,
        )
    return properties_BSK14, ordered_BSK


@torch.library.custom_op("attlas::surface_properties", mutates_args=())
def surface_properties_op(
    points: Tensor,
    normals: Tensor,
    queries: Tensor,
    query_normals: Tensor,
    centers: Tensor,
    index: Tensor,
    step: int,
    fixed_sign: bool,
) -> tuple[Tensor, Tensor]:
    check_range(index, points.shape[1])
    paths = dict(reference=surface_properties_reference, cpu=_surface_properties_cpu, triton=_surface_properties_triton)
    return pick(points, **paths)(points, normals, queries, query_normals, centers, index, step, fixed_sign)


@surface_properties_op.register_fake
def _(points, normals, queries, query_normals, centers, index, step, fixed_sign):
    return points.new_empty(*index.shape, 14), index.new_empty(index.shape)
