"""Neighbour search: the K nearest points, or the first K inside a ball.

    knn:        the K points x_n of smallest |x_n - q|², nearest first, equally near ones by ascending n
    ball_query: the first K points, in index order, with |x_n - q| < radius; short lists repeat their first entry

Squared distances are sums of squared differences of coordinates, never |q|² + |x|² - 2 q·x: the expanded form loses the
digits that decide between near neighbours, so that a rotated cloud would get different ones. Every path rounds them
alike, (dx·dx + dy·dy) + dz·dz without fused multiply-adds, so that all find the same neighbours.

On a CPU a k-d tree per cloud serves points of up to three dimensions; a GPU streams tiles of points past blocks of
queries. What neither serves goes through blocks of queries in PyTorch. None holds an (S, N) matrix of a large cloud.

Source: ball query and its padding as in PointNet++, arXiv 1706.02413; k-d trees: Friedman, Bentley and Finkel, "An
algorithm for finding best matches in logarithmic expected time", ACM TOMS 1977. That a whole leaf of queries walks down
together is the dual-tree idea of Gray and Moore, "N-body problems in statistical learning", NIPS 2000.
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_count, check_lengths, check_points
from .dispatch import autotune, compiled, each, pick, tl, triton

# Distances held at a time by the reference: 16 M floats.
BLOCK = 1 << 24
# Longest lists of the tree and of the kernel (lists of a ball query's kernel are not limited).
LONGEST = 128
# With fewer queries in a cloud than this, looking at every point costs less than building a tree.
FEW_QUERIES = 16


def knn(queries_BSD: Tensor, points_BND: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    """Indices of the `k` nearest points of every query, nearest first.

    Args:
        queries_BSD: (B, S, D) float32 or float64. Up to three dimensions are fast.
        points_BND: (B, N, D), same dtype and device.
        k: in 1..N.
        lengths: (B,) int64, how many points of each cloud count; the rest is padding. All by default.

    Returns:
        (B, S, K) int64. Equal distances are listed by ascending index, and of the points that share the K-th distance
        those of lowest index are in. A cloud of fewer than K points repeats the first entry.

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it may be.
    """
    _check_clouds(queries_BSD, points_BND)
    check_count(k, "k", points_BND.shape[1], "points")
    check_lengths(lengths, points_BND)
    return _knn_op(queries_BSD.detach(), points_BND.detach(), k, lengths)


def ball_query(queries_BS3: Tensor, points_BN3: Tensor, radius: float, k: int, lengths: Tensor | None = None) -> Tensor:
    """Indices of the first `k` points closer than `radius` to every query, in ascending order of index.

    Args:
        queries_BS3: (B, S, 3) float32 or float64; also of one or two dimensions.
        points_BN3: (B, N, 3), same dtype and device.
        radius: positive, in the unit of the coordinates.
        k: at least 1; it may exceed the number of points.
        lengths: (B,) int64, how many points of each cloud count; the rest is padding. All by default.

    Returns:
        (B, S, K) int64. Where fewer than K points are inside, the first of them fills up; where none is, the nearest
        point (PointNet++'s code yields an invalid index there; its queries are points themselves, so it never happens).

    Raises:
        TypeError, ValueError: naming the argument, what it was and what it may be.
    """
    _check_clouds(queries_BS3, points_BN3)
    if points_BN3.shape[-1] > 3:
        raise ValueError(f"points must have at most 3 dimensions, got shape {tuple(points_BN3.shape)}")
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be positive and finite, got {radius!r}")
    check_count(k, "k", 1 << 20, "neighbours that fit")
    check_lengths(lengths, points_BN3)
    return _ball_query_op(queries_BS3.detach(), points_BN3.detach(), float(radius), k, lengths)


def _check_clouds(queries_BSD: Tensor, points_BND: Tensor) -> None:
    """Raise unless queries (B, S, D) and points (B, N, D) are clouds that agree in B, D, dtype and device."""
    check_points(points_BND, "points", dimensions=None)
    if queries_BSD is not points_BND:
        check_points(queries_BSD, "queries", dimensions=None)
    if queries_BSD.shape[0] != points_BND.shape[0]:
        raise ValueError(f"queries are of {queries_BSD.shape[0]} clouds, but points of {points_BND.shape[0]}")
    if queries_BSD.shape[2] != points_BND.shape[2]:
        raise ValueError(f"queries have {queries_BSD.shape[2]} dimensions, but points {points_BND.shape[2]}")
    if queries_BSD.dtype != points_BND.dtype or queries_BSD.device != points_BND.device:
        raise TypeError(
            f"queries ({queries_BSD.dtype}, {queries_BSD.device}) and points ({points_BND.dtype}, {points_BND.device}) "
            "must agree"
        )


# ---------------------------------------------------------------------------------------------------- the reference


def knn_reference(queries_BSD: Tensor, points_BND: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    """The definition, over blocks of queries."""

    def nearest(distance_BSN):
        distance_BSK, index_BSK = distance_BSN.topk(k, dim=-1, largest=False, sorted=True)
        # topk orders equal distances as it likes: sort by index, then stably by distance
        index_BSK, by_index = index_BSK.sort(dim=-1)
        by_distance = distance_BSK.gather(-1, by_index).argsort(dim=-1, stable=True)
        index_BSK = index_BSK.gather(-1, by_distance)
        # and takes any of those that share the K-th distance: where not all of them fit, sort the whole row
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
    """The squared radius, or the largest finite number of the points' dtype if that is less."""
    return min(radius * radius, torch.finfo(points.dtype).max)


def _in_blocks(choose, queries_BSD: Tensor, points_BND: Tensor, lengths: Tensor | None) -> Tensor:
    """choose(squared distances (B, s, N), infinite to padding) -> (B, s, K), over blocks of s queries."""
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


# ------------------------------------------------------------------------------------------------- k-d trees on a CPU
#
# A tree of depth d halves its points d times by number, each time along the longest side of their box, so that leaf j
# of 2^d holds the points from j n / 2^d on in the resulting order, LEAF of them at most, however they are spread.
# Node 1 is the root, nodes 2 i and 2 i + 1 are the children of i, leaf j is node 2^d + j. Four arrays are a tree:
#   slots (3, leaves, LEAF)   the coordinates in the order of the leaves, infinite where a leaf has a place left
#   index (leaves, LEAF)      which point that is
#   box (2 leaves, 6)         of every node the smallest and largest coordinates
#   first (2 leaves)          of every node the lowest index: with it equally near points can be pruned, too
#
# Queries have a tree of their own (the same if they are the points). A leaf of them, a group, walks down the tree of
# points together, nearest box first, and leaves out boxes farther from the group's box than the farthest K-th neighbour
# of its queries so far. What remains is tried query by query. The distance to a box is computed in the same order and
# precision as that to a point; as rounding is monotonic, it never exceeds that to a point inside, and no tie is lost.

LEAF = 16  # a vector of float32 with AVX-512
NONE = 2**31 - 1  # the index of an unused place


@compiled
def _before(values, order, a, b):
    """Whether place a comes before place b, by (value, order): among equal values, too, there is a middle."""
    return values[a] < values[b] or (values[a] == values[b] and order[a] < order[b])


@compiled
def _median_of_three(values, order, a, b, c):
    """The one of three places that comes between the others."""
    if _before(values, order, b, a):
        a, b = b, a
    if _before(values, order, c, a):
        return a
    return c if _before(values, order, c, b) else b


@compiled
def _partition(values, order, start, end, middle):
    """Reorder start..end so that what lies before `middle` is smaller, by (value, order), than what lies behind."""
    last = end - 1
    while last > start:
        a, b, c = start, (start + last) // 2, last
        if last - start > 64:
            step = (last - start) // 8
            a = _median_of_three(values, order, a, a + step, a + 2 * step)
            b = _median_of_three(values, order, b - step, b, b + step)
            c = _median_of_three(values, order, c - 2 * step, c - step, c)
        pivot = _median_of_three(values, order, a, b, c)
        value, number = values[pivot], order[pivot]
        values[pivot], order[pivot] = values[last], order[last]
        border = start
        for i in range(start, last):  # without a branch: half of the guesses would be wrong
            v, n = values[i], order[i]
            values[i], order[i] = values[border], order[border]
            values[border], order[border] = v, n
            border += (v < value) | ((v == value) & (n < number))
        values[last], order[last] = values[border], order[border]
        values[border], order[border] = value, number
        if border == middle:
            return
        if border < middle:
            start = border + 1
        else:
            last = border - 1


@compiled
def _longest_side(points, order):
    """The dimension in which points[order] spread most."""
    low_x = low_y = low_z = points.dtype.type(np.inf)
    high_x = high_y = high_z = points.dtype.type(-np.inf)
    for i in order:
        x, y, z = points[i, 0], points[i, 1], points[i, 2]
        low_x, low_y, low_z = min(low_x, x), min(low_y, y), min(low_z, z)
        high_x, high_y, high_z = max(high_x, x), max(high_y, y), max(high_z, z)
    x, y, z = high_x - low_x, high_y - low_y, high_z - low_z
    if x >= y and x >= z:
        return 0
    return 1 if y >= z else 2


@compiled
def _build(points):
    """The tree of points (n, 3)."""
    n = len(points)
    depth = 0
    while (LEAF << depth) < n:
        depth += 1
    leaves = 1 << depth
    order = np.arange(n).astype(np.int32)
    values = np.empty(n, points.dtype)
    for level in range(depth):
        for j in range(1 << level):
            start, end = (j * n) >> level, ((j + 1) * n) >> level
            side = _longest_side(points, order[start:end])
            for i in range(start, end):
                values[i] = points[order[i], side]
            _partition(values, order, start, end, ((2 * j + 1) * n) >> (level + 1))

    slots = np.full((3, leaves, LEAF), np.inf, points.dtype)
    index = np.full((leaves, LEAF), NONE, np.int32)
    box = np.empty((2 * leaves, 6), points.dtype)
    first = np.full(2 * leaves, NONE, np.int32)
    for j in range(leaves):
        node = leaves + j
        box[node, :3], box[node, 3:] = np.inf, -np.inf
        start = (j * n) >> depth
        for i in range(start, ((j + 1) * n) >> depth):
            index[j, i - start] = order[i]
            first[node] = min(first[node], order[i])
            for d in range(3):
                value = points[order[i], d]
                slots[d, j, i - start] = value
                box[node, d], box[node, 3 + d] = min(box[node, d], value), max(box[node, 3 + d], value)
    for node in range(leaves - 1, 0, -1):
        first[node] = min(first[2 * node], first[2 * node + 1])
        for d in range(3):
            box[node, d] = min(box[2 * node, d], box[2 * node + 1, d])
            box[node, 3 + d] = max(box[2 * node, 3 + d], box[2 * node + 1, 3 + d])
    return slots, index, box, first


@compiled
def _gap(a, b):
    """The squared distance between two boxes (6,)."""
    zero = a.dtype.type(0)
    x = max(max(a[0] - b[3], b[0] - a[3]), zero)
    y = max(max(a[1] - b[4], b[1] - a[4]), zero)
    z = max(max(a[2] - b[5], b[2] - a[5]), zero)
    return (x * x + y * y) + z * z


@compiled
def _between_centres(a, b):
    """Four times the squared distance between the centres of two boxes (6,)."""
    x, y, z = a[0] + a[3] - b[0] - b[3], a[1] + a[4] - b[1] - b[4], a[2] + a[5] - b[2] - b[5]
    return (x * x + y * y) + z * z


@compiled
def _insert(keys, numbers, q, k, key, number, packed):
    """Put an entry into the list of query `q`, which descends, and drop its first, the largest.

    new[j] is old[j + 1] where that exceeds the entry, the entry where only old[j] does, and old[j] elsewhere: no entry
    waits for another, so the loops become vector instructions. Behind the list stands an entry smaller than all.
    """
    if packed:
        for j in range(k):
            keys[q, j] = max(keys[q, j + 1], min(keys[q, j], key))
        return
    for j in range(k):
        here, there, n_here, n_there = keys[q, j], keys[q, j + 1], numbers[q, j], numbers[q, j + 1]
        above = (there > key) | ((there == key) & (n_there > number))
        around = (here > key) | ((here == key) & (n_here > number))
        keys[q, j] = there if above else (key if around else here)
        numbers[q, j] = n_there if above else (number if around else n_here)


@compiled
def _search(tree, groups, begin, end, k, last, limit, out, floats, bits):
    """Fill the rows of `out` (S, K) for the queries in groups begin..end of their tree `groups`; `last` is the last
    point, the answer where there is none (NaN in a traced graph, for which nobody has looked).

    `limit` is infinite for the k nearest points. For a ball query it is the squared radius: whatever is inside gets the
    distance 0, whatever is not an infinite one, so that the "nearest" are the lowest indices; missing ones repeat the
    first, -1 where nothing is inside.

    Lists are ordered by (distance, index). The bits of a float that is not negative, read as an integer, order like the
    float: a float32 and an index fit into one integer, `packed`; for a float64 the index is kept beside it. `bits` is
    `floats` read so, 64 + 2 LEAF of them.
    """
    slots, index, box, first = tree
    query_slots, query_index, query_box, _ = groups
    leaves, query_leaves = len(box) // 2, len(query_box) // 2
    packed = floats.itemsize == 4
    ball = limit < np.inf
    zero, far = floats.dtype.type(0), floats.dtype.type(np.inf)

    stack = np.empty(64, np.int64)  # nodes to visit; they lie at the distances in floats[:64]
    distance, distance_bits = floats[64 : 64 + LEAF], bits[64 : 64 + LEAF]
    gaps, gap_bits = floats[64 + LEAF :], bits[64 + LEAF :]
    keys, numbers = np.empty((LEAF, k + 1), np.int64), np.empty((LEAF, k + 1), np.int32)
    close_keys, close_numbers = np.empty(LEAF, np.int64), np.empty(LEAF, np.int32)

    # an entry farther than all that may be listed
    floats[0] = far
    empty = np.int64(1 if ball else bits[0])
    if packed:
        empty = (empty << 32) | NONE

    for group in range(begin, end):
        group_box = query_box[query_leaves + group]
        count = 0
        while count < LEAF and query_index[group, count] != NONE:
            count += 1
        for q in range(count):
            keys[q, :k], numbers[q, :k] = empty, NONE
            keys[q, k], numbers[q, k] = -1, -1
        worst, worst_number = empty, np.int32(NONE)  # the largest entry of all the group's lists

        stack[0], floats[0], top = 1, zero, 1
        while top:
            top -= 1
            node = stack[top]
            lowest = first[node]
            key = np.int64(bits[top])
            if packed:
                key = (key << 32) | lowest
            if key > worst or (key == worst and lowest > worst_number):
                continue

            if node < leaves:
                near, other = 2 * node, 2 * node + 1
                gap, other_gap = _gap(box[near], group_box), _gap(box[other], group_box)
                if ball:
                    gap, other_gap = zero if gap < limit else far, zero if other_gap < limit else far
                    swap = other_gap < gap or (other_gap == gap and first[other] < first[near])
                else:
                    swap = other_gap < gap or (
                        other_gap == gap
                        and _between_centres(box[other], group_box) < _between_centres(box[near], group_box)
                    )
                if swap:
                    near, other, gap, other_gap = other, near, other_gap, gap
                stack[top], floats[top] = other, other_gap
                stack[top + 1], floats[top + 1] = near, gap
                top += 2
                continue

            x0, y0, z0, x1, y1, z1 = box[node]
            for q in range(LEAF):
                x, y, z = query_slots[0, group, q], query_slots[1, group, q], query_slots[2, group, q]
                x, y, z = max(max(x0 - x, x - x1), zero), max(max(y0 - y, y - y1), zero), max(max(z0 - z, z - z1), zero)
                gaps[q] = (x * x + y * y) + z * z
            if ball:
                for q in range(LEAF):
                    gaps[q] = zero if gaps[q] < limit else far

            leaf = node - leaves
            changed = False
            for q in range(count):
                key = np.int64(gap_bits[q])
                if packed:
                    key = (key << 32) | lowest
                if key > keys[q, 0] or (key == keys[q, 0] and lowest > numbers[q, 0]):
                    continue
                x, y, z = query_slots[0, group, q], query_slots[1, group, q], query_slots[2, group, q]
                for i in range(LEAF):
                    dx, dy, dz = slots[0, leaf, i] - x, slots[1, leaf, i] - y, slots[2, leaf, i] - z
                    distance[i] = (dx * dx + dy * dy) + dz * dz
                if ball:
                    for i in range(LEAF):
                        distance[i] = zero if distance[i] < limit else far
                # gather what may enter the list, without a branch that would be guessed wrong
                bound = keys[q, 0] >> 32 if packed else keys[q, 0]
                close = 0
                for i in range(LEAF):
                    key = np.int64(distance_bits[i])
                    close_keys[close] = ((key << 32) | index[leaf, i]) if packed else key
                    close_numbers[close] = index[leaf, i]
                    close += key <= bound
                for i in range(close):
                    key, number = close_keys[i], close_numbers[i]
                    if key < keys[q, 0] or (key == keys[q, 0] and number < numbers[q, 0]):
                        _insert(keys, numbers, q, k, key, number, packed)
                        changed = True
            if changed:
                worst, worst_number = keys[0, 0], numbers[0, 0]
                for q in range(1, count):
                    key, number = keys[q, 0], numbers[q, 0]
                    if key > worst or (key == worst and number > worst_number):
                        worst, worst_number = key, number

        for q in range(count):
            row = query_index[group, q]
            for j in range(k):
                key = keys[q, k - 1 - j]
                if key < empty or not ball:
                    out[row, j] = min(key & NONE if packed else np.int64(numbers[q, k - 1 - j]), last)
                else:
                    out[row, j] = out[row, 0] if j else -1


def _tree_search(queries_BS3: Tensor, points_BN3: Tensor, k: int, lengths: Tensor | None, limit: float) -> Tensor:
    """(B, S, K) indices from the trees of all clouds, which threads share."""
    batch, size, _ = points_BN3.shape
    one_set = queries_BS3.data_ptr() == points_BN3.data_ptr() and queries_BS3.stride() == points_BN3.stride()
    one_set = one_set and queries_BS3.shape == points_BN3.shape and lengths is None
    sizes = [size] * batch if lengths is None else lengths.tolist()
    if min(sizes) < 1 or max(sizes) > size:  # in a traced graph nobody has looked
        raise ValueError(f"lengths must lie in 1..{size}, got values from {min(sizes)} to {max(sizes)}")
    points, queries = points_BN3.contiguous().numpy(), queries_BS3.contiguous().numpy()
    trees = each(lambda b: _build(points[b, : sizes[b]]), range(batch))
    groups = trees if one_set else each(_build, queries)
    out = np.empty((*queries.shape[:2], k), dtype=np.int64)

    def search(cloud_and_part):
        b, part = cloud_and_part
        entries = min(k, sizes[b])
        floats = np.empty(64 + 2 * LEAF, points.dtype)
        bits = floats.view(np.int32 if floats.itemsize == 4 else np.int64)
        leaves = len(groups[b][2]) // 2
        begin, end = part * leaves // parts, (part + 1) * leaves // parts
        limit_of_dtype = points.dtype.type(limit)
        _search(trees[b], groups[b], begin, end, entries, sizes[b] - 1, limit_of_dtype, out[b], floats, bits)

    # a few parts per thread, as some take longer than others
    parts = max(1, 4 * torch.get_num_threads() // batch) if torch.get_num_threads() > 1 else 1
    each(search, itertools.product(range(batch), range(parts)))
    for b in range(batch):
        out[b, :, sizes[b] :] = out[b, :, :1]
    return torch.from_numpy(out)


def _knn_cpu(queries_BSD: Tensor, points_BND: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    if points_BND.shape[2] > 3 or queries_BSD.shape[1] < FEW_QUERIES or k > LONGEST:
        return knn_reference(queries_BSD, points_BND, k, lengths)
    return _tree_search(*_in_space(queries_BSD, points_BND), k, lengths, math.inf)


def _ball_query_cpu(
    queries_BS3: Tensor, points_BN3: Tensor, radius: float, k: int, lengths: Tensor | None = None
) -> Tensor:
    if queries_BS3.shape[1] < FEW_QUERIES or min(k, points_BN3.shape[1]) > LONGEST:
        return ball_query_reference(queries_BS3, points_BN3, radius, k, lengths)
    queries_BS3, points_BN3 = _in_space(queries_BS3, points_BN3)
    index_BSK = _tree_search(queries_BS3, points_BN3, k, lengths, _squared(radius, points_BN3))
    nothing_BS = index_BSK[..., 0] < 0
    if nothing_BS.any():
        nearest_BS1 = _tree_search(queries_BS3, points_BN3, 1, lengths, math.inf)
        index_BSK[nothing_BS] = nearest_BS1[nothing_BS]
    return index_BSK


def _in_space(queries_BSD: Tensor, points_BND: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and points with D <= 3 filled up to three coordinates, by zeros, which add nothing to a distance."""
    missing = 3 - points_BND.shape[2]
    if not missing:
        return queries_BSD, points_BND
    filled = F.pad(points_BND, (0, missing))
    return (filled if queries_BSD is points_BND else F.pad(queries_BSD, (0, missing))), filled


# ---------------------------------------------------------------------------------------------------- Triton kernels


@triton.jit
def _queries(queries, S, BLOCK_S: tl.constexpr):
    """Cloud, numbers and coordinates of a program's queries; queries are rows x, y, z of a cloud."""
    blocks = tl.cdiv(S, BLOCK_S)
    cloud = (tl.program_id(0) // blocks).to(tl.int64)
    s = (tl.program_id(0) % blocks) * BLOCK_S + tl.arange(0, BLOCK_S)
    row = queries + cloud * 3 * S + s
    x = tl.load(row, s < S, 0.0)[:, None]
    y = tl.load(row + S, s < S, 0.0)[:, None]
    z = tl.load(row + 2 * S, s < S, 0.0)[:, None]
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
def knn_kernel(
    queries, points, lengths, candidates, out, S, N, K, size,
    BLOCK_K: tl.constexpr, CAPACITY: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A block of queries looks at all points twice, and sorts only the few that can be among the nearest.

    The first pass keeps the nearest point of each of BLOCK_N lanes. The K-th nearest of these is no nearer than the
    K-th nearest point, and hardly farther: the second pass lists the points up to that distance, some K of them. Where
    the list overflows (points in an unlucky order, many equally far), a third pass keeps the K best as it goes.
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
        # places k >= K hold an entry that is never the farthest
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
        tl.debug_barrier()  # what other threads have listed is written over
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
        # taken entries become infinitely far, and of an index behind all
        distance = tl.where(index == winner, float("inf"), distance)
        index = tl.where(index == winner, FAR, index)
        first = tl.where(j == 0, winner, first)
        # NaN, which nobody looks for on a GPU, must not lead out of the cloud
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
def ball_query_kernel(
    queries, points, lengths, limits, out, S, N, K, size,
    BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """A block of queries appends the points inside, tile by tile in index order, until all its lists are full. Where a
    query has none, a second pass looks for the nearest point."""
    cloud, s, qx, qy, qz = _queries(queries, S, BLOCK_S)
    length = tl.load(lengths + cloud).to(tl.int32)
    rows = points + cloud * 3 * N
    lane = tl.arange(0, BLOCK_N)[None, :]
    radius = tl.load(limits)  # squared; a float64 would lose digits as an argument
    FAR: tl.constexpr = 2147483647

    place = out + (cloud * S + s)[:, None] * K
    # queries beyond the last have full lists, so that nobody waits for them
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
            # tiles come in index order: an equally near point of a later one does not count
            nearest = tl.where((closest < least) | (nearest == FAR), index, nearest)
            least = tl.minimum(least, closest)
        first = tl.where(found == 0, nearest, first)

    # NaN, which nobody looks for on a GPU, must not lead out of the cloud
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
    return _launch(knn_kernel, queries_BSD, points_BND, k, lengths, [candidates], options)


def _ball_query_triton(
    queries_BS3: Tensor, points_BN3: Tensor, radius: float, k: int, lengths: Tensor | None = None
) -> Tensor:
    limit = points_BN3.new_full((1,), _squared(radius, points_BN3))
    return _launch(ball_query_kernel, queries_BS3, points_BN3, k, lengths, [limit], {"BLOCK_K": 32})


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
        # without fused multiply-adds, to round as the other paths do
        kernel[grid](*rows, lengths.contiguous(), *more, out, *shape, **options, enable_fp_fusion=False)
    return out


# ------------------------------------------------------------------------------------------------------ registration


@torch.library.custom_op("attlas::knn", mutates_args=())
def _knn_op(queries: Tensor, points: Tensor, k: int, lengths: Tensor | None = None) -> Tensor:
    run = pick(points, reference=knn_reference, triton=_knn_triton, cpu=_knn_cpu)
    return run(queries, points, k, lengths)


@_knn_op.register_fake
def _(queries, points, k, lengths=None):
    return queries.new_empty(queries.shape[0], queries.shape[1], k, dtype=torch.int64)


@torch.library.custom_op("attlas::ball_query", mutates_args=())
def _ball_query_op(queries: Tensor, points: Tensor, radius: float, k: int, lengths: Tensor | None = None) -> Tensor:
    run = pick(points, reference=ball_query_reference, triton=_ball_query_triton, cpu=_ball_query_cpu)
    return run(queries, points, radius, k, lengths)


@_ball_query_op.register_fake
def _(queries, points, radius, k, lengths=None):
    return queries.new_empty(queries.shape[0], queries.shape[1], k, dtype=torch.int64)
