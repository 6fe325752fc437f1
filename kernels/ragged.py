"""Sampling and neighbor search on clouds of different sizes in one tensor: the functions of torch-cluster.

    x (N, D)                       points of all clouds
    batch (N,)                     number of every point's cloud, ascending, of any size; None for one cloud
    fps                            -> indices of the sampled points
    knn, radius                    -> (2, E): row 0 holds indices into y (queries), row 1 into x (their neighbors)
    knn_graph, radius_graph        -> (2, E) edges among the points of x

The five functions have the arguments and the results of their namesakes, which PyTorch Geometric uses. Where the
originals do not define which of several points they take, these take the points of lowest index; the neighbors in a
radius are in order of index. Clouds without points contribute nothing.

The operators of this folder take clouds of one size. So clouds are padded in groups, whose largest is less than twice
as large as their smallest: time and memory follow the number of points, also of one large cloud among many small ones.

Source: Fey and Lenssen, "Fast graph representation learning with PyTorch Geometric", arXiv 1903.02428.
"""

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import COORDINATES, can_look, check_choice, check_flags, check_integer, check_magnitude, check_number
from .farthest_point_sample import farthest_point_sample
from .neighbors import ball_query
from .neighbors import knn as knn_of_clouds

FLOWS = ("source_to_target", "target_to_source")
# most neighbors of a query
MOST = 1 << 20


def fps(
    x: Tensor,
    batch: Tensor | None = None,
    ratio: float | Tensor = 0.5,
    random_start: bool = True,
    batch_size: int | None = None,
) -> Tensor:
    """Farthest point sampling: ceil(ratio n) of the n points of every cloud.

    Args:
        x: points (N, D) or (N,), float32 or float64, D up to 3.
        batch: number of every point's cloud (N,), int64, ascending.
        ratio: share of the points, in (0, 1]; a tensor may hold one share for every cloud.
        random_start: whether to begin with a random point of every cloud instead of its first.
        batch_size: number of clouds; by default that of the last point's cloud plus one.

    Returns:
        indices (S,) into `x`, int64, cloud after cloud, in the order in which they were taken.

    Raises:
        ValueError: an argument of another shape, dtype or value.
    """
    x = _as_rows(x, "x", dimensions=3)
    check_flags(random_start=random_start)
    number_B, sizes_B = _clouds(batch, x, "batch", batch_size)
    ratio_B = _ratios(ratio, number_B, batch_size)
    if not len(sizes_B):
        return sizes_B
    # in float32, as in the original: there 0.1 of 30 points are exactly 3
    samples_B = (sizes_B.float() * ratio_B).ceil().long()
    ends_B = sizes_B.cumsum(0)
    points_N3 = F.pad(x, (0, 3 - x.shape[1]))
    taken, clouds = [], []
    for group_G in _groups(sizes_B, samples_B):
        place_GN = _places(sizes_B[group_G], ends_B[group_G])
        most, start = int(samples_B[group_G].max()), "random" if random_start else 0
        index_GS = farthest_point_sample(points_N3[place_GN], most, start, lengths=sizes_B[group_G])
        taken.append(place_GN.gather(1, index_GS)[_below(samples_B[group_G], most)])
        clouds.append(group_G.repeat_interleave(samples_B[group_G]))
    return torch.cat(taken)[torch.cat(clouds).argsort(stable=True)]


def knn(
    x: Tensor,
    y: Tensor,
    k: int,
    batch_x: Tensor | None = None,
    batch_y: Tensor | None = None,
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """For every point of `y` the `k` nearest points of `x` in the same cloud, or all of a smaller cloud.

    Args:
        x: points (N, D) or (N,), float32 or float64.
        y: queries (M, D) or (M,).
        k: number of neighbors, at least 1.
        batch_x, batch_y: numbers of every point's and query's cloud, (N,) and (M,), int64, ascending.
        cosine: whether to compare angles between vectors instead of distances.
        num_workers: ignored; the number of threads is PyTorch's.
        batch_size: number of clouds; by default that of the last point's cloud plus one.

    Returns:
        (2, E) int64: row 0 holds indices into `y`, ascending; row 1 indices into `x`, nearest first for each query.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    x, y = _as_rows(x, "x"), _as_rows(y, "y")
    check_integer(k, "k", at_most=MOST)
    check_flags(cosine=cosine)
    if cosine:  # of unit vectors, the nearest are those at the smallest angle
        x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)

    def nearest(points_BND, queries_BSD, sizes_B):
        index_BSK = knn_of_clouds(queries_BSD, points_BND, min(k, points_BND.shape[1]), sizes_B)
        return index_BSK, _below(sizes_B, index_BSK.shape[2]).unsqueeze(1)

    return _neighbors(nearest, x, y, batch_x, batch_y, batch_size)


def radius(
    x: Tensor,
    y: Tensor,
    r: float,
    batch_x: Tensor | None = None,
    batch_y: Tensor | None = None,
    max_num_neighbors: int = 32,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """For every point of `y` the points of `x` in the same cloud that are closer than `r`.

    Args:
        x: points (N, D) or (N,), float32 or float64, D up to 3.
        y: queries (M, D) or (M,).
        r: radius; points at this distance are outside.
        batch_x, batch_y: numbers of every point's and query's cloud, (N,) and (M,), int64, ascending.
        max_num_neighbors: largest number of neighbors of a query; of more points inside, those of lowest index count.
        num_workers: ignored; the number of threads is PyTorch's.
        batch_size: number of clouds; by default that of the last point's cloud plus one.

    Returns:
        (2, E) int64: row 0 holds indices into `y`, ascending; row 1 indices into `x`, ascending for each query.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    x, y = _as_rows(x, "x", dimensions=3), _as_rows(y, "y", dimensions=3)
    check_number(r, "r", positive=True)
    limit = float(r) ** 2
    check_integer(max_num_neighbors, "max_num_neighbors", at_most=MOST)

    def inside(points_BND, queries_BSD, sizes_B):
        k = min(max_num_neighbors, points_BND.shape[1])
        index_BSK = ball_query(queries_BSD, points_BND, r, k, sizes_B)
        # lists ascend until they repeat their first entry, which is outside the radius if no point is inside
        new_BSK = index_BSK > F.pad(index_BSK, (1, 0), value=-1)[..., :-1]
        first_BSD = points_BND.gather(1, index_BSK[..., :1].expand_as(queries_BSD))
        distance_BS = points_BND.new_zeros(())
        for point_BS, query_BS in zip(first_BSD.unbind(-1), queries_BSD.unbind(-1)):
            distance_BS = (point_BS - query_BS).square() + distance_BS
        return index_BSK, new_BSK & (distance_BS < limit).unsqueeze(-1)

    return _neighbors(inside, x, y, batch_x, batch_y, batch_size)


def knn_graph(
    x: Tensor,
    k: int,
    batch: Tensor | None = None,
    loop: bool = False,
    flow: str = "source_to_target",
    cosine: bool = False,
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Edges between every point and its `k` nearest of the same cloud.

    Args:
        x, k, batch, cosine, num_workers, batch_size: arguments of `knn`.
        loop: whether a point is its own neighbor; if not, each point has `k` others, or all of a smaller cloud, also
            where many points coincide.
        flow: row of the neighbors: 0 for "source_to_target", 1 for "target_to_source".

    Returns:
        (2, E) int64, grouped by point, nearest first.
    """
    _clouds(batch, _as_rows(x, "x"), "batch", batch_size)  # so that an error has the name of the argument
    check_integer(k, "k", at_most=MOST - 1)
    check_flags(loop=loop)
    check_choice(flow, "flow", FLOWS)
    found = knn(x, x, k + (not loop), batch, batch, cosine, num_workers, batch_size)
    return _edges(found, k, loop, flow)


def radius_graph(
    x: Tensor,
    r: float,
    batch: Tensor | None = None,
    loop: bool = False,
    max_num_neighbors: int = 32,
    flow: str = "source_to_target",
    num_workers: int = 1,
    batch_size: int | None = None,
) -> Tensor:
    """Edges between every point and the points of the same cloud that are closer than `r`.

    Args:
        x, r, batch, max_num_neighbors, num_workers, batch_size: arguments of `radius`.
        loop: whether a point is its own neighbor.
        flow: row of the neighbors: 0 for "source_to_target", 1 for "target_to_source".

    Returns:
        (2, E) int64, grouped by point.
    """
    _clouds(batch, _as_rows(x, "x"), "batch", batch_size)  # so that an error has the name of the argument
    check_integer(max_num_neighbors, "max_num_neighbors", at_most=MOST - 1)
    check_flags(loop=loop)
    check_choice(flow, "flow", FLOWS)
    found = radius(x, x, r, batch, batch, max_num_neighbors + (not loop), num_workers, batch_size)
    return _edges(found, max_num_neighbors, loop, flow)


def _edges(found_2E: Tensor, k: int, loop: bool, flow: str) -> Tensor:
    """The edges of a graph; without loops the first `k` neighbors of every point except the point itself, of k + 1."""
    if not loop:
        found_2E = found_2E[:, found_2E[0] != found_2E[1]]
        count_P = torch.unique_consecutive(found_2E[0], return_counts=True)[1]
        first_E = (count_P.cumsum(0) - count_P).repeat_interleave(count_P)
        # many points in one place may fill a list before the point itself is reached
        found_2E = found_2E[:, torch.arange(len(first_E), device=first_E.device) - first_E < k]
    return found_2E.flip(0) if flow == "source_to_target" else found_2E


def _neighbors(search, x: Tensor, y: Tensor, batch_x, batch_y, batch_size: int | None) -> Tensor:
    """The edges (2, E) from search(points (B, N, D), queries (B, S, D), sizes (B,)) -> indices, valid (B, S, K)."""
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"x and y must have the same dimension, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    if x.dtype != y.dtype or x.device != y.device:
        raise TypeError(
            f"x and y must agree in dtype and device, got {x.dtype} on {x.device} and {y.dtype} on {y.device}"
        )
    same = x is y and batch_x is batch_y
    number_B, sizes_B = _clouds(batch_x, x, "batch_x", batch_size)
    query_number_B, queries_B = (number_B, sizes_B) if same else _clouds(batch_y, y, "batch_y", batch_size)
    both_B, query_both_B = torch.isin(number_B, query_number_B), torch.isin(query_number_B, number_B)
    if not both_B.any():
        return number_B.new_empty(2, 0)
    ends_B, sizes_B = sizes_B.cumsum(0)[both_B], sizes_B[both_B]
    query_ends_B, queries_B = queries_B.cumsum(0)[query_both_B], queries_B[query_both_B]
    edges = []
    for group_G in _groups(sizes_B, queries_B):
        place_GN = _places(sizes_B[group_G], ends_B[group_G])
        points_GND = x[place_GN]
        query_place_GS, queries_GSD = place_GN, points_GND
        if not same:
            query_place_GS = _places(queries_B[group_G], query_ends_B[group_G])
            queries_GSD = y[query_place_GS]
        index_GSK, valid_GSK = search(points_GND, queries_GSD, sizes_B[group_G])
        valid_GSK = valid_GSK & _below(queries_B[group_G], queries_GSD.shape[1]).unsqueeze(2)
        neighbor_GSK = place_GN.gather(1, index_GSK.flatten(1)).view_as(index_GSK)
        query_GSK = query_place_GS.unsqueeze(2).expand_as(index_GSK)
        edges.append(torch.stack([query_GSK[valid_GSK], neighbor_GSK[valid_GSK]]))
    found_2E = torch.cat(edges, 1)
    return found_2E if len(edges) == 1 else found_2E[:, found_2E[0].argsort(stable=True)]


def _as_rows(x: Tensor, name: str, dimensions: int | None = None) -> Tensor:
    """The points (N, D), checked; `dimensions` is the largest D."""
    if not isinstance(x, Tensor) or x.ndim not in (1, 2) or x.shape[1:] == (0,):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must have shape (N, D) or (N,), D at least 1, got {got}")
    if x.dtype not in COORDINATES:
        raise TypeError(f"{name} must be float32 or float64 (geometry needs the digits), got {x.dtype}")
    if can_look(x) and not torch.isfinite(x).all():
        raise ValueError(f"{name} must be finite: {int((~torch.isfinite(x)).sum())} coordinates are not")
    check_magnitude(x, name)
    if x.is_meta:
        raise ValueError(f"{name} must have values, on which the size of the result depends, got a tensor on meta")
    x = x.detach().view(-1, 1) if x.ndim == 1 else x.detach()
    if dimensions is not None and x.shape[1] > dimensions:
        raise ValueError(f"{name} must have at most {dimensions} dimensions, got shape {tuple(x.shape)}")
    return x


def _clouds(batch: Tensor | None, x: Tensor, name: str, batch_size: int | None) -> tuple[Tensor, Tensor]:
    """Numbers and sizes (B,) of the clouds that have points: numbers may be far apart."""
    if batch is None:
        batch = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if not isinstance(batch, Tensor):
        raise TypeError(f"{name} must be an int64 tensor or None, got {type(batch).__name__}")
    if batch.dtype != torch.int64 or batch.shape != x.shape[:1] or batch.device != x.device:
        raise ValueError(
            f"{name} must be an int64 tensor of shape ({len(x)},), a number for each point, on {x.device}, "
            f"got {batch.dtype} {tuple(batch.shape)} on {batch.device}"
        )
    if (batch[1:] < batch[:-1]).any() or (batch[:1] < 0).any():
        raise ValueError(
            f"{name} must ascend from 0 or more, so that the points of a cloud follow each other in the tensor"
        )
    if batch_size is not None:
        check_integer(batch_size, "batch_size", at_most=sys.maxsize)
        if len(batch) and batch[-1] >= batch_size:
            last = int(batch[-1])
            raise ValueError(f"{name} must lie in 0..{batch_size - 1} for a batch_size of {batch_size}, got {last}")
    return torch.unique_consecutive(batch, return_counts=True)


def _ratios(ratio: float | Tensor, number_B: Tensor, batch_size: int | None) -> Tensor:
    """The share of every cloud (B,), or one share."""
    if isinstance(ratio, Tensor):
        clouds = batch_size or (int(number_B[-1]) + 1 if len(number_B) else 0)
        if ratio.device.type not in ("cpu", number_B.device.type):
            raise ValueError(f"ratio must be on the CPU or on {number_B.device}, got {ratio.device}")
        if not ratio.is_floating_point() or ratio.shape not in ((), (1,), (clouds,)):
            raise ValueError(
                f"ratio must be one number or one for each of {clouds} clouds, floating point, got {ratio.dtype} "
                f"{tuple(ratio.shape)}"
            )
        if not ((ratio > 0) & (ratio <= 1)).all():
            raise ValueError(f"ratio must lie in (0, 1], got {ratio.tolist()!r:.60}")
        ratio = ratio.to(number_B.device)
        return ratio[number_B] if ratio.shape == (clouds,) else ratio
    check_number(ratio, "ratio", positive=True)
    if ratio > 1:
        raise ValueError(f"ratio must lie in (0, 1], got {ratio!r}")
    return torch.as_tensor(ratio, device=number_B.device)


def _groups(sizes_B: Tensor, others_B: Tensor) -> list[Tensor]:
    """Clouds (G,) of similar sizes, by number: in each group the largest is less than twice the smallest, of both."""
    classes_B2 = torch.stack([torch.frexp((n.max() // n).float()).exponent for n in (sizes_B, others_B)], 1)
    group_B = torch.unique(classes_B2, dim=0, return_inverse=True)[1]
    return [(group_B == group).nonzero().flatten() for group in range(int(group_B.max()) + 1)]


def _places(sizes_B: Tensor, ends_B: Tensor) -> Tensor:
    """Indices (B, N) of the points of clouds, whose last ones fill up the smaller clouds."""
    steps_N = torch.arange(int(sizes_B.max()), device=sizes_B.device)
    return (ends_B - sizes_B).unsqueeze(1) + steps_N.minimum(sizes_B.unsqueeze(1) - 1)


def _below(counts_B: Tensor, size: int) -> Tensor:
    """(B, size): true at the first counts_B places of a row."""
    return torch.arange(size, device=counts_B.device) < counts_B.unsqueeze(1)
