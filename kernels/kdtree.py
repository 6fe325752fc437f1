"""k-d trees of point clouds, for the neighbor searches on a CPU.

    nearest         the K points nearest to every query, by ascending (distance, index)
    first_inside    the K points of lowest index that are closer to a query than a radius

A tree of depth d halves the points d times by number, each time along the longest side of their box. Leaf j of 2^d
holds the points from j n / 2^d on in the resulting order: at most LEAF of them, for any distribution. Node 1 is the
root, nodes 2 i and 2 i + 1 are the children of i, leaf j is node 2^d + j. A tree is four arrays:

    slots (3, leaves, LEAF)   coordinates, leaf by leaf; infinite in unused slots
    index (leaves, LEAF)      indices of these points; NONE in unused slots
    box (2 leaves, 6)         smallest and largest coordinates of every node
    first (2 leaves)          lowest index of every node, which also prunes nodes of equally near points

Queries have their own tree (the same one if they are the points). A group, which is a leaf of queries, descends the
tree of points together and skips every box that cannot add to the list of any of its queries; the points of the
remaining leaves are compared with each query. The distance to a box is computed in the order and precision of that to
a point. Rounding is monotonic, so it never exceeds the distance to a point inside, and no tie is lost.

Source: Friedman, Bentley and Finkel, "An algorithm for finding best matches in logarithmic expected time", ACM TOMS
1977. Groups of queries: the dual trees of Gray and Moore, "N-body problems in statistical learning", NIPS 2000.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .dispatch import compiled, each

LEAF = 16  # a vector of float32 with AVX-512
NONE = 2**31 - 1  # the index in an unused slot


@compiled
def _before(values, order, a, b):
    """Whether place a comes before place b, by (value, order), so that equal values have a middle, too."""
    return values[a] < values[b] or (values[a] == values[b] and order[a] < order[b])


@compiled
def _median_of_three(values, order, a, b, c):
    """The middle one of three places."""
    if _before(values, order, b, a):
        a, b = b, a
    if _before(values, order, c, a):
        return a
    return c if _before(values, order, c, b) else b


@compiled
def _partition(values, order, start, end, middle):
    """Reorder start..end-1 such that all before place `middle` come before all behind it, by (value, order)."""
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
        for i in range(start, last):  # without a branch: half of the predictions would be wrong
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
    """The dimension in which points[order] extend farthest."""
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
def build(points):
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
def _between_centers(a, b):
    """Four times the squared distance between the centers of two boxes (6,)."""
    x, y, z = a[0] + a[3] - b[0] - b[3], a[1] + a[4] - b[1] - b[4], a[2] + a[5] - b[2] - b[5]
    return (x * x + y * y) + z * z


@compiled
def _gaps_to_box(box, slots, leaf, gaps):
    """The squared distances from the slots of a leaf to a box (6,)."""
    x0, y0, z0, x1, y1, z1 = box
    zero = gaps.dtype.type(0)
    for i in range(LEAF):
        x, y, z = slots[0, leaf, i], slots[1, leaf, i], slots[2, leaf, i]
        x, y, z = max(max(x0 - x, x - x1), zero), max(max(y0 - y, y - y1), zero), max(max(z0 - z, z - z1), zero)
        gaps[i] = (x * x + y * y) + z * z


@compiled
def _distances(x, y, z, slots, leaf, distance):
    """The squared distances from a query to the slots of a leaf."""
    for i in range(LEAF):
        dx, dy, dz = slots[0, leaf, i] - x, slots[1, leaf, i] - y, slots[2, leaf, i] - z
        distance[i] = (dx * dx + dy * dy) + dz * dz


@compiled
def _filled(index):
    """The number of points of a leaf."""
    count = 0
    while count < LEAF and index[count] != NONE:
        count += 1
    return count


# The nearest points. Lists are ordered by (distance, index). Non-negative floats have the order of their bits read as
# integers: a float32 and an index form one integer, the key (`packed`). The key of a float64 is its bits alone, and a
# second list holds the index.


@compiled
def _key(bits, number, packed):
    return (np.int64(bits) << 32) | number if packed else np.int64(bits)


@compiled
def _exceeds(key, number, other_key, other_number):
    return key > other_key or (key == other_key and number > other_number)


@compiled
def _insert(keys, numbers, q, k, key, number, packed):
    """Insert an entry into the descending list of query `q`, and drop the first, the largest.

    new[j] is old[j + 1] where that exceeds the entry, the entry where only old[j] does, and old[j] elsewhere. No place
    depends on another, so the loops become vector instructions. The place after the list holds the smallest entry.
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
def _search_nearest(tree, groups, begin, end, k, last, out, floats, bits):
    """Fill the rows of `out` (S, K) for the queries in groups begin..end-1 of their tree `groups`.

    Distances that are NaN, which a traced graph does not check, give the index `last`, the last point. `bits` is the
    memory of `floats` read as integers, 64 + 2 LEAF numbers.
    """
    slots, index, box, first = tree
    query_slots, query_index, query_box, _ = groups
    leaves, query_leaves = len(box) // 2, len(query_box) // 2
    packed = floats.itemsize == 4

    stack = np.empty(64, np.int64)  # nodes to visit, whose distances are in floats[:64]
    distance, distance_bits = floats[64 : 64 + LEAF], bits[64 : 64 + LEAF]
    gaps, gap_bits = floats[64 + LEAF :], bits[64 + LEAF :]
    keys, numbers = np.empty((LEAF, k + 1), np.int64), np.empty((LEAF, k + 1), np.int32)
    close_keys, close_numbers = np.empty(LEAF, np.int64), np.empty(LEAF, np.int32)
    floats[0] = np.inf
    empty = _key(bits[0], NONE, packed)  # farther than every entry of a list

    for group in range(begin, end):
        group_box = query_box[query_leaves + group]
        count = _filled(query_index[group])
        for q in range(count):
            keys[q, :k], numbers[q, :k] = empty, NONE
            keys[q, k], numbers[q, k] = -1, -1
        worst, worst_number = empty, np.int32(NONE)  # the largest entry of the group's lists

        stack[0], floats[0], top = 1, 0, 1
        while top:
            top -= 1
            node = stack[top]
            lowest = first[node]
            if _exceeds(_key(bits[top], lowest, packed), lowest, worst, worst_number):
                continue

            if node < leaves:
                near, other = 2 * node, 2 * node + 1
                gap, other_gap = _gap(box[near], group_box), _gap(box[other], group_box)
                if other_gap < gap or (
                    other_gap == gap
                    and _between_centers(box[other], group_box) < _between_centers(box[near], group_box)
                ):
                    near, other, gap, other_gap = other, near, other_gap, gap
                stack[top], floats[top] = other, other_gap
                stack[top + 1], floats[top + 1] = near, gap
                top += 2
                continue

            leaf = node - leaves
            _gaps_to_box(box[node], query_slots, group, gaps)
            changed = False
            for q in range(count):
                if _exceeds(_key(gap_bits[q], lowest, packed), lowest, keys[q, 0], numbers[q, 0]):
                    continue
                x, y, z = query_slots[0, group, q], query_slots[1, group, q], query_slots[2, group, q]
                _distances(x, y, z, slots, leaf, distance)
                # collect the candidates without a branch, which would be mispredicted
                bound, close = keys[q, 0] >> 32 if packed else keys[q, 0], 0
                for i in range(LEAF):
                    close_keys[close] = _key(distance_bits[i], index[leaf, i], packed)
                    close_numbers[close] = index[leaf, i]
                    close += np.int64(distance_bits[i]) <= bound
                for i in range(close):
                    key, number = close_keys[i], close_numbers[i]
                    if _exceeds(keys[q, 0], numbers[q, 0], key, number):
                        _insert(keys, numbers, q, k, key, number, packed)
                        changed = True
            if changed:
                worst, worst_number = keys[0, 0], numbers[0, 0]
                for q in range(1, count):
                    if _exceeds(keys[q, 0], numbers[q, 0], worst, worst_number):
                        worst, worst_number = keys[q, 0], numbers[q, 0]

        for q in range(count):
            row = query_index[group, q]
            for j in range(k):
                number = keys[q, k - 1 - j] & NONE if packed else np.int64(numbers[q, k - 1 - j])
                out[row, j] = min(number, last)


# The first points inside a ball. Lists hold the lowest indices so far, in descending order.


@compiled
def _search_inside(tree, groups, begin, end, k, limit, out, floats):
    """Fill the rows of `out` (S, K) for the queries in groups begin..end-1 of their tree `groups`.

    `limit` is the squared radius. Short lists repeat their first entry, empty ones get -1. `floats`: 2 LEAF numbers.
    """
    slots, index, box, first = tree
    query_slots, query_index, query_box, _ = groups
    leaves, query_leaves = len(box) // 2, len(query_box) // 2
    stack = np.empty(64, np.int64)  # nodes to visit
    distance, gaps = floats[:LEAF], floats[LEAF:]
    lists = np.empty((LEAF, k + 1), np.int32)
    close_numbers = np.empty(LEAF, np.int32)

    for group in range(begin, end):
        group_box = query_box[query_leaves + group]
        count = _filled(query_index[group])
        for q in range(count):
            lists[q, :k], lists[q, k] = NONE, -1
        worst = np.int32(NONE)  # the largest entry of the group's lists

        stack[0], top = 1, 1
        while top:
            top -= 1
            node = stack[top]
            if first[node] >= worst:
                continue

            if node < leaves:
                lower, higher = 2 * node, 2 * node + 1
                if first[higher] < first[lower]:
                    lower, higher = higher, lower
                for child in (higher, lower):
                    if _gap(box[child], group_box) < limit:
                        stack[top] = child
                        top += 1
                continue

            leaf = node - leaves
            _gaps_to_box(box[node], query_slots, group, gaps)
            changed = False
            for q in range(count):
                if not gaps[q] < limit or first[node] >= lists[q, 0]:
                    continue
                x, y, z = query_slots[0, group, q], query_slots[1, group, q], query_slots[2, group, q]
                _distances(x, y, z, slots, leaf, distance)
                close = 0  # as for the nearest
                for i in range(LEAF):
                    close_numbers[close] = index[leaf, i]
                    close += distance[i] < limit
                for i in range(close):
                    number = close_numbers[i]
                    if number < lists[q, 0]:
                        for j in range(k):
                            lists[q, j] = max(lists[q, j + 1], min(lists[q, j], number))
                        changed = True
            if changed:
                worst = lists[0, 0]
                for q in range(1, count):
                    worst = max(worst, lists[q, 0])

        for q in range(count):
            row = query_index[group, q]
            for j in range(k):
                number = lists[q, k - 1 - j]
                if number < NONE:
                    out[row, j] = number
                else:
                    out[row, j] = out[row, 0] if j else -1


def nearest(queries_BS3: Tensor, points_BN3: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    """Indices (B, S, K) of the nearest points, of equally near ones in order of index.

    A cloud of fewer than K points repeats the first entry.
    """

    def search(tree, groups, begin, end, size, out_SK):
        floats = np.empty(64 + 2 * LEAF, tree[0].dtype)
        bits = floats.view(np.int32 if floats.itemsize == 4 else np.int64)
        _search_nearest(tree, groups, begin, end, min(k, size), size - 1, out_SK, floats, bits)

    return _search_clouds(search, queries_BS3, points_BN3, k, lengths)


def first_inside(queries_BS3: Tensor, points_BN3: Tensor, limit: float, k: int, lengths: Tensor | None) -> Tensor:
    """Indices (B, S, K) of the first points at squared distances below `limit`, in order of index.

    Short lists repeat their first entry; where no point is inside, all entries are -1.
    """

    def search(tree, groups, begin, end, size, out_SK):
        number = tree[0].dtype.type
        floats = np.empty(2 * LEAF, number)
        _search_inside(tree, groups, begin, end, min(k, size), number(limit), out_SK, floats)

    return _search_clouds(search, queries_BS3, points_BN3, k, lengths)


def _search_clouds(search: Callable, queries_BS3: Tensor, points_BN3: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    """Call search(tree, groups, begin, end, size, out) for parts of the groups of every cloud, on all threads.

    `tree` and `groups` are the trees of points and of queries, `begin` and `end` the groups of the part, `size` the
    number of points, `out` (S, K) the rows of the cloud.
    """
    batch, size, _ = points_BN3.shape
    one_set = queries_BS3.data_ptr() == points_BN3.data_ptr() and queries_BS3.stride() == points_BN3.stride()
    one_set = one_set and queries_BS3.shape == points_BN3.shape and lengths is None
    sizes = [size] * batch if lengths is None else lengths.tolist()
    if min(sizes) < 1 or max(sizes) > size:  # a traced graph has not checked them
        raise ValueError(f"lengths must lie in 1..{size}, got values from {min(sizes)} to {max(sizes)}")
    points, queries = points_BN3.contiguous().numpy(), queries_BS3.contiguous().numpy()
    trees = each(lambda b: build(points[b, : sizes[b]]), range(batch))
    groups = trees if one_set else each(build, queries)
    out = np.empty((*queries.shape[:2], k), dtype=np.int64)
    # several parts for each thread, as some take longer than others
    parts = max(1, 4 * torch.get_num_threads() // batch) if torch.get_num_threads() > 1 else 1

    def search_part(cloud_and_part):
        b, part = cloud_and_part
        leaves = len(groups[b][2]) // 2
        search(trees[b], groups[b], part * leaves // parts, (part + 1) * leaves // parts, sizes[b], out[b])

    each(search_part, itertools.product(range(batch), range(parts)))
    for b in range(batch):
        out[b, :, sizes[b] :] = out[b, :, :1]
    return torch.from_numpy(out)
