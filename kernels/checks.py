"""Argument checks and dtypes shared by the operators. Every message names the argument, what it was, what it may be."""

import torch
from torch import Tensor

# dtypes of floating-point arguments, and of coordinates
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COORDINATES = (torch.float32, torch.float64)


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that sums over `tensor` are held in: half types lose too much, and integers stay exact."""
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else torch.int64


def can_look(values: Tensor) -> bool:
    """Whether values may be checked: on a GPU a check would wait for the device, and while tracing there are none."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def check_points(points: Tensor, name: str = "points", dimensions: int | None = 3) -> None:
    """Raise unless `points` is a non-empty (B, N, 3) tensor, float32 or float64, and finite (checked on a CPU only).

    With `dimensions` None the shape may be (B, N, D) with any D.
    """
    shape = f"(B, N, {dimensions or 'D'})"
    if not isinstance(points, Tensor):
        raise TypeError(f"{name} must be a tensor of shape {shape}, got {type(points).__name__}")
    if points.ndim != 3 or points.shape[-1] != (dimensions or points.shape[-1]):
        raise ValueError(f"{name} must have shape {shape}, got {tuple(points.shape)}")
    if points.dtype not in COORDINATES:
        raise TypeError(f"{name} must be float32 or float64 (geometry needs the digits), got {points.dtype}")
    if points.numel() == 0:
        raise ValueError(f"{name} must hold at least one cloud of at least one point, got shape {tuple(points.shape)}")
    # a single reduction: zero times NaN or infinity is NaN, and a sum keeps it
    if can_look(points) and not torch.isfinite(points.detach().mul(0).sum()):
        bad = (~torch.isfinite(points).all(-1)).nonzero()
        cloud, point = bad[0].tolist()
        raise ValueError(
            f"{name} must be finite: {len(bad)} points hold NaN or infinity, the first is point {point} of cloud "
            f"{cloud}: {points[cloud, point].tolist()}"
        )


def check_normals(normals: Tensor, points: Tensor, name: str = "normals") -> None:
    """Raise unless `normals` has the shape and dtype of `points`, and holds unit vectors (to 1 %, on a CPU only)."""
    if not isinstance(normals, Tensor) or normals.shape != points.shape:
        got = tuple(normals.shape) if isinstance(normals, Tensor) else type(normals).__name__
        raise ValueError(f"{name} must have the shape of the points, {tuple(points.shape)}, got {got}")
    if normals.dtype != points.dtype:
        raise TypeError(f"{name} must have the dtype of the points, {points.dtype}, got {normals.dtype}")
    if not can_look(normals):
        return
    # a product with ones: a sum over an axis of length three would not be vectorized
    squared = normals.detach().square() @ normals.new_ones(3)
    unit = (squared - 1).abs() < 2e-2  # of the square: 1 % of the length
    if not unit.all():
        cloud, point = (~unit).nonzero()[0].tolist()
        raise ValueError(
            f"{name} must be unit vectors: {int((~unit).sum())} are not, the first is of point {point} of cloud "
            f"{cloud}: {normals[cloud, point].tolist()}"
        )


def check_same_clouds(queries: Tensor, points: Tensor) -> None:
    """Raise unless queries (B, S, 3) and points (B, N, 3) agree in batch size, dtype and device."""
    check_points(points, "points")
    check_points(queries, "queries")
    if queries.shape[0] != points.shape[0]:
        raise ValueError(f"queries are of {queries.shape[0]} clouds, but points of {points.shape[0]}")
    if queries.dtype != points.dtype or queries.device != points.device:
        raise TypeError(
            f"queries ({queries.dtype}, {queries.device}) and points ({points.dtype}, {points.device}) must agree"
        )


def check_count(count: int, name: str, at_most: int, of_what: str, at_least: int = 1) -> None:
    """Raise unless `count` is an integer in `at_least`..`at_most`; `at_most` is the number of `of_what`."""
    if not isinstance(count, int) or isinstance(count, bool):
        raise TypeError(f"{name} must be an integer, got {count!r}")
    if not at_least <= count <= at_most:
        raise ValueError(f"{name} must lie in {at_least}..{at_most} (the number of {of_what}), got {count}")


def check_index(index: Tensor, batch: int, name: str = "index") -> None:
    """Raise unless `index` is (B, S) or (B, S, K) int64."""
    if index.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {index.dtype}")
    if index.ndim < 2 or len(index) != batch:
        raise ValueError(f"{name} must have shape (B, S) or (B, S, K) with B = {batch}, got {tuple(index.shape)}")


def check_range(index: Tensor, size: int, name: str = "index") -> None:
    """On a CPU, raise unless the values of `index` lie in 0..size-1.

    The operators call it inside, so that traced graphs are checked, too: the compiled loops check no bounds.
    """
    if index.device.type == "cpu" and index.numel():
        lowest, highest = index.aminmax()
        if lowest < 0 or highest >= size:
            raise IndexError(f"{name} must lie in 0..{size - 1}, got values from {lowest} to {highest}")


def check_lengths(lengths: Tensor | None, points: Tensor) -> None:
    """Raise unless `lengths` is None or (B,) int64 on the device of `points`, in 1..N (checked on a CPU only)."""
    if lengths is None:
        return
    batch, size = points.shape[:2]
    if not isinstance(lengths, Tensor) or lengths.dtype != torch.int64 or lengths.shape != (batch,):
        got = f"{lengths.dtype} {tuple(lengths.shape)}" if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ValueError(f"lengths must be an int64 tensor of shape ({batch},), one per cloud, got {got}")
    if lengths.device != points.device:
        raise ValueError(f"lengths must be on the device of the points, {points.device}, got {lengths.device}")
    if can_look(lengths):
        lowest, highest = lengths.aminmax()
        if lowest < 1 or highest > size:
            raise ValueError(f"lengths must lie in 1..{size}, got values from {lowest} to {highest}")


def check_floats(**tensors: Tensor) -> None:
    """Raise unless all tensors are floating point, on the device of the first."""
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must be floating point (float16 to float64), got {tensor.dtype}")
        if tensor.device != tensors[first].device:
            raise ValueError(f"{name} must be on the device of {first}, {tensors[first].device}, got {tensor.device}")


def check_one_dtype(**tensors: Tensor) -> None:
    """Raise unless all tensors are of one floating-point dtype, on one device."""
    *others, last = tensors
    names = f"{', '.join(others)} and {last}" if others else last
    dtypes = [tensor.dtype for tensor in tensors.values()]
    if len(set(dtypes)) > 1 or dtypes[0] not in FLOATS:
        raise TypeError(f"{names} must be of one floating-point dtype, got {', '.join(map(str, dtypes))}")
    devices = [tensor.device for tensor in tensors.values()]
    if len(set(devices)) > 1:
        raise ValueError(f"{names} must be on one device, got {', '.join(map(str, devices))}")


def check_maps(q: Tensor, k: Tensor, v: Tensor) -> None:
    """Raise unless q, k and v are maps (B, H, W, heads, channels) that agree where an attention needs it."""
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 5:
        raise ValueError(f"q, k and v must have shape (B, H, W, heads, channels), got {shapes}")
    if k.shape[:-1] != v.shape[:-1]:
        raise ValueError(f"k and v must have one shape but for their last axis, got {shapes}")
    if q.shape[0] != k.shape[0] or q.shape[3:] != k.shape[3:]:
        raise ValueError(f"q and k must agree in images, heads and channels, got {shapes}")
    if 0 in q.shape[1:] or 0 in k.shape[1:] or 0 in v.shape[1:]:
        raise ValueError(f"q, k and v must have heights, widths, heads and channels of at least 1, got {shapes}")
    check_one_dtype(q=q, k=k, v=v)
