"""Deformable RoI pooling: the means of RoIAlign, of bins that are shifted one by one.

    out[r, c, p, q] = mean of the samples of bin (p, q) of box r, moved by gamma · (height · offset[r, 1, p, q],
                                                                                    width · offset[r, 0, p, q])

with the samples, borders and half pixel of `roi_align`. Every bin is a box of one bin to RoIAlign's operators, which
compute the output and the gradient of the map; here is the gradient of the offsets.

Where a sample lies beyond the center of an outer pixel its value does not change with its place, and gives no gradient;
mmcv's extension continues the slope of the map there.

Suffixes of names: B images, C channels, R boxes, N bins of all boxes, 2 the axes y and x.

Source: Deformable Convolutional Networks, arXiv 1703.06211, section 2.2, in mmcv's form.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .checks import check_floats, check_integer, check_number, check_tensors, sum_dtype
from .deformable_attention import row_product
from .dispatch import compiled, decompose, each, pick, slices
from .roi_align import (
    all_samples,
    channels_last,
    check_boxes,
    check_pooling,
    grids,
    pixels_around,
    roi_align,
    roi_align_backward_op,
    roi_align_op,
    sample_place,
    visited,
)

# Bins that a thread takes at a time.
BINS = 256


def deform_roi_pool(
    features: Tensor,
    rois: Tensor,
    offset: Tensor | None,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    gamma: float = 0.1,
) -> Tensor:
    """Means of the shifted bins of boxes; differentiable in features and offsets.

    Args:
        features: maps (B, C, H, W) of any floating-point dtype; half types are summed in float32.
        rois: boxes (R, 5) of any floating-point dtype: the number of an image, then left, top, right, bottom.
        offset: shifts of the bins (R, 2, height, width) along x and y, of any floating-point dtype; None for none.
        output_size: height and width of the output in bins; one number for both.
        spatial_scale: pixels of the map per unit of the boxes' coordinates.
        sampling_ratio: samples of a bin along each axis; 0 to choose by its size.
        gamma: shift of a bin in sides of its box, for an offset of 1.

    Returns:
        (R, C, height, width), in the dtype of the features.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value; on a CPU also a box or an offset that is
            not finite, or a box whose right or bottom edge lies before the other.
        IndexError: a number of an image out of range (on a CPU).
    """
    high, wide = check_pooling(features, rois, output_size, spatial_scale)
    check_integer(sampling_ratio, "sampling_ratio", 0)
    check_number(gamma, "gamma")
    if offset is None:
        return roi_align(features, rois, output_size, spatial_scale, sampling_ratio)
    check_tensors(offset=offset)
    shape = len(rois), 2, high, wide
    if offset.shape != shape:
        raise ValueError(f"offset must have shape (R, 2, height, width), {shape}, got {tuple(offset.shape)}")
    check_floats(features=features, offset=offset)
    dtype = sum_dtype(features)
    scale = float(spatial_scale)
    return deform_roi_pool_op(features, rois.detach().to(dtype), offset.to(dtype), scale, sampling_ratio, float(gamma))


# Below, the dtype of boxes and offsets is that of sums: that of the features, or float32 for half types.


def _check(features: Tensor, rois: Tensor, offset: Tensor) -> None:
    check_boxes(rois, len(features), ordered=True)
    if offset.device.type == "cpu" and not torch.isfinite(offset).all():
        raise ValueError("offset must be finite, got NaN or infinity")


def _bins(rois: Tensor, offset: Tensor, scale: float, ratio: int, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """All bins as boxes of one bin, as `grids` gives them, images (N) and (N, 2, 3); and pixels (R, 1, 1, 2) along y
    and x that an offset of 1 moves a bin."""
    high, wide = offset.shape[2:]
    image, grid = grids(rois, (high, wide), scale, ratio, aligned=True)
    start, size, samples = grid[:, None, None].unbind(4)  # (R, 1, 1, 2) each
    p, q = torch.arange(high, device=rois.device), torch.arange(wide, device=rois.device)
    number = torch.stack(torch.meshgrid(p, q, indexing="ij"), 2)
    unit = gamma * size * torch.tensor([high, wide], device=rois.device)
    first = start + number * size + unit * offset.flip(1).permute(0, 2, 3, 1)
    bins = torch.stack([first, size.expand_as(first), samples.expand_as(first)], 4)
    return image.repeat_interleave(high * wide), bins.flatten(0, 2), unit


def _slopes_reference(grad_NC: Tensor, features: Tensor, image_N: Tensor, grid_N23: Tensor, ratio: int) -> Tensor:
    """Derivative (N, 2) of the bins' means, weighted by `grad_NC`, by their places along y and x."""
    rows, out = features.permute(0, 2, 3, 1).flatten(0, 2), []
    for part in slices(0, len(grad_NC), BINS):  # not everything at once: it gathers what all samples read
        y, x, corners, inside, _, samples = all_samples(features.shape, image_N[part], grid_N23[part], 1, 1, ratio)
        slope_y, slope_x = torch.zeros_like(y), torch.zeros_like(y)
        for (pixel, near_y, near_x), below, right in zip(corners, (-1, -1, 1, 1), (-1, 1, -1, 1)):
            seen = rows[pixel].to(grad_NC.dtype)  # (N, 1, 1, n, n, C)
            product = (seen * grad_NC[part, None, None, None, None]).sum(-1)
            slope_y, slope_x = slope_y + below * near_x * product, slope_x + right * near_y * product
        slopes = torch.stack([slope_y.where(inside & (y >= 0), 0), slope_x.where(inside & (x >= 0), 0)], -1)
        out.append(slopes.sum((1, 2, 3, 4)) / samples.clamp(min=1).unsqueeze(1))
    return torch.cat(out) if out else grid_N23.new_zeros(0, 2)


@compiled
def _slopes(grad_NC, features_BHWC, image_N, grid_N23, slope_N2, first, last):
    _, height, width, _ = features_BHWC.shape
    number = slope_N2.dtype.type
    one = number(1)
    for n in range(first, last):
        grad, map_HWC, slope_y, slope_x = grad_NC[n], features_BHWC[image_N[n]], number(0), number(0)
        first_y, last_y = visited(grid_N23[n, 0], 0, height)
        first_x, last_x = visited(grid_N23[n, 1], 0, width)
        for i in range(first_y, last_y):
            y, inside_y = sample_place(grid_N23[n, 0], 0, i, height)
            for j in range(first_x, last_x):
                x, inside_x = sample_place(grid_N23[n, 1], 0, j, width)
                if inside_y and inside_x:
                    top, bottom, part_y = pixels_around(y, height, number)
                    left, right, part_x = pixels_around(x, width, number)
                    a, b = row_product(grad, map_HWC[top, left]), row_product(grad, map_HWC[top, right])
                    c, d = row_product(grad, map_HWC[bottom, left]), row_product(grad, map_HWC[bottom, right])
                    if y >= 0:
                        slope_y += (one - part_x) * (c - a) + part_x * (d - b)
                    if x >= 0:
                        slope_x += (one - part_y) * (b - a) + part_y * (d - c)
        samples = max(grid_N23[n, 0, 2] * grid_N23[n, 1, 2], one)
        slope_N2[n, 0], slope_N2[n, 1] = slope_y / samples, slope_x / samples


def _slopes_cpu(grad_NC: Tensor, features: Tensor, image_N: Tensor, grid_N23: Tensor, ratio: int) -> Tensor:
    slope_N2 = torch.empty(len(grad_NC), 2, dtype=grid_N23.dtype)
    maps = channels_last(features, grid_N23.dtype)
    grad, *others = (x.contiguous().numpy() for x in (grad_NC, image_N, grid_N23, slope_N2))
    each(lambda part: _slopes(grad, maps, *others, part.start, part.stop), slices(0, len(grad_NC), BINS))
    return slope_N2


def deform_roi_pool_reference(
    features: Tensor, rois: Tensor, offset: Tensor, scale: float, ratio: int, gamma: float
) -> Tensor:
    (boxes, _, high, wide), channels = offset.shape, features.shape[1]
    image, bins, _ = _bins(rois, offset, scale, ratio, gamma)
    out = roi_align_op(features, image, bins, 1, 1, ratio, False)[0]
    return out.reshape(boxes, high, wide, channels).permute(0, 3, 1, 2).contiguous()


@torch.library.custom_op("attlas::deform_roi_pool", mutates_args=())
def deform_roi_pool_op(
    features: Tensor, rois: Tensor, offset: Tensor, scale: float, ratio: int, gamma: float
) -> Tensor:
    _check(features, rois, offset)
    return deform_roi_pool_reference(features, rois, offset, scale, ratio, gamma)


@deform_roi_pool_op.register_fake
def _(features, rois, offset, scale, ratio, gamma):
    return features.new_empty(len(offset), features.shape[1], *offset.shape[2:])


@torch.library.custom_op("attlas::deform_roi_pool_backward", mutates_args=())
def deform_roi_pool_backward_op(
    grad: Tensor, features: Tensor, rois: Tensor, offset: Tensor, scale: float, ratio: int, gamma: float
) -> tuple[Tensor, Tensor]:
    """Gradients of features and offset."""
    _check(features, rois, offset)
    (boxes, _, high, wide), channels = offset.shape, features.shape[1]
    image, bins, unit = _bins(rois, offset, scale, ratio, gamma)
    grad_NC = grad.permute(0, 2, 3, 1).reshape(boxes * high * wide, channels)
    none, shape = bins.new_empty(0), list(features.shape)
    grad_features = roi_align_backward_op(grad_NC[:, :, None, None], image, bins, none, shape, ratio)
    run = pick(features, reference=_slopes_reference, triton=_slopes_reference, cpu=_slopes_cpu)
    slopes = run(grad_NC.to(bins.dtype), features, image, bins, ratio).view(boxes, high, wide, 2)
    return grad_features, (slopes * unit).flip(3).permute(0, 3, 1, 2).contiguous()


@deform_roi_pool_backward_op.register_fake
def _(grad, features, rois, offset, scale, ratio, gamma):
    grad_features = torch.empty(features.shape, dtype=grad.dtype, device=grad.device, memory_format=torch.channels_last)
    return grad_features, offset.new_empty(offset.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.scale, ctx.ratio, ctx.gamma = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    grads = deform_roi_pool_backward_op(grad, *ctx.saved_tensors, ctx.scale, ctx.ratio, ctx.gamma)
    return grads[0], None, grads[1], None, None, None


deform_roi_pool_op.register_autograd(_backward, setup_context=_save)
decompose(deform_roi_pool_op, deform_roi_pool_reference)
