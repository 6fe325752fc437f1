"""What tools/benchmark measures: every operator of `attlas.kernels` at a list of sizes, and who else can do it.

Each `make_*` gives the implementations of one operator by name, as calls without arguments: ours, the peers that are
installed, "reference" (our operator's own PyTorch reference) and "naive" (eager PyTorch as the releases of networks
write it). All get the same tensors and give int64 indices of one shape: what a library needs before and after counts.
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attlas.kernels import (
    ball_query,
    farthest_point_sample,
    gather_max,
    gather_neighbors,
    knn,
    local_reference_axis,
    surface_attention,
    surface_properties,
    three_interpolate,
)

from . import naive

PEERS = {  # distribution -> module
    "torch-cluster": "torch_cluster",
    "fpsample": "fpsample",
    "torch-quickfps": "torch_quickfps",
    "torch-fps": "torch_fps",
    "scipy": "scipy.spatial",
    "pykdtree": "pykdtree.kdtree",
    "open3d-cpu": "open3d",
    "onedl-mmcv": "mmcv.ops",
    "timm": "timm",
}
CPU_ONLY, GPU_ONLY = {"fpsample", "scipy", "pykdtree", "open3d-cpu"}, {"onedl-mmcv"}
OURS, EAGER = "attlas", ("reference", "naive", "masked sdpa")
SECONDS_PER_SAMPLE = 5e-7  # of FPS on a GPU: a sample waits for the one before it (an H200 takes 0.63 µs)
OPERATIONS_PER_PAIR = 8  # three differences, three squares, two sums
TUBE, RING, ROUND = 0.4, 1.5 * math.pi, 1.4 * math.pi  # the torus: its tube, and how far around the two circles it goes


# --- do they find the same? ------------------------------------------------------------------------------------------


def entries_differ(got: Tensor, expected: Tensor) -> float:
    """Share of entries: integers that are not equal, or floating ones farther apart than a thousandth of their RMS."""
    tolerance = 1e-3 * expected.square().mean().sqrt() if expected.is_floating_point() else 0
    return ((got - expected).abs() > tolerance).double().mean().item()


def samples_differ(got: Tensor, expected: Tensor) -> float:
    """Share of samples that the other does not have, in whatever order."""
    return 1 - sum(torch.isin(*clouds).double().mean().item() for clouds in zip(got, expected)) / len(got)


def row_sets(index: Tensor) -> Tensor:
    """What a padded list holds: sorted, and -1 for repetitions."""
    index = index.sort(-1).values
    again = index[..., 1:] == index[..., :-1]
    index[..., 1:][again] = -1
    return index.sort(-1).values


def lists_differ(got: Tensor, expected: Tensor) -> float:
    return entries_differ(row_sets(got), row_sets(expected))


def axes_differ(got: Tensor, expected: Tensor) -> float:
    """Share of unit vectors that are more than a degree from the others, whatever the sign."""
    return ((got * expected).sum(-1).abs() < math.cos(math.radians(1))).double().mean().item()


# --- cases -----------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """Where to measure, and the modules of the peers that are there."""

    device: torch.device
    threads: int
    peers: dict[str, Any]
    dtype: torch.dtype = torch.float32  # of features, not of points


@dataclass
class Case:
    """One operator at one size; `make(run, **sizes)` gives its implementations.

    The lower bound counts what every implementation needs: `bytes` read and written, `operations` of matrix products,
    and on a GPU the `pairs` of points that brute force compares (trees on a CPU skip most) and `samples` in sequence.
    `differ` compares results with ours, or with what `expected(run, result, **sizes)` gives where there is a choice.
    `grows`: of the series that tells growth with N.
    """

    operator: str
    sizes: dict[str, int]
    make: Callable[..., dict[str, Callable]]
    bytes: float
    operations: float = 0.0
    pairs: float = 0.0
    samples: float = 0.0
    differ: Callable[[Tensor, Tensor], float] = entries_differ
    expected: Callable[..., Tensor] | None = None
    grows: bool = False

    def bound(self, machine: dict) -> float:
        """Seconds."""
        on_gpu = machine["type"] == "cuda"
        operations = self.operations + on_gpu * OPERATIONS_PER_PAIR * self.pairs
        times = self.bytes / machine["bytes_per_s"], operations / machine["operations_per_s"]
        return max(*times, on_gpu * SECONDS_PER_SAMPLE * self.samples)


# --- inputs ----------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def surface(b: int, n: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Points in random order on a piece of a torus, centered, each cloud turned anew, and normals: (B, N, 3) both."""
    draw = torch.Generator().manual_seed(b * n)
    around, about = torch.rand(2, b, n, 1, generator=draw, dtype=torch.float64)
    around, about = RING * around, ROUND * about
    outward = torch.cat([around.cos(), around.sin(), torch.zeros_like(around)], dim=-1)
    normals = about.cos() * outward + about.sin() * torch.tensor([0.0, 0.0, 1.0])
    turn = torch.linalg.qr(torch.randn(b, 3, 3, generator=draw, dtype=torch.float64)).Q
    points = (outward + TUBE * normals) @ turn
    return (points - points.mean(1, keepdim=True)).to(device, dtype), (normals @ turn).to(device, dtype)


def ball_radius(n: int, k: int) -> float:
    """Of balls that hold a quarter of K points on average: hardly any overflows. (Which K stay differs by library.)"""
    return math.sqrt(k / 4 * RING * ROUND * TUBE / (math.pi * n))


def neighbors(b: int, n: int, s: int, k: int, device: torch.device) -> Tensor:
    points, _ = surface(b, n, device)
    return knn(points[:, :s].contiguous(), points, k)


def random(run: Run, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(run.device, run.dtype)


# --- how libraries want their clouds ---------------------------------------------------------------------------------


def as_reference(call: Callable) -> Callable:
    """The call, with the operators' PyTorch references."""

    def referred():
        os.environ["ATTLAS_KERNELS"] = "reference"
        try:
            return call()
        finally:
            del os.environ["ATTLAS_KERNELS"]

    return referred


def each_cloud(search: Callable[[np.ndarray], np.ndarray], points: Tensor) -> Tensor:
    """Libraries without batches: one cloud after the other."""
    return torch.from_numpy(np.stack([search(cloud).astype(np.int64, copy=False) for cloud in points.numpy()]))


def scipy_clouds(search: Callable[[np.ndarray, int], np.ndarray], points: Tensor, threads: int) -> Tensor:
    """SciPy's threads share the clouds where there are enough of them (it releases the GIL), else a cloud's queries."""
    if len(points) < threads:
        return each_cloud(lambda cloud: search(cloud, threads), points)
    with ThreadPoolExecutor(threads) as pool:
        return torch.from_numpy(np.stack(list(pool.map(lambda cloud: search(cloud, 1), points.numpy()))))


def flat_batch(points: Tensor) -> tuple[Tensor, Tensor]:
    """(B, N, 3) -> (B N, 3) and the cloud of each, as PyTorch Geometric has them."""
    b, n, _ = points.shape
    return points.reshape(b * n, 3), torch.arange(b, device=points.device).repeat_interleave(n)


def in_cloud(index: Tensor, size: int) -> Tensor:
    """Numbers in the flat batch -> numbers in the cloud."""
    return index - torch.arange(len(index), device=index.device).view(-1, *[1] * (index.ndim - 1)) * size


def padded(rows: Tensor, found: Tensor, queries: int, k: int) -> Tensor:
    """Neighbors `found` of ascending query numbers `rows` -> (queries, K), the first filling up."""
    first = torch.searchsorted(rows, torch.arange(queries, device=rows.device)).unsqueeze(1)
    count = torch.bincount(rows, minlength=queries).unsqueeze(1)
    place = torch.arange(k, device=rows.device)
    return found[first + torch.where(place < count, place, 0)]


# --- the operators ---------------------------------------------------------------------------------------------------


def make_farthest_point_sample(run: Run, B: int, N: int, S: int) -> dict[str, Callable]:
    points, _ = surface(B, N, run.device)
    calls: dict[str, Callable] = {OURS: functools.partial(farthest_point_sample, points, S)}
    if cluster := run.peers.get("torch-cluster"):

        def torch_cluster():
            index = cluster.fps(*flat_batch(points), S / N, random_start=False, batch_size=B)
            return in_cloud(index.view(B, S), N)

        calls["torch-cluster"] = torch_cluster
    if fpsample := run.peers.get("fpsample"):
        height = 5 if N <= 1 << 14 else 7 if N <= 1 << 17 else 9  # its advice for medium and large workloads
        one_cloud = functools.partial(fpsample.bucket_fps_kdline_sampling, n_samples=S, h=height, start_idx=0)
        calls["fpsample"] = functools.partial(each_cloud, one_cloud, points)
    if quickfps := run.peers.get("torch-quickfps"):
        calls["torch-quickfps"] = functools.partial(quickfps.sample_idx, points, S, start_idx=0)
    if torch_fps := run.peers.get("torch-fps"):
        everywhere = torch.ones(B, N, dtype=torch.bool, device=run.device)
        options = dict(random_start=False, validate=False, assume_finite=True)
        sample = torch_fps.farthest_point_sampling
        calls["torch-fps"] = functools.partial(sample, points, everywhere, S, **options)
    if o3d := run.peers.get("open3d-cpu"):

        def open3d(cloud):  # gives points, in order of their index: their number goes along as a color
            number = np.broadcast_to(np.arange(N, dtype=np.float64)[:, None], (N, 3))
            cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(cloud))
            cloud.colors = o3d.utility.Vector3dVector(number)
            return np.asarray(cloud.farthest_point_down_sample(S).colors)[:, 0]

        calls["open3d-cpu"] = functools.partial(each_cloud, open3d, points)
    if mmcv := run.peers.get("onedl-mmcv"):
        calls["onedl-mmcv"] = lambda: mmcv.furthest_point_sample(points, S).long()
    calls["reference"] = as_reference(calls[OURS])
    calls["naive"] = functools.partial(naive.farthest_point_sample, points, S)
    return calls


def samples_from(run: Run, samples: Tensor, B: int, N: int, S: int) -> Tensor:
    """Ours, begun where `samples` begin: fpsample 1.0's bucket method begins elsewhere than it is told."""
    points, _ = surface(B, N, run.device)
    starts = samples[:, 0].tolist()
    return torch.cat([farthest_point_sample(points[i : i + 1], S, start) for i, start in enumerate(starts)])


def make_knn(run: Run, B: int, N: int, K: int) -> dict[str, Callable]:
    points, _ = surface(B, N, run.device)
    calls: dict[str, Callable] = {OURS: functools.partial(knn, points, points, K)}
    if cluster := run.peers.get("torch-cluster"):

        def torch_cluster():
            flat, batch = flat_batch(points)
            batch = batch if B > 1 else None
            index = cluster.knn(flat, flat, K, batch, batch, num_workers=run.threads)[1]
            return in_cloud(index.view(B, N, K), N)

        calls["torch-cluster"] = torch_cluster
    if spatial := run.peers.get("scipy"):

        def scipy(cloud, workers):
            return spatial.cKDTree(cloud, balanced_tree=False, compact_nodes=False).query(cloud, K, workers=workers)[1]

        calls["scipy"] = functools.partial(scipy_clouds, scipy, points, run.threads)
    if kdtree := run.peers.get("pykdtree"):
        calls["pykdtree"] = lambda: each_cloud(lambda cloud: kdtree.KDTree(cloud).query(cloud, K)[1], points)
    if o3d := run.peers.get("open3d-cpu"):

        def open3d(points):
            cloud = o3d.core.Tensor.from_numpy(points)
            tree = o3d.core.nns.NearestNeighborSearch(cloud)
            tree.knn_index()
            return tree.knn_search(cloud, K)[0].numpy()

        calls["open3d-cpu"] = functools.partial(each_cloud, open3d, points)
    if mmcv := run.peers.get("onedl-mmcv"):
        calls["onedl-mmcv"] = lambda: mmcv.knn(K, points, points).transpose(1, 2).long().contiguous()
    calls["reference"] = as_reference(calls[OURS])
    calls["naive"] = functools.partial(naive.knn, points, points, K)
    return calls


def make_ball_query(run: Run, B: int, N: int, S: int, K: int) -> dict[str, Callable]:
    points, _ = surface(B, N, run.device)
    queries, radius = points[:, :S].contiguous(), ball_radius(N, K)
    calls: dict[str, Callable] = {OURS: functools.partial(ball_query, queries, points, radius, K)}
    if cluster := run.peers.get("torch-cluster"):

        def torch_cluster():
            (x, batch_x), (y, batch_y) = flat_batch(points), flat_batch(queries)
            batches = (batch_x, batch_y) if B > 1 else (None, None)
            edges = cluster.radius(x, y, radius, *batches, max_num_neighbors=K, num_workers=run.threads)
            return in_cloud(padded(*edges, B * S, K).view(B, S, K), N)

        calls["torch-cluster"] = torch_cluster
    if spatial := run.peers.get("scipy"):

        def scipy(cloud, workers):
            tree = spatial.cKDTree(cloud, balanced_tree=False, compact_nodes=False)
            lists = tree.query_ball_point(cloud[:S], radius, workers=workers, return_sorted=True)
            count = np.fromiter(map(len, lists), np.int64, S)
            found = np.fromiter(itertools.chain.from_iterable(lists), np.int64, count.sum())
            rows = np.repeat(np.arange(S), count)
            return padded(torch.from_numpy(rows), torch.from_numpy(found), S, K).numpy()

        calls["scipy"] = functools.partial(scipy_clouds, scipy, points, run.threads)
    if o3d := run.peers.get("open3d-cpu"):

        def open3d(points):
            tree = o3d.core.nns.NearestNeighborSearch(o3d.core.Tensor.from_numpy(points))
            tree.hybrid_index(radius)
            index = tree.hybrid_search(o3d.core.Tensor.from_numpy(points[:S]), radius, K)[0].numpy()
            return np.where(index < 0, index[:, :1], index)

        calls["open3d-cpu"] = functools.partial(each_cloud, open3d, points)
    if mmcv := run.peers.get("onedl-mmcv"):
        calls["onedl-mmcv"] = lambda: mmcv.ball_query(0, radius, K, points, queries).long()
    calls["reference"] = as_reference(calls[OURS])
    return calls


def differentiable(implementations: dict[str, Callable], inputs: dict[str, Tensor], mode: str) -> dict[str, Callable]:
    """Calls of functions of `inputs` ("forward"), or of their backward: gradients of all inputs for one gradient of the
    output, through a graph that the first call makes ("backward") or every call ("forward+backward"). The one named
    "attlas" becomes "reference", too."""
    for x in inputs.values():
        x.requires_grad_(mode != "forward")

    def call_of(function):
        if mode == "forward":
            return lambda: function(**inputs)
        if mode == "forward+backward":

            def both():
                output = function(**inputs)
                return torch.autograd.grad(output, list(inputs.values()), torch.ones_like(output))

            return both
        output = functools.cache(lambda: function(**inputs))
        ones = functools.cache(lambda: torch.ones_like(output()))
        return lambda: torch.autograd.grad(output(), list(inputs.values()), ones(), retain_graph=True)

    calls = {name: call_of(function) for name, function in implementations.items()}
    return {OURS: calls[OURS], "reference": as_reference(call_of(implementations[OURS])), **calls}


def make_gather_neighbors(run: Run, B: int, N: int, S: int, K: int, C: int, mode: str) -> dict[str, Callable]:
    index = neighbors(B, N, S, K, run.device)
    implementations = {
        OURS: lambda features: gather_neighbors(features, index),
        "naive": lambda features: naive.gather(features, index),
    }
    if mmcv := run.peers.get("onedl-mmcv"):
        rows = index.int()

        def group(features):  # its channels come first; (B, C, S, K) is seen as (B, S, K, C)
            return mmcv.grouping_operation(features.transpose(1, 2).contiguous(), rows).permute(0, 2, 3, 1)

        implementations["onedl-mmcv"] = group
    return differentiable(implementations, {"features": random(run, B, N, C)}, mode)


def make_three_interpolate(run: Run, B: int, N: int, S: int, C: int, mode: str) -> dict[str, Callable]:
    """From N points to S."""
    points, _ = surface(B, S, run.device)
    index = knn(points, points[:, :N].contiguous(), 3)
    weight = torch.softmax(random(run, B, S, 3, seed=1), dim=-1)
    implementations = {
        OURS: lambda features: three_interpolate(features, index, weight),
        "naive": lambda features: (naive.gather(features, index) * weight.unsqueeze(-1)).sum(2),
    }
    if mmcv := run.peers.get("onedl-mmcv"):
        rows = index.int()

        def blend(features):
            return mmcv.three_interpolate(features.transpose(1, 2).contiguous(), rows, weight).transpose(1, 2)

        implementations["onedl-mmcv"] = blend
    return differentiable(implementations, {"features": random(run, B, N, C)}, mode)


def make_gather_max(run: Run, B: int, N: int, S: int, K: int, C: int, D: int, mode: str) -> dict[str, Callable]:
    """max_k relu(f_j + shift + W local_jk); without the last term where D is 0."""
    index = neighbors(B, N, S, K, run.device)
    inputs = {"features": random(run, B, N, C), "shift": random(run, B, S, C, seed=1)}
    if D:
        inputs |= {"local": random(run, B, S, K, D, seed=2), "weight": random(run, C, D, seed=3)}

    def ours(features, shift, local=None, weight=None):
        return gather_max(features, index, shift, local, weight)

    def plain(features, shift, local=None, weight=None):
        x = naive.gather(features, index) + shift.unsqueeze(2)
        return F.relu(x if local is None else x + F.linear(local, weight)).max(2).values

    return differentiable({OURS: ours, "naive": plain}, inputs, mode)


def make_local_reference_axis(run: Run, B: int, N: int, K: int) -> dict[str, Callable]:
    """Normals of points from K neighbors. Open3D weights all neighbors alike, so its normals are others."""
    points, _ = surface(B, N, run.device)
    calls: dict[str, Callable] = {OURS: functools.partial(local_reference_axis, points, K)}
    if o3d := run.peers.get("open3d-cpu"):

        def open3d():
            normals = []
            for each in points.numpy():
                cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(each))
                cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(K))
                normals.append(np.asarray(cloud.normals, dtype=np.float32))
            return torch.from_numpy(np.stack(normals))

        calls["open3d-cpu"] = open3d
    calls["reference"] = as_reference(calls[OURS])
    calls["naive"] = functools.partial(naive.local_reference_axis, points, K)
    return calls


def make_surface_properties(run: Run, B: int, N: int, S: int, K: int) -> dict[str, Callable]:
    points, normals = surface(B, N, run.device)
    queries, query_normals = points[:, :S].contiguous(), normals[:, :S].contiguous()
    index = neighbors(B, N, S, K, run.device)
    ours = functools.partial(surface_properties, points, normals, queries, query_normals, index)

    def plain():
        offsets = naive.gather(points, index) - queries.unsqueeze(2)
        ordered = index.gather(-1, naive.order(offsets, query_normals.unsqueeze(2)))
        offsets = naive.gather(points, ordered) - queries.unsqueeze(2)
        return naive.properties(offsets, naive.gather(normals, ordered), query_normals.unsqueeze(2), 1), ordered

    return {OURS: ours, "reference": as_reference(ours), "naive": plain}


def make_surface_attention(run: Run, B: int, S: int, K: int, C: int, mode: str) -> dict[str, Callable]:
    """Among K neighbors of S points (SA1), or where K is 0 among S points (SA2)."""
    places = (B, S, K) if K else (B, S)
    widths = {"q": C // 4, "k": C // 4, "v": C}
    inputs = {name: random(run, *places, width, seed=i) for i, (name, width) in enumerate(widths.items())}

    def plain(q, k, v):
        weight = torch.softmax(q @ k.mT, dim=-1)
        return (weight / (1e-9 + weight.sum(1, keepdim=True))).mT @ v

    return differentiable({OURS: surface_attention, "naive": plain}, inputs, mode)


# --- the list --------------------------------------------------------------------------------------------------------

POWERS = [1 << power for power in range(10, 21, 2)]  # 1,024 to 1,048,576
Sizes = Sequence[tuple[int, ...]]
SIZES: dict[str, dict[str, Sizes]] = {
    "farthest_point_sample BNS": {
        "grows": [(1, n, 512) for n in POWERS],
        "others": [(1, 8192, 2048), (1, 65536, 4096), (8, 2048, 512), (32, 1024, 512), (32, 4096, 1024)],
    },
    "knn BNK": {
        "grows": [(1, n, 16) for n in POWERS],
        "others": [(1, 8192, k) for k in (8, 16, 32, 64)] + [(8, 2048, 32), (32, 1024, 16), (32, 4096, 16)],
    },
    "ball_query BNSK": {
        "grows": [(1, n, n // 4, 32) for n in POWERS],
        "others": [(32, 1024, 256, 32), (16, 4096, 1024, 64)],
    },
    "local_reference_axis BNK": {
        "grows": [(1, n, 32) for n in (4096, 65536, 1 << 20)],
        "others": [(4, 256, 16), (1, 4096, 8), (1, 4096, 16), (8, 4096, 32)],
    },
    "gather_neighbors BNSKC": {
        "others": [(4, 256, 64, 16, 32), (16, 1024, 512, 16, 64), (32, 4096, 1024, 32, 64)],
    },
    "three_interpolate BNSC": {
        "others": [(4, 64, 256, 32), (16, 256, 1024, 128), (32, 1024, 4096, 128)],
    },
    "gather_max BNSKCD": {
        "others": [(4, 128, 64, 16, 64, 64), (16, 512, 256, 16, 64, 64), (16, 128, 64, 64, 256, 64)],
        "without local features": [(32, 4096, 1024, 32, 64, 0)],
    },
    "surface_properties BNSK": {
        "others": [(4, 256, 64, 16), (16, 1024, 512, 8), (16, 512, 256, 16), (16, 256, 128, 32), (16, 128, 64, 64)],
        "large": [(32, 4096, 1024, 32)],
    },
    "surface_attention BSKC": {
        "others": [(4, 64, 16, 64), (16, 512, 8, 64), (16, 256, 16, 64), (16, 128, 32, 64), (16, 64, 64, 64)],
        "points": [(4, 64, 0, 64), (16, 512, 0, 32), (16, 1024, 0, 32), (16, 64, 0, 256)],
    },
}
DIFFERENTIABLE = ("gather_neighbors", "three_interpolate", "gather_max", "surface_attention")
OPERATORS = [key.split()[0] for key in SIZES]


def needs(operator: str, mode: str, sizes: dict[str, int]) -> dict[str, float]:
    """The terms of the lower bound. Inputs are read once and outputs written once, in float32 and int64. A backward
    also reads the gradient of the output, and writes a gradient of every input."""
    B, N, S, K, C, D = (sizes.get(letter, 0) for letter in "BNSKCD")
    backward = mode == "backward"
    if operator == "farthest_point_sample":
        return {"bytes": B * (12 * N + 8 * S), "samples": S}
    if operator == "knn":
        return {"bytes": B * N * (12 + 8 * K), "pairs": B * N * N}
    if operator == "ball_query":
        return {"bytes": B * (12 * (N + S) + 8 * S * K), "pairs": B * N * S}
    if operator == "local_reference_axis":
        return {"bytes": 24 * B * N, "pairs": B * N * N}
    if operator == "gather_neighbors":
        return {"bytes": B * (4 * C * (N + S * K) + 8 * S * K)}
    if operator == "three_interpolate":
        return {"bytes": B * (4 * C * (N + S) + 36 * S)}
    if operator == "surface_properties":
        return {"bytes": B * (24 * (N + S) + S * K * (8 + 8 + 14 * 4))}
    if operator == "gather_max":
        moved = B * (4 * C * (N + 2 * S) + S * K * (8 + 4 * D))
        if backward:  # only the winners get gradients
            return {"bytes": moved + 4 * B * (C * (N + S) + S * K * D), "operations": 4 * B * S * C * D}
        return {"bytes": moved, "operations": 2 * B * S * K * C * D}
    if operator == "surface_attention":
        places, others = (B * S * K, K) if K else (B * S, S)
        # forward q kᵀ and A v; backward q kᵀ again, then the gradients of q, k (C/4) and of A, v (C)
        return {
            "bytes": 4 * places * C * (4.0 if backward else 2.5),
            "operations": 2 * places * others * C * (2.75 if backward else 1.25),
        }
    raise KeyError(operator)


def modes(operator: str) -> tuple[str, ...]:
    return ("forward", "backward") if operator in DIFFERENTIABLE else ("",)


def case(operator: str, mode: str, sizes: dict[str, int], grows: bool = False) -> Case:
    make = globals()[f"make_{operator}"]
    differ = {
        "farthest_point_sample": samples_differ,
        "ball_query": lists_differ,
        "local_reference_axis": axes_differ,
    }
    return Case(
        operator=f"{operator}, {mode}" if mode else operator,
        sizes=sizes,
        make=functools.partial(make, mode=mode) if mode else make,
        differ=differ.get(operator, entries_differ),
        expected=samples_from if operator == "farthest_point_sample" else None,
        grows=grows,
        **needs(operator, mode, sizes),
    )


def all_cases() -> list[Case]:
    """Small ones first, so that compilers and predictions have done their work when the large ones come."""
    return [
        case(key.split()[0], mode, dict(zip(key.split()[1], size)), group == "grows")
        for key, groups in SIZES.items()
        for mode in modes(key.split()[0])
        for group, sizes in groups.items()
        for size in sizes
    ]
