"""RoIPool: every box of a map is cut into bins along pixels, and each bin is the maximum of its pixels.

    out[r, c, p, q] = max over i, j of map[b_r, c, i, j],    floor(top + p · h) <= i < ceil(top + (p + 1) · h)

and j alike, with h = (bottom - top) / bins. Both edges of a box are in whole units of its coordinates and belong to it:
right and bottom count one further. Bins overlap where their edges lie within a pixel. A bin without pixels gives 0, and
so does a box of no height or width; of equal pixels the first is taken, row by row.

Suffixes of names: B images, C channels, R boxes, P and Q rows and columns of bins.

Source: Fast R-CNN, arXiv 1504.08083, section 2.1; edges as in mmcv.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import sum_dtype
from .dispatch import compiled, decompose, each, pick, slices, tl, triton
from .roi_align import check_boxes, check_pooling
from .tiles import item_rows, rows_by_channels, triton_dtype

# Boxes that a thread takes at a time.
BOXES = 16


def roi_pool(features: Tensor, rois: Tensor, output_size: int | Sequence[int], spatial_scale: float = 1.0) -> Tensor:
    """Maxima of the pixels in the bins of boxes; differentiable in the features.

    On a GPU the gradient is summed in any order, unless `torch.use_deterministic_algorithms(True)` is set.

    Args:
        features: maps (B, C, H, W) of any floating-point dtype; gradients of half types are summed in float32.
        rois: boxes (R, 5) of any floating-point dtype: the number of an image, then left, top, right, bottom.
        output_size: height and width of the output in bins; one number for both.
        spatial_scale: pixels of the map per unit of the boxes' coordinates.

    Returns:
        (R, C, height, width), contiguous, in the dtype of the features.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value; on a CPU also a box that is not finite.
        IndexError: a number of an image out of range (on a CPU).
    """
    high, wide = check_pooling(features, rois, output_size, spatial_scale)
    return roi_pool_op(features, rois.to(sum_dtype(features)), high, wide, float(spatial_scale))[0]


def _windows(rois_R5: Tensor, bins: int, length: int, scale: float, axis: int) -> tuple[Tensor, Tensor]:
    """First pixel of every bin along y (axis 1) or x (axis 0), and the one after its last: (R, bins) both."""
    start, end = rois_R5[:, 1 + axis, None] * scale, (rois_R5[:, 3 + axis, None] + 1) * scale
    p, size = torch.arange(bins, device=start.device), (end - start) / bins
    first, last = (p * size + start).floor(), ((p + 1) * size + start).ceil()
    return first.clamp(0, length).long(), last.clamp(0, length).where(size > 0, 0).long()


def roi_pool_reference(
    features_BCHW: Tensor, rois_R5: Tensor, high: int, wide: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Output, and the pixels of the maxima on their maps, -1 for none."""
    height, width = features_BCHW.shape[2:]
    first_y, last_y = (x.unsqueeze(2) for x in _windows(rois_R5, high, height, scale, 1))
    first_x, last_x = (x.unsqueeze(2) for x in _windows(rois_R5, wide, width, scale, 0))
    i, j = torch.arange(height, device=rois_R5.device), torch.arange(width, device=rois_R5.device)
    in_y_RPH, in_x_RQW = (i >= first_y) & (i < last_y), (j >= first_x) & (j < last_x)
    maps_RCHW = features_BCHW[rois_R5[:, 0].long()]
    found = []
    for p in range(high):
        for q in range(wide):
            inside = (in_y_RPH[:, p, :, None] & in_x_RQW[:, q, None, :]).unsqueeze(1)
            value, pixel = maps_RCHW.where(inside, -torch.inf).flatten(2).max(2)
            some = inside.flatten(1).any(1, keepdim=True)
            found.append((value.where(some, 0), pixel.where(some, -1)))
    out, pixel = (torch.stack(x, 2).unflatten(2, (high, wide)) for x in zip(*found))
    return out, pixel


def roi_pool_backward_reference(grad: Tensor, rois: Tensor, pixel: Tensor, shape: Sequence[int]) -> Tensor:
    batch, channels, height, width = shape
    total = torch.zeros(batch * channels * height * width, dtype=rois.dtype, device=grad.device)
    image, channel = rois[:, 0].long().view(-1, 1, 1, 1), torch.arange(channels, device=grad.device).view(-1, 1, 1)
    place = (image * channels + channel) * (height * width) + pixel
    given = grad.to(rois.dtype).where(pixel >= 0, 0)
    total.index_add_(0, place.where(pixel >= 0, 0).flatten(), given.flatten())
    return total.view(batch, channels, height, width).to(grad.dtype)


@compiled
def _maxima(features_BHWC, image_R, first_y, last_y, first_x, last_x, out_RPQC, pixel_RPQC, first, last):
    (_, _, width, _), (_, high, wide, channels) = features_BHWC.shape, out_RPQC.shape
    for r in range(first, last):
        for p in range(high):
            for q in range(wide):
                out, pixel = out_RPQC[r, p, q], pixel_RPQC[r, p, q]
                out[:], pixel[:] = 0, -1
                for i in range(first_y[r, p], last_y[r, p]):
                    for j in range(first_x[r, q], last_x[r, q]):
                        row = features_BHWC[image_R[r], i, j]
                        anyway = i == first_y[r, p] and j == first_x[r, q]
                        for c in range(channels):
                            if anyway or row[c] > out[c] or (row[c] != row[c] and out[c] == out[c]):
                                out[c], pixel[c] = row[c], i * width + j


def _roi_pool_cpu(features: Tensor, rois: Tensor, high: int, wide: int, scale: float) -> tuple[Tensor, Tensor]:
    maps = features.to(rois.dtype).permute(0, 2, 3, 1).contiguous().numpy()
    edges = *_windows(rois, high, maps.shape[1], scale, 1), *_windows(rois, wide, maps.shape[2], scale, 0)
    out = torch.empty(len(rois), high, wide, features.shape[1], dtype=rois.dtype)
    pixel = torch.empty(out.shape, dtype=torch.int64)
    arrays = [x.numpy() for x in (rois[:, 0].long(), *edges, out, pixel)]
    each(lambda part: _maxima(maps, *arrays, part.start, part.stop), slices(0, len(rois), BOXES))
    return out.permute(0, 3, 1, 2).to(features.dtype), pixel.permute(0, 3, 1, 2)


@triton.jit(do_not_specialize=["height", "width"])
def roi_pool_fwd_kernel(
    features, image, first_y, last_y, first_x, last_x, out, pixel, high, wide, channels, height, width,
    f_b, f_c, f_h, f_w, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A tile of bins of one box by channels; rows and columns of the largest bin of the tile, masked for the others."""
    box, bin, real = item_rows(high * wide, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    mask = real[:, None] & (c < channels)
    at_y, at_x = box * high + bin // wide, box * wide + bin % wide
    y, end_y = tl.load(first_y + at_y, mask=real, other=0), tl.load(last_y + at_y, mask=real, other=0)
    x, end_x = tl.load(first_x + at_x, mask=real, other=0), tl.load(last_x + at_x, mask=real, other=0)
    features += tl.load(image + box) * f_b + c.to(tl.int64) * f_c
    best = tl.zeros((BLOCK_P, BLOCK_C), dtype=WIDE)
    where = tl.full((BLOCK_P, BLOCK_C), -1, tl.int64)
    for k in range(tl.maximum(tl.max(end_y - y, 0), 0).to(tl.int32)):
        for m in range(tl.maximum(tl.max(end_x - x, 0), 0).to(tl.int32)):
            i, j = y + k, x + m
            here = mask & ((i < end_y) & (j < end_x))[:, None]
            value = tl.load(features + i[:, None] * f_h + j[:, None] * f_w, mask=here, other=0).to(WIDE)
            larger = (where < 0) | (value > best) | ((value != value) & (best == best))
            best = tl.where(here & larger, value, best)
            where = tl.where(here & larger, (i * width + j)[:, None], where)
    at = (box * channels + c) * (high * wide) + bin[:, None]
    tl.store(out + at, best, mask=mask)
    tl.store(pixel + at, where, mask=mask)


@triton.jit
def roi_pool_bwd_kernel(grad, image, pixel, total, count, bins, channels, size, BLOCK: tl.constexpr):
    """Every bin adds to its maximum, in any order."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = tl.load(pixel + at, mask=inside, other=-1)
    plane = tl.load(image + at // (channels * bins), mask=inside, other=0) * channels + at // bins % channels
    given = tl.load(grad + at, mask=inside, other=0).to(total.dtype.element_ty)
    tl.atomic_add(total + plane * size + place, given, mask=inside & (place >= 0), sem="relaxed")


def _roi_pool_triton(features: Tensor, rois: Tensor, high: int, wide: int, scale: float) -> tuple[Tensor, Tensor]:
    boxes, (channels, height, width) = len(rois), features.shape[1:]
    edges = *_windows(rois, high, height, scale, 1), *_windows(rois, wide, width, scale, 0)
    out = features.new_empty(boxes, channels, high, wide)
    pixel = torch.empty(out.shape, dtype=torch.int64, device=out.device)
    if out.numel():
        block_p, block_c = rows_by_channels(channels, 64, 1024)
        grid = boxes * triton.cdiv(high * wide, block_p), triton.cdiv(channels, block_c)
        tensors = [x.contiguous() for x in (rois[:, 0].long(), *edges)]
        sizes = high, wide, channels, height, width, *features.stride()
        options = dict(WIDE=triton_dtype(rois.dtype), BLOCK_P=block_p, BLOCK_C=block_c)
        with torch.cuda.device_of(features):
            roi_pool_fwd_kernel[grid](features, *tensors, out, pixel, *sizes, **options)
    return out, pixel


def _roi_pool_backward_triton(grad: Tensor, rois: Tensor, pixel: Tensor, shape: Sequence[int]) -> Tensor:
    if torch.are_deterministic_algorithms_enabled():
        return roi_pool_backward_reference(grad, rois, pixel, shape)
    total = rois.new_zeros(shape)
    if grad.numel():
        tensors = grad.contiguous(), rois[:, 0].long(), pixel.contiguous(), total
        sizes = grad.numel(), grad.shape[2] * grad.shape[3], shape[1], shape[2] * shape[3]
        with torch.cuda.device_of(grad):
            roi_pool_bwd_kernel[(triton.cdiv(grad.numel(), 1024),)](*tensors, *sizes, BLOCK=1024)
    return total.to(grad.dtype)


@torch.library.custom_op("attlas::roi_pool", mutates_args=())
def roi_pool_op(features: Tensor, rois: Tensor, high: int, wide: int, scale: float) -> tuple[Tensor, Tensor]:
    check_boxes(rois, len(features), ordered=False)
    run = pick(features, reference=roi_pool_reference, triton=_roi_pool_triton, cpu=_roi_pool_cpu)
    out, pixel = run(features, rois, high, wide, scale)
    return out.contiguous(), pixel.contiguous()


@roi_pool_op.register_fake
def _(features, rois, high, wide, scale):
    out = features.new_empty(len(rois), features.shape[1], high, wide)
    return out, torch.empty(out.shape, dtype=torch.int64, device=out.device)


@torch.library.custom_op("attlas::roi_pool_backward", mutates_args=())
def roi_pool_backward_op(grad: Tensor, rois: Tensor, pixel: Tensor, shape: list[int]) -> Tensor:
    run = pick(grad, reference=roi_pool_backward_reference, triton=_roi_pool_backward_triton)
    return run(grad, rois, pixel, shape)


@roi_pool_backward_op.register_fake
def _(grad, rois, pixel, shape):
    return grad.new_empty(shape)


def _save(ctx, inputs, output):
    features, rois, *_ = inputs
    ctx.shape = list(features.shape)
    ctx.save_for_backward(rois, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    return roi_pool_backward_op(grad, *ctx.saved_tensors, ctx.shape), None, None, None, None


roi_pool_op.register_autograd(_backward, setup_context=_save)
decompose(roi_pool_op, roi_pool_reference)
