"""Overlaps of boxes: every box with every other, or pairs of them.

    iou = |A ∩ B| / |A ∪ B|,  iof = |A ∩ B| / |A|
    bbox_overlaps      boxes (x1, y1, x2, y2); a width is x2 - x1 + offset (offset 1 counts pixels)
    box_iou_rotated    boxes (x, y, width, height, angle): center, sides, radians from the x axis towards the y axis

The intersection of two rotated boxes, in the frame of B, is ∮ clamp(y, B) dx over the four edges of A, cut to the width
of B. It is continuous in both boxes: no list of corners, no sorting, and no exception for boxes that share an edge.

Columns of boxes are rows of memory: x1, y1, x2, y2, area; or x, y, half sides, cosine and sine of the angle.

Source: `mmcv/ops/bbox.py` and `mmcv/ops/box_iou_rotated.py` for the conventions.
"""

import numpy as np
import torch
from torch import Tensor

from .checks import check_choice, check_flags, check_integer, check_one_dtype, check_tensors, sum_dtype
from .dispatch import compiled, decompose, each, pick, slices, tl, triton

MODES = ("iou", "iof")
# Pairs of boxes that a thread takes at a time.
PAIRS = 1 << 16


def bbox_overlaps(boxes: Tensor, others: Tensor, mode: str = "iou", aligned: bool = False, offset: int = 0) -> Tensor:
    """Overlaps of boxes with upright sides; no gradient flows.

    Args:
        boxes: corners (N, 4), x1, y1, x2, y2, of any floating-point dtype; half types are computed in float32.
        others: corners (M, 4), in the same dtype; M = N if `aligned`.
        mode: "iou", the share of the union, or "iof", the share of `boxes`.
        aligned: True for box n with other n only.
        offset: 0, or 1 for corners that are pixels, both inside.

    Returns:
        (N, M), or (N,) if `aligned`, in the dtype of the boxes; NaN where an empty area divides.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    _check(boxes, others, 4, mode, aligned)
    check_integer(offset, "offset", 0, 1)
    return bbox_overlaps_op(boxes.detach(), others.detach(), mode, aligned, offset)


def box_iou_rotated(boxes: Tensor, others: Tensor, mode: str = "iou", aligned: bool = False) -> Tensor:
    """Overlaps of boxes in any orientation; no gradient flows.

    Args:
        boxes: (N, 5), x, y, width, height, angle in radians, of any floating-point dtype; half types are computed in
            float32. The angle turns the x axis towards the y axis: clockwise where y points down, as in images.
        others: (M, 5), in the same dtype; M = N if `aligned`.
        mode: "iou", the share of the union, or "iof", the share of `boxes`.
        aligned: True for box n with other n only.

    Returns:
        (N, M), or (N,) if `aligned`, in the dtype of the boxes; 0 for a box without a positive area, NaN for one that
        holds NaN or infinity.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    _check(boxes, others, 5, mode, aligned)
    return box_iou_rotated_op(boxes.detach(), others.detach(), mode, aligned)


def check_boxes(boxes: Tensor, name: str, width: int) -> None:
    """Raise unless `boxes` are (N, width)."""
    check_tensors(**{name: boxes})
    if boxes.ndim != 2 or boxes.shape[1] != width:
        raise ValueError(f"{name} must have shape (N, {width}), got {tuple(boxes.shape)}")


def _check(boxes: Tensor, others: Tensor, width: int, mode: str, aligned: bool) -> None:
    check_boxes(boxes, "boxes", width)
    check_boxes(others, "others", width)
    check_one_dtype(boxes=boxes, others=others)
    check_choice(mode, "mode", MODES)
    check_flags(aligned=aligned)
    if aligned and len(boxes) != len(others):
        raise ValueError(f"others must be as many as boxes if aligned, {len(boxes)}, got {len(others)}")


# --- columns ---------------------------------------------------------------------------------------------------------


def upright_columns(boxes_N4: Tensor, offset: int) -> Tensor:
    """(5, N), in the dtype of sums: the corners and the area of each box."""
    x1, y1, x2, y2 = boxes_N4.to(sum_dtype(boxes_N4)).unbind(1)
    return torch.stack([x1, y1, x2, y2, (x2 - x1 + offset) * (y2 - y1 + offset)])


def rotated_columns(boxes_N5: Tensor) -> Tensor:
    """(6, N), in the dtype of sums: x, y, half width and height, cosine and sine.

    The sides are 0 where the area is not positive. All six are NaN where a number is not finite.
    """
    boxes_N5 = boxes_N5.to(sum_dtype(boxes_N5))
    x, y, width, height, angle = boxes_N5.unbind(1)
    sides = torch.stack([width, height]).abs() / 2 * ((width > 0) == (height > 0))
    columns = torch.cat([torch.stack([x, y]), sides, torch.stack([angle.cos(), angle.sin()])])
    return columns.where(torch.isfinite(boxes_N5).all(1), torch.nan)


def _against(columns: Tensor, others: Tensor, aligned: bool) -> tuple[Tensor, Tensor]:
    """Columns of boxes and others that broadcast to all the pairs."""
    return (columns, others) if aligned else (columns.unsqueeze(2), others.unsqueeze(1))


# --- the definitions -------------------------------------------------------------------------------------------------


def bbox_overlaps_reference(boxes: Tensor, others: Tensor, mode: str, aligned: bool, offset: int) -> Tensor:
    columns = upright_columns(boxes, offset), upright_columns(others, offset)
    (x1, y1, x2, y2, area), (u1, v1, u2, v2, other_area) = _against(*columns, aligned)
    width = (torch.minimum(x2, u2) - torch.maximum(x1, u1) + offset).clamp(min=0)
    height = (torch.minimum(y2, v2) - torch.maximum(y1, v1) + offset).clamp(min=0)
    inside = width * height
    return (inside / (area + other_area - inside if mode == "iou" else area)).to(boxes.dtype)


def box_iou_rotated_reference(boxes: Tensor, others: Tensor, mode: str, aligned: bool) -> Tensor:
    a, b = _against(rotated_columns(boxes), rotated_columns(others), aligned)
    area, other_area = (a[2] + a[2]) * (a[3] + a[3]), (b[2] + b[2]) * (b[3] + b[3])
    inside = torch.minimum(_intersection(a, b), torch.minimum(area, other_area))
    whole = area + other_area - inside if mode == "iou" else area
    return (inside / whole.where(inside > 0, 1)).to(boxes.dtype)


def _intersection(a: Tensor, b: Tensor) -> Tensor:
    """The area that boxes of columns a and b share."""
    (x, y, width, height, cosine, sine), (u, v, wide, high, c, s) = a, b
    dx, dy = x - u, y - v
    x, y = c * dx + s * dy, c * dy - s * dx  # the center of a in the frame of b
    cosine, sine = cosine * c + sine * s, sine * c - cosine * s  # of the angle between them
    ux, uy, vx, vy = cosine * width, sine * width, -sine * height, cosine * height
    apart = (x.abs() >= ux.abs() + vx.abs() + wide) | (y.abs() >= uy.abs() + vy.abs() + high)
    apart = apart | ((cosine * x + sine * y).abs() >= width + cosine.abs() * wide + sine.abs() * high)
    apart = apart | ((cosine * y - sine * x).abs() >= height + sine.abs() * wide + cosine.abs() * high)
    xs, ys = (x - ux - vx, x + ux - vx, x + ux + vx, x - ux + vx), (y - uy - vy, y + uy - vy, y + uy + vy, y - uy + vy)
    area = torch.zeros_like(x)
    for i in range(4):
        area = area + _below_edge(xs[i], ys[i], xs[(i + 1) % 4], ys[(i + 1) % 4], wide, high)
    return area.clamp(min=0).masked_fill(apart, 0)


def _below_edge(x0: Tensor, y0: Tensor, x1: Tensor, y1: Tensor, wide: Tensor, high: Tensor) -> Tensor:
    """∫ clamp(y, ±high) dx along an edge, from the end to the start, where x lies within ±wide."""
    start, end = torch.clamp(x0, -wide, wide), torch.clamp(x1, -wide, wide)
    run = x1 - x0
    run = run.where(run != 0, 1)
    before, after = y0 + (start - x0) / run * (y1 - y0), y0 + (end - x0) / run * (y1 - y0)
    low, top = torch.clamp(before, -high, high), torch.clamp(after, -high, high)
    # the edge is level, then rises inside the box, then is level again: what part of its way each of the three takes
    rise, first, last = (top - low).abs(), (before - low).abs(), (after - top).abs()
    way = (rise + first + last).where(rise > 0, 1)
    return (start - end) * (low + (top - low) * ((rise + last + last) / (way + way)))


# --- the CPU's path: the same arithmetic in the same order -----------------------------------------------------------


@compiled
def _upright_rows(a, b, offset, union, out, first, last):
    zero = a.dtype.type(0)
    for i in range(first, last):
        x1, y1, x2, y2, area = a[0, i], a[1, i], a[2, i], a[3, i], a[4, i]
        if np.isnan(x1) or np.isnan(y1) or np.isnan(x2) or np.isnan(y2):
            out[i] = np.nan
            continue
        for j in range(b.shape[1]):
            left, top = (x1 if x1 > b[0, j] else b[0, j]), (y1 if y1 > b[1, j] else b[1, j])  # NaN if b is
            right, bottom = (x2 if x2 < b[2, j] else b[2, j]), (y2 if y2 < b[3, j] else b[3, j])
            width, height = right - left + offset, bottom - top + offset
            inside = (zero if width < zero else width) * (zero if height < zero else height)
            out[i, j] = inside / (area + b[4, j] - inside if union else area)


@compiled(inline="always")
def _clamp(value, limit):
    return limit if value > limit else (-limit if value < -limit else value)


@compiled
def _edge(x0, y0, x1, y1, wide, high):
    start, end = _clamp(x0, wide), _clamp(x1, wide)
    if start == end:
        return start - end
    run, slope = x1 - x0, y1 - y0
    before, after = y0 + (start - x0) / run * slope, y0 + (end - x0) / run * slope
    low, top = _clamp(before, high), _clamp(after, high)
    rise = abs(top - low)
    if rise > 0:
        last = abs(after - top)
        way = rise + abs(before - low) + last
        return (start - end) * (low + (top - low) * ((rise + last + last) / (way + way)))
    return (start - end) * low


@compiled
def rotated_overlap(a, i, b, j, union):
    """The overlap of the box of row i of a with that of row j of b; the rows hold what `rotated_columns` makes."""
    width, height, wide, high, c, s = a[i, 2], a[i, 3], b[j, 2], b[j, 3], b[j, 4], b[j, 5]
    area, other_area = (width + width) * (height + height), (wide + wide) * (high + high)
    dx, dy = a[i, 0] - b[j, 0], a[i, 1] - b[j, 1]
    x, y = c * dx + s * dy, c * dy - s * dx
    cosine, sine = a[i, 4] * c + a[i, 5] * s, a[i, 5] * c - a[i, 4] * s
    ux, uy, vx, vy = cosine * width, sine * width, -sine * height, cosine * height
    nothing = dx - dx  # 0, or NaN
    if (
        abs(x) >= abs(ux) + abs(vx) + wide
        or abs(y) >= abs(uy) + abs(vy) + high
        or abs(cosine * x + sine * y) >= width + abs(cosine) * wide + abs(sine) * high
        or abs(cosine * y - sine * x) >= height + abs(sine) * wide + abs(cosine) * high
    ):
        return nothing
    x0, x1, x2, x3 = x - ux - vx, x + ux - vx, x + ux + vx, x - ux + vx
    y0, y1, y2, y3 = y - uy - vy, y + uy - vy, y + uy + vy, y - uy + vy
    inside = _edge(x0, y0, x1, y1, wide, high) + _edge(x1, y1, x2, y2, wide, high)
    inside = inside + _edge(x2, y2, x3, y3, wide, high) + _edge(x3, y3, x0, y0, wide, high)
    inside = min(inside, min(area, other_area))
    if inside > 0:
        return inside / (area + other_area - inside if union else area)
    return nothing


@compiled
def _rotated_rows(a, b, union, out, first, last):
    for i in range(first, last):
        for j in range(len(b)):
            out[i, j] = rotated_overlap(a, i, b, j, union)


@compiled
def _rotated_pairs(a, b, union, out, first, last):
    for i in range(first, last):
        out[i] = rotated_overlap(a, i, b, i, union)


def _each_block(loop, *arguments, out: Tensor) -> None:
    step = max(1, PAIRS // max(1, out[0].numel())) if len(out) else 1
    each(lambda rows: loop(*arguments, out.numpy(), rows.start, rows.stop), slices(0, len(out), step))


def _bbox_overlaps_cpu(boxes: Tensor, others: Tensor, mode: str, aligned: bool, offset: int) -> Tensor:
    if aligned:
        return bbox_overlaps_reference(boxes, others, mode, aligned, offset)
    a, b = (upright_columns(x, offset).numpy() for x in (boxes, others))
    out = torch.empty(len(boxes), len(others), dtype=sum_dtype(boxes))
    _each_block(_upright_rows, a, b, a.dtype.type(offset), mode == "iou", out=out)
    return out.to(boxes.dtype)


def _box_iou_rotated_cpu(boxes: Tensor, others: Tensor, mode: str, aligned: bool) -> Tensor:
    a, b = (rotated_columns(x).T.contiguous().numpy() for x in (boxes, others))
    out = torch.empty((len(boxes),) if aligned else (len(boxes), len(others)), dtype=sum_dtype(boxes))
    _each_block(_rotated_pairs if aligned else _rotated_rows, a, b, mode == "iou", out=out)
    return out.to(boxes.dtype)


# --- Triton ----------------------------------------------------------------------------------------------------------


@triton.jit
def _quotient(x, y):
    """x / y, rounded as on a CPU."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def load_box(columns, n, inside, count, ROTATED: tl.constexpr):
    """Six numbers of the boxes n; the sixth of upright boxes is none of theirs."""
    x = tl.load(columns + n, inside, 0.0)
    y = tl.load(columns + count + n, inside, 0.0)
    z = tl.load(columns + 2 * count + n, inside, 0.0)
    w = tl.load(columns + 3 * count + n, inside, 0.0)
    u = tl.load(columns + 4 * count + n, inside, 0.0)
    v = u
    if ROTATED:
        v = tl.load(columns + 5 * count + n, inside, 0.0)
    return x, y, z, w, u, v


@triton.jit
def _cut(x, limit):
    return tl.minimum(tl.maximum(x, -limit), limit)


@triton.jit
def _below_edge_tile(x0, y0, x1, y1, wide, high):
    start, end = _cut(x0, wide), _cut(x1, wide)
    run = x1 - x0
    run = tl.where(run != 0, run, 1.0)
    before = y0 + _quotient(start - x0, run) * (y1 - y0)
    after = y0 + _quotient(end - x0, run) * (y1 - y0)
    low, top = _cut(before, high), _cut(after, high)
    rise, last = tl.abs(top - low), tl.abs(after - top)
    way = tl.where(rise > 0, rise + tl.abs(before - low) + last, 1.0)
    return (start - end) * (low + (top - low) * _quotient(rise + last + last, way + way))


@triton.jit
def overlap(
    a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5, OFFSET: tl.constexpr, ROTATED: tl.constexpr, UNION: tl.constexpr
):
    """Overlaps of boxes a and b of six numbers each (`load_box`), which broadcast."""
    if ROTATED:
        area, other_area = (a2 + a2) * (a3 + a3), (b2 + b2) * (b3 + b3)
        dx, dy = a0 - b0, a1 - b1
        x, y = b4 * dx + b5 * dy, b4 * dy - b5 * dx
        cosine, sine = a4 * b4 + a5 * b5, a5 * b4 - a4 * b5
        ux, uy, vx, vy = cosine * a2, sine * a2, -sine * a3, cosine * a3
        apart = (tl.abs(x) >= tl.abs(ux) + tl.abs(vx) + b2) | (tl.abs(y) >= tl.abs(uy) + tl.abs(vy) + b3)
        apart |= tl.abs(cosine * x + sine * y) >= a2 + tl.abs(cosine) * b2 + tl.abs(sine) * b3
        apart |= tl.abs(cosine * y - sine * x) >= a3 + tl.abs(sine) * b2 + tl.abs(cosine) * b3
        x0, y0, x1, y1 = x - ux - vx, y - uy - vy, x + ux - vx, y + uy - vy
        x2, y2, x3, y3 = x + ux + vx, y + uy + vy, x - ux + vx, y - uy + vy
        inside = _below_edge_tile(x0, y0, x1, y1, b2, b3) + _below_edge_tile(x1, y1, x2, y2, b2, b3)
        inside = inside + _below_edge_tile(x2, y2, x3, y3, b2, b3)
        inside = inside + _below_edge_tile(x3, y3, x0, y0, b2, b3)
        inside = tl.minimum(inside, tl.minimum(area, other_area))
        inside = tl.where(apart, 0.0, tl.maximum(inside, 0.0))
        whole = area + other_area - inside if UNION else area + tl.zeros_like(inside)
        value = _quotient(inside, tl.where(inside > 0, whole, 1.0))
        value = tl.where(dx - dx == 0, value, float("nan"))
    else:
        width = tl.maximum(tl.minimum(a2, b2) - tl.maximum(a0, b0) + OFFSET, 0.0)
        height = tl.maximum(tl.minimum(a3, b3) - tl.maximum(a1, b1) + OFFSET, 0.0)
        inside = width * height
        value = _quotient(inside, a4 + b4 - inside if UNION else a4 + tl.zeros_like(inside))
    return value


@triton.jit(do_not_specialize=["N", "M"])
def box_overlaps_fwd_kernel(
    a, b, out, N, M,
    OFFSET: tl.constexpr, ROTATED: tl.constexpr, UNION: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """A tile of boxes by others; of aligned ones, a tile of pairs."""
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if ALIGNED:
        a0, a1, a2, a3, a4, a5 = load_box(a, n, n < N, N, ROTATED)
        b0, b1, b2, b3, b4, b5 = load_box(b, n, n < N, N, ROTATED)
        value = overlap(a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5, OFFSET, ROTATED, UNION)
        tl.store(out + n, value, n < N)
    else:
        n = n[:, None]
        m = (tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M))[None, :]
        a0, a1, a2, a3, a4, a5 = load_box(a, n, n < N, N, ROTATED)
        b0, b1, b2, b3, b4, b5 = load_box(b, m, m < M, M, ROTATED)
        value = overlap(a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5, OFFSET, ROTATED, UNION)
        tl.store(out + n.to(tl.int64) * M + m, value, (n < N) & (m < M))


def _launch(a: Tensor, b: Tensor, mode: str, aligned: bool, offset: int) -> Tensor:
    """Overlaps of boxes of columns a and b, in their dtype."""
    count, others = a.shape[1], b.shape[1]
    out = torch.empty((count,) if aligned else (count, others), dtype=a.dtype, device=a.device)
    if out.numel():
        block_n, block_m = (256, 1) if aligned else (8, 64)
        grid = triton.cdiv(count, block_n), 1 if aligned else triton.cdiv(others, block_m)
        options = dict(OFFSET=offset, ROTATED=len(a) == 6, UNION=mode == "iou", ALIGNED=aligned)
        with torch.cuda.device_of(a):
            # without fused multiply-adds: rounding must equal that of the other paths
            box_overlaps_fwd_kernel[grid](
                a, b, out, count, others, **options, BLOCK_N=block_n, BLOCK_M=block_m, enable_fp_fusion=False
            )
    return out


def _bbox_overlaps_triton(boxes: Tensor, others: Tensor, mode: str, aligned: bool, offset: int) -> Tensor:
    columns = upright_columns(boxes, offset), upright_columns(others, offset)
    return _launch(*columns, mode, aligned, offset).to(boxes.dtype)


def _box_iou_rotated_triton(boxes: Tensor, others: Tensor, mode: str, aligned: bool) -> Tensor:
    return _launch(rotated_columns(boxes), rotated_columns(others), mode, aligned, 0).to(boxes.dtype)


# --- the operators ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("attlas::bbox_overlaps", mutates_args=())
def bbox_overlaps_op(boxes: Tensor, others: Tensor, mode: str, aligned: bool, offset: int) -> Tensor:
    run = pick(boxes, reference=bbox_overlaps_reference, triton=_bbox_overlaps_triton, cpu=_bbox_overlaps_cpu)
    return run(boxes, others, mode, aligned, offset)


@bbox_overlaps_op.register_fake
def _(boxes, others, mode, aligned, offset):
    return boxes.new_empty((len(boxes),) if aligned else (len(boxes), len(others)))


@torch.library.custom_op("attlas::box_iou_rotated", mutates_args=())
def box_iou_rotated_op(boxes: Tensor, others: Tensor, mode: str, aligned: bool) -> Tensor:
    run = pick(boxes, reference=box_iou_rotated_reference, triton=_box_iou_rotated_triton, cpu=_box_iou_rotated_cpu)
    return run(boxes, others, mode, aligned)


@box_iou_rotated_op.register_fake
def _(boxes, others, mode, aligned):
    return boxes.new_empty((len(boxes),) if aligned else (len(boxes), len(others)))


decompose(bbox_overlaps_op, bbox_overlaps_reference)
decompose(box_iou_rotated_op, box_iou_rotated_reference)
