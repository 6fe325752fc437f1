"""Random calls of every operator of `attlas.kernels`, and what may become of one.

    OPERATORS[name]                    the function, and what draws its keywords
    spoiled(keywords, draw)            the same keywords, one of them made wrong, odd, infinite or NaN
    run(name, keywords, mode)          outputs and gradients by one path
    agreement(name, keywords)          calls it on the CPU's path and on the reference, and compares

Sizes are small and odd, with 0 and 1 among them; dtypes, strides and `requires_grad` are drawn, too.
"""

import inspect
import math
import os
import random
import re
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attlas import kernels
from attlas.kernels import ragged
from attlas.kernels.surface_properties import ordered_properties

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Draw(random.Random):
    """Random numbers, sizes and tensors."""

    def __init__(self, seed: int):
        super().__init__(seed)
        self.generator = torch.Generator().manual_seed(seed)

    def size(self, most: int = 33, least: int = 0) -> int:
        size = self.choice((0, 1, 1, 1, 2, 2, 3, 3, 4, 5, 5, 7, 8, 9, 16, 17, 33))
        return max(least, min(size, most))

    def batch(self) -> int:
        return self.choice((0, 1, 1, 1, 2, 2, 3))

    def dtype(self) -> torch.dtype:
        return self.choice((*FLOATS, torch.float32))

    def coordinates(self) -> torch.dtype:
        return self.choice((torch.float32, torch.float64))

    def tensor(self, *shape: int, dtype: torch.dtype = torch.float32, expanded: bool = True) -> Tensor:
        values = torch.randn(shape, generator=self.generator, dtype=torch.float64) * self.choice((1, 1, 1, 0.01, 2))
        return self.strided(values.to(dtype), expanded).requires_grad_(self.random() < 0.8)

    def index(self, *shape: int, below: int) -> Tensor:
        return self.strided(torch.randint(max(1, below), shape, generator=self.generator))

    def strided(self, x: Tensor, expanded: bool = True) -> Tensor:
        """The same values, or rows of them repeated, in another layout."""
        match self.randrange(6):
            case 0 if x.ndim > 1:  # axes in another order in memory
                order = self.sample(range(x.ndim), x.ndim)
                return x.permute(order).contiguous().permute([order.index(i) for i in range(x.ndim)])
            case 1 if x.ndim:  # every second number
                return torch.stack([x, x], -1).flatten(-2)[..., ::2]
            case 2 if expanded and x.numel() and self.random() < 0.3:  # one row, expanded
                axis = self.randrange(x.ndim)
                return x.narrow(axis, 0, 1).expand_as(x)
            case 3:  # a part of something larger
                return torch.cat([x, x], 0)[: len(x)] if x.ndim else x
        return x

    def cloud(self, batch: int, size: int, dimensions: int, dtype: torch.dtype) -> Tensor:
        points = torch.randn(batch, size, dimensions, generator=self.generator, dtype=torch.float64)
        if self.random() < 0.2:  # many at one place, and at one distance
            points = points.round()
        return self.strided(
            (points * self.choice((1, 1, 1, 1e-12, 1e-3, 1e3, 1e10)) + self.choice((0, 0, 5))).to(dtype)
        )

    def normals(self, *shape: int, dtype: torch.dtype) -> Tensor:
        normals = torch.randn(*shape, 3, generator=self.generator, dtype=torch.float64)
        return self.strided(F.normalize(normals, dim=-1).to(dtype))

    def maybe(self, make: Callable[[], Any], chance: float = 0.5) -> Any:
        return make() if self.random() < chance else None

    def lengths(self, batch: int, size: int) -> Tensor | None:
        return self.maybe(lambda: torch.randint(1, size + 1, (batch,), generator=self.generator), 0.3)

    def scale(self) -> float | None:
        return self.choice((None, None, 1.0, 0.3, 0, 2))


def _farthest_point_sample(draw: Draw) -> dict:
    points = draw.cloud(draw.batch(), draw.size(200), 3, draw.coordinates())
    batch, size, _ = points.shape
    return dict(
        points=points,
        num_samples=draw.randint(1, max(1, size)),
        start=draw.choice((0, "random", torch.zeros(batch, dtype=torch.int64))),
        lengths=draw.lengths(batch, max(1, size)),
    )


def _search(draw: Draw, most: int) -> dict:
    batch, dtype, dimensions = draw.batch(), draw.coordinates(), draw.choice((1, 2, 3, 3, 3, most))
    points = draw.cloud(batch, draw.size(), dimensions, dtype)
    queries = points if draw.random() < 0.3 else draw.cloud(batch, draw.size(), dimensions, dtype)
    return dict(queries=queries, points=points)


def _knn(draw: Draw) -> dict:
    clouds = _search(draw, 5)
    batch, size, _ = clouds["points"].shape
    return dict(**clouds, k=draw.randint(1, max(1, size)), lengths=draw.lengths(batch, max(1, size)))


def _combiner(draw: Draw) -> dict:
    shape, dim, dtype = (draw.batch(), draw.choice((1, 2)), draw.size(17, 1)), draw.size(9, 1), draw.dtype()
    return {name: draw.tensor(*shape, n, dtype=dtype) for name, n in (("q", dim), ("k", dim), ("v", draw.size(9, 1)))}


def _combiner_logsparse(draw: Draw) -> dict:
    return _combiner(draw)


def _combiner_rows(draw: Draw) -> dict:
    return dict(**_combiner(draw), segment=draw.size(9, 1), pad=draw.random() < 0.9)


def _combiner_fixed(draw: Draw) -> dict:
    keywords = _combiner_rows(draw)
    q = keywords["q"]
    pooled = {name: draw.maybe(lambda: draw.tensor(*q.shape, dtype=q.dtype), 0.3) for name in ("pool_q", "pool_k")}
    return dict(**keywords, **pooled, causal=draw.random() < 0.5, pooling=draw.choice(("max", "sum", "mean")))


def _combiner_rowmajor(draw: Draw) -> dict:
    keywords = _combiner_rows(draw)
    of_rows = {
        name: draw.maybe(lambda like=like: draw.tensor(*like.shape, dtype=like.dtype), 0.3)
        for name, like in (("row_keys", keywords["q"]), ("row_values", keywords["v"]))
    }
    return dict(**keywords, **of_rows, causal=draw.random() < 0.5)


def _combiner_mixture(draw: Draw) -> dict:
    causal = draw.random() < 0.5
    empty = "masked" if causal else draw.choice(("masked", "mean"))
    return dict(**_combiner_rows(draw), causal=causal, pooling=draw.choice((None, "max", "sum", "mean")), empty=empty)


def _ball_query(draw: Draw) -> dict:
    clouds = _search(draw, 3)
    batch, size, _ = clouds["points"].shape
    return dict(
        **clouds,
        radius=draw.choice((0.1, 0.5, 1, 3.0, 1e-30, 1e30)),
        k=draw.size(least=1),
        lengths=draw.lengths(batch, max(1, size)),
    )


def _three_nn(draw: Draw) -> dict:
    clouds = _search(draw, 5)
    for cloud in clouds.values():
        cloud.requires_grad_()
    return dict(**clouds, k=draw.choice((1, 2, 3, 3, 9)))


def _rows(draw: Draw, real: bool = True) -> Tensor:
    shape = draw.batch(), draw.size(), draw.size()
    if real and draw.random() < 0.2:
        return draw.strided(
            torch.randint(9, shape, generator=draw.generator).to(draw.choice((torch.int64, torch.uint8)))
        )
    return draw.tensor(*shape, dtype=draw.dtype())


def _gather_neighbors(draw: Draw) -> dict:
    features = _rows(draw)
    batch, size, _ = features.shape
    shape = (draw.size() if size else 0, *([draw.size()] if draw.random() < 0.5 else []))
    return dict(features=features, index=draw.index(batch, *shape, below=size))


def _scatter_neighbors(draw: Draw) -> dict:
    values, number = _rows(draw), draw.size(least=1)
    if draw.random() < 0.5:
        values = values.detach().unsqueeze(2).expand(-1, -1, 3, -1).requires_grad_(values.is_floating_point())
    return dict(values=values, index=draw.index(*values.shape[:-1], below=number), num_points=number)


def _gather_max(draw: Draw) -> dict:
    batch, queries, k, size, channels, dtype = (
        draw.batch(),
        draw.size(),
        draw.size(least=1),
        draw.size(),
        draw.size(),
        draw.dtype(),
    )
    keywords: dict[str, Any] = dict(features=None, index=None, shift=None, local=None, weight=None)
    which = draw.choice(("features", "local", "both"))
    if which != "local":
        queries = queries if size else 0
        keywords["features"] = draw.tensor(batch, size, channels, dtype=dtype)
        keywords["index"] = draw.index(batch, queries, k, below=size)
    if which != "features":
        depth = draw.size()
        keywords["local"] = draw.tensor(batch, queries, k, depth, dtype=dtype, expanded=False)  # rounding decides ties
        keywords["weight"] = draw.tensor(channels, depth, dtype=dtype)
    keywords["shift"] = draw.maybe(lambda: draw.tensor(batch, queries, channels, dtype=dtype))
    return dict(**keywords, relu=draw.random() < 0.5)


def _three_interpolate(draw: Draw) -> dict:
    features = _rows(draw, real=False)
    batch, size, _ = features.shape
    shape = batch, draw.size() if size else 0, draw.choice((1, 3, 3, 5))
    return dict(features=features, index=draw.index(*shape, below=size), weight=draw.tensor(*shape, dtype=draw.dtype()))


def _neighbor_moments(draw: Draw) -> dict:
    dtype = draw.coordinates()
    local = draw.tensor(draw.batch(), draw.size(17), draw.size(9), draw.size(9), dtype=dtype)
    if draw.random() < 0.3:
        return dict(local=local, index=None, features=None)
    size = draw.size(least=1)
    features = draw.tensor(len(local), size, draw.size(9), dtype=dtype)
    return dict(local=local, index=draw.index(*local.shape[:3], below=size), features=features)


def _local_reference_axis(draw: Draw) -> dict:
    points = draw.cloud(draw.batch(), draw.size(least=5), 3, draw.coordinates())
    return dict(points=points, k=draw.randint(5, points.shape[1]), sign=draw.choice(("projection", "solver")))


def _principal_axis(draw: Draw) -> dict:
    offsets = draw.cloud(draw.batch(), draw.size(least=1), 3, draw.coordinates())
    return dict(
        offsets=offsets if draw.random() < 0.5 else offsets.unsqueeze(1), sign=draw.choice(("projection", "solver"))
    )


def _surface_properties(draw: Draw) -> dict:
    batch, size, queries, dtype = draw.batch(), draw.size(least=1), draw.size(), draw.coordinates()
    return dict(
        points=draw.cloud(batch, size, 3, dtype),
        normals=draw.normals(batch, size, dtype=dtype),
        queries=draw.cloud(batch, queries, 3, dtype),
        query_normals=draw.normals(batch, queries, dtype=dtype),
        index=draw.index(batch, queries, draw.size(least=1), below=size),
        step=draw.choice((1, 1, 2, 7, 2**31 - 1)),
        reference_sign=draw.choice(("fixed", "rounding")),
    )


def _ordered_properties(draw: Draw) -> dict:
    batch, size, dtype = draw.batch(), draw.size(least=1), draw.coordinates()
    return dict(
        points=draw.cloud(batch, size, 3, dtype),
        normals=draw.normals(batch, size, dtype=dtype),
        axis=draw.normals(batch, dtype=dtype),
        reference_sign=draw.choice(("fixed", "rounding")),
    )


def _surface_attention(draw: Draw) -> dict:
    shape = draw.batch(), *draw.choice(((draw.size(),), (draw.size(9), draw.size(17)), (1, draw.size())))
    dtype, depth = draw.dtype(), draw.size(9)
    return dict(
        q=draw.tensor(*shape, depth, dtype=dtype),
        k=draw.tensor(*shape, depth, dtype=dtype),
        v=draw.tensor(*shape, draw.size(9), dtype=dtype),
        normalize=draw.choice(("points", "queries")),
    )


def _residual_norm(draw: Draw) -> dict:
    shape, dtype = (draw.batch(), draw.size(), draw.size()), draw.dtype()
    wide = torch.promote_types(dtype, torch.float32)
    return dict(
        x=draw.tensor(*shape, dtype=dtype),
        t=draw.tensor(*shape, dtype=dtype),
        weight=draw.tensor(shape[-1], dtype=wide),
        bias=draw.tensor(shape[-1], dtype=wide),
        eps=draw.choice((1e-2, 0.1, 1)),
    )


def _small_kernel_aggregate(draw: Draw) -> dict:
    batch, (height, width), kernels, k = (
        draw.batch(),
        (draw.size(9), draw.size(9)),
        draw.choice((1, 2, 3)),
        draw.choice((1, 3, 5, 7)),
    )
    channels = kernels * draw.choice((1, 1, 2, 3))
    return dict(
        x=draw.tensor(batch, channels, height, width, dtype=draw.dtype()),
        weight=draw.tensor(batch, kernels, k * k, height, width, dtype=draw.dtype()),
    )


def _heads_and_state(draw: Draw, *length: int) -> dict:
    batch, heads, dtype = draw.batch(), draw.choice((0, 1, 2, 3)), draw.dtype()
    depth, width, wide = draw.size(17), draw.size(17), torch.promote_types(dtype, torch.float32)
    shapes = [(batch, heads, *length, channels) for channels in (depth, depth, width)]
    slopes = torch.rand(heads, generator=draw.generator) * draw.choice((0, 0.1, 1, 100))
    return dict(
        **{name: draw.tensor(*shape, dtype=dtype) for name, shape in zip("qkv", shapes)},
        slopes=draw.maybe(lambda: draw.strided(slopes.to(draw.coordinates()), expanded=False)),
        state=draw.maybe(lambda: draw.tensor(batch, heads, depth, width, dtype=wide)),
    )


def _lightning_attention(draw: Draw) -> dict:
    return _heads_and_state(draw, draw.size())


def _lightning_attention_step(draw: Draw) -> dict:
    return _heads_and_state(draw)


def _lightning_attention_both_ways(draw: Draw) -> dict:
    keywords = _lightning_attention(draw)
    return {name: keywords[name] for name in ("q", "k", "v", "slopes")}


def _outlook_attention(draw: Draw) -> dict:
    batch, height, width, heads, k = (
        draw.batch(),
        draw.size(9),
        draw.size(9),
        draw.choice((1, 1, 2)),
        draw.choice((1, 3)),
    )
    stride = draw.choice((1, 2)) if k == 3 else 1
    grid = -(-height // stride), -(-width // stride)
    return dict(
        values=draw.tensor(batch, height, width, heads, draw.size(9), dtype=draw.dtype()),
        logits=draw.tensor(batch, *grid, heads, k * k, k * k, dtype=draw.dtype()),
        stride=stride,
        scale=draw.choice((1.0, 0.5)),
    )


def _deformable_convolution(draw: Draw) -> dict:
    batch, size = draw.batch(), (draw.size(9, 1), draw.size(9, 1))
    kernel = draw.choice(((1, 1), (3, 3), (2, 3), (3, 1)))
    groups, offset_groups = draw.choice((1, 1, 2, 3)), draw.choice((1, 1, 2))
    depth = offset_groups * draw.choice((1, 1, 2, 3))
    stride, padding, dilation = (tuple(draw.choice(few) for _ in "yx") for few in ((1, 1, 2), (0, 1, 2, 4), (1, 1, 2)))
    padding = [max(p, d * (k - 1)) for p, d, k in zip(padding, dilation, kernel)]  # the map may be of one pixel
    outputs = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in zip(size, padding, dilation, kernel, stride)]
    taps, out = offset_groups * kernel[0] * kernel[1], groups * draw.choice((1, 2, 3))
    return dict(
        x=draw.tensor(batch, groups * depth, *size, dtype=draw.dtype()),
        offset=draw.tensor(batch, 2 * taps, *outputs, dtype=draw.dtype()),
        weight=draw.tensor(out, depth, *kernel, dtype=draw.dtype()),
        bias=draw.maybe(lambda: draw.tensor(out, dtype=draw.dtype())),
        mask=draw.maybe(lambda: draw.tensor(batch, taps, *outputs, dtype=draw.dtype())),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
    )


def _carafe(draw: Draw) -> dict:
    batch, size, scale = draw.batch(), (draw.size(9, 1), draw.size(9, 1)), draw.choice((1, 2, 2, 3))
    groups, kernel = draw.choice((1, 1, 2)), draw.choice((1, 3, 5))
    return dict(
        features=draw.tensor(batch, groups * draw.choice((1, 2, 3)), *size, dtype=draw.dtype()),
        masks=draw.tensor(batch, groups * kernel**2, *(scale * length for length in size), dtype=draw.dtype()),
        kernel_size=kernel,
    )


def _nprf_attention(draw: Draw) -> dict:
    """On a line or a grid, sometimes with class tokens."""
    dtype, heads, dim, m = draw.dtype(), draw.choice((1, 2)), draw.size(9, 1), draw.choice((1, 2, 5))
    grid = draw.choice(((draw.size(9, 1),), (draw.size(4, 1), draw.size(4, 1))))
    tokens = draw.choice((0, 0, 1, 2))
    shape = draw.batch(), heads, tokens + math.prod(grid)
    return dict(
        q=draw.tensor(*shape, dim, dtype=dtype),
        k=draw.tensor(*shape, dim, dtype=dtype),
        v=draw.tensor(*shape, draw.size(9, 1), dtype=dtype),
        features=draw.tensor(*draw.choice(((), (heads,))), m, dim, dtype=draw.dtype()),
        bias=draw.tensor(heads, *(2 * n - 1 for n in grid), dtype=draw.dtype()),
        token_bias=draw.tensor(heads, 3, dtype=draw.dtype()) if tokens else None,
        causal=not tokens and draw.random() < 0.5,
        form=draw.choice(("auto", "fft", "dense")),
    )


def _psa_mask(draw: Draw) -> dict:
    kernel = draw.choice((1, 2, 3, 5, 9)), draw.choice((1, 2, 3, 5, 9))
    x = draw.tensor(draw.batch(), kernel[0] * kernel[1], draw.size(9, 1), draw.size(9, 1), dtype=draw.dtype())
    return dict(x=x, kernel_size=kernel, mode=draw.choice(("collect", "distribute")))


def _neighborhood_aggregate(draw: Draw) -> dict:
    k, heads = draw.choice((1, 3, 3, 5)), draw.choice((1, 2, 3))
    shape = draw.batch(), draw.size(9, k), draw.size(9, k), heads
    return dict(
        logits=draw.tensor(*shape, k * k, dtype=draw.dtype()),
        v=draw.tensor(*shape, draw.size(9), dtype=draw.dtype()),
        kernel_size=k,
        bias=draw.maybe(lambda: draw.tensor(heads, 2 * k - 1, 2 * k - 1, dtype=draw.dtype())),
    )


def _neighborhood_attention(draw: Draw) -> dict:
    axes = draw.choice((1, 2, 2, 3))
    batch, heads, depth, channels, dtype = (
        draw.batch(),
        draw.choice((1, 2)),
        draw.size(9, 1),
        draw.size(9),
        draw.dtype(),
    )
    kernel = [draw.choice((2, 3)) for _ in range(axes)]
    dilation = [draw.choice((1, 1, 2)) for _ in range(axes)]
    lengths = [k * d + draw.choice((0, 0, 1, 2, 5)) for k, d in zip(kernel, dilation)]
    causal = [draw.random() < 0.15 for _ in range(axes)]
    tokens = draw.choice((1, 3))
    extra = draw.random() < 0.3
    return dict(
        q=draw.tensor(batch, *lengths, heads, depth, dtype=dtype),
        k=draw.tensor(batch, *lengths, heads, depth, dtype=dtype),
        v=draw.tensor(batch, *lengths, heads, channels, dtype=dtype),
        kernel_size=kernel,
        dilation=dilation,
        stride=[draw.randint(1, k) for k in kernel],
        is_causal=causal,
        scale=draw.scale(),
        bias=draw.tensor(heads, *(2 * k - 1 for k in kernel), dtype=draw.dtype())
        if draw.random() < 0.5 and not any(causal)
        else None,
        extra_keys=draw.tensor(batch, tokens, heads, depth, dtype=dtype) if extra else None,
        extra_values=draw.tensor(batch, tokens, heads, channels, dtype=dtype) if extra else None,
        return_lse=draw.random() < 0.3,
    )


def _halo_attention(draw: Draw) -> dict:
    stride, side, halo = draw.choice((1, 1, 2)), draw.choice((1, 2, 3)), draw.choice((0, 1, 2, 5))
    batch, rows, columns, heads = draw.batch(), draw.randint(1, 3), draw.randint(1, 3), draw.choice((1, 2))
    depth, channels, dtype = draw.size(9, 1), draw.size(9, 1), draw.dtype()
    queries, keys = (rows * side, columns * side), (rows * side * stride, columns * side * stride)
    window = side * stride + 2 * halo
    return dict(
        q=draw.tensor(batch, *queries, heads, depth, dtype=dtype),
        k=draw.tensor(batch, *keys, heads, depth, dtype=dtype),
        v=draw.tensor(batch, *keys, heads, channels, dtype=dtype),
        height_rel=draw.tensor(2 * window - 1, depth, dtype=draw.dtype()),
        width_rel=draw.tensor(2 * window - 1, depth, dtype=draw.dtype()),
        block_size=side * stride,
        halo_size=halo,
        scale=draw.scale(),
        scale_position=draw.random() < 0.5,
    )


def _local_cross_attention(draw: Draw) -> dict:
    batch, heads, depth, channels = draw.batch(), draw.choice((1, 2)), draw.size(9, 1), draw.size(9, 1)
    (rows, columns), (height, width), dtype = *((draw.size(9, 1), draw.size(9, 1)) for _ in range(2)), draw.dtype()
    return dict(
        q=draw.tensor(batch, rows, columns, heads, depth, dtype=dtype),
        k=draw.tensor(batch, height, width, heads, depth, dtype=dtype),
        v=draw.tensor(batch, height, width, heads, channels, dtype=dtype),
        halo=draw.choice((0, 0, 1, 5)),
        scale=draw.scale(),
    )


def _window_attention(draw: Draw) -> dict:
    keywords, shift = _halo_attention(draw), draw.choice((0, 0, 1))
    for name in ("height_rel", "width_rel", "scale_position"):
        del keywords[name]
    q, k, block, halo = (keywords[name] for name in ("q", "k", "block_size", "halo_size"))
    side = block * q.shape[1] // k.shape[1]
    shift = shift if halo == 0 and side == block > 1 else 0
    bias = draw.tensor(q.shape[3], side**2, (block + 2 * halo) ** 2, dtype=draw.dtype())
    return dict(**keywords, bias=bias, shift=shift)


def _position_relation(draw: Draw) -> dict:
    batch, sources, targets, heads, dtype = draw.batch(), draw.size(), draw.size(), draw.choice((1, 2, 8)), draw.dtype()
    boxes = [draw.tensor(batch, size, 4, dtype=draw.coordinates()) for size in (sources, targets)]
    source, target = (x.detach().abs().to(boxes[0].dtype).requires_grad_(x.requires_grad) for x in boxes)
    return dict(
        source_boxes=source,
        target_boxes=target,
        weight=draw.tensor(heads, draw.choice((8, 24, 64)), dtype=dtype),
        bias=draw.tensor(heads, dtype=dtype),
        mask=draw.maybe(lambda: draw.strided(torch.rand(sources, targets, generator=draw.generator) < 0.3)),
    )


def _bridging_attention(draw: Draw) -> dict:
    batch, queries, keys, heads = draw.batch(), draw.size(least=1), draw.size(least=1), draw.choice((1, 2, 3))
    depth, dtype, place = draw.size(9, 1), draw.dtype(), draw.coordinates()
    table = draw.tensor(heads, draw.size(9, 2), draw.size(9, 2), dtype=place).detach().abs() + 0.1
    return dict(
        q=draw.tensor(batch, queries, heads, depth, dtype=dtype),
        k=draw.tensor(batch, keys, heads, depth, dtype=dtype),
        v=draw.tensor(batch, keys, heads, draw.size(9, 1), dtype=dtype),
        table=draw.strided(table).requires_grad_(),
        query_positions=draw.cloud(batch, queries, 2, place).requires_grad_(),
        key_positions=draw.cloud(batch, keys, 2, place).requires_grad_(draw.random() < 0.5),
        step=draw.choice((0.1, 1, 3.0)),
        scale=draw.scale(),
    )


def _routed_attention(draw: Draw) -> dict:
    rows, columns, heads, dtype = draw.randint(1, 3), draw.randint(1, 3), draw.choice((1, 2)), draw.dtype()
    batch, depth, regions = draw.batch(), draw.size(9, 1), rows * columns
    shape = batch, rows * draw.randint(1, 4), columns * draw.randint(1, 4), heads
    return dict(
        q=draw.tensor(*shape, depth, dtype=dtype),
        k=draw.tensor(*shape, depth, dtype=dtype),
        v=draw.tensor(*shape, draw.size(9, 1), dtype=dtype),
        index=draw.index(batch, regions, draw.randint(1, 5), below=regions),
        regions=(rows, columns),
        scale=draw.scale(),
    )


def _sparse_attention(draw: Draw) -> dict:
    batch, heads, keys, queries, dtype = draw.batch(), draw.choice((1, 2)), draw.size(9, 1), draw.size(7), draw.dtype()
    depth, topk = draw.size(9, 1), draw.randint(1, min(keys, 6))
    return dict(
        q=draw.tensor(batch, heads, queries + draw.choice((0, 0, 1, 2)), depth, dtype=dtype),
        k=draw.tensor(batch, heads, keys, depth, dtype=dtype),
        v=draw.tensor(batch, heads, keys, draw.size(9, 1), dtype=dtype),
        index=draw.index(batch, heads, queries, topk, below=keys).to(draw.choice((torch.int64, torch.int32))),
        scale=draw.scale(),
    )


def _reversed_attention(draw: Draw) -> dict:
    batch, heads, queries, keys = draw.batch(), draw.choice((1, 2)), draw.size(least=1), draw.size(least=1)
    depth, dtype, shared = draw.size(9, 1), draw.dtype(), draw.random() < 0.2
    return dict(
        q=draw.tensor(batch, heads, queries, depth, dtype=dtype),
        k=draw.tensor(batch, heads, keys, depth, dtype=dtype),
        v=draw.tensor(batch, heads, queries, draw.size(9, 1), dtype=dtype),
        weight=draw.maybe(lambda: draw.tensor(batch, 1 if shared else heads, queries, dtype=dtype)),
        scale=draw.scale(),
    )


def boxes(draw: Draw, count: int, dtype: torch.dtype, rotated: bool = False) -> Tensor:
    """Boxes (count, 4), or (count, 5) in any orientation; some equal, some without an area."""
    corner = torch.randn(count, 2, generator=draw.generator, dtype=torch.float64) * draw.choice((0, 1, 1, 3))
    size = torch.randn(count, 2, generator=draw.generator, dtype=torch.float64).abs() - draw.choice((0, 0, 0.3))
    x = torch.cat([corner, size] if rotated else [corner, corner + size], 1)
    if rotated:
        x = torch.cat([x, torch.randn(count, 1, generator=draw.generator, dtype=torch.float64)], 1)
    if draw.random() < 0.3:
        x = (x * 2).round() / 2
    if not rotated:
        x = x * draw.choice((1, 1, 100, 1e4))
    return draw.strided(x.to(dtype)).requires_grad_(draw.random() < 0.2)


def _bbox_overlaps(draw: Draw, rotated: bool = False) -> dict:
    dtype, count, aligned = draw.dtype(), draw.size(), draw.random() < 0.5
    return dict(
        boxes=boxes(draw, count, dtype, rotated),
        others=boxes(draw, count if aligned else draw.size(), dtype, rotated),
        mode=draw.choice(("iou", "iof")),
        aligned=aligned,
        **({} if rotated else dict(offset=draw.choice((0, 1)))),
    )


def _box_iou_rotated(draw: Draw) -> dict:
    return _bbox_overlaps(draw, rotated=True)


def _nms_match(draw: Draw, rotated: bool = False) -> dict:
    count = draw.choice((draw.size(), draw.size(), 100))
    scores = torch.rand(count, generator=draw.generator, dtype=torch.float64)
    scores = scores if draw.random() < 0.5 else scores.mul(3).round().div(3)
    return dict(
        boxes=boxes(draw, count, draw.dtype(), rotated),
        scores=draw.strided(scores.to(draw.dtype())),
        iou_threshold=draw.choice((0, 0.1, 0.3, 0.5, 0.7, 1.0, 2)),
        **({} if rotated else dict(offset=draw.choice((0, 1)))),
    )


def _nms(draw: Draw, rotated: bool = False) -> dict:
    keywords = _nms_match(draw, rotated)
    groups = draw.maybe(lambda: draw.index(len(keywords["scores"]), below=3) - draw.choice((0, 0, 2**60)))
    return dict(**keywords, groups=groups)


def _nms_rotated(draw: Draw) -> dict:
    return _nms(draw, rotated=True)


def _soft_nms(draw: Draw) -> dict:
    return dict(
        **_nms_match(draw),
        sigma=draw.choice((0.1, 0.5, 3)),
        min_score=draw.choice((0, 1e-3, 0.3)),
        method=draw.choice(("naive", "linear", "gaussian")),
    )


def _sigmoid_focal_loss(draw: Draw) -> dict:
    rows, classes = draw.size(), draw.size(least=1)
    return dict(
        logits=draw.tensor(rows, classes, dtype=draw.dtype()),
        target=draw.index(rows, below=classes + 1),
        weight=draw.maybe(lambda: draw.tensor(classes, dtype=draw.dtype()).detach()),
        gamma=draw.choice((0, 1, 1.5, 2.0)),
        alpha=draw.choice((0, 0.25, 0.5, 1)),
    )


def _softmax_focal_loss(draw: Draw) -> dict:
    keywords = _sigmoid_focal_loss(draw)
    return {**keywords, "target": keywords["target"] - 1}


def _deformable_attention(draw: Draw) -> dict:
    batch, queries, heads, channels = draw.batch(), draw.size(9), draw.choice((1, 2, 3)), draw.size(17)
    levels, places, dtype = draw.choice((1, 1, 2, 3)), draw.choice((0, 1, 2, 3)), draw.dtype()
    sizes = [(draw.size(9, 0 if level else 1), draw.size(9, 0 if level else 1)) for level in range(levels)]
    shape = batch, queries, heads, levels, places
    return dict(
        value=draw.tensor(batch, sum(high * wide for high, wide in sizes), heads, channels, dtype=dtype),
        spatial_shapes=draw.strided(torch.tensor(sizes), expanded=False),
        locations=draw.tensor(*shape, 2, dtype=draw.dtype()),
        weights=draw.tensor(*shape, dtype=draw.dtype()),
    )


def _boxes(draw: Draw, batch: int, side: float) -> Tensor:
    """Boxes (R, 5) of `batch` images of about a side; some of them outside, or of no width or height."""
    count = draw.size(9) if batch else 0
    edges = torch.rand(count, 2, 2, generator=draw.generator, dtype=torch.float64) * 2 * side - side / 2
    if draw.random() < 0.3:
        edges = edges.round()
    image = torch.randint(max(1, batch), (count, 1), generator=draw.generator)
    return draw.strided(torch.cat([image, edges.sort(1).values.flatten(1)], 1).to(draw.dtype()))


def _roi_align(draw: Draw) -> dict:
    features = draw.tensor(draw.batch(), draw.size(17), draw.size(9, 1), draw.size(9, 1), dtype=draw.dtype())
    scale = draw.choice((1.0, 0.5, 0.1, 3.0))
    return dict(
        features=features,
        rois=_boxes(draw, len(features), 9 / scale),
        output_size=draw.choice((1, 2, 3, (2, 5), (7, 1))),
        spatial_scale=scale,
        sampling_ratio=draw.choice((0, 0, 1, 2, 3)),
        mode=draw.choice(("avg", "max")),
        aligned=draw.random() < 0.5,
    )


def _roi_pool(draw: Draw) -> dict:
    keywords = _roi_align(draw)
    return {name: keywords[name] for name in ("features", "rois", "output_size", "spatial_scale")}


def _deform_roi_pool(draw: Draw) -> dict:
    keywords = _roi_align(draw)
    size = keywords["output_size"]
    bins = (size, size) if isinstance(size, int) else size
    offset = draw.maybe(lambda: draw.tensor(len(keywords["rois"]), 2, *bins, dtype=draw.dtype()), 0.8)
    names = ("features", "rois", "output_size", "spatial_scale", "sampling_ratio")
    return {name: keywords[name] for name in names} | dict(offset=offset, gamma=draw.choice((0.1, 0, 1.0)))


def _flat(draw: Draw, most: int = 3) -> dict:
    """x and y with their batches, under the names of `ragged.knn`."""
    dtype, dimensions = draw.coordinates(), draw.choice((1, 2, 3, 3, most))
    keywords = {}
    for name in "xy":
        numbers = sorted(draw.sample(range(6), draw.randrange(5)) + draw.choice(([], [], [2**40])))
        sizes = [draw.size() for _ in numbers]
        batch = torch.tensor(numbers, dtype=torch.int64).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
        keywords[name] = draw.cloud(1, len(batch), dimensions, dtype)[0]
        keywords[f"batch_{name}"] = draw.strided(batch)
        if draw.random() < 0.2:
            keywords[f"batch_{name}"] = None
        if dimensions == 1 and draw.random() < 0.3:
            keywords[name] = keywords[name][:, 0]
    return keywords


def _one(draw: Draw, most: int = 3) -> dict:
    keywords = _flat(draw, most)
    return dict(x=keywords["x"], batch=keywords["batch_x"], batch_size=draw.choice((None, None, None, 6, 2**41)))


def _fps(draw: Draw) -> dict:
    return dict(
        **_one(draw), ratio=draw.choice((0.5, 0.1, 1.0, 1, torch.tensor(0.3))), random_start=draw.random() < 0.5
    )


def _ragged_knn(draw: Draw) -> dict:
    return dict(**_flat(draw, 6), k=draw.choice((1, 2, 5, 40)), cosine=draw.random() < 0.2)


def _ragged_radius(draw: Draw) -> dict:
    return dict(
        **_flat(draw), r=draw.choice((0.1, 0.5, 1, 3.0, 1e-30, 1e30)), max_num_neighbors=draw.choice((1, 3, 32))
    )


def _knn_graph(draw: Draw) -> dict:
    flow = draw.choice(("source_to_target", "target_to_source"))
    return dict(**_one(draw, 6), k=draw.choice((1, 2, 5, 40)), loop=draw.random() < 0.5, flow=flow)


def _radius_graph(draw: Draw) -> dict:
    flow = draw.choice(("source_to_target", "target_to_source"))
    return dict(**_one(draw), r=draw.choice((0.1, 0.5, 3)), loop=draw.random() < 0.5, max_num_neighbors=5, flow=flow)


OPERATORS: dict[str, tuple[Callable, Callable[[Draw], dict]]] = {
    **{name: (getattr(kernels, name), globals()[f"_{name}"]) for name in kernels.__all__},
    "ordered_properties": (ordered_properties, _ordered_properties),
    "ragged.fps": (ragged.fps, _fps),
    "ragged.knn": (ragged.knn, _ragged_knn),
    "ragged.radius": (ragged.radius, _ragged_radius),
    "ragged.knn_graph": (ragged.knn_graph, _knn_graph),
    "ragged.radius_graph": (ragged.radius_graph, _radius_graph),
}


# What is done to one argument, by its type.

OTHERS = (None, "text", [1, 2], 1.5, torch.randn, float("nan"))
INTEGERS = (-1, 0, 1, 2, 3, 1 << 40, 1 << 70, 1.0, True, None, "2", float("nan"), np.float32(2))
NUMBERS = (float("nan"), float("inf"), -1.0, -0.0, 0, 10**400, "1", True, torch.tensor(1.0), [1.0], 1 + 0j)
DTYPES = (*FLOATS, torch.complex64, torch.int32, torch.int64, torch.bool, torch.uint8)


def spoiled(keywords: dict, draw: Draw) -> dict:
    """The keywords, one of them changed."""
    name = draw.choice([*keywords])
    value = keywords[name]
    match value:
        case Tensor():
            value = _spoiled_tensor(value, draw)
        case bool():
            value = draw.choice((1, 0.0, None, "yes", not value))
        case int():
            value = draw.choice((*INTEGERS, value + 1))
        case float():
            value = draw.choice(NUMBERS)
        case str():
            value = draw.choice(("", value + " ", None, 3, [value]))
        case tuple() | list():
            value = draw.choice(
                (value[:-1], [*value, 1], [float(x) for x in value], [-x for x in value], [0, 0], *OTHERS)
            )
        case None:
            value = draw.choice((draw.tensor(2, 3), *OTHERS))
    if isinstance(value, Tensor) and value.requires_grad:
        value = value.detach().requires_grad_()
    return {**keywords, name: value}


def _spoiled_tensor(x: Tensor, draw: Draw) -> Any:
    axis = draw.randrange(max(1, x.ndim))
    match draw.randrange(9):
        case 0:
            return draw.choice(OTHERS)
        case 1:
            return x.detach().to(draw.choice(DTYPES))
        case 2:
            return draw.choice((x.unsqueeze(axis), x.flatten(), x.transpose(0, -1) if x.ndim else x))
        case 3 if x.ndim and x.numel():
            return draw.choice((x.narrow(axis, 0, x.shape[axis] - 1), x.narrow(axis, 0, 0), x[0]))
        case 4 if x.ndim and x.numel():
            one = x.narrow(axis, 0, 1)  # not the same again: rounding would decide between the two
            return torch.cat([x, one / 2 if x.is_floating_point() else one], axis)
        case 5:
            return x.detach().to("meta")
    if x.is_floating_point():
        return infinite(x, draw) if x.numel() else x
    changed = x.clone(memory_format=torch.contiguous_format)
    if x.numel() and x.dtype == torch.int64:
        changed.view(-1)[draw.randrange(x.numel())] = draw.choice((-1, 1 << 40, 100))
    return changed


def infinite(x: Tensor, draw: Draw, whole: Tensor | None = None) -> Tensor:
    """x, or `whole`, whose first rows x is, with an infinity or NaN at one place of x."""
    changed = (x if whole is None else whole).detach().clone(memory_format=torch.contiguous_format)
    changed.view(-1)[draw.randrange(x.numel())] = draw.choice((math.inf, -math.inf, math.nan))
    return changed.requires_grad_(x.requires_grad)


# Two paths of one call.

# relative to the largest number, plus the same absolute: inputs are about 1
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
KERNELS = str(Path(inspect.getfile(kernels)).parent)


def run(name: str, keywords: dict, mode: str) -> tuple[list[Tensor], list[Tensor | None]] | Exception:
    """The outputs and the gradients of the tensors that require one, by the path `mode`; or what was raised."""
    os.environ["ATTLAS_KERNELS"] = mode
    torch.manual_seed(0)  # for a random start
    leaves = [x for x in keywords.values() if isinstance(x, Tensor) and x.requires_grad]
    try:
        outputs = OPERATORS[name][0](**keywords)
        outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
        with_grad, gradients = [x for x in outputs if x.requires_grad], []
        if with_grad:
            grads = [torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x) for x in with_grad]
            gradients = list(torch.autograd.grad(with_grad, leaves, grads, allow_unused=True))
    except Exception as error:
        return error
    finally:
        del os.environ["ATTLAS_KERNELS"]
    return outputs, gradients


def agreement(name: str, keywords: dict, mode: str = "auto") -> str:
    """ "equal" if the path `mode` and the reference agree, "refused" if both raise an error that names an argument,
    else what is wrong."""
    got, expected = run(name, keywords, mode), run(name, keywords, "reference")
    if isinstance(got, Exception) or isinstance(expected, Exception):
        for result in (got, expected):
            if complaint := _complaint(result, keywords):
                return complaint
        return "refused"
    (outputs, gradients), (expected_outputs, expected_gradients) = got, expected
    if name in ("surface_properties", "ordered_properties"):
        outputs, expected_outputs = _of_one_order(outputs, expected_outputs)
    floats = [x for x in keywords.values() if isinstance(x, Tensor) and x.is_floating_point()]
    tolerance = max((TOLERANCE[x.dtype] for x in floats), default=0.0)
    if keywords.get("scale") is not None and keywords["scale"] > 1e6:
        tolerance = math.inf  # rounding decides everything but what is finite
    for i, (x, y) in enumerate(zip(outputs, expected_outputs)):
        if complaint := _difference(x.detach(), y.detach(), tolerance):
            return f"output {i}: {complaint}"
    finite = all(torch.isfinite(x.detach()).all() for x in floats if not x.is_meta)
    for i, (x, y) in enumerate(zip(gradients, expected_gradients)):
        if (x is None) != (y is None):
            return f"gradient {i}: {x} instead of {y}"
        if x is not None and y is not None and (complaint := _difference(x, y, tolerance, more=not finite)):
            return f"gradient {i}: {complaint}"
    return "equal"


def _of_one_order(got: list[Tensor], expected: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Properties of the queries whose neighbors both paths found in the same order, and the neighbors, sorted: where
    they lie at one angle, rounding decides."""
    (properties, index), (expected_properties, expected_index) = got, expected
    same = (index == expected_index).all(-1)
    return [properties[same], index.sort().values], [expected_properties[same], expected_index.sort().values]


def _complaint(result: Any, keywords: dict) -> str | None:
    """What is wrong about an error: it must be raised by a check of ours and name an argument."""
    if not isinstance(result, Exception):
        return "one path computes what the other refuses"
    names = "|".join(map(re.escape, keywords))
    message, where = str(result), traceback.extract_tb(result.__traceback__)[-1].filename
    named = re.search(rf"\b({names})\b[^.]*\bmust\b", message, re.DOTALL) and where.startswith(KERNELS)
    if isinstance(result, (ValueError, TypeError, IndexError)) and named:
        return None
    return f"{type(result).__name__} in {Path(where).name}: {message[:300]}"


def _difference(got: Tensor, expected: Tensor, tolerance: float, more: bool = False) -> str | None:
    """What differs. NaN and infinities count as one; with `more` the expected may hold more of them."""
    if got.shape != expected.shape or got.dtype != expected.dtype or got.device != expected.device:
        return f"{tuple(got.shape)} {got.dtype} {got.device} instead of {tuple(expected.shape)} {expected.dtype}"
    if got.is_meta or not got.numel():
        return None
    if not got.is_floating_point():
        return None if torch.equal(got, expected) else f"{int((got != expected).sum())} numbers differ"
    finite, expected_finite = torch.isfinite(got), torch.isfinite(expected)
    if not torch.equal(finite, expected_finite) and not (more and (finite | ~expected_finite).all()):
        return f"{int((~finite).sum())} numbers are not finite instead of {int((~expected_finite).sum())}"
    got, expected = got[expected_finite].double(), expected[expected_finite].double()
    if not len(got):
        return None
    error, most = float((got - expected).abs().max()), float(expected.abs().max())
    return None if error <= tolerance * (1 + most) else f"off by {error:.1e}, largest {most:.1e}"
