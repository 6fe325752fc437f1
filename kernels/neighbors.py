"""Neighbour search: the K nearest points, or the first K inside a ball.

    knn:        the K points x_n of smallest |x_n - q|², nearest first
    ball_query: the first K points, in index order, with |x_n - q| < radius; short lists repeat their first entry

Squared distances are sums of squared differences of coordinates, never |q|² + |x|² - 2 q·x: the expanded form loses the
digits that decide between near neighbours, so that a rotated cloud would get different ones.

On a CPU a k-d tree per cloud (SciPy) serves clouds beyond some hundred points, the clouds spread over threads; smaller
ones and other devices go through blocks of queries, so that no (S, N) matrix of a large cloud is ever in memory.

Source: ball query and its padding as in PointNet++, arXiv 1706.02413.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from .checks import check_count, check_same_clouds

# From this many points on a tree beats blocks on a CPU: at 16 clouds and 16 neighbours of half the points, knn breaks
# even at 256 points and is 3.7 times faster at 1,024; ball_query breaks even at 500.
TREE_FROM = 320
# Distances held at a time by the block path: 16 M floats.
BLOCK = 1 << 24


def knn(queries_BS3: Tensor, points_BN3: Tensor, k: int) -> Tensor:
    """Indices of the `k` nearest points of every query, nearest first.

    Args:
        queries_BS3: (B, S, 3) float32 or float64.
        points_BN3: (B, N, 3), same dtype and device.
        k: in 1..N.

    Returns:
        (B, S, K) int64. Equal distances are listed by ascending index; when more points share the K-th distance
        than fit, which of them are in is up to the path.
    """
    check_same_clouds(queries_BS3, points_BN3)
    check_count(k, "k", points_BN3.shape[1], "points")
    queries_BS3, points_BN3 = queries_BS3.detach(), points_BN3.detach()
    if points_BN3.device.type == "cpu" and points_BN3.shape[1] >= TREE_FROM:
        return _each_cloud(lambda queries, points: _knn_tree(queries, points, k), queries_BS3, points_BN3)

    def nearest(distance_BSN):
        distance_BSK, index_BSK = distance_BSN.topk(k, dim=-1, largest=False, sorted=True)
        # topk orders equal distances as it likes: sort by index, then stably by distance
        index_BSK, by_index = index_BSK.sort(dim=-1)
        by_distance = distance_BSK.gather(-1, by_index).argsort(dim=-1, stable=True)
        return index_BSK.gather(-1, by_distance)

    return _in_blocks(nearest, queries_BS3, points_BN3)


def ball_query(queries_BS3: Tensor, points_BN3: Tensor, radius: float, k: int) -> Tensor:
    """Indices of the first `k` points closer than `radius` to every query, in ascending order of index.

    Args:
        queries_BS3: (B, S, 3) float32 or float64.
        points_BN3: (B, N, 3), same dtype and device.
        radius: positive, in the unit of the coordinates.
        k: at least 1; it may exceed the number of points.

    Returns:
        (B, S, K) int64. Where fewer than K points are inside, the first of them fills up; where none is, the nearest
        point (PointNet++'s code yields an invalid index there; its queries are points themselves, so it never happens).
    """
    check_same_clouds(queries_BS3, points_BN3)
    if not (math.isfinite(radius) and radius > 0):
        raise ValueError(f"radius must be positive and finite, got {radius!r}")
    check_count(k, "k", 1 << 20, "neighbours that fit")
    queries_BS3, points_BN3 = queries_BS3.detach(), points_BN3.detach()
    if points_BN3.device.type == "cpu" and points_BN3.shape[1] >= TREE_FROM:
        return _each_cloud(lambda queries, points: _ball_tree(queries, points, radius, k), queries_BS3, points_BN3)

    def first_inside(distance_BSN):
        size = distance_BSN.shape[-1]
        number = torch.arange(size, device=distance_BSN.device).expand_as(distance_BSN)
        inside = number.masked_fill(distance_BSN >= radius * radius, size)
        index_BSK = inside.topk(min(k, size), dim=-1, largest=False, sorted=True).values
        first = index_BSK[..., :1]
        first = torch.where(first == size, distance_BSN.argmin(-1, keepdim=True), first)
        index_BSK = torch.where(index_BSK == size, first, index_BSK)
        return torch.cat([index_BSK, first.expand(*first.shape[:-1], k - index_BSK.shape[-1])], dim=-1)

    return _in_blocks(first_inside, queries_BS3, points_BN3)


def _in_blocks(choose, queries_BS3: Tensor, points_BN3: Tensor) -> Tensor:
    """choose(squared distances (B, s, N)) -> (B, s, K), over blocks of s queries."""
    batch, size, _ = points_BN3.shape
    step = max(1, BLOCK // (batch * size))
    points_3B1N = points_BN3.permute(2, 0, 1).unsqueeze(2).contiguous()
    chosen = []
    for block_Bs3 in queries_BS3.split(step, dim=1):
        x, y, z = block_Bs3.permute(2, 0, 1).unsqueeze(3)
        distance_BsN = (x - points_3B1N[0]).square_()
        distance_BsN += (y - points_3B1N[1]).square_()
        distance_BsN += (z - points_3B1N[2]).square_()
        chosen.append(choose(distance_BsN))
    return torch.cat(chosen, dim=1)


def _each_cloud(search, queries_BS3: Tensor, points_BN3: Tensor) -> Tensor:
    """search(queries (S, 3), points (N, 3)) -> (S, K) for every cloud, clouds in parallel (SciPy releases the GIL)."""
    clouds = list(zip(queries_BS3.numpy(), points_BN3.numpy()))
    with ThreadPoolExecutor(min(len(clouds), torch.get_num_threads())) as pool:
        found = list(pool.map(lambda cloud: search(*cloud), clouds))
    return torch.from_numpy(np.stack(found))


def _tree(points: np.ndarray) -> cKDTree:
    # an unbalanced tree with sliding midpoints builds faster, and survives duplicated points
    return cKDTree(points, balanced_tree=False, compact_nodes=False)


def _knn_tree(queries: np.ndarray, points: np.ndarray, k: int) -> np.ndarray:
    distance, index = _tree(points).query(queries, k=np.arange(1, k + 1))
    tied = (distance[:, 1:] == distance[:, :-1]).any(1)
    if tied.any():
        order = np.lexsort((index[tied], distance[tied]))
        index[tied] = np.take_along_axis(index[tied], order, axis=1)
    return index


def _ball_tree(queries: np.ndarray, points: np.ndarray, radius: float, k: int) -> np.ndarray:
    tree = _tree(points)
    closed_radius = np.nextafter(radius, 0)  # the tree's ball is closed, ours is open
    index = np.empty((len(queries), k), dtype=np.int64)
    step = max(1, (1 << 20) // len(points))  # a ball may hold the whole cloud
    for start in range(0, len(queries), step):
        inside = tree.query_ball_point(queries[start : start + step], closed_radius, return_sorted=True)
        for row, found in zip(index[start:], inside):
            row[: len(found)] = found[:k]
            if len(found) < k:
                row[len(found) :] = found[0] if found else -1
    empty = index[:, 0] < 0
    if empty.any():
        index[empty] = tree.query(queries[empty], k=1)[1][:, None]
    return index
