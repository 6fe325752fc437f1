"""Non-maximum suppression: of boxes that overlap, the ones of highest score.

    nms, nms_rotated   a box is kept unless its overlap with a kept box of higher score exceeds the threshold
    nms_match          the box that removes each box: the kept one of highest score that overlaps it
    soft_nms           scores fall with the overlap instead, and the best of what is left is taken next

A box of lower index precedes one of equal score; a score that is NaN precedes all others. Two boxes overlap as
`box_overlaps.py` says; a box without a positive width and height, or with infinities or NaN, overlaps none.

On a CPU the kept boxes are filed in a grid: a box looks into the few cells where one that overlaps it enough can lie.
On a GPU blocks of boxes are resolved one after the other, from a bit for every pair of a block; then the kept boxes of
a block remove others after it. No path holds a bit for every pair of all boxes.

Source: `mmcv/ops/nms.py` for the conventions; soft_nms: Bodla et al., "Soft-NMS", arXiv 1704.04503.
"""

import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .box_overlaps import (
    bbox_overlaps_op,
    bbox_overlaps_reference,
    box_iou_rotated_reference,
    check_boxes,
    load_box,
    overlap,
    rotated_columns,
    rotated_overlap,
    upright_columns,
)
from .checks import FLOATS, check_choice, check_devices, check_integer, check_number, check_tensors, sum_dtype
from .dispatch import compiled, each, pick, tl, translate, triton

METHODS = ("naive", "linear", "gaussian")
# Kept boxes that are compared one by one; more are looked for in the grid.
FEW = 16
# Boxes of a block on a GPU, a power of two and at least 256.
BLOCK = 2048
# Pairs of kept and other boxes that nms_match holds at a time on a GPU.
PAIRS = 1 << 24


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0, groups: Tensor | None = None) -> Tensor:
    """Indices of the boxes that no kept box of higher score overlaps by more than `iou_threshold`.

    Args:
        boxes: corners (N, 4), x1, y1, x2, y2, of any floating-point dtype; half types are computed in float32.
        scores: (N,), of any floating-point dtype.
        iou_threshold: largest intersection over union of two kept boxes, at least 0.
        offset: 0, or 1 for corners that are pixels, both inside.
        groups: group of each box (N,), int64, its class or its image; boxes of different groups do not meet.

    Returns:
        (K,) int64, by descending score.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    _check(boxes, scores, iou_threshold, 4, groups)
    check_integer(offset, "offset", 0, 1)
    return nms_op(boxes.detach(), scores.detach(), float(iou_threshold), offset, groups)


def nms_rotated(boxes: Tensor, scores: Tensor, iou_threshold: float, groups: Tensor | None = None) -> Tensor:
    """`nms` for boxes in any orientation.

    Args:
        boxes: (N, 5), x, y, width, height, angle in radians, of any floating-point dtype, as in `box_iou_rotated`.
        scores: (N,), of any floating-point dtype.
        iou_threshold: largest intersection over union of two kept boxes, at least 0.
        groups: group of each box (N,), int64; boxes of different groups do not meet.

    Returns:
        (K,) int64, by descending score.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    _check(boxes, scores, iou_threshold, 5, groups)
    return nms_op(boxes.detach(), scores.detach(), float(iou_threshold), 0, groups)


def nms_match(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """The kept box that removes each box in `nms`: of those that overlap it enough, the one of highest score.

    Args:
        boxes: corners (N, 4), x1, y1, x2, y2, of any floating-point dtype; half types are computed in float32.
        scores: (N,), of any floating-point dtype.
        iou_threshold: largest intersection over union of two kept boxes, at least 0.
        offset: 0, or 1 for corners that are pixels, both inside.

    Returns:
        (N,) int64, the index of a kept box; a kept box has its own.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    _check(boxes, scores, iou_threshold, 4)
    check_integer(offset, "offset", 0, 1)
    return nms_match_op(boxes.detach(), scores.detach(), float(iou_threshold), offset)


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    min_score: float = 1e-3,
    method: str = "linear",
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """Indices of boxes and their scores, after each box taken has lowered the scores of those that overlap it.

    A score is multiplied, where the overlap is iou_threshold or more, by 0 ("naive") or 1 - overlap ("linear"), and
    everywhere by exp(-overlap² / sigma) ("gaussian"). A box leaves when its score falls below `min_score`; the first
    is taken whatever its score. Every step needs the one before: tensors on a GPU are computed on the CPU.

    Args:
        boxes: corners (N, 4), x1, y1, x2, y2, of any floating-point dtype; half types are computed in float32.
        scores: (N,), of any floating-point dtype.
        iou_threshold: overlap from which on "naive" and "linear" lower a score, at least 0.
        sigma: positive width of "gaussian".
        min_score: least score, at least 0.
        method: "naive", "linear" or "gaussian".
        offset: 0, or 1 for corners that are pixels, both inside.

    Returns:
        index (K,), int64, in the order taken, by descending new score; and the new scores (K,), in the dtype of scores.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    _check(boxes, scores, iou_threshold, 4)
    check_number(sigma, "sigma", positive=True)
    check_number(min_score, "min_score")
    check_choice(method, "method", METHODS)
    check_integer(offset, "offset", 0, 1)
    options = float(iou_threshold), float(sigma), float(min_score), method, offset
    return soft_nms_op(boxes.detach(), scores.detach(), *options)


def _check(boxes: Tensor, scores: Tensor, iou_threshold: float, width: int, groups: Tensor | None = None) -> None:
    check_tensors(scores=scores)
    check_boxes(boxes, "boxes", width)
    for name, tensor in (("boxes", boxes), ("scores", scores)):
        if tensor.dtype not in FLOATS:
            raise TypeError(f"{name} must be floating point (float16 to float64), got {tensor.dtype}")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(f"scores must have shape ({len(boxes)},), one per box, got {tuple(scores.shape)}")
    check_devices(boxes=boxes, scores=scores)
    check_number(iou_threshold, "iou_threshold")
    if groups is not None:
        check_tensors(groups=groups)
        if groups.dtype != torch.int64 or groups.shape != scores.shape:
            raise ValueError(
                f"groups must be int64 of shape ({len(boxes)},), one per box, got {groups.dtype} {tuple(groups.shape)}"
            )
        check_devices(boxes=boxes, groups=groups)


def _by_score(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)


# --- the definitions -------------------------------------------------------------------------------------------------


def nms_reference(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int, groups: Tensor | None) -> Tensor:
    order = _by_score(scores)
    remover = _removers(boxes[order], iou_threshold, offset, None if groups is None else groups[order])
    return order[remover == torch.arange(len(order), device=order.device)]


def nms_match_reference(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    order = _by_score(scores)
    return torch.empty_like(order).scatter_(0, order, order[_removers(boxes[order], iou_threshold, offset, None)])


def _removers(boxes: Tensor, iou_threshold: float, offset: int, groups: Tensor | None) -> Tensor:
    """The place of the box that removes each, or its own; boxes and groups by descending score."""
    boxes = boxes.to(sum_dtype(boxes))
    if boxes.shape[1] == 5:
        overlaps = functools.partial(box_iou_rotated_reference, mode="iou", aligned=False)
    else:
        overlaps = functools.partial(bbox_overlaps_reference, mode="iou", aligned=False, offset=offset)
    remover = torch.arange(len(boxes), device=boxes.device)
    threshold, removed = boxes.new_tensor(iou_threshold), torch.zeros_like(remover, dtype=torch.bool)
    for i in range(len(boxes)):
        if not removed[i]:
            hit = (overlaps(boxes[i : i + 1], boxes)[0] > threshold) & ~removed
            hit[: i + 1] = False
            if groups is not None:
                hit &= groups == groups[i]
            remover[hit] = i
            removed |= hit
    return remover


def soft_nms_reference(
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: str,
    offset: int,
) -> tuple[Tensor, Tensor]:
    boxes, left = boxes.to(sum_dtype(boxes)), torch.arange(len(boxes), device=boxes.device)
    values = scores.to(boxes.dtype)
    threshold, least = boxes.new_tensor(iou_threshold), boxes.new_tensor(min_score)
    index, taken = [left[:0]], [values[:0]]
    while len(left):
        best = int(_by_score(values)[0])
        index.append(left[best : best + 1])
        taken.append(values[best : best + 1])
        overlaps = bbox_overlaps_reference(boxes[index[-1]], boxes[left], "iou", False, offset)[0]
        overlaps = overlaps.where(overlaps > 0, 0)  # not NaN either
        if method == "gaussian":
            factor = torch.exp(-(overlaps * overlaps) / sigma)
        else:
            factor = (1 - overlaps if method == "linear" else overlaps * 0).where(overlaps >= threshold, 1)
        values = values * factor
        stays = ~(values < least)
        stays[best] = False
        left, values = left[stays], values[stays]
    return torch.cat(index), torch.cat(taken).to(scores.dtype)


# --- the CPU's path --------------------------------------------------------------------------------------------------
#
# Let s be the longer side of the upright frame around a box. Boxes of 2^(l-1) <= s < 2^l are of level l, and are filed
# by the top left corner of their frames in a grid of cells of side 2^l / 4; one table holds the grids of all levels. An
# overlap above t bounds the sides and the distance of two boxes: along each axis their intersection has at least the
# share r of either's length, r = t for upright boxes and 1 - √(1 - t) for rotated ones (a rhombus is the extreme case).


@compiled
def _overlap(a, i, b, j, offset, rotated):
    if rotated:
        return rotated_overlap(a, i, b, j, True)
    left, top = (a[i, 0] if a[i, 0] > b[j, 0] else b[j, 0]), (a[i, 1] if a[i, 1] > b[j, 1] else b[j, 1])
    right, bottom = (a[i, 2] if a[i, 2] < b[j, 2] else b[j, 2]), (a[i, 3] if a[i, 3] < b[j, 3] else b[j, 3])
    width, height = right - left + offset, bottom - top + offset
    if not (width > 0 and height > 0):
        return offset - offset
    inside = width * height
    return inside / (a[i, 4] + b[j, 4] - inside)


@compiled
def _level(side):
    return max(math.frexp(side)[1], -1000)  # cells of smaller sides would be 0


@compiled
def _cell(place, side):
    return math.floor(min(max(place / side, -1e18), 1e18))


@compiled
def _slot(column, row, level, mask):
    mixed = (column * 73856093) ^ (row * 19349663) ^ (level * 83492791)
    return (mixed ^ (mixed >> 15)) & mask


@compiled
def _look(table, cells, level, kept, boxes, j, threshold, offset, rotated, first, found):
    """The number of a kept box in some cells that removes box j, the least one if `first`; else `found`."""
    heads, following = table
    column, row, last_column, last_row = cells
    for u in range(column, last_column + 1):
        for v in range(row, last_row + 1):
            i = heads[_slot(u, v, level, len(heads) - 1)]
            while i >= 0:
                if (found < 0 or i < found) and _overlap(kept, i, boxes, j, offset, rotated) > threshold:
                    found = i
                    if not first:
                        return found
                i = following[i]
    return found


@compiled
def _file_and_remove(boxes, frames, threshold, share, offset, rotated, first, remover):
    """`remover`, as `_removers` has it, for the boxes of one group; any remover unless `first`."""
    count, slots = len(boxes), 64
    while slots < count:
        slots *= 2
    heads, following = np.full(slots, -1, np.int32), np.empty(count, np.int32)
    kept, place, number = np.empty_like(boxes), np.empty(count, np.int32), 0
    lowest, highest = 1 << 20, -(1 << 20)
    for j in range(count):
        remover[j] = j
        left, top, width, height = frames[j, 0], frames[j, 1], frames[j, 2], frames[j, 3]
        if not (width > 0 and height > 0):  # nor NaN
            continue
        side = max(width, height)
        level, last = lowest, highest
        if share > 0:
            level, last = max(lowest, _level(side * share)), min(highest, _level(side / share))
        found, looked = -1, 0.0 if number > FEW else math.inf
        while level <= last and looked < number and (found < 0 or first):
            cell = math.ldexp(0.25, level)
            before, far_x, far_y = 4 * cell * (1 - share), width * (1 - share), height * (1 - share)
            rounding_x, rounding_y = abs(left) * 1e-15, abs(top) * 1e-15
            column, row = _cell(left - before - rounding_x, cell), _cell(top - before - rounding_y, cell)
            cells = column, row, _cell(left + far_x + rounding_x, cell), _cell(top + far_y + rounding_y, cell)
            looked += float(cells[2] - column + 1) * float(cells[3] - row + 1)
            if looked < number:
                table = heads, following
                found = _look(table, cells, level, kept, boxes, j, threshold, offset, rotated, first, found)
            level += 1
        if looked >= number and (found < 0 or first):  # to look at all costs less than to look into so many cells
            for i in range(number if found < 0 else found):
                if _overlap(kept, i, boxes, j, offset, rotated) > threshold:
                    found = i
                    break
        if found >= 0:
            remover[j] = place[found]
            continue
        level = _level(side)
        lowest, highest = min(lowest, level), max(highest, level)
        cell = math.ldexp(0.25, level)
        slot = _slot(_cell(left, cell), _cell(top, cell), level, slots - 1)
        kept[number], place[number] = boxes[j], j
        following[number], heads[slot] = heads[slot], number
        number += 1


def _frames(boxes: Tensor, offset: int) -> Tensor:
    """(N, 4) float64: left, top, width and height of the upright frame; widths of NaN for what overlaps nothing."""
    boxes = boxes.double()
    if boxes.shape[1] == 5:
        x, y, width, height, cosine, sine = rotated_columns(boxes)
        half_x, half_y = width * cosine.abs() + height * sine.abs(), width * sine.abs() + height * cosine.abs()
        frames, size = torch.stack([x - half_x, y - half_y, 2 * half_x, 2 * half_y], 1), width * height
        return frames.where((size > 0)[:, None], torch.nan)
    left, top, right, bottom, area = upright_columns(boxes, offset)
    frames = torch.stack([left, top, right - left + offset, bottom - top + offset], 1)
    return frames.where(torch.isfinite(area)[:, None], torch.nan)


def _removers_cpu(boxes: Tensor, iou_threshold: float, offset: int, groups: Tensor | None, first: bool) -> Tensor:
    """`_removers`, for boxes that are sorted by group, then by descending score."""
    rotated = boxes.shape[1] == 5
    rows = (rotated_columns(boxes) if rotated else upright_columns(boxes, offset)).T.contiguous().numpy()
    frames, number = _frames(boxes, offset).numpy(), rows.dtype.type
    share = 1 - math.sqrt(1 - min(iou_threshold, 1)) if rotated else min(iou_threshold, 1)
    share = max(0.0, share - 1e-3)  # rounding may raise an overlap
    remover = torch.empty(len(boxes), dtype=torch.int64)
    sizes = [len(boxes)] if groups is None else groups.unique_consecutive(return_counts=True)[1].tolist()
    ends = np.cumsum(sizes)
    options = number(iou_threshold), share, number(offset), rotated, first

    def resolve(part: slice) -> None:
        _file_and_remove(rows[part], frames[part], *options, remover.numpy()[part])
        remover[part] += part.start

    each(resolve, [slice(end - size, end) for end, size in zip(ends.tolist(), sizes)])
    return remover


def _nms_cpu(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int, groups: Tensor | None) -> Tensor:
    order = _by_score(scores)
    if groups is None:
        remover = _removers_cpu(boxes[order], iou_threshold, offset, None, first=False)
        return order[remover == torch.arange(len(order))]
    groups, by_group = groups[order].sort(stable=True)
    remover = _removers_cpu(boxes[order[by_group]], iou_threshold, offset, groups, first=False)
    kept = torch.empty(len(order), dtype=torch.bool)
    kept[by_group] = remover == torch.arange(len(order))
    return order[kept]


def _nms_match_cpu(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    order = _by_score(scores)
    remover = _removers_cpu(boxes[order], iou_threshold, offset, None, first=True)
    return torch.empty_like(order).scatter_(0, order, order[remover])


@compiled
def _take_and_lower(boxes, scores, threshold, sigma, least, method, offset, index, taken):
    """Fills index and taken; returns their number."""
    boxes, scores, left = boxes.copy(), scores.copy(), np.arange(len(boxes))
    one, number, count = sigma / sigma, 0, len(boxes)
    best = 0
    for i in range(1, count):
        if scores[i] > scores[best] or (np.isnan(scores[i]) and not np.isnan(scores[best])):
            best = i
    while count:
        box = boxes[best : best + 1].copy()
        index[number], taken[number] = left[best], scores[best]
        number += 1
        last, count, removed, best = count, 0, best, 0
        for i in range(last):  # one pass lowers the scores, drops boxes, and finds the next
            if i == removed:
                continue
            score = scores[i]
            value = _overlap(box, 0, boxes, i, offset, False)
            if method == 2:
                if value > 0:
                    score = score * math.exp(-(value * value) / sigma)
            elif value >= threshold:
                score = score * (one - value if method == 1 else offset - offset)
            if score < least:
                continue
            if count < i:
                boxes[count], left[count] = boxes[i], left[i]
            scores[count] = score
            if score > scores[best] or (np.isnan(score) and not np.isnan(scores[best])):
                best = count
            count += 1
    return number


def _soft_nms_cpu(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float, method: str, offset: int
) -> tuple[Tensor, Tensor]:
    device, rows = scores.device, upright_columns(boxes.cpu(), offset).T.contiguous()
    index, taken = torch.empty(len(rows), dtype=torch.int64), torch.empty(len(rows), dtype=rows.dtype)
    numbers = map(rows.numpy().dtype.type, (iou_threshold, sigma, min_score))
    values, width = scores.cpu().to(rows.dtype).contiguous().numpy(), rows.numpy().dtype.type(offset)
    number = _take_and_lower(rows.numpy(), values, *numbers, METHODS.index(method), width, index.numpy(), taken.numpy())
    return index[:number].to(device, copy=True), taken[:number].to(device, scores.dtype, copy=True)


# --- Triton ----------------------------------------------------------------------------------------------------------
#
# Boxes are sorted by descending score. 32 boxes are the bits of a word.


@triton.jit
def _above(columns, groups, thresholds, i, j, end, count, OFFSET, ROTATED: tl.constexpr, GROUPED: tl.constexpr):
    """Whether boxes i overlap boxes j by more than the threshold; i and j broadcast, and lie below end and count."""
    a0, a1, a2, a3, a4, a5 = load_box(columns, i, i < end, count, ROTATED)
    b0, b1, b2, b3, b4, b5 = load_box(columns, j, j < count, count, ROTATED)
    value = overlap(a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5, OFFSET, ROTATED, True)
    above = (value > tl.load(thresholds)) & (i < end) & (j < count)
    if GROUPED:
        above &= tl.load(groups + i, i < end, 0) == tl.load(groups + j, j < count, 0)
    return above


@triton.jit(do_not_specialize=["start", "count"])
def nms_fwd_pairs_kernel(
    columns, groups, thresholds, pairs, start, count,
    WORDS: tl.constexpr, OFFSET: tl.constexpr, ROTATED: tl.constexpr, GROUPED: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """pairs[j, w]: which of the 32 boxes of word w, all of them before j, overlap j; w and j in the block at start."""
    word = tl.program_id(0)
    local = tl.program_id(1) * BLOCK_J + tl.arange(0, BLOCK_J)
    lane = tl.arange(0, 32)[None, :]
    bits = tl.zeros([BLOCK_J], tl.int32)
    if word * 32 < tl.program_id(1) * BLOCK_J + BLOCK_J:
        i, j = start + word * 32 + lane, start + local[:, None]
        above = _above(columns, groups, thresholds, i, j, count, count, OFFSET, ROTATED, GROUPED) & (i < j)
        bits = tl.sum(tl.where(above, 1 << lane, 0), 1)
    tl.store(pairs + local * WORDS + word, bits)


@triton.jit(do_not_specialize=["start", "count"])
def nms_fwd_keep_kernel(pairs, removed, keep, start, count, WORDS: tl.constexpr):
    """The kept boxes of a block, as words, from those that no earlier block has removed; one program.

    Eight words at a time: a box stays unless one that stays so far precedes and overlaps it, until nothing changes.
    Every round settles at least the next box in order; as a rule a few rounds settle all 256.
    """
    eight, lane, w = tl.arange(0, 8), tl.arange(0, 32), tl.arange(0, WORDS)
    for first in range(0, tl.minimum(tl.cdiv(count - start, 256) * 8, WORDS), 8):
        n = start + (first + eight)[:, None] * 32 + lane[None, :]
        there = tl.load(removed + n, n < count, 1) == 0
        alive = tl.sum(tl.where(there, 1 << lane[None, :], 0), 1)
        place = keep + start // 32 + first + eight
        tl.store(place, alive)
        row = (first + eight)[:, None, None] * 32 + lane[None, :, None]
        overlapped = tl.load(pairs + row * WORDS + w[None, None, :])
        kept, changed = alive, 1
        while changed > 0:
            tl.debug_barrier()  # the words of all threads are written
            so_far = tl.load(keep + start // 32 + w, w < first + 8, 0)
            hit = tl.max(((overlapped & so_far[None, None, :]) != 0).to(tl.int32), 2)
            now = alive & ~tl.sum(hit << lane[None, :], 1)
            changed = tl.max((now != kept).to(tl.int32), 0)
            kept = now
            tl.debug_barrier()  # all threads have read the words
            tl.store(place, kept)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["start", "count"])
def nms_fwd_remove_kernel(
    columns, groups, thresholds, keep, removed, start, count,
    WORDS: tl.constexpr, OFFSET: tl.constexpr, ROTATED: tl.constexpr, GROUPED: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """A tile of boxes after the block at start: which of them the kept boxes of the block remove."""
    end = start + WORDS * 32
    j = end + tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J)
    lane = tl.arange(0, 32)
    gone = tl.load(removed + j, j < count, 1).to(tl.int32)
    for word in range(0, WORDS):
        bits = tl.load(keep + start // 32 + word)
        if bits != 0:
            i = (start + word * 32 + lane)[None, :]
            above = _above(columns, groups, thresholds, i, j[:, None], end, count, OFFSET, ROTATED, GROUPED)
            gone = gone | tl.max((above & (((bits >> lane) & 1) != 0)[None, :]).to(tl.int32), 1)
    tl.store(removed + j, gone.to(tl.int8), j < count)


def _nms_triton(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int, groups: Tensor | None) -> Tensor:
    order, count = _by_score(scores), len(boxes)
    rotated, words = boxes.shape[1] == 5, BLOCK // 32
    columns = (rotated_columns(boxes[order]) if rotated else upright_columns(boxes[order], offset)).contiguous()
    removed = torch.zeros(count, dtype=torch.int8, device=boxes.device)
    keep = torch.zeros(triton.cdiv(count, BLOCK) * words, dtype=torch.int32, device=boxes.device)
    pairs = torch.empty(BLOCK, words, dtype=torch.int32, device=boxes.device)
    thresholds = columns.new_full((1,), iou_threshold)  # in memory, as a float64 argument would lose digits
    options = dict(WORDS=words, OFFSET=offset, ROTATED=rotated, GROUPED=groups is not None)
    inputs = columns, order if groups is None else groups[order], thresholds
    # without fused multiply-adds: rounding must equal that of the other paths
    tile = dict(**options, BLOCK_J=64, enable_fp_fusion=False)
    with torch.cuda.device_of(boxes):
        for start in range(0, count, BLOCK):
            here = min(count - start, BLOCK)
            nms_fwd_pairs_kernel[triton.cdiv(here, 32), triton.cdiv(here, 64)](*inputs, pairs, start, count, **tile)
            nms_fwd_keep_kernel[(1,)](pairs, removed, keep, start, count, WORDS=words, num_warps=8)
            if (left := count - start - BLOCK) > 0:
                nms_fwd_remove_kernel[(triton.cdiv(left, 64),)](*inputs, keep, removed, start, count, **tile)
    bits = keep[:, None] >> torch.arange(32, dtype=torch.int32, device=keep.device)
    return order[(bits & 1).flatten()[:count].bool()]


def _nms_match_triton(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    kept, order = _nms_triton(boxes, scores, iou_threshold, offset, None), _by_score(scores)
    boxes, remover = boxes.to(sum_dtype(boxes)), torch.arange(len(order), device=order.device)
    threshold, rank = boxes.new_tensor(iou_threshold), torch.empty_like(order)
    rank[order] = remover.clone()
    number = torch.arange(len(kept), device=order.device).unsqueeze(1)
    for some in remover.clone().split(max(1, PAIRS // max(1, len(kept)))) if len(kept) else ():
        above = bbox_overlaps_op(boxes[kept], boxes[some], "iou", False, offset) > threshold
        above &= rank[kept].unsqueeze(1) < rank[some]
        first = number.where(above, len(kept)).amin(0)
        remover[some] = torch.where(first < len(kept), kept[first.clamp(max=len(kept) - 1)], some)
    return remover


# --- the operators ---------------------------------------------------------------------------------------------------


@torch.library.custom_op("attlas::nms", mutates_args=())
def nms_op(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int, groups: Tensor | None) -> Tensor:
    """Boxes (N, 4), or (N, 5) in any orientation."""
    run = pick(boxes, reference=nms_reference, triton=_nms_triton, cpu=_nms_cpu)
    return run(boxes, scores, iou_threshold, offset, groups)


@nms_op.register_fake
def _(boxes, scores, iou_threshold, offset, groups):
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def nms_in_onnx(boxes, scores, iou_threshold: float, offset: int, groups=None):
    """`nms` by ONNX's NonMaxSuppression, to which a group is a class, in float32; scores of -∞ are not kept.

    Raises:
        ValueError: boxes in any orientation, which ONNX does not know.
    """
    import onnxscript  # here, because only exports need it

    op: Any = onnxscript.opset18
    if boxes.shape is not None and boxes.shape[-1] != 4:
        raise ValueError("nms_rotated has no counterpart in ONNX: take .pt2")
    boxes, scores = op.Cast(boxes, to=1), op.Cast(scores, to=1)  # 1 is float32
    if offset:
        boxes = op.Add(boxes, op.Constant(value_floats=[0.0, 0.0, 1.0, 1.0]))
    of_groups = op.Unsqueeze(scores, [0])
    if groups is not None:
        one = op.Constant(value_int=1)
        count = op.Add(op.ReduceMax(groups, keepdims=0), one)
        own = op.Equal(op.Unsqueeze(op.Range(op.Constant(value_int=0), count, one), [1]), op.Unsqueeze(groups, [0]))
        of_groups = op.Where(own, of_groups, op.Constant(value_float=-math.inf))
    lowest = op.Constant(value_floats=[float(np.finfo(np.float32).min)])
    options = op.Shape(scores), op.Constant(value_floats=[iou_threshold]), lowest
    found = op.NonMaxSuppression(op.Unsqueeze(boxes, [0]), op.Unsqueeze(of_groups, [0]), *options)
    index = op.Squeeze(op.Slice(found, [2], [3], [1]), [1])  # of rows of image, class, box
    _, order = op.TopK(op.Gather(scores, index), op.Shape(index), axis=0)
    return op.Gather(index, order)


translate(nms_op, nms_in_onnx)


@torch.library.custom_op("attlas::nms_match", mutates_args=())
def nms_match_op(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    run = pick(boxes, reference=nms_match_reference, triton=_nms_match_triton, cpu=_nms_match_cpu)
    return run(boxes, scores, iou_threshold, offset)


@nms_match_op.register_fake
def _(boxes, scores, iou_threshold, offset):
    return boxes.new_empty(len(boxes), dtype=torch.int64)


@torch.library.custom_op("attlas::soft_nms", mutates_args=())
def soft_nms_op(
    boxes: Tensor, scores: Tensor, iou_threshold: float, sigma: float, min_score: float, method: str, offset: int
) -> tuple[Tensor, Tensor]:
    run = pick(boxes, reference=soft_nms_reference, triton=_soft_nms_cpu, cpu=_soft_nms_cpu)
    return run(boxes, scores, iou_threshold, sigma, min_score, method, offset)


@soft_nms_op.register_fake
def _(boxes, scores, iou_threshold, sigma, min_score, method, offset):
    number = torch.library.get_ctx().new_dynamic_size()
    return boxes.new_empty(number, dtype=torch.int64), scores.new_empty(number)
