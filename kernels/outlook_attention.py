"""Outlook attention: a window of pixels is mixed by weights that its center alone chooses.

Every s-th pixel of a row and of a column is the center of a window of k x k pixels. A window mixes its values, and adds
the k² results to its pixels:

    out[y] = Σ_n Σ_j softmax_j(scale · logits[n, y - n, j]) values[n + j],   n the centers whose window holds y

j runs over the k² places of a window, row by row. Beyond the border values are zero, but have their share of the
softmax; results there are dropped. Sums of windows that overlap are not averaged.

Source: VOLO, arXiv 2106.13112, where it is an unfolding to (B, windows, k², C), a product, and a folding. Nothing of
that size is held here, forward or backward; on a CPU the weights are, (B, windows, heads, k², k²), as the logits are.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_devices, check_floats, check_integer, check_number, check_tensors, sum_dtype
from .dispatch import decompose, pick


def outlook_attention(values: Tensor, logits: Tensor, stride: int = 1, scale: float = 1.0) -> Tensor:
    """Outlook attention, see above.

    Args:
        values: (B, H, W, heads, C).
        logits: (B, ⌈H / stride⌉, ⌈W / stride⌉, heads, k², k²), of an odd k; of each target place those of the sources.
        stride: pixels s from one center to the next, at most (k + 1) / 2, so that every pixel lies in a window.
        scale: factor of the logits, at least 0.

    Both tensors may be of any floating-point dtype.

    Returns:
        (B, H, W, heads, C), in the dtype of `values`.

    Raises:
        ValueError, TypeError: an argument of another shape, dtype or device.
    """
    check_tensors(values=values, logits=logits)
    if values.ndim != 5:
        raise ValueError(f"values must have shape (B, H, W, heads, C), got {tuple(values.shape)}")
    check_integer(stride, "stride")
    check_number(scale, "scale")
    batch, height, width, heads, _ = values.shape
    before = batch, (height + stride - 1) // stride, (width + stride - 1) // stride, heads
    if logits.ndim != 6 or tuple(logits.shape[:4]) != before:
        raise ValueError(
            f"logits must have shape (B, ⌈H / stride⌉, ⌈W / stride⌉, heads, k², k²), here {before} and k², k², "
            f"got {tuple(logits.shape)}"
        )
    places, sources = logits.shape[4:]
    if places != sources or places % 2 == 0 or math.isqrt(places) ** 2 != places:
        raise ValueError(f"logits must be of k² x k² places of an odd k (1, 9, 25, ...), got {places} x {sources}")
    side = math.isqrt(places)
    if stride > (side + 1) // 2:
        raise ValueError(
            f"stride must be at most {(side + 1) // 2} for windows of {side} x {side}, or pixels lie in none, "
            f"got {stride}"
        )
    check_floats(values=values, logits=logits)
    check_devices(values=values, logits=logits)
    return outlook_attention_op(values, logits, stride, float(scale))


# --- reference -------------------------------------------------------------------------------------------------------


def _wide(values: Tensor, logits: Tensor) -> torch.dtype:
    """The dtype of sums."""
    return torch.promote_types(sum_dtype(values), logits.dtype)


def _weights(logits: Tensor, scale: float, wide: torch.dtype) -> Tensor:
    return (logits.to(wide) * scale).softmax(-1)


class _Windows:
    """The places of all windows: `places(x)` lists for each of the k² a view (B, h, w, ...) of a map x (B, H, W, ...)
    that `padded` has surrounded by zeros."""

    def __init__(self, logits: Tensor, stride: int):
        self.grid, self.stride, self.side = logits.shape[1:3], stride, math.isqrt(logits.shape[-1])

    def padded(self, x: Tensor) -> Tensor:
        p = self.side // 2
        bottom, right = ((n - 1) * self.stride + p + 1 - size for n, size in zip(self.grid, x.shape[1:3]))
        return F.pad(x, (0, 0, 0, 0, p, right, p, bottom))

    def places(self, x: Tensor) -> list[Tensor]:
        ends = [(n - 1) * self.stride + 1 for n in self.grid]
        return [
            x[:, i : i + ends[0] : self.stride, j : j + ends[1] : self.stride]
            for i in range(self.side)
            for j in range(self.side)
        ]

    def unfold(self, x: Tensor) -> Tensor:
        """(B, H, W, heads, C) -> (B, h, w, heads, k², C)."""
        return torch.stack(self.places(self.padded(x)), dim=4)

    def fold(self, rows: Tensor, like: Tensor) -> Tensor:
        """The sums of (B, h, w, heads, k², C) at their pixels, in a map like `like`."""
        total, p = torch.zeros_like(self.padded(like), dtype=rows.dtype), self.side // 2
        for place, row in zip(self.places(total), rows.unbind(4)):
            place += row
        return total[:, p : p + like.shape[1], p : p + like.shape[2]]


def outlook_attention_reference(values: Tensor, logits: Tensor, stride: int, scale: float) -> Tensor:
    """The definition, with the unfolded values."""
    wide, windows = _wide(values, logits), _Windows(logits, stride)
    mixed = _weights(logits, scale, wide) @ windows.unfold(values.to(wide))
    return windows.fold(mixed, values).to(values.dtype)


def outlook_attention_backward_reference(
    grad: Tensor, values: Tensor, logits: Tensor, stride: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Gradients of values and logits."""
    wide, windows = _wide(values, logits), _Windows(logits, stride)
    weights, rows = _weights(logits, scale, wide), windows.unfold(grad.to(wide))
    grad_values = windows.fold(weights.mT @ rows, values)
    grad_weights = rows @ windows.unfold(values.to(wide)).mT
    return grad_values.to(values.dtype), _of_softmax(grad_weights, weights, scale).to(logits.dtype)


def _of_softmax(grad: Tensor, weights: Tensor, scale: float) -> Tensor:
    return weights * (grad - (grad * weights).sum(-1, keepdim=True)) * scale


# --- registration ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("attlas::outlook_attention", mutates_args=())
def outlook_attention_op(values: Tensor, logits: Tensor, stride: int, scale: float) -> Tensor:
    run = pick(values, reference=outlook_attention_reference, triton=outlook_attention_reference)
    return run(values, logits, stride, scale).contiguous()


@outlook_attention_op.register_fake
def _(values, logits, stride, scale):
    return values.new_empty(values.shape)


@torch.library.custom_op("attlas::outlook_attention_backward", mutates_args=())
def outlook_attention_backward_op(
    grad: Tensor, values: Tensor, logits: Tensor, stride: int, scale: float
) -> tuple[Tensor, Tensor]:
    run = pick(values, reference=outlook_attention_backward_reference, triton=outlook_attention_backward_reference)
    grad_values, grad_logits = run(grad, values, logits, stride, scale)
    return grad_values.contiguous(), grad_logits.contiguous()


@outlook_attention_backward_op.register_fake
def _(grad, values, logits, stride, scale):
    return values.new_empty(values.shape), logits.new_empty(logits.shape)


def _save(ctx, inputs, output):
    values, logits, *ctx.numbers = inputs
    ctx.save_for_backward(values, logits)


def _backward(ctx, grad):
    return *outlook_attention_backward_op(grad, *ctx.saved_tensors, *ctx.numbers), None, None


outlook_attention_op.register_autograd(_backward, setup_context=_save)
decompose(outlook_attention_op, outlook_attention_reference)
