"""k-d trees of point clouds, for the neighbor searches on a CPU.

    nearest         the K points nearest to every query, by ascending (distance, index)
    first_inside    the K points of lowest index that are closer to a query than a radius

A tree of depth d halves its points d times by number, each time along the longest side of their box, so that leaf j
of 2^d holds the points from j n / 2^d on in the resulting order, LEAF of them at most, however they are spread.
Node 1 is the root, nodes 2 i and 2 i + 1 are the children of i, leaf j is node 2^d + j. Four arrays are a tree:

    slots (3, leaves, LEAF)   the coordinates in the order of the leaves, infinite where a leaf has a place left
    index (leaves, LEAF)      which point that is, NONE where a leaf has a place left
    box (2 leaves, 6)         of every node the smallest and largest coordinates
    first (2 leaves)          of every node the lowest index, by which equally near points are left out, too

Queries have a tree of their own (the same if they are the points). A leaf of them, a group, walks down the tree of
points together, and leaves out boxes that can add nothing to the list of any of its queries. The points of the
remaining leaves are tried query by query. The distance to a box is computed in the same order and precision as that to
a point; as rounding is monotonic, it never exceeds that to a point inside, and no tie is lost.

Source: Friedman, Bentley and Finkel, "An algorithm for finding best matches in logarithmic expected time", ACM TOMS
1977. That a whole leaf of queries walks down together is the dual-tree idea of Gray and Moore, "N-body problems in
statistical learning", NIPS 2000.
"""

import itertools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .dispatch import compiled, each

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
    """The squared distances from the places of a leaf to a box (6,)."""
    x0, y0, z0, x1, y1, z1 = box
    zero = gaps.dtype.type(0)
    for i in range(LEAF):
        x, y, z = slots[0, leaf, i], slots[1, leaf, i], slots[2, leaf, i]
        x, y, z = max(max(x0 - x, x - x1), zero), max(max(y0 - y, y - y1), zero), max(max(z0 - z, z - z1), zero)
        gaps[i] = (x * x + y * y) + z * z


@compiled
def _distances(x, y, z, slots, leaf, distance):
    """The squared distances from a query to the places of a leaf."""
    for i in range(LEAF):
        dx, dy, dz = slots[0, leaf, i] - x, slots[1, leaf, i] - y, slots[2, leaf, i] - z
        distance[i] = (dx * dx + dy * dy) + dz * dz


@compiled
def _filled(index):
    """How many places of a leaf hold a point."""
    count = 0
    while count < LEAF and index[count] != NONE:
        count += 1
    return count


# The nearest. Lists are ordered by (distance, index). The bits of a float that is not negative, read as an integer,
# order like the float: a float32 and an index fit into one integer, which is the key then (`packed`); the key of a
# float64 are its bits, and the index is kept beside it.


@compiled
def _key(bits, number, packed):
    return (np.int64(bits) << 32) | number if packed else np.int64(bits)


@compiled
def _exceeds(key, number, other_key, other_number):
    return key > other_key or (key == other_key and number > other_number)


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
def _search_nearest(tree, groups, begin, end, k, last, out, floats, bits):
    """Fill the rows of `out` (S, K) for the queries in groups begin..end of their tree `groups`.

    `last` is the last point, the answer where there is none (NaN in a traced graph, for which nobody has looked).
    `bits` is the memory of `floats`, 64 + 2 LEAF of them, read as integers.
    """
    slots, index, box, first = tree
    query_slots, query_index, query_box, _ = groups
    leaves, query_leaves = len(box) // 2, len(query_box) // 2
    packed = floats.itemsize == 4

    stack = np.empty(64, np.int64)  # nodes to visit; they lie at the distances in floats[:64]
    distance, distance_bits = floats[64 : 64 + LEAF], bits[64 : 64 + LEAF]
    gaps, gap_bits = floats[64 + LEAF :], bits[64 + LEAF :]
    keys, numbers = np.empty((LEAF, k + 1), np.int64), np.empty((LEAF, k + 1), np.int32)
    close_keys, close_numbers = np.empty(LEAF, np.int64), np.empty(LEAF, np.int32)
    floats[0] = np.inf
    empty = _key(bits[0], NONE, packed)  # an entry farther than all that may be listed

    for group in range(begin, end):
        group_box = query_box[query_leaves + group]
        count = _filled(query_index[group])
        for q in range(count):
            keys[q, :k], numbers[q, :k] = empty, NONE
            keys[q, k], numbers[q, k] = -1, -1
        worst, worst_number = empty, np.int32(NONE)  # the largest entry of all the group's lists

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
                # gather what may enter the list, without a branch that would be guessed wrong
                farthest, close = keys[q, 0], 0
                for i in range(LEAF):
                    key = _key(distance_bits[i], index[leaf, i], packed)
                    close_keys[close], close_numbers[close] = key, index[leaf, i]
                    close += key <= farthest
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


# The first inside. Lists hold the lowest indices so far, and descend.


@compiled
def _search_inside(tree, groups, begin, end, k, limit, out, floats):
    """Fill the rows of `out` (S, K) for the queries in groups begin..end of their tree `groups`.

    `limit` is the squared radius. Missing points repeat the first; -1 where nothing is inside. `floats`: 2 LEAF.
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
        worst = np.int32(NONE)  # the largest entry of all the group's lists

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
    """(B, S, K) int64: the nearest points, equally near ones by index; a cloud of fewer repeats the first entry."""

    def search(tree, groups, begin, end, size, out_SK):
        floats = np.empty(64 + 2 * LEAF, tree[0].dtype)
        bits = floats.view(np.int32 if floats.itemsize == 4 else np.int64)
        _search_nearest(tree, groups, begin, end, min(k, size), size - 1, out_SK, floats, bits)

    return _search_clouds(search, queries_BS3, points_BN3, k, lengths)


def first_inside(queries_BS3: Tensor, points_BN3: Tensor, limit: float, k: int, lengths: Tensor | None) -> Tensor:
    """(B, S, K) int64: the points at squared distances below `limit`, by index; fewer repeat the first, -1 for none."""

    def search(tree, groups, begin, end, size, out_SK):
        number = tree[0].dtype.type
        floats = np.empty(2 * LEAF, number)
        _search_inside(tree, groups, begin, end, min(k, size), number(limit), out_SK, floats)

    return _search_clouds(search, queries_BS3, points_BN3, k, lengths)


def _search_clouds(search: Callable, queries_BS3: Tensor, points_BN3: Tensor, k: int, lengths: Tensor | None) -> Tensor:
    """search(tree of points, tree of queries, first group, last group + 1, points, out (S, K)) by parts of all clouds,
    which threads share."""
    batch, size, _ = points_BN3.shape
    one_set = queries_BS3.data_ptr() == points_BN3.data_ptr() and queries_BS3.stride() == points_BN3.stride()
    one_set = one_set and queries_BS3.shape == points_BN3.shape and lengths is None
    sizes = [size] * batch if lengths is None else lengths.tolist()
    if min(sizes) < 1 or max(sizes) > size:  # in a traced graph nobody has looked
        raise ValueError(f"lengths must lie in 1..{size}, got values from {min(sizes)} to {max(sizes)}")
    points, queries = points_BN3.contiguous().numpy(), queries_BS3.contiguous().numpy()
    trees = each(lambda b: build(points[b, : sizes[b]]), range(batch))
    groups = trees if one_set else each(build, queries)
    out = np.empty((*queries.shape[:2], k), dtype=np.int64)
    # a few parts per thread, as some take longer than others
    parts = max(1, 4 * torch.get_num_threads() // batch) if torch.get_num_threads() > 1 else 1

    def search_part(cloud_and_part):
        b, part = cloud_and_part
        leaves = len(groups[b][2]) // 2
        search(trees[b], groups[b], part * leaves // parts, (part + 1) * leaves // parts, sizes[b], out[b])

    each(search_part, itertools.product(range(batch), range(parts)))
    for b in range(batch):
        out[b, :, sizes[b] :] = out[b, :, :1]
    return torch.from_numpy(out)
