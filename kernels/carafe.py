"""Content-aware upsampling (CARAFE): each pixel of a larger map is a weighted sum of k x k pixels of the map.

    out[b, c, y, x] = Σ_{i, j} masks[b, g k² + i k + j, y, x] · features[b, c, y // s + i - p, x // s + j - p]

with p = (k - 1) / 2, over the taps inside the map; s is the scale, and the G groups g are runs of C / G channels.

The s² pixels that lie on one pixel of the map read the same k x k pixels, each with kernels of its own. So this is
`small_kernel_aggregate` of s² copies of the map, which together are as large as the result. k² copies never exist.

Source: CARAFE, arXiv 1905.02188.
"""

import torch
from torch import Tensor

from .checks import check_floats, check_integer, check_tensors
from .small_kernel_aggregate import small_kernel_aggregate_backward_op, small_kernel_aggregate_op


def carafe(features: Tensor, masks: Tensor, kernel_size: int) -> Tensor:
    """Upsampling by the kernels of each new pixel; differentiable in both.

    Args:
        features: map (B, C, H, W) of any floating-point dtype; half types are summed in float32.
        masks: kernels (B, G k², s H, s W) of any floating-point dtype, taps in row-major order, which CARAFE normalizes
            beforehand by a softmax over the k² taps; G divides C.
        kernel_size: k, odd.

    Returns:
        (B, C, s H, s W) in the dtype of features.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or value.
    """
    check_tensors(features=features, masks=masks)
    check_floats(features=features, masks=masks)
    check_integer(kernel_size, "kernel_size")
    if features.ndim != 4 or 0 in features.shape[1:]:
        raise ValueError(
            f"features must have shape (B, C, H, W) with C, H, W of at least 1, got {tuple(features.shape)}"
        )
    if kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd, got {kernel_size}")
    batch, channels, height, width = features.shape
    scale = masks.shape[-1] // width if masks.ndim == 4 else 0
    if scale == 0 or (masks.shape[0], *masks.shape[2:]) != (batch, scale * height, scale * width):
        raise ValueError(
            f"masks must have shape (B, G k², s H, s W) with B = {batch}, H, W = {height}, {width} and a whole s, got "
            f"{tuple(masks.shape)}"
        )
    if not masks.shape[1] or masks.shape[1] % kernel_size**2 or channels % (masks.shape[1] // kernel_size**2):
        raise ValueError(
            f"masks must have G {kernel_size}² channels, where G divides the {channels} channels of features, got "
            f"{masks.shape[1]}"
        )
    copies, kernels = _copies(features, masks, kernel_size), _kernels(features, masks, kernel_size)
    return _upsampled(small_kernel_aggregate_op(copies, kernels), features, masks, kernel_size)


def carafe_gradients(grad: Tensor, features: Tensor, masks: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """Gradients of features and masks, for that of the result."""
    groups, scale = _sizes(features, masks, kernel_size)
    grad = grad.unflatten(1, (groups, -1)).unflatten(4, (-1, scale)).unflatten(3, (-1, scale))  # B G n H s W s
    grad = grad.permute(0, 2, 4, 6, 1, 3, 5).flatten(1, 4)
    copies, kernels = _copies(features, masks, kernel_size), _kernels(features, masks, kernel_size)
    grad_copies, grad_kernels = small_kernel_aggregate_backward_op(grad, copies, kernels)
    wide = torch.promote_types(features.dtype, torch.float32)
    grad_features = grad_copies.unflatten(1, (-1, scale**2, groups)).sum(2, dtype=wide).transpose(1, 2)
    grad_masks = grad_kernels.unflatten(1, (scale, scale, groups)).permute(0, 3, 4, 5, 1, 6, 2)  # B G k² H s W s
    return (
        grad_features.reshape(features.shape).to(features.dtype),
        grad_masks.reshape(masks.shape),
    )


def _sizes(features: Tensor, masks: Tensor, kernel_size: int) -> tuple[int, int]:
    """The number of groups and the scale."""
    return masks.shape[1] // kernel_size**2, masks.shape[3] // features.shape[3]


def _copies(features: Tensor, masks: Tensor, kernel_size: int) -> Tensor:
    """(B, n s² G, H, W) for groups of n channels: kernels follow each other along the channels."""
    groups, scale = _sizes(features, masks, kernel_size)
    by_group = features.unflatten(1, (groups, -1)).transpose(1, 2).unsqueeze(2)
    return by_group.expand(-1, -1, scale**2, -1, -1, -1).flatten(1, 3)


def _kernels(features: Tensor, masks: Tensor, kernel_size: int) -> Tensor:
    """(B, s² G, k², H, W)."""
    groups, scale = _sizes(features, masks, kernel_size)
    parts = masks.unflatten(3, (-1, scale)).unflatten(2, (-1, scale)).unflatten(1, (groups, -1))  # B G k² H s W s
    return parts.permute(0, 4, 6, 1, 2, 3, 5).flatten(1, 3)


def _upsampled(out: Tensor, features: Tensor, masks: Tensor, kernel_size: int) -> Tensor:
    """(B, n s² G, H, W) -> (B, C, s H, s W)."""
    groups, scale = _sizes(features, masks, kernel_size)
    parts = out.unflatten(1, (-1, scale, scale, groups))  # B n s s G H W
    return parts.permute(0, 4, 1, 5, 2, 6, 3).reshape(*features.shape[:2], *masks.shape[2:])
