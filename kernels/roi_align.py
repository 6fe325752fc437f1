"""RoIAlign: every box of a map is cut into bins, and each bin is the mean, or the maximum, of samples inside.

    out[r, c, p, q] = mean or max over i, j of map[b_r, c](y_i, x_j),    y_i = top + (p + (i + 1/2) / n) · height / bins

and x_j alike. The map at a place between pixels is bilinear. Up to one pixel beyond the centers of the outer pixels it
is continued as it is there, farther away it is 0. A bin has n samples along an axis: `sampling_ratio`, or with 0 as
many as make their distance at most a pixel. A box of no height or width then has none, and gives 0.

The mean over samples is a product of sums along the two axes: each pixel of a bin is read once, not four times for
every sample. Samples far outside the map are not visited, however large the box. A maximum that is found twice belongs
to the first sample, row by row; samples outside take part as 0 and lose ties.

Suffixes of names: B images, C channels, R boxes, P bins of a box (row by row), S pixels of a map.

Source: Mask R-CNN, arXiv 1703.06870, section 3; borders, half a pixel (`aligned`) and the maximum as in mmcv.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .checks import (
    can_look,
    check_choice,
    check_flags,
    check_floats,
    check_integer,
    check_number,
    check_range,
    check_tensors,
    sum_dtype,
)
from .deformable_attention import add_row
from .dispatch import compiled, decompose, each, pick, slices, tl, triton
from .tiles import item_rows, rows_by_channels

# Boxes, and channels in the backward, that a thread takes at a time.
BOXES = 16
CHANNELS = 128
# Coordinates beyond this many pixels count as this many.
FAR = 2.0**30


def roi_align(
    features: Tensor,
    rois: Tensor,
    output_size: int | Sequence[int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    mode: str = "avg",
    aligned: bool = True,
) -> Tensor:
    """Means or maxima of the bins of boxes; differentiable in the features.

    Maps that are channels-last in memory are fastest. On a GPU the gradient is summed in any order, unless
    `torch.use_deterministic_algorithms(True)` is set: then by PyTorch, which is slower and needs more memory.

    Args:
        features: maps (B, C, H, W) of any floating-point dtype and memory format; half types are summed in float32.
        rois: boxes (R, 5) of any floating-point dtype: the number of an image, then left, top, right, bottom.
        output_size: height and width of the output in bins; one number for both.
        spatial_scale: pixels of the map per unit of the boxes' coordinates.
        sampling_ratio: samples of a bin along each axis; 0 to choose by its size.
        mode: "avg" for the mean of the samples of a bin, "max" for their maximum.
        aligned: True to take the centers of pixels as their places (half a pixel from their edges), False to take
            their upper left corners, and boxes of at least one pixel, as networks of before 2020 do.

    Returns:
        (R, C, height, width), in the dtype and the memory format of the features.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value; on a CPU also a box that is not finite,
            or, if `aligned`, whose right or bottom edge lies before the other.
        IndexError: a number of an image out of range (on a CPU).
    """
    high, wide = check_pooling(features, rois, output_size, spatial_scale)
    check_integer(sampling_ratio, "sampling_ratio", 0)
    check_choice(mode, "mode", ("avg", "max"))
    check_flags(aligned=aligned)
    check_boxes(rois, len(features), ordered=aligned)
    image, grid = grids(rois.detach().to(sum_dtype(features)), (high, wide), spatial_scale, sampling_ratio, aligned)
    return roi_align_op(features, image, grid, high, wide, sampling_ratio, mode == "max")[0]


def check_pooling(
    features: Tensor, rois: Tensor, output_size: int | Sequence[int], spatial_scale: float
) -> tuple[int, int]:
    """Raise unless features are maps, rois boxes, and the other two of their kind; the output's height and width."""
    check_tensors(features=features, rois=rois)
    if features.ndim != 4 or 0 in features.shape[2:]:
        raise ValueError(f"features must have shape (B, C, H, W) with pixels, got {tuple(features.shape)}")
    if rois.ndim != 2 or rois.shape[1] != 5:
        raise ValueError(f"rois must have shape (R, 5): image, left, top, right, bottom; got {tuple(rois.shape)}")
    check_floats(features=features, rois=rois)
    check_number(spatial_scale, "spatial_scale", positive=True)
    sides = [output_size] * 2 if isinstance(output_size, int) else output_size
    if not isinstance(sides, Sequence) or isinstance(sides, str) or len(sides) != 2:
        raise TypeError(f"output_size must be an integer or two, got {output_size!r:.60}")
    for side in sides:
        check_integer(side, "output_size", at_most=1 << 15)
    return sides[0], sides[1]


def check_boxes(rois: Tensor, images: int, ordered: bool) -> None:
    """Raise unless boxes are finite, of one of `images` images, and, if `ordered`, of no negative size (on a CPU)."""
    if not can_look(rois) or not len(rois):
        return
    wrong = ~torch.isfinite(rois).all(1)
    what = "finite"
    if ordered and not wrong.any():
        wrong = (rois[:, 3:] < rois[:, 1:3]).any(1)
        what = "such that left <= right and top <= bottom"
    if wrong.any():
        first = int(wrong.nonzero()[0])
        raise ValueError(f"rois must be {what}: {int(wrong.sum())} are not, the first is {rois[first].tolist()}")
    lowest, highest = (float(bound) for bound in rois[:, 0].aminmax())
    if lowest < 0 or highest >= images:
        raise IndexError(f"rois must name images 0..{images - 1} in their first column, got {lowest:g} to {highest:g}")


def check_grids(image: Tensor, grid: Tensor, images: int) -> None:
    """The same of what `grids` gives, inside the operators: traced graphs have no other check (on a CPU)."""
    check_range(image, images, "the images of rois")
    if grid.device.type == "cpu" and not (torch.isfinite(grid) & (grid[:, :, 1:] >= 0).all(2, keepdim=True)).all():
        raise ValueError("rois must be finite, and no right or bottom edge may lie before the other")


# Below, the dtype of grids is that of sums: that of the features, or float32 for half types.


def grids(rois_R5: Tensor, bins: Sequence[int], spatial_scale: float, sampling_ratio: int, aligned: bool):
    """Images of the boxes (R), and along y and x (R, 2, 3) their first edge, size of a bin, and number of samples n."""
    edges = (rois_R5[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)).clamp(-FAR, FAR)
    start, size = edges[:, :2].flip(1), (edges[:, 2:] - edges[:, :2]).flip(1)
    size = size if aligned else size.clamp(min=1)
    bin_size = torch.stack([size[:, 0] / bins[0], size[:, 1] / bins[1]], 1)
    samples = torch.full_like(bin_size, sampling_ratio) if sampling_ratio else bin_size.ceil().clamp(min=0)
    return rois_R5[:, 0].long(), torch.stack([start, bin_size, samples], 2)


def _places(grid_R3: Tensor, bins: int, most: int) -> tuple[Tensor, Tensor]:
    """Places of samples along an axis (R, bins, most), and which of them exist."""
    start, bin_size, samples = grid_R3[:, :, None, None].unbind(1)
    p, s = torch.arange(bins, device=start.device).unsqueeze(1), torch.arange(most, device=start.device)
    place = start + p * bin_size + (s + 0.5) * bin_size / samples.clamp(min=1)
    return place, (s < samples).expand(place.shape)


def _corners(
    y: Tensor, x: Tensor, image: Tensor, height: int, width: int
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    """Pixels of all maps, and the nearness to them along y and x, for the four corners of places; and which places are
    near the map."""
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left, corners = y.floor(), x.floor(), []
    for i, near_y in ((top, top + 1 - y), ((top + 1).clamp(max=height - 1), y - top)):
        for j, near_x in ((left, left + 1 - x), ((left + 1).clamp(max=width - 1), x - left)):
            corners.append(((image * height + i.long()) * width + j.long(), near_y, near_x))
    return corners, inside


def all_samples(shape: Sequence[int], image: Tensor, grid: Tensor, high: int, wide: int, ratio: int):
    """Of all samples (R, high, wide, n, n): places along y and x, corners, which are near the map, and which exist;
    and their number in a bin (R)."""
    most = [max(1, ratio)] * 2 if ratio or not len(grid) else grid[:, :, 2].amax(0).clamp(min=1).long().tolist()
    (y, real_y), (x, real_x) = _places(grid[:, 0], high, most[0]), _places(grid[:, 1], wide, most[1])
    y, x = torch.broadcast_tensors(y[:, :, None, :, None], x[:, None, :, None, :])
    corners, inside = _corners(y, x, image.view(-1, 1, 1, 1, 1), *shape[2:])
    real = real_y[:, :, None, :, None] & real_x[:, None, :, None, :]
    return y, x, corners, inside & real, real, grid[:, :, 2].prod(1)


def roi_align_reference(
    features: Tensor, image: Tensor, grid: Tensor, high: int, wide: int, ratio: int, take_max: bool
) -> tuple[Tensor, Tensor]:
    """Output, and the places (2, R, C, high, wide) of the maxima along y and x, -2 for none; for means nothing."""
    y, x, corners, inside, real, samples = all_samples(features.shape, image, grid, high, wide, ratio)
    rows = features.permute(0, 2, 3, 1).flatten(0, 2)
    value = torch.zeros((), dtype=grid.dtype, device=grid.device)  # then (R, high, wide, n, n, C)
    for pixel, near_y, near_x in corners:
        value = value + rows[pixel].to(grid.dtype) * (near_y * near_x).unsqueeze(-1)
    value = value.where(inside.unsqueeze(-1), -torch.inf if take_max else 0).flatten(3, 4)
    if not take_max:
        mean = value.sum(3) / samples.clamp(min=1).view(-1, 1, 1, 1)
        return mean.permute(0, 3, 1, 2).to(features.dtype), grid.new_empty(0)
    out, number = value.max(3)
    some, outside = (x.flatten(3).any(3).unsqueeze(-1) for x in (inside, real & ~inside))
    none = ~some | (outside & (out < 0))
    places = [place.flatten(3).gather(3, number).where(~none, -2) for place in (y, x)]
    return out.where(~none, 0).permute(0, 3, 1, 2).to(features.dtype), torch.stack(places).permute(0, 1, 4, 2, 3)


def roi_align_backward_reference(
    grad: Tensor, image: Tensor, grid: Tensor, places: Tensor, shape: Sequence[int], ratio: int
) -> Tensor:
    """Gradient of features of a shape; of means if `places` is empty, else of the maxima there."""
    (batch, channels, height, width), (high, wide) = shape, grad.shape[2:]
    total = torch.zeros(batch * height * width, channels, dtype=grid.dtype, device=grad.device)
    if places.ndim > 1:
        channel = torch.arange(channels, device=grad.device).view(-1, 1, 1)
        corners, inside = _corners(places[0], places[1], image.view(-1, 1, 1, 1), height, width)
        for pixel, near_y, near_x in corners:
            given = (grad.to(grid.dtype) * (near_y * near_x)).where(inside, 0)
            total.view(-1).index_add_(0, (pixel * channels + channel).where(inside, 0).flatten(), given.flatten())
    else:
        _, _, corners, inside, _, samples = all_samples(shape, image, grid, high, wide, ratio)
        share = grad.to(grid.dtype).permute(0, 2, 3, 1)[:, :, :, None, None] / samples.view(-1, 1, 1, 1, 1, 1)
        for pixel, near_y, near_x in corners:
            given = (share * (near_y * near_x).unsqueeze(-1)).where(inside.unsqueeze(-1), 0)
            total.index_add_(0, pixel.flatten(), given.flatten(0, 4))
    return total.view(batch, height, width, channels).permute(0, 3, 1, 2).to(grad.dtype)


def _format(features: Tensor) -> torch.memory_format:
    """Channels-last if the features are and could be otherwise."""
    last = features.is_contiguous(memory_format=torch.channels_last) and not features.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _gradient_format(places: Tensor) -> torch.memory_format:
    """Of the gradient of features: channels-last for means, contiguous for maxima, whose channels differ in places."""
    return torch.contiguous_format if places.ndim > 1 else torch.channels_last


# The CPU's path, on channels-last maps (S, C). The boxes' samples along an axis are merged into the pixels that they
# read and the weights of these.


@compiled
def visited(grid_3, p, length):
    """The range of the samples of bin p but for some outside the map."""
    start, bin_size, samples = grid_3
    if samples == 0 or bin_size <= 0:
        return 0, int(samples)
    step = bin_size / samples
    first = min(max(0, math.floor((-1 - start - p * bin_size) / step) - 2), samples)
    return int(first), int(min(samples, first + (length + 1) / step + 6))


@compiled
def sample_place(grid_3, p, s, length):
    """Where a sample lies along an axis, and whether it is near the map."""
    number = grid_3.dtype.type
    start, bin_size, samples = grid_3
    place = start + number(p) * bin_size + (number(s) + number(0.5)) * bin_size / samples
    return place, place >= -1 and place <= length


@compiled
def pixels_around(place, length, number):
    """The two pixels that a place lies between along an axis, and the weight of the second."""
    place = min(max(place, number(0)), number(length - 1))
    low = math.floor(place)
    return low, min(low + 1, length - 1), place - number(low)


@compiled
def _merge(grid_3, p, length, pixels, weights):
    """The pixels that the samples of bin p read along an axis, and their weights; the number of pixels."""
    number = grid_3.dtype.type
    count = 0
    first, last = visited(grid_3, p, length)
    for s in range(first, last):
        place, inside = sample_place(grid_3, p, s, length)
        if inside:
            low, high, part = pixels_around(place, length, number)
            count = _add_weight(pixels, weights, count, low, number(1) - part)
            count = _add_weight(pixels, weights, count, high, part)
    return count


@compiled
def _add_weight(pixels, weights, count, pixel, weight):
    """Adds a weight to one of the last two pixels or to a new one."""
    for i in range(max(0, count - 2), count):
        if pixels[i] == pixel:
            weights[i] += weight
            return count
    pixels[count], weights[count] = pixel, weight
    return count + 1


@compiled
def _bins(grid_23, high, wide, height, width, pixels, weights, counts):
    """`_merge` along both axes, for all bins."""
    for p in range(high):
        counts[0, p] = _merge(grid_23[0], p, height, pixels[0, p], weights[0, p])
    for q in range(wide):
        counts[1, q] = _merge(grid_23[1], q, width, pixels[1, q], weights[1, q])


@compiled
def _room(high, wide, height, width, dtype_of):
    bins, length = max(high, wide), max(height, width) + 1
    return (
        np.empty((2, bins, length), np.int64),
        np.empty((2, bins, length), dtype_of.dtype),
        np.empty((2, bins), np.int64),
    )


@compiled
def _means(features_BHWC, image_R, grid_R23, out_RPQC, first, last):
    (_, height, width, _), (_, high, wide, _) = features_BHWC.shape, out_RPQC.shape
    pixels, weights, counts = _room(high, wide, height, width, grid_R23)
    for r in range(first, last):
        _bins(grid_R23[r], high, wide, height, width, pixels, weights, counts)
        share = grid_R23.dtype.type(1) / max(grid_R23[r, 0, 2] * grid_R23[r, 1, 2], grid_R23.dtype.type(1))
        for p in range(high):
            for q in range(wide):
                out_RPQC[r, p, q] = 0
                for i in range(counts[0, p]):
                    row = features_BHWC[image_R[r], pixels[0, p, i]]
                    for j in range(counts[1, q]):
                        add_row(out_RPQC[r, p, q], weights[0, p, i] * weights[1, q, j] * share, row[pixels[1, q, j]])


@compiled
def _spread_means(grad_RPQC, image_R, grid_R23, total_HWC, image, first, last):
    (height, width, _), (boxes, high, wide, _) = total_HWC.shape, grad_RPQC.shape
    pixels, weights, counts = _room(high, wide, height, width, grid_R23)
    for r in range(boxes):
        if image_R[r] != image:
            continue
        _bins(grid_R23[r], high, wide, height, width, pixels, weights, counts)
        share = grid_R23.dtype.type(1) / max(grid_R23[r, 0, 2] * grid_R23[r, 1, 2], grid_R23.dtype.type(1))
        for p in range(high):
            for q in range(wide):
                grad = grad_RPQC[r, p, q, first:last]
                for i in range(counts[0, p]):
                    row = total_HWC[pixels[0, p, i]]
                    for j in range(counts[1, q]):
                        factor = weights[0, p, i] * weights[1, q, j] * share
                        add_row(row[pixels[1, q, j], first:last], factor, grad)


@compiled
def _maxima(features_BHWC, image_R, grid_R23, out_RPQC, y_RPQC, x_RPQC, first, last):
    (_, height, width, _), (_, high, wide, _) = features_BHWC.shape, out_RPQC.shape
    number = grid_R23.dtype.type
    for r in range(first, last):
        map_HWC = features_BHWC[image_R[r]]
        for p in range(high):
            for q in range(wide):
                out, at_y, at_x = out_RPQC[r, p, q], y_RPQC[r, p, q], x_RPQC[r, p, q]
                out[:], at_y[:], at_x[:] = 0, -2, -2
                seen = 0
                first_y, last_y = visited(grid_R23[r, 0], p, height)
                first_x, last_x = visited(grid_R23[r, 1], q, width)
                for i in range(first_y, last_y):
                    y, inside_y = sample_place(grid_R23[r, 0], p, i, height)
                    for j in range(first_x, last_x):
                        x, inside_x = sample_place(grid_R23[r, 1], q, j, width)
                        if inside_y and inside_x:
                            top, bottom, part_y = pixels_around(y, height, number)
                            left, right, part_x = pixels_around(x, width, number)
                            _raise(
                                out, at_y, at_x, y, x, seen == 0, part_y, part_x,
                                map_HWC[top, left], map_HWC[top, right], map_HWC[bottom, left], map_HWC[bottom, right],
                            )  # fmt: skip
                            seen += 1
                if 0 < seen < grid_R23[r, 0, 2] * grid_R23[r, 1, 2]:
                    for c in range(len(out)):
                        if out[c] < 0:
                            out[c], at_y[c], at_x[c] = 0, -2, -2


@compiled
def _raise(out, at_y, at_x, y, x, anyway, part_y, part_x, v00, v01, v10, v11):
    """Takes the values at a place that are larger than what is there, and its coordinates."""
    one = out.dtype.type(1)
    w00, w01 = (one - part_y) * (one - part_x), (one - part_y) * part_x
    w10, w11 = part_y * (one - part_x), part_y * part_x
    for c in range(len(out)):
        value = v00[c] * w00 + v01[c] * w01 + v10[c] * w10 + v11[c] * w11  # rounded like the reference: it decides ties
        if anyway or value > out[c] or (value != value and out[c] == out[c]):
            out[c], at_y[c], at_x[c] = value, y, x


@compiled
def _spread_maxima(grad_RCPQ, y_RCPQ, x_RCPQ, image_R, total_CHW, image, first, last):
    (_, height, width), (boxes, _, high, wide) = total_CHW.shape, grad_RCPQ.shape
    number = total_CHW.dtype.type
    for r in range(boxes):
        if image_R[r] != image:
            continue
        for c in range(first, last):
            for p in range(high):
                for q in range(wide):
                    y, x, grad = y_RCPQ[r, c, p, q], x_RCPQ[r, c, p, q], grad_RCPQ[r, c, p, q]
                    if y >= -1 and y <= height and x >= -1 and x <= width:
                        top, bottom, part_y = pixels_around(y, height, number)
                        left, right, part_x = pixels_around(x, width, number)
                        total_CHW[c, top, left] += (number(1) - part_y) * (number(1) - part_x) * grad
                        total_CHW[c, top, right] += (number(1) - part_y) * part_x * grad
                        total_CHW[c, bottom, left] += part_y * (number(1) - part_x) * grad
                        total_CHW[c, bottom, right] += part_y * part_x * grad


def channels_last(x: Tensor, wide: torch.dtype):
    """(B, C, H, W) as an array (B, H, W, C)."""
    return x.to(wide).permute(0, 2, 3, 1).contiguous().numpy()


def _roi_align_cpu(
    features: Tensor, image: Tensor, grid: Tensor, high: int, wide: int, ratio: int, take_max: bool
) -> tuple[Tensor, Tensor]:
    shape = len(grid), high, wide, features.shape[1]
    out, places = torch.empty(shape, dtype=grid.dtype), torch.empty((2, *shape) if take_max else 0, dtype=grid.dtype)
    loop, written = (_maxima, [out, *places]) if take_max else (_means, [out])
    arrays = [channels_last(features, grid.dtype), *(x.contiguous().numpy() for x in (image, grid, *written))]
    each(lambda part: loop(*arrays, part.start, part.stop), slices(0, len(grid), BOXES))
    out = out.permute(0, 3, 1, 2).to(features.dtype).contiguous(memory_format=_format(features))
    return out, places.permute(0, 1, 4, 2, 3).contiguous() if take_max else places


def _roi_align_backward_cpu(
    grad: Tensor, image: Tensor, grid: Tensor, places: Tensor, shape: Sequence[int], ratio: int
) -> Tensor:
    images, numbers = image.contiguous().numpy(), grid.contiguous().numpy()
    total = torch.zeros(shape, dtype=grid.dtype).contiguous(memory_format=_gradient_format(places))
    if places.ndim > 1:  # each channel has places of its own: they are spread map by map
        maps = total.numpy()
        given = [x.contiguous().numpy() for x in (grad.to(grid.dtype), *places)]
    else:
        maps, given = total.permute(0, 2, 3, 1).numpy(), [channels_last(grad, grid.dtype)]

    def spread(item) -> None:  # images and channels do not share numbers: no two threads add to one
        b, part = item
        if places.ndim > 1:
            _spread_maxima(*given, images, maps[b], b, part.start, part.stop)
        else:
            _spread_means(*given, images, numbers, maps[b], b, part.start, part.stop)

    each(spread, [(b, part) for b in range(shape[0]) for part in slices(0, shape[1], CHANNELS)])
    return total.to(grad.dtype)


# Triton: tiles of bins of one box by channels, of maps that are channels-last.


@triton.jit
def _tile(image, high, wide, channels, height, width, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """Box, bins, channels, which elements exist, and the offset of the box's map."""
    box, bin, real = item_rows(high * wide, BLOCK_P)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)[None, :]
    offset = tl.load(image + box) * height * width * channels
    return box, bin, c, real[:, None] & (c < channels), offset


@triton.jit
def _axis(grids, box, AXIS: tl.constexpr, p, length):
    """Of the bins p along an axis: their first edges, the step between samples, their number, the first that is
    visited, and how many are."""
    start, bin_size = tl.load(grids + box * 6 + 3 * AXIS), tl.load(grids + box * 6 + 3 * AXIS + 1)
    samples = tl.load(grids + box * 6 + 3 * AXIS + 2)
    edge = start + p * bin_size
    step = bin_size / tl.maximum(samples, 1)
    some = step > 0
    before = tl.floor((-1 - edge) / tl.where(some, step, 1)) - 2
    first = tl.where(some, tl.minimum(tl.maximum(before, 0), samples), 0)
    count = tl.where(some, tl.minimum(samples, (length + 1) / tl.where(some, step, 1) + 6), samples)
    return edge, bin_size, samples, first, count.to(tl.int32)


@triton.jit
def _load_pixels(place, length):
    """Whether a place is near the map along an axis, the two pixels it lies between, and the weight of the second."""
    inside = (place >= -1) & (place <= length)
    place = tl.where(inside, tl.minimum(tl.maximum(place, 0), length - 1), 0)
    low = tl.floor(place)
    return inside, low.to(tl.int64), tl.minimum(low + 1, length - 1).to(tl.int64), place - low


@triton.jit
def _load_sample(edge, bin_size, samples, first, k, length):
    """The place of the k-th visited sample, and what `_load_pixels` gives."""
    s = first + k
    place = edge + (s + 0.5) * bin_size / samples
    inside, low, high, part = _load_pixels(place, length)
    return place, inside & (s < samples), low, high, part


@triton.jit(do_not_specialize=["height", "width"])
def roi_align_fwd_kernel(
    features, grids, image, out, places, jump, high, wide, channels, height, width, o_r, o_c, o_h, o_w,
    MAX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    box, bin, c, mask, offset = _tile(image, high, wide, channels, height, width, BLOCK_P, BLOCK_C)
    p, q = bin // wide, bin % wide
    edge_y, size_y, samples_y, first_y, count_y = _axis(grids, box, 0, p, height)
    edge_x, size_x, samples_x, first_x, count_x = _axis(grids, box, 1, q, width)
    WIDE: tl.constexpr = grids.dtype.element_ty
    total = tl.zeros((BLOCK_P, BLOCK_C), dtype=WIDE)
    at_y, at_x = total - 2, total - 2
    seen = tl.zeros((BLOCK_P,), dtype=WIDE)
    for k in range(count_y):
        y, inside_y, top, bottom, part_y = _load_sample(edge_y, size_y, samples_y, first_y, k, height)
        for m in range(count_x):
            x, inside_x, left, right, part_x = _load_sample(edge_x, size_x, samples_x, first_x, m, width)
            inside = inside_y & inside_x
            here = mask & inside[:, None]
            value = tl.zeros((BLOCK_P, BLOCK_C), dtype=WIDE)
            for corner in tl.static_range(4):
                i, near_y = (bottom, part_y) if corner // 2 else (top, 1 - part_y)
                j, near_x = (right, part_x) if corner % 2 else (left, 1 - part_x)
                at = offset + ((i * width + j) * channels)[:, None] + c
                value += (near_y * near_x)[:, None] * tl.load(features + at, mask=here, other=0).to(WIDE)
            if MAX:
                larger = (value > total) | ((value != value) & (total == total)) | (seen == 0)[:, None]
                larger = larger & inside[:, None]
                at_y, at_x = tl.where(larger, y[:, None], at_y), tl.where(larger, x[:, None], at_x)
                total = tl.where(larger, value, total)
                seen += tl.where(inside, 1, 0)
            else:
                total += value
    if MAX:
        none = (seen < samples_y * samples_x)[:, None] & (total < 0)
        total, at_y, at_x = tl.where(none, 0, total), tl.where(none, -2, at_y), tl.where(none, -2, at_x)
        at = ((box * channels + c) * high + p[:, None]) * wide + q[:, None]
        tl.store(places + at, at_y, mask=mask)
        tl.store(places + jump + at, at_x, mask=mask)
    else:
        total = total / tl.maximum(samples_y * samples_x, 1)
    at = box * o_r + c.to(tl.int64) * o_c + p[:, None] * o_h + q[:, None] * o_w
    tl.store(out + at, total, mask=mask)


@triton.jit(do_not_specialize=["height", "width"])
def roi_align_bwd_kernel(
    grad, grids, image, total, places, jump, high, wide, channels, height, width, g_r, g_c, g_h, g_w,
    MAX: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Every bin adds to the pixels that it reads, in any order."""
    box, bin, c, mask, offset = _tile(image, high, wide, channels, height, width, BLOCK_P, BLOCK_C)
    p, q = bin // wide, bin % wide
    WIDE: tl.constexpr = grids.dtype.element_ty
    at = box * g_r + c.to(tl.int64) * g_c + p[:, None] * g_h + q[:, None] * g_w
    given = tl.load(grad + at, mask=mask, other=0).to(WIDE)
    if MAX:
        at = ((box * channels + c) * high + p[:, None]) * wide + q[:, None]
        inside_y, top, bottom, part_y = _load_pixels(tl.load(places + at, mask=mask, other=-2), height)
        inside_x, left, right, part_x = _load_pixels(tl.load(places + jump + at, mask=mask, other=-2), width)
        here = mask & inside_y & inside_x
        for corner in tl.static_range(4):
            i, near_y = (bottom, part_y) if corner // 2 else (top, 1 - part_y)
            j, near_x = (right, part_x) if corner % 2 else (left, 1 - part_x)
            to = total + offset + (i * width + j) * channels + c
            tl.atomic_add(to, near_y * near_x * given, mask=here, sem="relaxed")
    else:
        edge_y, size_y, samples_y, first_y, count_y = _axis(grids, box, 0, p, height)
        edge_x, size_x, samples_x, first_x, count_x = _axis(grids, box, 1, q, width)
        given = given / tl.maximum(samples_y * samples_x, 1)
        for k in range(count_y):
            _, inside_y, top, bottom, part_y = _load_sample(edge_y, size_y, samples_y, first_y, k, height)
            for m in range(count_x):
                _, inside_x, left, right, part_x = _load_sample(edge_x, size_x, samples_x, first_x, m, width)
                here = mask & (inside_y & inside_x)[:, None]
                for corner in tl.static_range(4):
                    i, near_y = (bottom, part_y) if corner // 2 else (top, 1 - part_y)
                    j, near_x = (right, part_x) if corner % 2 else (left, 1 - part_x)
                    to = total + offset + ((i * width + j) * channels)[:, None] + c
                    tl.atomic_add(to, (near_y * near_x)[:, None] * given, mask=here, sem="relaxed")


def _launch(kernel, outer: Tensor, grid_R23: Tensor, image: Tensor, maps: Tensor, places: Tensor, shape) -> None:
    """Launch `kernel` over all bins of `outer` (R, C, high, wide) and all channels. No autotuning: its trial runs of
    atomic additions would add up."""
    (boxes, channels, high, wide), (height, width) = outer.shape, shape
    block_p, block_c = rows_by_channels(channels, 64, 1024)
    programs = boxes * triton.cdiv(high * wide, block_p), triton.cdiv(channels, block_c)
    first, last = (maps, outer) if kernel is roi_align_fwd_kernel else (outer, maps)
    sizes = places.stride(0), high, wide, channels, height, width, *outer.stride()
    with torch.cuda.device_of(outer):
        kernel[programs](
            first, grid_R23.contiguous(), image.contiguous(), last, places, *sizes,
            MAX=places.ndim > 1, BLOCK_P=block_p, BLOCK_C=block_c,
        )  # fmt: skip


def _roi_align_triton(
    features: Tensor, image: Tensor, grid: Tensor, high: int, wide: int, ratio: int, take_max: bool
) -> tuple[Tensor, Tensor]:
    shape = len(grid), features.shape[1], high, wide
    out = torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=_format(features))
    places = grid.new_empty((2, *shape) if take_max else (0,))
    if out.numel():
        maps = features.permute(0, 2, 3, 1).contiguous()
        _launch(roi_align_fwd_kernel, out, grid, image, maps, places, features.shape[2:])
    return out, places


def _roi_align_backward_triton(
    grad: Tensor, image: Tensor, grid: Tensor, places: Tensor, shape: Sequence[int], ratio: int
) -> Tensor:
    if torch.are_deterministic_algorithms_enabled():
        return roi_align_backward_reference(grad, image, grid, places, shape, ratio)
    batch, channels, height, width = shape
    total = grid.new_zeros(batch, height, width, channels)
    if grad.numel():
        _launch(roi_align_bwd_kernel, grad, grid, image, total, places.contiguous(), shape[2:])
    return total.permute(0, 3, 1, 2).to(grad.dtype)


@torch.library.custom_op("attlas::roi_align", mutates_args=())
def roi_align_op(
    features: Tensor, image: Tensor, grid: Tensor, high: int, wide: int, ratio: int, take_max: bool
) -> tuple[Tensor, Tensor]:
    check_grids(image, grid, len(features))
    run = pick(features, reference=roi_align_reference, triton=_roi_align_triton, cpu=_roi_align_cpu)
    out, places = run(features, image, grid, high, wide, ratio, take_max)
    return out.contiguous(memory_format=_format(features)), places.contiguous()


@roi_align_op.register_fake
def _(features, image, grid, high, wide, ratio, take_max):
    shape = len(grid), features.shape[1], high, wide
    out = torch.empty(shape, dtype=features.dtype, device=features.device, memory_format=_format(features))
    return out, grid.new_empty((2, *shape) if take_max else (0,))


@torch.library.custom_op("attlas::roi_align_backward", mutates_args=())
def roi_align_backward_op(
    grad: Tensor, image: Tensor, grid: Tensor, places: Tensor, shape: list[int], ratio: int
) -> Tensor:
    check_grids(image, grid, shape[0])
    run = pick(
        grad,
        reference=roi_align_backward_reference,
        triton=_roi_align_backward_triton,
        cpu=_roi_align_backward_cpu,
    )
    return run(grad, image, grid, places, shape, ratio).contiguous(memory_format=_gradient_format(places))


@roi_align_backward_op.register_fake
def _(grad, image, grid, places, shape, ratio):
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=_gradient_format(places))


def _save(ctx, inputs, output):
    features, image, grid, _, _, ctx.ratio, _ = inputs
    ctx.shape = list(features.shape)
    ctx.save_for_backward(image, grid, output[1])
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    return roi_align_backward_op(grad, *ctx.saved_tensors, ctx.shape, ctx.ratio), *[None] * 6


roi_align_op.register_autograd(_backward, setup_context=_save)
decompose(roi_align_op, roi_align_reference)
