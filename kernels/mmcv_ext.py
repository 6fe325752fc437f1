"""What mmcv.ops asks of mmcv's compiled extension, `mmcv._ext`, computed by the operators of this package.

`import attlas` offers this module under that name where no compiled one exists, so that mmdet and mmseg work with
nothing compiled. Functions have the names, the arguments and the order of arguments of the extension; an argument for
output is written in place. Any other name can be imported, as `mmcv.ops` imports all; it raises when called.

Source of the conventions: `mmcv/ops/*.py` of onedl-mmcv 2.3.6, which calls them.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import kernels
from .box_overlaps import MODES
from .carafe import carafe, carafe_gradients
from .checks import sum_dtype
from .deform_roi_pool import deform_roi_pool_backward_op, deform_roi_pool_op
from .deformable_attention import deformable_attention, deformable_attention_backward_op
from .deformable_convolution import (
    deformable_convolution,
    deformable_convolution_backward_op,
    deformable_convolution_weight_backward_op,
)
from .focal_loss import sigmoid_focal_loss_backward_op, softmax_focal_loss_backward_op
from .gather import scatter_neighbors_op
from .nms import METHODS
from .psa_mask import psa_mask_backward_op, psa_mask_op
from .roi_align import grids, roi_align_backward_op, roi_align_op
from .roi_pool import roi_pool_backward_op, roi_pool_op
from .three_interpolate import three_interpolate_backward_op

__all__ = [
    "ball_query_forward",
    "bbox_overlaps",
    "box_iou_rotated",
    "carafe_backward",
    "carafe_forward",
    "carafe_naive_backward",
    "carafe_naive_forward",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "deform_roi_pool_backward",
    "deform_roi_pool_forward",
    "furthest_point_sampling_forward",
    "furthest_point_sampling_with_dist_forward",
    "gather_points_backward",
    "gather_points_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "group_points_backward",
    "group_points_forward",
    "knn_forward",
    "masked_col2im_forward",
    "masked_im2col_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "nms",
    "nms_match",
    "nms_rotated",
    "psamask_backward",
    "psamask_forward",
    "roi_align_backward",
    "roi_align_forward",
    "roi_pool_backward",
    "roi_pool_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
    "softnms",
    "three_interpolate_backward",
    "three_interpolate_forward",
    "three_nn_forward",
]


def missing(name: str) -> Callable:
    """A function in place of an operator that is not here; a module's `__getattr__`."""
    if name.startswith("_"):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def operator(*args, **kwargs):
        raise RuntimeError(
            f"mmcv's operator {name} needs mmcv's compiled extension: attlas.kernels.mmcv_ext, which stands in for it, "
            "does not have it. Compile mmcv where torch is installed: "
            "pip install --force-reinstall --no-deps --no-binary onedl-mmcv --no-build-isolation onedl-mmcv"
        )

    operator.__name__ = name
    return operator


# --- what was compiled -----------------------------------------------------------------------------------------------


def get_compiler_version() -> str:
    return "none: attlas.kernels.mmcv_ext"


def get_compiling_cuda_version() -> str:
    return "none: attlas.kernels.mmcv_ext"


# --- box_overlaps ----------------------------------------------------------------------------------------------------


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    overlaps = kernels.bbox_overlaps(bboxes1, bboxes2, MODES[mode], aligned, offset)
    ious.copy_(overlaps.view(ious.shape))


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int, aligned: bool) -> None:
    ious.copy_(kernels.box_iou_rotated(boxes1, boxes2, MODES[mode_flag], aligned).view(ious.shape))


# --- carafe ----------------------------------------------------------------------------------------------------------


def _check_carafe(features: Tensor, masks: Tensor, kernel_size: int, group_size: int, scale_factor: int) -> None:
    """Raise unless masks have the groups and the scale that were named, as the operator takes both from its shape."""
    expected = len(features), group_size * kernel_size**2, *(scale_factor * length for length in features.shape[2:])
    if masks.shape != expected:
        raise ValueError(f"masks must have shape {expected}, got {tuple(masks.shape)}")


def carafe_forward(
    features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor, rmasks: Tensor, output: Tensor,
    kernel_size: int, group_size: int, scale_factor: int,
) -> None:  # fmt: skip
    """Of the room that the extension works in, rfeatures alone is used again: by `carafe_backward`."""
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)
    rfeatures.copy_(features)


def carafe_backward(
    top_grad: Tensor, rfeatures: Tensor, masks: Tensor, rtop_grad: Tensor, rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor, rmask_grad: Tensor, bottom_grad: Tensor, mask_grad: Tensor,
    kernel_size: int, group_size: int, scale_factor: int,
) -> None:  # fmt: skip
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    _check_carafe(features, masks, kernel_size, group_size, scale_factor)
    output.copy_(carafe(features, masks, kernel_size))


def carafe_naive_backward(
    top_grad: Tensor, features: Tensor, masks: Tensor, bottom_grad: Tensor, mask_grad: Tensor,
    kernel_size: int, group_size: int, scale_factor: int,
) -> None:  # fmt: skip
    of_features, of_masks = carafe_gradients(top_grad, features, masks, kernel_size)
    bottom_grad.copy_(of_features)
    mask_grad.copy_(of_masks)


# --- deform_roi_pool -------------------------------------------------------------------------------------------------


def deform_roi_pool_forward(
    input: Tensor, rois: Tensor, offset: Tensor, output: Tensor, pooled_height: int, pooled_width: int,
    spatial_scale: float, sampling_ratio: int, gamma: float,
) -> None:  # fmt: skip
    shift = _offset(input, rois, offset, pooled_height, pooled_width)
    boxes = rois.to(shift.dtype)
    output.copy_(deform_roi_pool_op(input, boxes, shift, spatial_scale, sampling_ratio, gamma))


def deform_roi_pool_backward(
    grad_output: Tensor, input: Tensor, rois: Tensor, offset: Tensor, grad_input: Tensor, grad_offset: Tensor,
    pooled_height: int, pooled_width: int, spatial_scale: float, sampling_ratio: int, gamma: float,
) -> None:  # fmt: skip
    shift = _offset(input, rois, offset, pooled_height, pooled_width)
    boxes = rois.to(shift.dtype)
    grads = deform_roi_pool_backward_op(grad_output, input, boxes, shift, spatial_scale, sampling_ratio, gamma)
    grad_input.copy_(grads[0])
    if offset.numel():
        grad_offset.copy_(grads[1])


def _offset(input: Tensor, rois: Tensor, offset: Tensor, high: int, wide: int) -> Tensor:
    """mmcv gives an empty tensor for no offsets."""
    dtype = sum_dtype(input)
    return offset.to(dtype) if offset.numel() else rois.new_zeros(len(rois), 2, high, wide, dtype=dtype)


# --- deformable_attention --------------------------------------------------------------------------------------------


def ms_deform_attn_forward(
    value: Tensor, spatial_shapes: Tensor, level_start: Tensor, locations: Tensor, weights: Tensor, im2col_step: int
) -> Tensor:
    return deformable_attention(value, spatial_shapes, locations, weights)  # sizes say where levels start


def ms_deform_attn_backward(
    value: Tensor, spatial_shapes: Tensor, level_start: Tensor, locations: Tensor, weights: Tensor,
    grad_output: Tensor, grad_value: Tensor, grad_locations: Tensor, grad_weights: Tensor, im2col_step: int,
) -> None:  # fmt: skip
    places, factors = locations.to(sum_dtype(value)), weights.to(sum_dtype(value))
    grads = deformable_attention_backward_op(grad_output, value, spatial_shapes, places, factors)
    for out, grad in zip((grad_value, grad_locations, grad_weights), grads):
        out.copy_(grad)


# --- deformable_convolution ------------------------------------------------------------------------------------------

# `columns` and `ones` are room that the extension works in, and `im2col_step` the images that it takes at a time: the
# operator needs none of them. The first function has weight before offset, the next two have it behind.


def _check_offset_groups(offset: Tensor, kernel: tuple[int, int], deformable_group: int) -> None:
    """Raise unless offset has the channels of as many groups, as the operator counts them by its channels."""
    expected = 2 * deformable_group * kernel[0] * kernel[1]
    if offset.shape[1] != expected:
        raise ValueError(
            f"offset must have {expected} channels, for {deformable_group} deformable groups and a kernel of "
            f"{kernel[0]} x {kernel[1]}, got {offset.shape[1]}"
        )


def _as_read(x: Tensor, like: Tensor) -> Tensor:
    """Offsets or masks with the rows and columns of the result, `like`.

    The extension reads the numbers of an image in order as if they had these rows and columns, and no more of them than
    it needs. mmdet's DyHead relies on it: its offsets are those of a larger map.
    """
    if x.shape[2:] == like.shape[2:]:
        return x
    needed = x.shape[1] * like.shape[2:].numel()
    if x.shape[1:].numel() < needed:
        raise ValueError(
            f"offset and mask must have at least the {like.shape[2]} x {like.shape[3]} pixels of the result, got "
            f"{x.shape[2]} x {x.shape[3]}"
        )
    return x.flatten(1)[:, :needed].unflatten(1, (-1, *like.shape[2:]))


def _as_written(gradient: Tensor, like: Tensor) -> Tensor:
    """The gradient of `like`, of that of `_as_read(like, ...)`: zero for the numbers that were not read."""
    unread = like.shape[1:].numel() - gradient.shape[1:].numel()
    return F.pad(gradient.flatten(1), (0, unread)).view(like.shape)


# torch.compile of PyTorch 2.11 lost what the traced backward of a deformable convolution writes into its zeros: the
# gradient of the input was zero, in silence. 2.13 keeps it. In between nobody looked, so a graph breaks there.
KEEPS_WRITES = torch.__version__ >= "2.13"  # a TorchVersion, which compares by numbers
_beside_graphs: Callable = (lambda function: function) if KEEPS_WRITES else torch.compiler.disable


def deform_conv_forward(
    input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
    kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
    group: int, deformable_group: int, im2col_step: int,
) -> None:  # fmt: skip
    _check_offset_groups(offset, (kH, kW), deformable_group)
    steps = (dH, dW), (padH, padW), (dilationH, dilationW)
    output.copy_(deformable_convolution(input, offset, weight, None, None, *steps, group))


@_beside_graphs
def deform_conv_backward_input(
    input: Tensor, offset: Tensor, grad_output: Tensor, grad_input: Tensor, grad_offset: Tensor, weight: Tensor,
    columns: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
    group: int, deformable_group: int, im2col_step: int,
) -> None:  # fmt: skip
    steps = (dH, dW), (padH, padW), (dilationH, dilationW)
    of_input, of_offset, _ = deformable_convolution_backward_op(grad_output, input, offset, weight, None, *steps, group)
    grad_input.copy_(of_input)
    grad_offset.copy_(of_offset)


@_beside_graphs
def deform_conv_backward_parameters(
    input: Tensor, offset: Tensor, grad_output: Tensor, grad_weight: Tensor, columns: Tensor, ones: Tensor,
    kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
    group: int, deformable_group: int, scale: float, im2col_step: int,
) -> None:  # fmt: skip
    """Adds `scale` times the gradient to grad_weight, as the extension does."""
    steps = (dH, dW), (padH, padW), (dilationH, dilationW)
    of_weight = deformable_convolution_weight_backward_op(grad_output, input, offset, grad_weight, None, *steps, group)
    grad_weight.add_(of_weight, alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, output: Tensor,
    columns: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, group: int, deformable_group: int, with_bias: bool,
) -> None:  # fmt: skip
    _check_offset_groups(offset, (kernel_h, kernel_w), deformable_group)
    steps = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    offset, mask = _as_read(offset, output), _as_read(mask, output)
    output.copy_(deformable_convolution(input, offset, weight, bias if with_bias else None, mask, *steps, group))


@_beside_graphs
def modulated_deform_conv_backward(
    input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor, mask: Tensor, columns: Tensor,
    grad_input: Tensor, grad_weight: Tensor, grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor,
    grad_output: Tensor, kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
    dilation_h: int, dilation_w: int, group: int, deformable_group: int, with_bias: bool,
) -> None:  # fmt: skip
    steps = (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w)
    offset, mask = _as_read(offset, grad_output), _as_read(mask, grad_output)
    arguments = grad_output, input, offset, weight, mask, *steps, group
    of_input, of_offset, of_mask = deformable_convolution_backward_op(*arguments)
    grad_input.copy_(of_input)
    grad_offset.copy_(_as_written(of_offset, grad_offset))
    grad_mask.copy_(_as_written(of_mask, grad_mask))
    grad_weight.copy_(deformable_convolution_weight_backward_op(*arguments))
    if with_bias:
        grad_bias.copy_(grad_output.sum((0, 2, 3)))


# --- focal_loss ------------------------------------------------------------------------------------------------------


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    output.copy_(kernels.sigmoid_focal_loss(input, target, _or_none(weight), gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The caller multiplies by the gradient of the loss."""
    grad_input.copy_(sigmoid_focal_loss_backward_op(None, input, target, _or_none(weight), gamma, alpha))


def softmax_focal_loss_forward(
    softmax: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    output.copy_(kernels.softmax_focal_loss(_logits(softmax), target, _or_none(weight), gamma, alpha))


def softmax_focal_loss_backward(
    softmax: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """The caller multiplies by the gradient of the loss; `buff`, its own scratch memory, is left as it is."""
    logits, ones = _logits(softmax), torch.ones_like(buff)
    total = logits.new_zeros(len(logits), dtype=sum_dtype(logits))
    weights = _or_none(weight)
    grad_input.copy_(softmax_focal_loss_backward_op(ones, logits, total, target, weights, gamma, alpha))


def _or_none(weight: Tensor) -> Tensor | None:
    return weight if weight.numel() else None


def _logits(softmax: Tensor) -> Tensor:
    """Logits of probabilities; their exponentials sum to 1."""
    return softmax.clamp(min=torch.finfo(softmax.dtype).tiny).log()


# --- masked_conv -----------------------------------------------------------------------------------------------------

# A convolution at a few pixels only, of inference with Guided Anchoring (arXiv 1901.03278). PyTorch gathers and
# scatters as fast as loops would, so there is no operator behind it.


def masked_im2col_forward(
    im: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, col: Tensor,
    kernel_h: int, kernel_w: int, pad_h: int, pad_w: int,
) -> None:  # fmt: skip
    """im (1, C, H, W), rows and columns (N) of pixels of the result, and col (C kh kw, N)."""
    padded = F.pad(im[0], (pad_w, pad_w, pad_h, pad_h))
    rows = mask_h_idx + torch.arange(kernel_h, device=im.device)[:, None, None]
    columns = mask_w_idx + torch.arange(kernel_w, device=im.device)[:, None]
    col.copy_(padded[:, rows, columns].flatten(0, 2))  # of (C, kh, kw, N)


def masked_col2im_forward(
    col: Tensor, mask_h_idx: Tensor, mask_w_idx: Tensor, im: Tensor, height: int, width: int, channels: int
) -> None:
    """col (C, N), rows and columns (N) of pixels of im (1, C, height, width); all others keep their numbers."""
    im[0][:, mask_h_idx, mask_w_idx] = col


# --- nms -------------------------------------------------------------------------------------------------------------


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    return kernels.nms(boxes, scores, iou_threshold, offset)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """`dets` (N, 5) gets the boxes taken and their new scores in its first rows."""
    index, values = kernels.soft_nms(boxes, scores, iou_threshold, sigma, min_score, METHODS[method], offset)
    dets[: len(index)] = torch.cat([boxes[index], values.unsqueeze(1)], 1)
    return index


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Groups of boxes, each a kept box and those that it removes; here a box at the threshold is removed."""
    boxes, scores = dets[:, :4], dets[:, 4]
    below = torch.nextafter(dets.new_tensor(iou_threshold), dets.new_tensor(0.0))
    remover = kernels.nms_match(boxes, scores, below.item()).tolist()
    groups: dict[int, list[int]] = {}
    for i in scores.argsort(descending=True, stable=True).tolist():
        groups.setdefault(remover[i], []).append(i)
    return list(groups.values())


def nms_rotated(
    dets: Tensor,
    scores: Tensor,
    order: Tensor,
    dets_sorted: Tensor,
    labels: Tensor,
    iou_threshold: float,
    multi_label: int,
) -> Tensor:
    """`dets` has the label as a sixth column if `multi_label`; boxes of different labels do not meet."""
    return kernels.nms_rotated(dets[:, :5], scores, iou_threshold, labels.long() if multi_label else None)


# --- points ----------------------------------------------------------------------------------------------------------

# mmcv's features are (B, C, N), its indices int32; b, c, n, m, npoints and nsample repeat the shapes of the tensors.


def ball_query_forward(
    new_xyz: Tensor,
    xyz: Tensor,
    idx: Tensor,
    b: int,
    n: int,
    m: int,
    min_radius: float,
    max_radius: float,
    nsample: int,
) -> None:
    """The first points of the ball or the ring, and the query's own place; 0 where there is none."""
    if min_radius > 0:  # rare (dilated grouping): all distances at once
        squared = (new_xyz.unsqueeze(2) - xyz.unsqueeze(1)).square().sum(-1)
        inside = (squared == 0) | ((squared >= min_radius**2) & (squared < max_radius**2))
        first = torch.arange(n, device=xyz.device).where(inside, n).sort(-1).values[..., :nsample]
        first = torch.cat([first, first.new_full((b, m, max(0, nsample - n)), n)], -1)
        found = first.where(first < n, first[..., :1])
        idx.copy_(found.where(found < n, 0))
        return
    found = kernels.ball_query(new_xyz, xyz, max_radius, nsample)
    nearest = kernels.gather_neighbors(xyz, found[..., :1]).squeeze(2)
    x, y, z = (new_xyz - nearest).square().unbind(-1)
    idx.copy_(found.where(((x + y) + z < max_radius**2).unsqueeze(-1), 0))


def furthest_point_sampling_forward(xyz: Tensor, temp: Tensor, idx: Tensor, b: int, n: int, m: int) -> None:
    idx.copy_(kernels.farthest_point_sample(xyz, m))


def furthest_point_sampling_with_dist_forward(dist: Tensor, temp: Tensor, idx: Tensor, b: int, n: int, m: int) -> None:
    """`dist` (B, N, N) are distances of points, of any kind; `temp` gets those to the nearest sample."""
    last = torch.zeros(b, dtype=torch.int64, device=dist.device)
    for sample in range(m):
        idx[:, sample] = last
        temp.copy_(torch.minimum(temp, dist.gather(1, last.view(b, 1, 1).expand(b, 1, n)).squeeze(1)))
        last = temp.argmax(1)


def gather_points_forward(points: Tensor, idx: Tensor, out: Tensor, b: int, c: int, n: int, npoints: int) -> None:
    out.copy_(kernels.gather_neighbors(points.mT, idx.long()).mT)


def gather_points_backward(
    grad_out: Tensor, idx: Tensor, grad_points: Tensor, b: int, c: int, n: int, npoints: int
) -> None:
    grad_points.copy_(scatter_neighbors_op(grad_out.mT, idx.long(), n).mT)


def group_points_forward(
    points: Tensor, idx: Tensor, out: Tensor, b: int, c: int, n: int, npoints: int, nsample: int
) -> None:
    out.copy_(kernels.gather_neighbors(points.mT, idx.long()).permute(0, 3, 1, 2))


def group_points_backward(
    grad_out: Tensor, idx: Tensor, grad_points: Tensor, b: int, c: int, n: int, npoints: int, nsample: int
) -> None:
    grad_points.copy_(scatter_neighbors_op(grad_out.flatten(2).mT, idx.long().flatten(1), n).mT)


def knn_forward(xyz: Tensor, new_xyz: Tensor, idx: Tensor, dist2: Tensor, b: int, n: int, m: int, nsample: int) -> None:
    found = kernels.knn(new_xyz, xyz, nsample)
    idx.copy_(found)
    dist2.copy_(_squared_distances(new_xyz, xyz, found))


def three_nn_forward(unknown: Tensor, known: Tensor, dist2: Tensor, idx: Tensor, b: int, n: int, m: int) -> None:
    found = kernels.knn(unknown, known, 3)
    idx.copy_(found)
    dist2.copy_(_squared_distances(unknown, known, found))


def _squared_distances(queries: Tensor, points: Tensor, index: Tensor) -> Tensor:
    return (kernels.gather_neighbors(points, index) - queries.unsqueeze(2)).square().sum(-1)


def three_interpolate_forward(
    points: Tensor, idx: Tensor, weight: Tensor, out: Tensor, b: int, c: int, m: int, n: int
) -> None:
    out.copy_(kernels.three_interpolate(points.mT, idx.long(), weight).mT)


def three_interpolate_backward(
    grad_out: Tensor, idx: Tensor, weight: Tensor, grad_points: Tensor, b: int, c: int, n: int, m: int
) -> None:
    weight = weight.to(sum_dtype(grad_out))
    grad_points.copy_(three_interpolate_backward_op(grad_out.mT, idx.long(), weight, m).mT)


# --- psa_mask --------------------------------------------------------------------------------------------------------


def psamask_forward(
    input: Tensor, output: Tensor, psa_type: int, num_: int, h_feature: int, w_feature: int,
    h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int,
) -> None:  # fmt: skip
    """psa_type is 0 for "collect", 1 for "distribute"."""
    output.copy_(psa_mask_op(input, h_mask, w_mask, psa_type == 0))


def psamask_backward(
    grad_output: Tensor, grad_input: Tensor, psa_type: int, num_: int, h_feature: int, w_feature: int,
    h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int,
) -> None:  # fmt: skip
    grad_input.copy_(psa_mask_backward_op(grad_output, h_mask, w_mask, psa_type == 0))


# --- roi_align -------------------------------------------------------------------------------------------------------


def roi_align_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, aligned_height: int,
    aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
) -> None:  # fmt: skip
    size, take_max = (aligned_height, aligned_width), pool_mode == 0
    image, grid = grids(rois.to(sum_dtype(input)), size, spatial_scale, sampling_ratio, aligned)
    out, places = roi_align_op(input, image, grid, *size, sampling_ratio, take_max)
    output.copy_(out)
    if take_max:
        argmax_y.copy_(places[0])
        argmax_x.copy_(places[1])


def roi_align_backward(
    grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor, aligned_height: int,
    aligned_width: int, spatial_scale: float, sampling_ratio: int, pool_mode: int, aligned: bool,
) -> None:  # fmt: skip
    size, boxes = (aligned_height, aligned_width), rois.to(sum_dtype(grad_output))
    image, grid = grids(boxes, size, spatial_scale, sampling_ratio, aligned)
    places = torch.stack([argmax_y, argmax_x]).to(grid.dtype) if pool_mode == 0 else grid.new_empty(0)
    grad_input.copy_(roi_align_backward_op(grad_output, image, grid, places, list(grad_input.shape), sampling_ratio))


# --- roi_pool --------------------------------------------------------------------------------------------------------


def roi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int,
    spatial_scale: float,
) -> None:  # fmt: skip
    out, pixel = roi_pool_op(input, rois.to(sum_dtype(input)), pooled_height, pooled_width, spatial_scale)
    output.copy_(out)
    argmax.copy_(pixel)


def roi_pool_backward(
    grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int, pooled_width: int,
    spatial_scale: float,
) -> None:  # fmt: skip
    boxes = rois.to(sum_dtype(grad_output))
    grad_input.copy_(roi_pool_backward_op(grad_output, boxes, argmax.long(), list(grad_input.shape)))
