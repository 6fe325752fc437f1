"""Argument checks and dtypes shared by the operators. Every message names the argument, what it was, what it may be.

Integers, numbers and flags are Python's own: a bool is no integer, and a NumPy number or a tensor is none of the three.
"""

import math
import sys
from typing import Any

import torch
from torch import Tensor

# dtypes of floating-point arguments, of coordinates, and of rows that are only moved or summed
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COORDINATES = (torch.float32, torch.float64)
REALS = (*FLOATS, torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool)


def sum_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype that sums over `tensor` are held in: half types lose too much, and integers stay exact."""
    return torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else torch.int64


def can_look(values: Tensor) -> bool:
    """Whether values may be checked: on a GPU a check would wait for the device, and while tracing there are none."""
    return values.device.type == "cpu" and not torch.compiler.is_compiling()


def _shown(value: Any) -> str:
    """What a message says of a value: a tensor's shape, the beginning of anything else."""
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r:.60}"


def check_tensors(**tensors: Any) -> None:
    """Raise unless all are tensors."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a tensor, got {_shown(tensor)}")


def check_integer(value: Any, name: str, at_least: int = 1, at_most: int = 2**31 - 1) -> None:
    """Raise unless `value` is an integer in `at_least`..`at_most`."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {_shown(value)}")
    if not at_least <= value <= at_most:
        raise ValueError(f"{name} must lie in {at_least}..{at_most}, got {value}")


def check_number(value: Any, name: str, positive: bool = False) -> None:
    """Raise unless `value` is a finite number of at least 0, or above 0 if `positive`."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {_shown(value)}")
    if not (value > 0 if positive else value >= 0) or value > sys.float_info.max:
        raise ValueError(f"{name} must be {'positive' if positive else 'at least 0'} and finite, got {_shown(value)}")


def check_flags(**flags: Any) -> None:
    """Raise unless all are True or False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool):
            raise TypeError(f"{name} must be True or False, got {_shown(flag)}")


def check_choice(value: Any, name: str, choices: tuple[str, ...]) -> None:
    """Raise unless `value` is one of some words."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {_shown(value)}")


def check_devices(**tensors: Tensor) -> None:
    """Raise unless all tensors are on the device of the first."""
    first = next(iter(tensors))
    for name, tensor in tensors.items():
        if tensor.device != tensors[first].device:
            raise ValueError(f"{name} must be on the device of {first}, {tensors[first].device}, got {tensor.device}")


def check_points(points: Tensor, name: str = "points", dimensions: int | None = 3, any_magnitude: bool = False) -> None:
    """Raise unless `points` is a non-empty (B, N, 3) tensor, float32 or float64, and finite (checked on a CPU only).

    With `dimensions` None the shape may be (B, N, D) with any D. Unless `any_magnitude`, distances have finite squares.
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
    if not any_magnitude:
        check_magnitude(points, name)


def check_magnitude(points: Tensor, name: str) -> None:
    """Raise if a distance of two points (..., D) of such coordinates may have an infinite square (on a CPU only)."""
    if can_look(points) and points.numel():
        limit = math.sqrt(torch.finfo(points.dtype).max / (4 * points.shape[-1]))
        largest = max(abs(float(bound)) for bound in points.detach().aminmax())
        if largest > limit:
            advice = "scale the points" + (" down, or pass float64" if points.dtype == torch.float32 else " down")
            raise ValueError(
                f"{name} must lie within {limit:.1e} of 0, so that squares of distances are finite in {points.dtype}; "
                f"got {largest:.1e}: {advice}"
            )


def check_normals(normals: Tensor, points: Tensor, name: str = "normals") -> None:
    """Raise unless `normals` has the shape and dtype of `points`, and holds unit vectors (to 1 %, on a CPU only)."""
    if not isinstance(normals, Tensor) or normals.shape != points.shape:
        got = tuple(normals.shape) if isinstance(normals, Tensor) else type(normals).__name__
        raise ValueError(f"{name} must have the shape of the points, {tuple(points.shape)}, got {got}")
    if normals.dtype != points.dtype:
        raise TypeError(f"{name} must have the dtype of the points, {points.dtype}, got {normals.dtype}")
    if normals.device != points.device:
        raise ValueError(f"{name} must be on the device of the points, {points.device}, got {normals.device}")
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


def check_clouds(queries: Tensor, points: Tensor, dimensions: int | None = 3) -> None:
    """Raise unless queries (B, S, D) and points (B, N, D) are clouds that agree in B, D, dtype and device.

    With `dimensions` None D may be any number.
    """
    check_points(points, "points", dimensions)
    if queries is not points:
        check_points(queries, "queries", dimensions)
    if queries.shape[0] != points.shape[0]:
        raise ValueError(f"queries must be of as many clouds as points, {points.shape[0]}, got {queries.shape[0]}")
    if queries.shape[2] != points.shape[2]:
        raise ValueError(f"queries must have the {points.shape[2]} dimensions of points, got {queries.shape[2]}")
    if queries.dtype != points.dtype or queries.device != points.device:
        raise TypeError(
            f"queries and points must agree in dtype and device, got {queries.dtype} on {queries.device} and "
            f"{points.dtype} on {points.device}"
        )


def check_count(count: int, name: str, at_most: int, of_what: str, at_least: int = 1) -> None:
    """Raise unless `count` is an integer in `at_least`..`at_most`; `at_most` is the number of `of_what`."""
    check_integer(count, name, -sys.maxsize, sys.maxsize)
    if not at_least <= count <= at_most:
        raise ValueError(f"{name} must lie in {at_least}..{at_most} (the number of {of_what}), got {count}")


def check_index(index: Tensor, like: Tensor, of: str) -> None:
    """Raise unless `index` is (B, S) or (B, S, K) int64, for the B clouds and on the device of `like`, named `of`."""
    check_tensors(index=index)
    if index.dtype != torch.int64:
        raise TypeError(f"index must be int64, got {index.dtype}")
    if index.ndim not in (2, 3) or index.shape[0] != like.shape[0]:
        raise ValueError(
            f"index must have shape (B, S) or (B, S, K) with B = {like.shape[0]}, got {tuple(index.shape)}"
        )
    if index.device != like.device:
        raise ValueError(f"index must be on the device of the {of}, {like.device}, got {index.device}")


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
    """Raise unless all are floating-point tensors, on the device of the first."""
    check_tensors(**tensors)
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must be floating point (float16 to float64), got {tensor.dtype}")
    check_devices(**tensors)


def check_one_dtype(**tensors: Tensor) -> None:
    """Raise unless all are tensors of one floating-point dtype, on one device."""
    check_tensors(**tensors)
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
    check_tensors(q=q, k=k, v=v)
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
