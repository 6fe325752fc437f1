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
from .dispatch import compiled, decompose, each, pick, slices, tl, triton
from .tiles import item_rows, load_rows, store_rows

# Rows of a map that a thread works on at a time.
ROWS = 8


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
    """The windows of a map x (B, H, W, heads, C) that `padded` has surrounded by zeros."""

    def __init__(self, logits: Tensor, stride: int):
        self.grid, self.stride, self.side = logits.shape[1:3], stride, math.isqrt(logits.shape[-1])

    def padded(self, x: Tensor) -> Tensor:
        p = self.side // 2
        bottom, right = ((n - 1) * self.stride + p + 1 - size for n, size in zip(self.grid, x.shape[1:3]))
        return F.pad(x, (0, 0, 0, 0, p, right, p, bottom))

    def place(self, x: Tensor, number: int) -> Tensor:
        """One place of all windows, a view (B, h, w, heads, C)."""
        (i, j), ends = divmod(number, self.side), [(n - 1) * self.stride + 1 for n in self.grid]
        return x[:, i : i + ends[0] : self.stride, j : j + ends[1] : self.stride]

    def unfold(self, x: Tensor) -> Tensor:
        """(B, H, W, heads, C) -> (B, h, w, heads, k², C)."""
        x = self.padded(x)
        return torch.stack([self.place(x, number) for number in range(self.side**2)], dim=4)

    def fold(self, rows: Tensor, like: Tensor) -> Tensor:
        """The sums of (B, h, w, heads, k², C) at their pixels, in a map like `like`. Nothing is written in place, for
        exports."""
        if any(isinstance(size, int) and size == 0 for size in like.shape[1:3]):
            return torch.zeros_like(like, dtype=rows.dtype)
        step, p, parts = self.stride, self.side // 2, []
        for number in range(self.side**2):
            (i, j), part = divmod(number, self.side), rows[..., number, :]
            part = F.pad(part.unsqueeze(3).unsqueeze(2), (0, 0, 0, 0, 0, step - 1, 0, 0, 0, step - 1))
            part = part.flatten(3, 4).flatten(1, 2)  # with zeros between the centers
            parts.append(F.pad(part, (0, 0, 0, 0, j, self.side - step - j, i, self.side - step - i)))
        return sum(parts[1:], parts[0])[:, p : p + like.shape[1], p : p + like.shape[2]]


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


# --- CPU -------------------------------------------------------------------------------------------------------------

# Sums over windows and their adjoint are one loop, with the weights of a window transposed. A thread owns some rows of
# the result, and computes those parts of windows that reach into them.


@compiled
def _inside(center, pad, first, last):
    """The places of a window, along one axis, that lie in first..last."""
    return max(0, first - center + pad), min(2 * pad + 1, last - center + pad)


@compiled(fastmath={"contract"})
def _add_windows(values, weights, out, stride, side, transposed, first, last):
    """Rows first..last of the sums: values and out (H, W, heads, C), weights (h, w, heads, k², k²)."""
    height, width, heads, channels = values.shape
    rows, columns, pad = weights.shape[0], weights.shape[1], side // 2
    out[first:last] = 0
    for n in range(max(0, (first - pad + stride - 1) // stride), min(rows, (last - 1 + pad) // stride + 1)):
        top, bottom = _inside(n * stride, pad, first, last)
        high, low = _inside(n * stride, pad, 0, height)
        for m in range(columns):
            left, right = _inside(m * stride, pad, 0, width)
            for head in range(heads):
                for ty in range(top, bottom):
                    for tx in range(left, right):
                        total = out[n * stride + ty - pad, m * stride + tx - pad, head]
                        for sy in range(high, low):
                            for sx in range(left, right):
                                t, s = ty * side + tx, sy * side + sx
                                weight = weights[n, m, head, s, t] if transposed else weights[n, m, head, t, s]
                                seen = values[n * stride + sy - pad, m * stride + sx - pad, head]
                                for c in range(channels):
                                    total[c] += weight * seen[c]


@compiled(fastmath={"contract", "reassoc"})
def _multiply_places(grad, values, out, stride, side, first, last):
    """Rows first..last of the gradients of the weights, out (h, w, heads, k², k²); grad and values (H, W, heads, C)."""
    height, width, heads, channels = values.shape
    pad = side // 2
    out[first:last] = 0
    for n in range(first, last):
        top, bottom = _inside(n * stride, pad, 0, height)
        for m in range(out.shape[1]):
            left, right = _inside(m * stride, pad, 0, width)
            for head in range(heads):
                for ty in range(top, bottom):
                    for tx in range(left, right):
                        target = grad[n * stride + ty - pad, m * stride + tx - pad, head]
                        for sy in range(top, bottom):
                            for sx in range(left, right):
                                source = values[n * stride + sy - pad, m * stride + sx - pad, head]
                                product = out[n, m, head, 0, 0] * 0  # of the dtype
                                for c in range(channels):
                                    product += target[c] * source[c]
                                out[n, m, head, ty * side + tx, sy * side + sx] = product


def _weights_cpu(logits: Tensor, scale: float, wide: torch.dtype) -> Tensor:
    """`_weights`, step by step: PyTorch's softmax works row by row, and takes five times as long for rows of nine."""
    weights = logits.to(wide) * scale
    weights -= weights.amax(-1, keepdim=True)
    weights = weights.exp_()
    weights /= weights.sum(-1, keepdim=True)
    return weights.contiguous()


def _sums_cpu(values: Tensor, weights: Tensor, stride: int, transposed: bool) -> Tensor:
    out, side = torch.empty_like(values), math.isqrt(weights.shape[-1])
    arrays = values.numpy(), weights.numpy(), out.numpy()
    blocks = [(b, rows) for b in range(len(values)) for rows in slices(0, values.shape[1], ROWS)]
    each(
        lambda at: _add_windows(*(a[at[0]] for a in arrays), stride, side, transposed, at[1].start, at[1].stop), blocks
    )
    return out


def _outlook_attention_cpu(values: Tensor, logits: Tensor, stride: int, scale: float) -> Tensor:
    wide = _wide(values, logits)
    weights = _weights_cpu(logits, scale, wide)
    return _sums_cpu(values.to(wide).contiguous(), weights, stride, False).to(values.dtype)


def _outlook_attention_backward_cpu(
    grad: Tensor, values: Tensor, logits: Tensor, stride: int, scale: float
) -> tuple[Tensor, Tensor]:
    wide = _wide(values, logits)
    weights = _weights_cpu(logits, scale, wide)
    grad, wide_values = grad.to(wide).contiguous(), values.to(wide).contiguous()
    grad_values = _sums_cpu(grad, weights, stride, True)
    grad_weights, side = torch.empty_like(weights), math.isqrt(weights.shape[-1])
    arrays = grad.numpy(), wide_values.numpy(), grad_weights.numpy()
    blocks = [(b, rows) for b in range(len(values)) for rows in slices(0, weights.shape[1], ROWS)]
    each(lambda at: _multiply_places(*(a[at[0]] for a in arrays), stride, side, at[1].start, at[1].stop), blocks)
    return grad_values.to(values.dtype), _of_softmax(grad_weights, weights, scale).to(logits.dtype)


# --- Triton ----------------------------------------------------------------------------------------------------------

# Elements of a tile of pixels or windows by the channels of a head.
ELEMENTS = 1024


@triton.jit
def softmax_terms(logits, row, place, inside, factor, PLACES: tl.constexpr):
    """Rows of scaled logits, -inf behind the last place, with their maximum and the sum of their exponentials."""
    tile = load_rows(logits, row, place, inside, PLACES).to(factor.dtype) * factor
    tile = tl.where((place < PLACES)[None, :], tile, float("-inf"))
    top = tl.max(tile, 1)
    return tile, top, tl.sum(tl.exp(tile - top[:, None]), 1)


@triton.jit(do_not_specialize=["heads", "height", "width", "rows", "columns"])
def outlook_attention_fwd_kernel(
    values, logits, lse, scale, out, heads, height, width, rows, columns, channels, stride,
    K: tl.constexpr, REACH: tl.constexpr, ADJOINT: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A block of pixels of a head sums over the windows that hold them, at most REACH² each: what these windows make of
    their values for the pixel or, ADJOINT, of what (∂out) they gave of the pixel to others."""
    image, pixel, inside = item_rows(height * width, BLOCK_P)
    y, x, head = pixel // width, pixel % width, tl.program_id(1)
    c, place = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    factor = tl.load(scale)
    total = tl.zeros((BLOCK_P, BLOCK_C), factor.dtype)
    for window in range(REACH * REACH):
        down = (y + K // 2) % stride + window // REACH * stride  # the place of the pixel in the window
        right = (x + K // 2) % stride + window % REACH * stride
        n, m = (y + K // 2 - down) // stride, (x + K // 2 - right) // stride  # without remainders
        exists = inside & (down < K) & (right < K) & (n >= 0) & (n < rows) & (m >= 0) & (m < columns)
        first = (((image * rows + n) * columns + m) * heads + head) * (K * K)
        own = down * K + right
        top, below = tl.zeros((BLOCK_P,), factor.dtype), tl.full((BLOCK_P,), 1.0, factor.dtype)
        if not ADJOINT:
            _, top, below = softmax_terms(logits, first + own, place, exists, factor, K * K)
        for other in range(K * K):
            i, j = n * stride + other // K - K // 2, m * stride + other % K - K // 2
            seen = exists & (i >= 0) & (i < height) & (j >= 0) & (j < width)
            if ADJOINT:
                at = (first + other) * (K * K) + own
                top = tl.load(lse + first + other, mask=seen, other=0.0)
            else:
                at = (first + own) * (K * K) + other
            logit = tl.load(logits + at, mask=seen, other=0.0).to(factor.dtype) * factor
            weight = tl.where(seen, tl.exp(logit - top) / below, 0.0)
            row = ((image * height + i) * width + j) * heads + head
            total += weight[:, None] * load_rows(values, row, c, seen, channels).to(factor.dtype)
    store_rows(out, total, ((image * height + y) * width + x) * heads + head, c, inside, channels)


@triton.jit(do_not_specialize=["heads", "height", "width", "rows", "columns"])
def outlook_attention_bwd_logits_kernel(
    grad, values, logits, scale, grad_logits, heads, height, width, rows, columns, channels, stride,
    K: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """A block of windows of a head."""
    image, window, inside = item_rows(rows * columns, BLOCK_P)
    n, m, head = window // columns, window % columns, tl.program_id(1)
    c, place = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_S)
    factor = tl.load(scale)
    first = ((image * rows * columns + window) * heads + head) * (K * K)
    for target in range(K * K):
        i, j = n * stride + target // K - K // 2, m * stride + target % K - K // 2
        on_map = inside & (i >= 0) & (i < height) & (j >= 0) & (j < width)
        row = ((image * height + i) * width + j) * heads + head
        g = load_rows(grad, row, c, on_map, channels).to(factor.dtype)
        products = tl.zeros((BLOCK_P, BLOCK_S), factor.dtype)
        for source in range(K * K):
            i, j = n * stride + source // K - K // 2, m * stride + source % K - K // 2
            seen = on_map & (i >= 0) & (i < height) & (j >= 0) & (j < width)
            row = ((image * height + i) * width + j) * heads + head
            product = tl.sum(g * load_rows(values, row, c, seen, channels).to(factor.dtype), 1)
            products = tl.where((place == source)[None, :], product[:, None], products)
        tile, top, below = softmax_terms(logits, first + target, place, inside, factor, K * K)
        weight = tl.exp(tile - top[:, None]) / below[:, None]
        mean = tl.sum(weight * products, 1)
        store_rows(grad_logits, weight * (products - mean[:, None]) * factor, first + target, place, inside, K * K)


def _launch(kernel, count: int, values: Tensor, logits: Tensor, stride: int, *tensors: Tensor, **options) -> None:
    """Launch `kernel` over blocks of `count` pixels or windows of all images, and heads."""
    batch, height, width, heads, channels = values.shape
    rows, columns, side = *logits.shape[1:3], math.isqrt(logits.shape[-1])
    if not values.numel():
        return
    block_c = triton.next_power_of_2(channels)
    block_p = max(1, ELEMENTS // block_c)
    with torch.cuda.device_of(values):
        kernel[batch * triton.cdiv(count, block_p), heads](
            *tensors, heads, height, width, rows, columns, channels, stride,
            K=side, BLOCK_P=block_p, BLOCK_S=triton.next_power_of_2(side**2), BLOCK_C=block_c, **options,
        )  # fmt: skip


def _factor(scale: float, values: Tensor, logits: Tensor) -> Tensor:
    return torch.full((1,), scale, dtype=_wide(values, logits), device=values.device)  # numbers go in float32


def _sums_triton(values: Tensor, logits: Tensor, lse: Tensor, factor: Tensor, stride: int, adjoint: bool) -> Tensor:
    out = torch.empty_like(values)
    count, reach = values.shape[1] * values.shape[2], -(-math.isqrt(logits.shape[-1]) // stride)
    tensors = values, logits, lse, factor, out
    _launch(outlook_attention_fwd_kernel, count, values, logits, stride, *tensors, REACH=reach, ADJOINT=adjoint)
    return out


def _outlook_attention_triton(values: Tensor, logits: Tensor, stride: int, scale: float) -> Tensor:
    values, logits, factor = values.contiguous(), logits.contiguous(), _factor(scale, values, logits)
    return _sums_triton(values, logits, factor, factor, stride, False)  # without the normalization of all rows


def _outlook_attention_backward_triton(
    grad: Tensor, values: Tensor, logits: Tensor, stride: int, scale: float
) -> tuple[Tensor, Tensor]:
    grad, values, logits = grad.contiguous(), values.contiguous(), logits.contiguous()
    factor = _factor(scale, values, logits)
    lse = (logits.to(factor.dtype) * scale).logsumexp(-1)
    grad_values = _sums_triton(grad, logits, lse, factor, stride, True)
    grad_logits = torch.zeros_like(logits) if not values.numel() else torch.empty_like(logits)
    tensors = grad, values, logits, factor, grad_logits
    count = logits.shape[1] * logits.shape[2]
    _launch(outlook_attention_bwd_logits_kernel, count, values, logits, stride, *tensors)
    return grad_values, grad_logits


# --- registration ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("attlas::outlook_attention", mutates_args=())
def outlook_attention_op(values: Tensor, logits: Tensor, stride: int, scale: float) -> Tensor:
    run = pick(
        values,
        reference=outlook_attention_reference,
        triton=_outlook_attention_triton,
        cpu=_outlook_attention_cpu,
    )
    return run(values, logits, stride, scale).contiguous()


@outlook_attention_op.register_fake
def _(values, logits, stride, scale):
    return values.new_empty(values.shape)


@torch.library.custom_op("attlas::outlook_attention_backward", mutates_args=())
def outlook_attention_backward_op(
    grad: Tensor, values: Tensor, logits: Tensor, stride: int, scale: float
) -> tuple[Tensor, Tensor]:
    run = pick(
        values,
        reference=outlook_attention_backward_reference,
        triton=_outlook_attention_backward_triton,
        cpu=_outlook_attention_backward_cpu,
    )
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
