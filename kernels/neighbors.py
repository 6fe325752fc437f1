"""Neighbor search: the K nearest points, or the first K points inside a ball.

    knn:        the K points x_n of smallest |x_n - q|², nearest first, equally near ones by ascending n
    ball_query: the first K points in order of index with |x_n - q| < radius; short lists repeat their first entry

Squared distances are sums of squared differences of coordinates. The expanded form |q|² + |x|² - 2 q·x loses the digits
that distinguish near neighbors, and would change neighbors under rotation. All paths compute (dx·dx + dy·dy) + dz·dz in
this order without fused multiply-adds, so they find the same neighbors.

On a CPU a k-d tree of every cloud (`kdtree.py`) searches points of up to three dimensions; on a GPU blocks of queries
read tiles of points. All other cases use blocks of queries in PyTorch. No path holds an (S, N) matrix of a large cloud.

Source: ball query and its padding as in PointNet++, arXiv 1706.02413.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kdtree
from .checks import check_clouds, check_count, check_lengths, check_number
from .dispatch import autotune, pick, tl, triton
from .tiles import item_rows

# Distances that the reference holds at a time: 16 M floats.
BLOCK = 1 << 24
# Longest lists of the tree and of the kernel for knn (that of ball_query has no limit).
LONGEST = 128
# With fewer queries in a cloud, comparing them with every point costs less than building a tree.
FEW_QUERIES = 16


def knn(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    """Indices of the `k` nearest points of every query, nearest first.

    Args:
        queries: coordinates (B, S, D), float32 or float64; up to three dimensions are fast.
        points: coordinates (B, N, D), in the same dtype and on the same device.
        k: number of neighbors, 1..N.
        lengths: numbers of valid points (B,), int64; the points after them are padding. All points by default.

    Returns:
        (B, S, K) int64. Equal distances are listed by ascending index, and of the points at the K-th distance those of
        lowest index are taken. A cloud of fewer than K valid points repeats the first entry.

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype or value.
    """
    check_clouds(queries, points, dimensions=None)
    check_count(k, "k", points.shape[1], "points")
    check_lengths(lengths, points)
    return knn_op(queries.detach(), points.detach(), k, lengths)


def ball_query(queries: Tensor, points: Tensor, radius: float, k: int, lengths: Tensor | None = None) -> Tensor:
    """Indices of the first `k` points closer than `radius` to every query, in ascending order of index.

    Args:
        queries: coordinates (B, S, D), float32 or float64, of one to three dimensions.
        points: coordinates (B, N, D), in the same dtype and on the same device.
        radius: positive distance, in the unit of the coordinates; points at this distance are outside.
        k: number of indices to return, at least 1; it may exceed the number of points.
        lengths: numbers of valid points (B,), int64; the points after them are padding. All points by default.

    Returns:
        (B, S, K) int64. Where fewer than K points are inside, the first of them repeats; where none is, the nearest
        point (PointNet++'s code returns an invalid index there; its queries are points, so this never happens to it).

    Raises:
        TypeError, ValueError: an argument of another type, shape, dtype or value.
    """
    check_clouds(queries, points, dimensions=None)
    if points.shape[-1] > 3:
        raise ValueError(f"points must have at most 3 dimensions, got shape {tuple(points.shape)}")
    check_number(radius, "radius", positive=True)
    check_count(k, "k", 1 << 20, "neighbors of a query")
    check_lengths(lengths, points)
    return ball_query_op(queries.detach(), points.detach(), float(radius), k, lengths)


def knn_reference(queries_BSD: Tensor, points_BND: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    """The definition, over blocks of queries."""

    def nearest(distance_BSN):
        distance_BSK, index_BSK = distance_BSN.topk(k, dim=-1, largest=False, sorted=True)
        # topk returns equal distances in any order: sort by index, then stably by distance
        index_BSK, by_index = index_BSK.sort(dim=-1)
        by_distance = distance_BSK.gather(-1, by_index).argsort(dim=-1, stable=True)
        index_BSK = index_BSK.gather(-1, by_distance)
        # and it takes any of the points at the K-th distance: where there are too many of them, sort the whole row
        tied_BS = (distance_BSN <= distance_BSK[..., -1:]).sum(-1) > k
        index_BSK[tied_BS] = distance_BSN[tied_BS].sort(dim=-1, stable=True).indices[:, :k]
        if lengths is None:
            return index_BSK
        beyond_B1K = torch.arange(k, device=lengths.device) >= lengths[:, None, None]
        return torch.where(beyond_B1K, index_BSK[..., :1], index_BSK)

    return _in_blocks(nearest, queries_BSD, points_BND, lengths)


def ball_query_reference(
    queries_BS3: Tensor, points_BN3: Tensor, radius: float, k: int, lengths: Tensor | None = None
) -> Tensor:
    """The definition, over blocks of queries."""
    size, limit = points_BN3.shape[1], _squared(radius, points_BN3)

    def first_inside(distance_BSN):
        number = torch.arange(size, device=distance_BSN.device).expand_as(distance_BSN)
        inside = number.masked_fill(distance_BSN >= limit, size)
        index_BSK = inside.topk(min(k, size), dim=-1, largest=False, sorted=True).values
        first = index_BSK[..., :1]
        first = torch.where(first == size, distance_BSN.argmin(-1, keepdim=True), first)
        index_BSK = torch.where(index_BSK == size, first, index_BSK)
        return torch.cat([index_BSK, first.expand(*first.shape[:-1], k - index_BSK.shape[-1])], dim=-1)

    return _in_blocks(first_inside, queries_BS3, points_BN3, lengths)


def _squared(radius: float, points: Tensor) -> float:
    """The squared radius, at most the largest finite number of the points' dtype."""
    return min(radius * radius, torch.finfo(points.dtype).max)


def _in_blocks(choose, queries_BSD: Tensor, points_BND: Tensor, lengths: Tensor | None) -> Tensor:
    """choose(squared distances (B, s, N), infinite for padding) -> (B, s, K), over blocks of s queries."""
    batch, size, _ = points_BND.shape
    step = max(1, BLOCK // (batch * size))
    points_DB1N = points_BND.permute(2, 0, 1).unsqueeze(2).contiguous()
    chosen = []
    for block_BsD in queries_BSD.split(step, dim=1):
        distance_BsN = points_BND.new_zeros(())
        for query_Bs1, point_B1N in zip(block_BsD.permute(2, 0, 1).unsqueeze(3), points_DB1N):
            distance_BsN = (query_Bs1 - point_B1N).square_().add_(distance_BsN)
        if lengths is not None:
            padding_B1N = torch.arange(size, device=lengths.device) >= lengths[:, None, None]
            distance_BsN = distance_BsN.masked_fill_(padding_B1N, torch.inf)
        chosen.append(choose(distance_BsN))
    return torch.cat(chosen, dim=1)


def _knn_cpu(queries_BSD: Tensor, points_BND: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    if points_BND.shape[2] > 3 or queries_BSD.shape[1] < FEW_QUERIES or k > LONGEST:
        return knn_reference(queries_BSD, points_BND, k, lengths)
    return kdtree.nearest(*_in_space(queries_BSD, points_BND), k, lengths)


def _ball_query_cpu(
    queries_BS3: Tensor, points_BN3: Tensor, radius: float, k: int, lengths: Tensor | None = None
) -> Tensor:
    if queries_BS3.shape[1] < FEW_QUERIES or min(k, points_BN3.shape[1]) > LONGEST:
        return ball_query_reference(queries_BS3, points_BN3, radius, k, lengths)
    clouds = _in_space(queries_BS3, points_BN3)
    index_BSK = kdtree.first_inside(*clouds, _squared(radius, points_BN3), k, lengths)
    nothing_BS = index_BSK[..., 0] < 0
    if nothing_BS.any():
        index_BSK[nothing_BS] = kdtree.nearest(*clouds, 1, lengths)[nothing_BS]
    return index_BSK


def _in_space(queries_BSD: Tensor, points_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and points with D <= 3, padded to three coordinates with zeros, which add nothing to a distance."""
    missing = 3 - points_BND.shape[2]
    if not missing:
        return queries_BSD, points_BND
    filled = F.pad(points_BND, (0, missing))
    return (filled if queries_BSD is points_BND else F.pad(queries_BSD, (0, missing))), filled


@triton.jit
def _queries(queries, S, BLOCK_S: tl.constexpr):
    """Cloud, numbers and coordinates of this program's queries; memory holds rows x, y, z of a cloud."""
    cloud, s, inside = item_rows(S, BLOCK_S)
    row = queries + cloud * 3 * S + s
    x = tl.load(row, inside, 0.0)[:, None]
    y = tl.load(row + S, inside, 0.0)[:, None]
    z = tl.load(row + 2 * S, inside, 0.0)[:, None]
    return cloud, s, x, y, z


@triton.jit
def _distances(rows, n, N, length, qx, qy, qz):
    """Squared distances of queries to the points n (1, BLOCK_N) of a cloud, infinite beyond its end."""
    x = tl.load(rows + n, n < length, 0.0) - qx
    y = tl.load(rows + N + n, n < length, 0.0) - qy
    z = tl.load(rows + 2 * N + n, n < length, 0.0) - qz
    return tl.where(n < length, (x * x + y * y) + z * z, float("inf"))


@autotune(
    [
        {"BLOCK_S": 8, "BLOCK_N": 128, "num_warps": 1},
        {"BLOCK_S": 4, "BLOCK_N": 128, "num_warps": 1},
        {"BLOCK_S": 4, "BLOCK_N": 256, "num_warps": 1},
        {"BLOCK_S": 2, "BLOCK_N": 128, "num_warps": 1},
        {"BLOCK_S": 8, "BLOCK_N": 256, "num_warps": 2},
    ],
    key=["size", "BLOCK_K"],
)
@triton.jit(do_not_specialize=["S", "N", "K", "size"])
def knn_fwd_kernel(
    queries, points, lengths, candidates, out, S, N, K, size,
    BLOCK_K: tl.constexpr, CAPACITY: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A block of queries reads all points twice, and sorts only the few that can be among the nearest.

    The first pass keeps the distance to the nearest point in each of BLOCK_N lanes. The K-th smallest of them is an
    upper bound of the distance to the K-th nearest point, usually a tight one: the second pass lists the points up to
    it, little more than K. Where a list overflows (an unlucky order, many equal distances), a third pass keeps the K
    nearest points so far.
    """
    cloud, s, qx, qy, qz = _queries(queries, S, BLOCK_S)
    length = tl.load(lengths + cloud).to(tl.int32)
    rows = points + cloud * 3 * N
    lane = tl.arange(0, BLOCK_N)[None, :]
    FAR: tl.constexpr = 2147483647

    least = tl.full([BLOCK_S, BLOCK_N], float("inf"), qx.dtype)
    for start in range(0, length, BLOCK_N):
        least = tl.minimum(least, _distances(rows, start + lane, N, length, qx, qy, qz))
    limit = tl.full([BLOCK_S, 1], float("inf"), qx.dtype)
    taken = tl.zeros([BLOCK_S, 1], tl.int32)
    for _ in range(0, K):
        nearest = tl.min(least, 1)[:, None]
        limit = tl.where(taken < K, nearest, limit)
        taken += tl.sum((least == nearest).to(tl.int32), 1)[:, None]
        least = tl.where(least == nearest, float("inf"), least)

    listed = candidates + (cloud * S + s)[:, None] * CAPACITY
    count = tl.zeros([BLOCK_S, 1], tl.int32)
    for start in range(0, length, BLOCK_N):
        n = start + lane
        enters = (_distances(rows, n, N, length, qx, qy, qz) <= limit) & (n < length) & (s < S)[:, None]
        if tl.max(tl.max(enters.to(tl.int32), 1), 0) > 0:
            place = count + tl.cumsum(enters.to(tl.int32), 1) - 1
            tl.store(listed + place, n + tl.zeros_like(place), enters & (place < CAPACITY))
            count += tl.sum(enters.to(tl.int32), 1)[:, None]

    if tl.max(tl.max(count, 1), 0) > CAPACITY:
        k = tl.arange(0, BLOCK_K)[None, :]
        # places k >= K hold entries that are never the farthest
        best = tl.where(k < K, float("inf"), -1.0).to(qx.dtype) + tl.zeros_like(qx)
        best_index = tl.where(k < K, FAR - k, -1) + tl.zeros([BLOCK_S, 1], tl.int32)
        worst = tl.max(best, 1)[:, None]
        worst_index = tl.max(tl.where(best == worst, best_index, -1), 1)[:, None]
        for start in range(0, length, BLOCK_N):
            n = start + lane
            distance = _distances(rows, n, N, length, qx, qy, qz)
            enters = (n < length) & ((distance < worst) | ((distance == worst) & (n < worst_index)))
            while tl.max(tl.max(enters.to(tl.int32), 1), 0) > 0:
                nearest = tl.min(tl.where(enters, distance, float("inf")), 1)[:, None]
                index = tl.min(tl.where(enters & (distance == nearest), n, FAR), 1)[:, None]
                replaced = (best_index == worst_index) & (index < FAR)
                best = tl.where(replaced, nearest, best)
                best_index = tl.where(replaced, index, best_index)
                worst = tl.max(best, 1)[:, None]
                worst_index = tl.max(tl.where(best == worst, best_index, -1), 1)[:, None]
                enters = enters & (n != index) & ((distance < worst) | ((distance == worst) & (n < worst_index)))
        tl.debug_barrier()  # the lists of all threads are overwritten next
        tl.store(listed + k, best_index, (k < K) & (s < S)[:, None])
        count = tl.zeros([BLOCK_S, 1], tl.int32) + tl.minimum(K, length)
    tl.debug_barrier()  # the lists are written before any thread reads them

    c = tl.arange(0, CAPACITY)[None, :]
    index = tl.load(listed + c, (c < count) & (s < S)[:, None], FAR)
    there = (index >= 0) & (index < length)
    distance = _distances(rows, tl.where(there, index, 0), N, length, qx, qy, qz)
    distance = tl.where(there, distance, float("inf"))
    first = tl.zeros([BLOCK_S, 1], tl.int32)
    place = out + (cloud * S + s)[:, None] * K
    for j in range(0, K):
        nearest = tl.min(distance, 1)[:, None]
        winner = tl.min(tl.where(distance == nearest, index, FAR), 1)[:, None]
        # taken entries get an infinite distance, and an index above all others
        distance = tl.where(index == winner, float("inf"), distance)
        index = tl.where(index == winner, FAR, index)
        first = tl.where(j == 0, winner, first)
        # a GPU does not check for NaN: the index must stay inside the cloud even then
        found = tl.minimum(tl.where(j < length, winner, first), length - 1).to(tl.int64)
        tl.store(place + j, found, (s < S)[:, None])


@autotune(
    [
        {"BLOCK_S": 8, "BLOCK_N": 128, "num_warps": 2},
        {"BLOCK_S": 32, "BLOCK_N": 64, "num_warps": 4},
        {"BLOCK_S": 16, "BLOCK_N": 128, "num_warps": 4},
        {"BLOCK_S": 4, "BLOCK_N": 256, "num_warps": 1},
        {"BLOCK_S": 4, "BLOCK_N": 128, "num_warps": 1},
        {"BLOCK_S": 8, "BLOCK_N": 256, "num_warps": 2},
    ],
    key=["size", "BLOCK_K"],
)
@triton.jit(do_not_specialize=["S", "N", "K", "size"])
def ball_query_fwd_kernel(
    queries, points, lengths, limits, out, S, N, K, size,
    BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A block of queries appends the points inside, tile by tile in order of index, until all its lists are full.

    For queries without a point inside, a second pass finds the nearest point.
    """
    cloud, s, qx, qy, qz = _queries(queries, S, BLOCK_S)
    length = tl.load(lengths + cloud).to(tl.int32)
    rows = points + cloud * 3 * N
    lane = tl.arange(0, BLOCK_N)[None, :]
    radius = tl.load(limits)  # squared; from memory, as a float64 argument would lose digits
    FAR: tl.constexpr = 2147483647

    place = out + (cloud * S + s)[:, None] * K
    # queries beyond the last have full lists, so that the loop does not wait for them
    found = tl.where(s < S, 0, K)[:, None]
    first = tl.full([BLOCK_S, 1], FAR, tl.int32)
    start = 0
    while (start < length) & (tl.min(tl.min(found, 1), 0) < K):
        n = start + lane
        inside = (_distances(rows, n, N, length, qx, qy, qz) < radius) & (n < length)
        position = found + tl.cumsum(inside.to(tl.int32), 1) - 1
        tl.store(place + position, (n + tl.zeros_like(position)).to(tl.int64), inside & (position < K))
        found += tl.sum(inside.to(tl.int32), 1)[:, None]
        first = tl.minimum(first, tl.min(tl.where(inside, n, FAR), 1)[:, None])
        start += BLOCK_N
    if tl.min(tl.min(found, 1), 0) == 0:
        least = tl.full([BLOCK_S, 1], float("inf"), qx.dtype)
        nearest = tl.full([BLOCK_S, 1], FAR, tl.int32)
        for start in range(0, length, BLOCK_N):
            n = start + lane
            distance = _distances(rows, n, N, length, qx, qy, qz)
            closest = tl.min(distance, 1)[:, None]
            index = tl.min(tl.where((distance == closest) & (n < length), n, FAR), 1)[:, None]
            # tiles come in order of index: an equally near point of a later tile is not taken
            nearest = tl.where((closest < least) | (nearest == FAR), index, nearest)
            least = tl.minimum(least, closest)
        first = tl.where(found == 0, nearest, first)

    # a GPU does not check for NaN: the index must stay inside the cloud even then
    first = tl.minimum(first, length - 1).to(tl.int64)
    for from_k in range(0, K, BLOCK_K):
        k = from_k + tl.arange(0, BLOCK_K)[None, :]
        tl.store(place + k, first + tl.zeros_like(k), (s < S)[:, None] & (k >= found) & (k < K))


def _knn_triton(queries_BSD: Tensor, points_BND: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    if points_BND.shape[2] > 3 or k > LONGEST:
        return knn_reference(queries_BSD, points_BND, k, lengths)
    block_k = triton.next_power_of_2(k)
    capacity = max(32, 2 * block_k)  # of the lists
    candidates = torch.empty(*queries_BSD.shape[:2], capacity, dtype=torch.int32, device=queries_BSD.device)
    options = {"BLOCK_K": block_k, "CAPACITY": capacity}
    return _launch(knn_fwd_kernel, queries_BSD, points_BND, k, lengths, [candidates], options)


def _ball_query_triton(
    queries_BS3: Tensor, points_BN3: Tensor, radius: float, k: int, lengths: Tensor | None = None
) -> Tensor:
    limit = points_BN3.new_full((1,), _squared(radius, points_BN3))
    return _launch(ball_query_fwd_kernel, queries_BS3, points_BN3, k, lengths, [limit], {"BLOCK_K": 32})


def _launch(
    kernel, queries_BSD, points_BND, k: int, lengths: Tensor | None, more: list[Tensor], options: dict[str, int]
) -> Tensor:
    queries_BS3, points_BN3 = _in_space(queries_BSD, points_BND)
    (batch, number, _), size = queries_BS3.shape, points_BN3.shape[1]
    rows = [clouds.transpose(1, 2).contiguous() for clouds in (queries_BS3, points_BN3)]
    if lengths is None:
        lengths = torch.full((batch,), size, dtype=torch.int64, device=points_BN3.device)
    out = torch.empty(batch, number, k, dtype=torch.int64, device=points_BN3.device)

    def grid(config):
        return (batch * triton.cdiv(number, config["BLOCK_S"]),)

    shape = (number, size, k, triton.next_power_of_2(size))
    with torch.cuda.device_of(points_BN3):
        # without fused multiply-adds: rounding must equal that of the other paths
        kernel[grid](*rows, lengths.contiguous(), *more, out, *shape, **options, enable_fp_fusion=False)
    return out


@torch.library.custom_op("attlas::knn", mutates_args=())
def knn_op(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    run = pick(points, reference=knn_reference, triton=_knn_triton, cpu=_knn_cpu)
    return run(queries, points, k, lengths)


@knn_op.register_fake
def _(queries, points, k, lengths=None):
    return queries.new_empty(queries.shape[0], queries.shape[1], k, dtype=torch.int64)


@torch.library.custom_op("attlas::ball_query", mutates_args=())
def ball_query_op(queries: Tensor, points: Tensor, radius: float, k: int, lengths: Tensor | None = None) -> Tensor:
    run = pick(points, reference=ball_query_reference, triton=_ball_query_triton, cpu=_ball_query_cpu)
    return run(queries, points, radius, k, lengths)


@ball_query_op.register_fake
def _(queries, points, radius, k, lengths=None):
    return queries.new_empty(queries.shape[0], queries.shape[1], k, dtype=torch.int64)
