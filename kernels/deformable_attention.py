"""Multi-scale deformable attention: every query reads a few places of several maps, by bilinear interpolation.

    out[b, q, h] = Σ_{l, p} weights[b, q, h, l, p] · map_l[b, h](x · width_l - 1/2, y · height_l - 1/2)

with (x, y) = locations[b, q, h, l, p], so that 0 and 1 are the outer edges of the outer pixels. A place between pixels
takes its four corners, each in proportion to its nearness along both axes; corners outside the map add nothing, and so
does a location that is NaN, whatever its weight. The maps of all levels lie one after the other in `value`.

PyTorch's `grid_sample` would copy the maps head by head, and write what every place reads, (B H, D, Q, L P), before the
sum; no path here but the reference does either.

Suffixes of names: B images, S pixels of all maps, H heads, D channels of a head, Q queries, L maps (levels), P places.

Source: Deformable DETR, arXiv 2010.04159, equation 3.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .checks import check_devices, check_floats, check_tensors, sum_dtype
from .dispatch import compiled, decompose, each, pick, slices, tl, triton
from .tiles import item_rows

# Queries that a thread takes at a time.
QUERIES = 256


def deformable_attention(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of interpolated values; differentiable in values, locations and weights.

    Sums, and the places on the maps, are computed in the dtype of `value`, or in float32 if that is a half type.
    On a GPU the gradient of `value` is summed in any order, unless `torch.use_deterministic_algorithms(True)` is set:
    then by PyTorch, which is slower and needs more memory.

    Args:
        value: maps (B, S, H, D) of any floating-point dtype, flattened row by row, one level after the other.
        spatial_shapes: height and width of every level (L, 2), int64, with Σ height · width = S.
        locations: places (B, Q, H, L, P, 2), x before y, of any floating-point dtype; the map is the unit square.
        weights: factors (B, Q, H, L, P) of any floating-point dtype.

    Returns:
        (B, Q, H · D), in the dtype of `value`.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype, or sizes whose sum is not S (on a CPU).
    """
    check_tensors(value=value, spatial_shapes=spatial_shapes, locations=locations, weights=weights)
    if value.ndim != 4 or value.shape[1] == 0:
        raise ValueError(f"value must have shape (B, S, H, D) with S of at least 1, got {tuple(value.shape)}")
    if spatial_shapes.dtype != torch.int64 or spatial_shapes.ndim != 2 or spatial_shapes.shape[1] != 2:
        raise ValueError(
            f"spatial_shapes must be int64 of shape (L, 2), got {spatial_shapes.dtype} {tuple(spatial_shapes.shape)}"
        )
    (batch, _, heads, _), levels = value.shape, len(spatial_shapes)
    if weights.ndim != 5 or (weights.shape[0], *weights.shape[2:4]) != (batch, heads, levels):
        raise ValueError(
            f"weights must have shape (B, Q, H, L, P) with B, H, L = {batch}, {heads}, {levels} of value and "
            f"spatial_shapes, got {tuple(weights.shape)}"
        )
    if locations.shape != (*weights.shape, 2):
        raise ValueError(
            f"locations must have the shape of weights and a last axis of 2, {(*weights.shape, 2)}, "
            f"got {tuple(locations.shape)}"
        )
    check_floats(value=value, locations=locations, weights=weights)
    check_devices(value=value, spatial_shapes=spatial_shapes)
    wide = sum_dtype(value)
    return deformable_attention_op(value, spatial_shapes, locations.to(wide), weights.to(wide))


# Below, the dtype of locations and weights is that of sums: that of the value, or float32 for half types.


def check_sizes(spatial_shapes: Tensor, pixels: int) -> None:
    """Raise unless the levels have `pixels` pixels in all (looked at on a CPU only)."""
    if spatial_shapes.device.type == "cpu":
        sizes = spatial_shapes.tolist()  # Python's integers do not overflow
        if any(side < 0 for size in sizes for side in size) or sum(high * wide for high, wide in sizes) != pixels:
            raise ValueError(f"spatial_shapes must have heights · widths with sum S = {pixels}, got {sizes}")


def _corners(value_BSHD: Tensor, spatial_shapes_L2: Tensor, locations_BQHLP2: Tensor):
    """For each of the four corners of all places: the place's nearness to it along x and y, the signs of their
    derivatives, whether the corner lies on the map, and its row in `value` as (B S H, D); all of shape (B, Q, H, L, P).
    """
    (batch, pixels, heads, _), device = value_BSHD.shape, value_BSHD.device
    height_L1, width_L1 = spatial_shapes_L2.unsqueeze(2).unbind(1)
    start_L1 = (height_L1 * width_L1).cumsum(0) - height_L1 * width_L1
    image_B1111 = torch.arange(batch, device=device).view(-1, 1, 1, 1, 1)
    head_H11 = torch.arange(heads, device=device).view(-1, 1, 1)
    x, y = locations_BQHLP2.unbind(-1)
    x, y = x * width_L1.to(x.dtype) - 0.5, y * height_L1.to(y.dtype) - 0.5
    left, top = x.floor(), y.floor()
    for i, near_y, sign_y in ((top, top + 1 - y, -1), (top + 1, y - top, 1)):
        for j, near_x, sign_x in ((left, left + 1 - x, -1), (left + 1, x - left, 1)):
            inside = (i >= 0) & (i < height_L1) & (j >= 0) & (j < width_L1)
            pixel = (start_L1 + i.where(inside, 0).long() * width_L1 + j.where(inside, 0).long()).where(inside, 0)
            yield near_x, near_y, sign_x, sign_y, inside, (image_B1111 * pixels + pixel) * heads + head_H11


def deformable_attention_reference(
    value_BSHD: Tensor, spatial_shapes_L2: Tensor, locations_BQHLP2: Tensor, weights_BQHLP: Tensor
) -> Tensor:
    rows, total_BQHD = value_BSHD.flatten(0, 2), torch.zeros((), dtype=weights_BQHLP.dtype, device=value_BSHD.device)
    for near_x, near_y, _, _, inside, row in _corners(value_BSHD, spatial_shapes_L2, locations_BQHLP2):
        seen_BQHLPD = rows[row].to(weights_BQHLP.dtype).where(inside.unsqueeze(-1), 0)
        factor_BQHLP = (near_x * near_y * weights_BQHLP).where(inside, 0)
        total_BQHD = total_BQHD + torch.einsum("bqhlp,bqhlpd->bqhd", factor_BQHLP, seen_BQHLPD)
    return total_BQHD.flatten(2).to(value_BSHD.dtype)


def deformable_attention_backward_reference(
    grad_BQE: Tensor, value_BSHD: Tensor, spatial_shapes_L2: Tensor, locations_BQHLP2: Tensor, weights_BQHLP: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights."""
    rows, sides_L12 = value_BSHD.flatten(0, 2), spatial_shapes_L2.flip(1).unsqueeze(1).to(weights_BQHLP.dtype)
    grad_BQHD = grad_BQE.to(weights_BQHLP.dtype).unflatten(2, value_BSHD.shape[2:])
    grad_rows = torch.zeros(rows.shape, dtype=grad_BQHD.dtype, device=rows.device)
    grad_locations, grad_weights = torch.zeros_like(locations_BQHLP2), torch.zeros_like(weights_BQHLP)
    for near_x, near_y, sign_x, sign_y, inside, row in _corners(value_BSHD, spatial_shapes_L2, locations_BQHLP2):
        factor_BQHLP1 = (near_x * near_y * weights_BQHLP).unsqueeze(-1)
        given_BQHLPD = (factor_BQHLP1 * grad_BQHD[:, :, :, None, None]).where(inside.unsqueeze(-1), 0)
        grad_rows.index_add_(0, row.flatten(), given_BQHLPD.flatten(0, 4))
        product_BQHLP = torch.einsum("bqhd,bqhlpd->bqhlp", grad_BQHD, rows[row].to(grad_BQHD.dtype))
        slopes = torch.stack([sign_x * near_y, sign_y * near_x], -1) * (weights_BQHLP * product_BQHLP).unsqueeze(-1)
        grad_locations += (slopes * sides_L12).where(inside.unsqueeze(-1), 0)
        grad_weights += (near_x * near_y * product_BQHLP).where(inside, 0)
    return grad_rows.view(value_BSHD.shape).to(value_BSHD.dtype), grad_locations, grad_weights


# The CPU's path. A query lists the rows that it reads, and sums them four at a time.


@compiled
def _place(locations_LP2, spatial_shapes_L2, start, level, p):
    """The rows of `value` of a place's four corners (-1 for a corner that is not on the map), and how far the place
    lies right of and below the first."""
    number = locations_LP2.dtype.type
    height, width = spatial_shapes_L2[level]
    x = locations_LP2[level, p, 0] * number(width) - number(0.5)
    y = locations_LP2[level, p, 1] * number(height) - number(0.5)
    if not (x >= -1 and y >= -1 and x < width and y < height):
        return (-1, -1, -1, -1), x, y
    left, top = math.floor(x), math.floor(y)
    s = start + top * width + left
    a = s if top >= 0 and left >= 0 else -1
    b = s + 1 if top >= 0 and left + 1 < width else -1
    c = s + width if top + 1 < height and left >= 0 else -1
    d = s + width + 1 if top + 1 < height and left + 1 < width else -1
    return (a, b, c, d), x - number(left), y - number(top)


@compiled
def _nearness(x, y, one):
    return (one - x) * (one - y), x * (one - y), (one - x) * y, x * y


@compiled
def _list_rows(spatial_shapes_L2, locations_LP2, weights_LP, rows, factors):
    start, count = 0, 0
    for level in range(len(spatial_shapes_L2)):
        for p in range(weights_LP.shape[1]):
            corners, x, y = _place(locations_LP2, spatial_shapes_L2, start, level, p)
            near = _nearness(x, y, weights_LP.dtype.type(1))
            for c in range(4):
                if corners[c] >= 0:
                    rows[count], factors[count] = corners[c], near[c] * weights_LP[level, p]
                    count += 1
        start += spatial_shapes_L2[level, 0] * spatial_shapes_L2[level, 1]
    return count


@compiled(fastmath={"contract"})
def _attend(value_SHD, spatial_shapes_L2, locations_QHLP2, weights_QHLP, out_QHD, h, first, last):
    places = 4 * weights_QHLP.shape[2] * weights_QHLP.shape[3]
    rows, factors = np.empty(places, np.int64), np.empty(places, weights_QHLP.dtype)
    for q in range(first, last):
        out = out_QHD[q, h]
        out[:] = 0
        count = _list_rows(spatial_shapes_L2, locations_QHLP2[q, h], weights_QHLP[q, h], rows, factors)
        whole = count // 4 * 4
        for i in range(0, whole, 4):
            a, b, c, d = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
            of_a, of_b = value_SHD[rows[i], h], value_SHD[rows[i + 1], h]
            of_c, of_d = value_SHD[rows[i + 2], h], value_SHD[rows[i + 3], h]
            for k in range(len(out)):
                out[k] += a * of_a[k] + b * of_b[k] + c * of_c[k] + d * of_d[k]
        for i in range(whole, count):
            add_row(out, factors[i], value_SHD[rows[i], h])


@compiled(fastmath={"contract"})
def add_row(total, factor, row):
    for k in range(len(total)):
        total[k] += factor * row[k]


@compiled(fastmath={"contract", "reassoc", "nsz"})  # for vector instructions in the sum over channels
def row_product(a, b):
    total = a.dtype.type(0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total


@compiled
def _gradients(
    grad_QHD, value_SHD, spatial_shapes_L2, locations_QHLP2, weights_QHLP,
    grad_value_SHD, grad_locations_QHLP2, grad_weights_QHLP, h,
):  # fmt: skip
    queries, _, levels, places = weights_QHLP.shape
    number = weights_QHLP.dtype.type
    one = number(1)
    for q in range(queries):
        grad = grad_QHD[q, h]
        start = 0
        for level in range(levels):
            height, width = spatial_shapes_L2[level]
            for p in range(places):
                corners, x, y = _place(locations_QHLP2[q, h], spatial_shapes_L2, start, level, p)
                of_place = grad_locations_QHLP2[q, h, level, p]
                if max(corners) < 0:
                    grad_weights_QHLP[q, h, level, p] = of_place[0] = of_place[1] = 0
                    continue
                near, weight = _nearness(x, y, one), weights_QHLP[q, h, level, p]
                a = b = c = d = number(0)
                if corners[0] >= 0:
                    a = row_product(grad, value_SHD[corners[0], h])
                    add_row(grad_value_SHD[corners[0], h], weight * near[0], grad)
                if corners[1] >= 0:
                    b = row_product(grad, value_SHD[corners[1], h])
                    add_row(grad_value_SHD[corners[1], h], weight * near[1], grad)
                if corners[2] >= 0:
                    c = row_product(grad, value_SHD[corners[2], h])
                    add_row(grad_value_SHD[corners[2], h], weight * near[2], grad)
                if corners[3] >= 0:
                    d = row_product(grad, value_SHD[corners[3], h])
                    add_row(grad_value_SHD[corners[3], h], weight * near[3], grad)
                grad_weights_QHLP[q, h, level, p] = near[0] * a + near[1] * b + near[2] * c + near[3] * d
                of_place[0] = weight * number(width) * ((one - y) * (b - a) + y * (d - c))
                of_place[1] = weight * number(height) * ((one - x) * (c - a) + x * (d - b))
            start += height * width


def _arrays(*tensors: Tensor) -> list:
    return [tensor.contiguous().numpy() for tensor in tensors]


def _deformable_attention_cpu(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    (batch, _, heads, channels), queries = value.shape, weights.shape[1]
    out = torch.empty(batch, queries, heads, channels, dtype=weights.dtype)
    rows, sizes, places, factors, total = _arrays(value.to(out.dtype), spatial_shapes, locations, weights, out)
    items = [(b, h, part) for b in range(batch) for h in range(heads) for part in slices(0, queries, QUERIES)]

    def attend(item) -> None:
        b, h, part = item
        _attend(rows[b], sizes, places[b], factors[b], total[b], h, part.start, part.stop)

    each(attend, items)
    return out.flatten(2).to(value.dtype)


def _deformable_attention_backward_cpu(
    grad: Tensor, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    (batch, _, heads, _), wide = value.shape, weights.dtype
    grad_value = torch.zeros(value.shape, dtype=wide)
    grad_locations, grad_weights = torch.empty(locations.shape, dtype=wide), torch.empty(weights.shape, dtype=wide)
    given = _arrays(grad.to(wide).unflatten(2, value.shape[2:]), value.to(wide), locations, weights)
    grads, rows, places, factors = given
    written = _arrays(grad_value, grad_locations, grad_weights)
    (sizes,) = _arrays(spatial_shapes)

    def collect(item) -> None:  # heads do not share numbers: no two threads add to one
        b, h = item
        _gradients(grads[b], rows[b], sizes, places[b], factors[b], *(x[b] for x in written), h)

    each(collect, [(b, h) for b in range(batch) for h in range(heads)])
    return grad_value.to(value.dtype), grad_locations, grad_weights


# Triton: tiles of rows (a head of a query) by channels.

# Elements of a tile.
ELEMENTS = 1024


@triton.jit
def _tile(queries, pixels, heads, channels, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows (B Q H) of this program, which exist, their channels and which exist, and offsets of the rows in `value`."""
    image, row, inside = item_rows(queries * heads, BLOCK_R)
    d = tl.arange(0, BLOCK_D)[None, :]
    offset = image * pixels * heads + row % heads
    return image * queries * heads + row, inside, d, inside[:, None] & (d < channels), offset


@triton.jit
def _load_place(locations, weights, row, inside, level, p, levels, places, height, width):
    """Column and row of a place on its map, its weight (0 if none of its corners is there), and its number."""
    place = (row * levels + level) * places + p
    x = tl.load(locations + 2 * place, mask=inside, other=0)
    y = tl.load(locations + 2 * place + 1, mask=inside, other=0)
    x, y = x * width.to(x.dtype) - 0.5, y * height.to(y.dtype) - 0.5
    seen = inside & (x >= -1) & (y >= -1) & (x < width) & (y < height)
    return x, y, tl.load(weights + place, mask=seen, other=0), place


@triton.jit
def _load_corner(x, y, height, width, CORNER: tl.constexpr):
    """Whether a corner is on the map, its pixel, the nearness along x and y, and the signs of their derivatives."""
    left, top = tl.floor(x), tl.floor(y)
    i, j = top + CORNER // 2, left + CORNER % 2
    seen = (i >= 0) & (i < height) & (j >= 0) & (j < width)
    pixel = tl.where(seen, i, 0).to(tl.int64) * width + tl.where(seen, j, 0).to(tl.int64)
    sign_x, sign_y = 2 * (CORNER % 2) - 1, 2 * (CORNER // 2) - 1
    near_x = tl.where(seen, 1 - CORNER % 2 + sign_x * (x - left), 0)
    near_y = tl.where(seen, 1 - CORNER // 2 + sign_y * (y - top), 0)
    return seen, pixel, near_x, near_y, sign_x, sign_y


@triton.jit(do_not_specialize=["queries", "pixels"])
def deformable_attention_fwd_kernel(
    value, sizes, locations, weights, out, queries, pixels, heads, channels, levels, places,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    row, inside, d, mask, offset = _tile(queries, pixels, heads, channels, BLOCK_R, BLOCK_D)
    total = tl.zeros((BLOCK_R, BLOCK_D), dtype=weights.dtype.element_ty)
    start = tl.full((), 0, tl.int64)
    for level in range(levels):
        height, width = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        for p in range(places):
            x, y, weight, _ = _load_place(locations, weights, row, inside, level, p, levels, places, height, width)
            for corner in tl.static_range(4):
                seen, pixel, near_x, near_y, _, _ = _load_corner(x, y, height, width, corner)
                at = (offset + (start + pixel) * heads)[:, None] * channels + d
                seen_value = tl.load(value + at, mask=mask & seen[:, None], other=0).to(total.dtype)
                total += (near_x * near_y * weight)[:, None] * seen_value
        start += height * width
    tl.store(out + row[:, None] * channels + d, total, mask=mask)


@triton.jit(do_not_specialize=["queries", "pixels"])
def deformable_attention_bwd_kernel(
    grad, value, sizes, locations, weights, grad_value, grad_locations, grad_weights,
    queries, pixels, heads, channels, levels, places, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Every row adds to the gradients of the values that it reads, in any order."""
    row, inside, d, mask, offset = _tile(queries, pixels, heads, channels, BLOCK_R, BLOCK_D)
    given = tl.load(grad + row[:, None] * channels + d, mask=mask, other=0).to(weights.dtype.element_ty)
    start = tl.full((), 0, tl.int64)
    for level in range(levels):
        height, width = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        for p in range(places):
            x, y, weight, place = _load_place(locations, weights, row, inside, level, p, levels, places, height, width)
            slope_x, slope_y, slope = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
            for corner in tl.static_range(4):
                seen, pixel, near_x, near_y, sign_x, sign_y = _load_corner(x, y, height, width, corner)
                at = (offset + (start + pixel) * heads)[:, None] * channels + d
                seen_value = tl.load(value + at, mask=mask & seen[:, None], other=0).to(given.dtype)
                product = tl.sum(given * seen_value, 1)
                slope += near_x * near_y * product
                slope_x += sign_x * near_y * product
                slope_y += sign_y * near_x * product
                added = (near_x * near_y * weight)[:, None] * given
                tl.atomic_add(grad_value + at, added, mask=mask & seen[:, None], sem="relaxed")
            tl.store(grad_weights + place, slope, mask=inside)
            tl.store(grad_locations + 2 * place, weight * width.to(x.dtype) * slope_x, mask=inside)
            tl.store(grad_locations + 2 * place + 1, weight * height.to(x.dtype) * slope_y, mask=inside)
        start += height * width


def _launch(kernel, value: Tensor, weights: Tensor, *tensors: Tensor) -> None:
    """Launch `kernel` over all rows. No autotuning: its trial runs of atomic additions would add up."""
    (batch, pixels, heads, channels), (_, queries, _, levels, places) = value.shape, weights.shape
    block_d = triton.next_power_of_2(channels)
    block_r = max(1, ELEMENTS // block_d)
    grid = (batch * triton.cdiv(queries * heads, block_r),)
    sizes = queries, pixels, heads, channels, levels, places
    with torch.cuda.device_of(value):
        kernel[grid](*(x.contiguous() for x in tensors), *sizes, BLOCK_R=block_r, BLOCK_D=block_d)


def _deformable_attention_triton(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    out = value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])
    if out.numel():
        kernel = deformable_attention_fwd_kernel
        _launch(kernel, value, weights, value, spatial_shapes, locations, weights, out)
    return out


def _deformable_attention_backward_triton(
    grad: Tensor, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if torch.are_deterministic_algorithms_enabled():
        return deformable_attention_backward_reference(grad, value, spatial_shapes, locations, weights)
    grad_value = torch.zeros(value.shape, dtype=weights.dtype, device=value.device)
    grad_locations, grad_weights = locations.new_zeros(locations.shape), weights.new_zeros(weights.shape)
    if grad.numel():
        given, written = (grad, value, spatial_shapes, locations, weights), (grad_value, grad_locations, grad_weights)
        _launch(deformable_attention_bwd_kernel, value, weights, *given, *written)
    return grad_value.to(value.dtype), grad_locations, grad_weights


@torch.library.custom_op("attlas::deformable_attention", mutates_args=())
def deformable_attention_op(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    check_sizes(spatial_shapes, value.shape[1])
    return pick(
        value,
        reference=deformable_attention_reference,
        triton=_deformable_attention_triton,
        cpu=_deformable_attention_cpu,
    )(value, spatial_shapes, locations, weights)


@deformable_attention_op.register_fake
def _(value, spatial_shapes, locations, weights):
    return value.new_empty(*weights.shape[:2], value.shape[2] * value.shape[3])


@torch.library.custom_op("attlas::deformable_attention_backward", mutates_args=())
def deformable_attention_backward_op(
    grad: Tensor, value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    check_sizes(spatial_shapes, value.shape[1])
    return pick(
        value,
        reference=deformable_attention_backward_reference,
        triton=_deformable_attention_backward_triton,
        cpu=_deformable_attention_backward_cpu,
    )(grad, value, spatial_shapes, locations, weights)


@deformable_attention_backward_op.register_fake
def _(grad, value, spatial_shapes, locations, weights):
    return value.new_empty(value.shape), locations.new_empty(locations.shape), weights.new_empty(weights.shape)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    grad_value, grad_locations, grad_weights = deformable_attention_backward_op(grad, *ctx.saved_tensors)
    return grad_value, None, grad_locations, grad_weights


deformable_attention_op.register_autograd(_backward, setup_context=_save)
decompose(deformable_attention_op, deformable_attention_reference)
