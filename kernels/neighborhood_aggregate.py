"""Averages of the values in every pixel's window, with given logits: the product A V of neighborhood attention.

    out[p] = Σ_t softmax_t(logits[p, t] + bias[offset of tap t from p]) · v[tap t of p]

The k x k window is clamped: at a border it moves inwards. The first row of the window of row i is
min(max(i - k // 2, 0), H - k), and every pixel has k² taps, in row-major order. Memory holds neither copies of v for
each tap nor the softmax for the backward, which computes it again.

Source: OverLoCK's dynamic convolution ContMix, arXiv 2502.20087; the window: Neighborhood Attention Transformer, arXiv
2204.07143.
"""

import torch
from torch import Tensor

from .checks import check_floats, check_tensors, sum_dtype
from .dispatch import compiled, decompose, each, pick, tl, triton
from .tiles import item_rows, triton_dtype


def neighborhood_aggregate(logits: Tensor, v: Tensor, kernel_size: int, bias: Tensor | None = None) -> Tensor:
    """Averages of v over clamped windows, weighted by the softmax of logits + bias; differentiable in all three.

    Each tensor may have any floating-point dtype; softmax and sums of half types are computed in float32.

    Args:
        logits: logits of the taps (B, H, W, heads, k²).
        v: values (B, H, W, heads, C), for instance a channels-last map whose channels are split into heads.
        kernel_size: side k of the windows, odd, at most H and W.
        bias: table (heads, 2k - 1, 2k - 1); bias[g, y + k - 1, x + k - 1] is added to the logits of the taps that lie
            y rows below and x columns right of their pixel. None for none.

    Returns:
        (B, H, W, heads, C), contiguous, in the dtype of v.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype.
    """
    check_tensors(logits=logits, v=v)
    if bias is not None:
        check_tensors(bias=bias)
    if type(kernel_size) is not int or kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be an odd positive integer, got {kernel_size!r:.60}")
    if v.ndim != 5:
        raise ValueError(f"v must have shape (B, H, W, heads, C), got {tuple(v.shape)}")
    if logits.shape != (*v.shape[:4], kernel_size**2):
        raise ValueError(
            f"logits must have shape (B, H, W, heads, k²) = {(*v.shape[:4], kernel_size**2)} for kernel_size "
            f"{kernel_size} and v {tuple(v.shape)}, got {tuple(logits.shape)}"
        )
    if kernel_size > min(v.shape[1:3]):
        raise ValueError(
            f"kernel_size must be at most H and W, {v.shape[1]} and {v.shape[2]}, got {kernel_size}: a window "
            "lies inside the map"
        )
    side = 2 * kernel_size - 1
    if bias is not None and bias.shape != (v.shape[3], side, side):
        raise ValueError(
            f"bias must have shape (heads, 2k - 1, 2k - 1) = {(v.shape[3], side, side)}, got {tuple(bias.shape)}"
        )
    check_floats(v=v, logits=logits, **({} if bias is None else {"bias": bias}))
    return neighborhood_aggregate_op(logits, v, bias, kernel_size)


def _wide(logits: Tensor, v: Tensor) -> torch.dtype:
    """The dtype of the softmax and of sums."""
    return torch.promote_types(sum_dtype(logits), v.dtype)


def _starts(size: int, k: int, device: torch.device) -> Tensor:
    """The first row (or column) of the window of every row."""
    return (torch.arange(size, device=device) - k // 2).clamp(0, size - k)


def _offsets(size: int, k: int, device: torch.device) -> Tensor:
    """(size · k,): the row of the bias table for every row of pixels and of their windows."""
    first = _starts(size, k, device) - torch.arange(size, device=device) + k - 1
    return (first.unsqueeze(1) + torch.arange(k, device=device)).flatten()


def _softmax_reference(logits: Tensor, bias: Tensor | None, k: int, wide: torch.dtype) -> Tensor:
    logits = logits.to(wide)
    if bias is not None:
        height, width = logits.shape[1:3]
        table = bias.to(wide).index_select(1, _offsets(height, k, bias.device))
        table = table.index_select(2, _offsets(width, k, bias.device))  # (heads, H k, W k)
        logits = logits + table.view(-1, height, k, width, k).permute(1, 3, 0, 2, 4).flatten(3)
    return logits.softmax(-1)


def _bias_gradient(grad_logits: Tensor, bias: Tensor | None, k: int, wide: torch.dtype) -> Tensor:
    """Gradient of the bias; an empty tensor without one."""
    if bias is None:
        return grad_logits.new_empty(0)
    height, width, heads = grad_logits.shape[1:4]
    grad = grad_logits.sum(0, dtype=wide).view(height, width, heads, k, k).permute(2, 0, 3, 1, 4)
    grad = grad.reshape(heads, height * k, width * k)
    rows = grad.new_zeros(heads, 2 * k - 1, width * k).index_add(1, _offsets(height, k, grad.device), grad)
    table = grad.new_zeros(heads, 2 * k - 1, 2 * k - 1).index_add(2, _offsets(width, k, grad.device), rows)
    return table.to(bias.dtype)


def neighborhood_aggregate_reference(logits: Tensor, v: Tensor, bias: Tensor | None, k: int) -> Tensor:
    wide = _wide(logits, v)
    weights = _softmax_reference(logits, bias, k, wide).split(k, -1)  # by line of the window
    top, left = _starts(v.shape[1], k, v.device), _starts(v.shape[2], k, v.device)
    columns = (left.unsqueeze(1) + torch.arange(k, device=v.device)).flatten()
    out = torch.zeros_like(v, dtype=wide, memory_format=torch.contiguous_format)
    for y, weight in enumerate(weights):  # k copies at a time instead of k², and few operations for exporters
        line = v.index_select(1, top + y).to(wide).index_select(2, columns).unflatten(2, (-1, k))
        out = out + (weight.unsqueeze(-2) @ line.transpose(3, 4)).squeeze(-2)
    return out.to(v.dtype)


def neighborhood_aggregate_backward_reference(grad: Tensor, logits: Tensor, v: Tensor, bias: Tensor | None, k: int):
    """Gradients of logits, v and bias."""
    wide = _wide(logits, v)
    weight, grad = _softmax_reference(logits, bias, k, wide), grad.to(wide)
    top, left = _starts(v.shape[1], k, v.device), _starts(v.shape[2], k, v.device)
    grad_v = torch.zeros_like(v, dtype=wide, memory_format=torch.contiguous_format)
    products = []
    for y in range(k):
        seen, grad_seen = v.index_select(1, top + y).to(wide), torch.zeros_like(grad_v)
        for x in range(k):
            products.append((grad * seen.index_select(2, left + x)).sum(-1))
            grad_seen = grad_seen.index_add(2, left + x, weight[..., y * k + x, None] * grad)
        grad_v = grad_v.index_add(1, top + y, grad_seen)
    grad_logits = torch.stack(products, -1) * weight
    grad_logits = grad_logits - weight * grad_logits.sum(-1, keepdim=True)
    grad_bias = _bias_gradient(grad_logits, bias, k, wide)
    return grad_logits.to(logits.dtype).contiguous(), grad_v.to(v.dtype), grad_bias


# The CPU's path: one head of an image at a time, copied in the dtype of sums: its values fit into a core's cache. The
# innermost loop runs over channels.


@compiled
def _start(i, size, k):
    return min(max(i - k // 2, 0), size - k)


@compiled
def _add_bias(logits, bias, k):
    height, width, _ = logits.shape
    for i in range(height):
        row = _start(i, height, k) - i + k - 1
        for j in range(width):
            column = _start(j, width, k) - j + k - 1
            for y in range(k):
                for x in range(k):
                    logits[i, j, y * k + x] += bias[row + y, column + x]


@compiled
def _collect_bias(grad, total, k):
    height, width, _ = grad.shape
    for i in range(height):
        row = _start(i, height, k) - i + k - 1
        for j in range(width):
            column = _start(j, width, k) - j + k - 1
            for y in range(k):
                for x in range(k):
                    total[row + y, column + x] += grad[i, j, y * k + x]


@compiled(fastmath={"contract"})
def _sums(weight, v, total, k):
    height, width, channels = v.shape
    for i in range(height):
        top = _start(i, height, k)
        for j in range(width):
            left = _start(j, width, k)
            for y in range(k):
                for x in range(k):
                    w = weight[i, j, y * k + x]
                    for c in range(channels):
                        total[i, j, c] += w * v[top + y, left + x, c]


@compiled(fastmath={"contract", "reassoc", "nsz"})  # for vector instructions in the sum over channels
def _products(grad, v, product, k):
    height, width, channels = v.shape
    for i in range(height):
        top = _start(i, height, k)
        for j in range(width):
            left = _start(j, width, k)
            for y in range(k):
                for x in range(k):
                    total = v.dtype.type(0)
                    for c in range(channels):
                        total += grad[i, j, c] * v[top + y, left + x, c]
                    product[i, j, y * k + x] = total


@compiled(fastmath={"contract"})
def _spread(weight, grad, grad_v, k):
    height, width, channels = grad_v.shape
    for i in range(height):
        top = _start(i, height, k)
        for j in range(width):
            left = _start(j, width, k)
            for y in range(k):
                for x in range(k):
                    w = weight[i, j, y * k + x]
                    for c in range(channels):
                        grad_v[top + y, left + x, c] += w * grad[i, j, c]


def _copy(x: Tensor, wide: torch.dtype) -> Tensor:
    return torch.empty(x.shape, dtype=wide).copy_(x)


def _softmax_cpu(logits_HWT: Tensor, bias: Tensor | None, k: int, wide: torch.dtype) -> Tensor:
    logits_HWT = _copy(logits_HWT, wide)
    if bias is not None:
        _add_bias(logits_HWT.numpy(), _copy(bias, wide).numpy(), k)
    return logits_HWT.softmax(-1)


def _heads(v: Tensor) -> list[tuple[int, int]]:
    return [(image, head) for image in range(v.shape[0]) for head in range(v.shape[3])]


def _neighborhood_aggregate_cpu(logits: Tensor, v: Tensor, bias: Tensor | None, k: int) -> Tensor:
    wide, out = _wide(logits, v), v.new_empty(v.shape)

    def one(item: tuple[int, int]) -> None:
        image, head = item
        weight = _softmax_cpu(logits[image, :, :, head], None if bias is None else bias[head], k, wide)
        values = _copy(v[image, :, :, head], wide)
        total = torch.zeros_like(values)
        _sums(weight.numpy(), values.numpy(), total.numpy(), k)
        out[image, :, :, head] = total

    each(one, _heads(v))
    return out


def _neighborhood_aggregate_backward_cpu(grad: Tensor, logits: Tensor, v: Tensor, bias: Tensor | None, k: int):
    wide = _wide(logits, v)
    grad_logits, grad_v = logits.new_empty(logits.shape), v.new_empty(v.shape)
    shares = torch.zeros(() if bias is None else (len(v), *bias.shape), dtype=wide)  # of every image

    def one(item: tuple[int, int]) -> None:
        image, head = item
        weight = _softmax_cpu(logits[image, :, :, head], None if bias is None else bias[head], k, wide)
        values, gradient = _copy(v[image, :, :, head], wide), _copy(grad[image, :, :, head], wide)
        product, total = torch.empty_like(weight), torch.zeros_like(values)
        _products(gradient.numpy(), values.numpy(), product.numpy(), k)
        _spread(weight.numpy(), gradient.numpy(), total.numpy(), k)
        product *= weight
        product.addcmul_(weight, product.sum(-1, keepdim=True), value=-1)
        if bias is not None:
            _collect_bias(product.numpy(), shares[image, head].numpy(), k)
        grad_logits[image, :, :, head] = product
        grad_v[image, :, :, head] = total

    each(one, _heads(v))
    return grad_logits, grad_v, v.new_empty(0) if bias is None else shares.sum(0).to(bias.dtype)


# Triton: a program takes a block of pixels of one head, and one tap at a time, with a running softmax: a logit above
# the highest so far scales down what was summed.

# Most elements of a tile of pixels by channels, and most pixels.
ELEMENTS, PIXELS = 512, 64


@triton.jit
def _block(heads, height, width, BLOCK_P: tl.constexpr):
    """Image, head, rows and columns of this program's pixels, and which of them exist."""
    image_head, pixel, inside = item_rows(height * width, BLOCK_P)
    return image_head // heads, image_head % heads, pixel // width, pixel % width, inside


@triton.jit
def _first(i, size, K: tl.constexpr):
    return tl.minimum(tl.maximum(i - K // 2, 0), size - K)


@triton.jit
def _at(b, i, j, head, stride_b, stride_h, stride_w, stride_g):
    return b * stride_b + i.to(tl.int64) * stride_h + j.to(tl.int64) * stride_w + head * stride_g


@triton.jit
def _logit(logits, bias, mask, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr):
    logit = tl.load(logits, mask=mask, other=0).to(WIDE)
    if HAS_BIAS:
        logit += tl.load(bias, mask=mask, other=0).to(WIDE)
    return logit


@triton.jit(do_not_specialize=["height", "width"])
def neighborhood_aggregate_fwd_kernel(
    logits, v, bias, out, heads, channels, height, width,
    l_b, l_h, l_w, l_g, v_b, v_h, v_w, v_g,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b, head, i, j, inside = _block(heads, height, width, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    tile = inside[:, None] & (c < channels)[None, :]
    top, left = _first(i, height, K), _first(j, width, K)
    logits += _at(b, i, j, head, l_b, l_h, l_w, l_g)
    v += _at(b, top, left, head, v_b, v_h, v_w, v_g)
    bias += (head * (2 * K - 1) + top - i + K - 1) * (2 * K - 1) + left - j + K - 1
    highest = tl.full((BLOCK_P,), float("-inf"), dtype=WIDE)
    total = tl.zeros((BLOCK_P,), dtype=WIDE)
    value = tl.zeros((BLOCK_P, BLOCK_C), dtype=WIDE)
    for tap in range(K * K):
        y, x = tap // K, tap % K
        logit = _logit(logits + tap, bias + y * (2 * K - 1) + x, inside, HAS_BIAS, WIDE)
        higher = tl.maximum(highest, logit)
        base = tl.where(higher == float("-inf"), 0.0, higher)  # as long as all logits are -inf
        fade, weight = tl.exp(highest - base), tl.exp(logit - base)
        seen = tl.load(v[:, None] + y * v_h + x * v_w + c[None, :], mask=tile, other=0).to(WIDE)
        value = value * fade[:, None] + weight[:, None] * seen
        total = total * fade + weight
        highest = higher
    out += (((b * height + i) * width + j) * heads + head)[:, None] * channels + c[None, :]
    tl.store(out, value / total[:, None], mask=tile)


@triton.jit(do_not_specialize=["height", "width"])
def neighborhood_aggregate_bwd_logits_kernel(
    grad, logits, v, bias, grad_logits, normalizer, heads, channels, height, width,
    g_b, g_h, g_w, g_g, l_b, l_h, l_w, l_g, v_b, v_h, v_w, v_g,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradient of the logits, and what the gradient of v needs: the highest logit m and Σ exp(logits + bias - m).

    Two numbers instead of the logarithm m + log Σ: where a mask is the lowest of all floats, rounding would lose log Σ.
    """
    b, head, i, j, inside = _block(heads, height, width, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    tile = inside[:, None] & (c < channels)[None, :]
    top, left = _first(i, height, K), _first(j, width, K)
    g = tl.load(grad + _at(b, i, j, head, g_b, g_h, g_w, g_g)[:, None] + c[None, :], mask=tile, other=0).to(WIDE)
    logits += _at(b, i, j, head, l_b, l_h, l_w, l_g)
    v += _at(b, top, left, head, v_b, v_h, v_w, v_g)
    bias += (head * (2 * K - 1) + top - i + K - 1) * (2 * K - 1) + left - j + K - 1
    highest = tl.full((BLOCK_P,), float("-inf"), dtype=WIDE)
    total = tl.zeros((BLOCK_P,), dtype=WIDE)
    mean = tl.zeros((BLOCK_P,), dtype=WIDE)  # of the taps' products with the gradient
    for tap in range(K * K):
        y, x = tap // K, tap % K
        logit = _logit(logits + tap, bias + y * (2 * K - 1) + x, inside, HAS_BIAS, WIDE)
        higher = tl.maximum(highest, logit)
        base = tl.where(higher == float("-inf"), 0.0, higher)  # as long as all logits are -inf
        fade, weight = tl.exp(highest - base), tl.exp(logit - base)
        seen = tl.load(v[:, None] + y * v_h + x * v_w + c[None, :], mask=tile, other=0).to(WIDE)
        mean = mean * fade + weight * tl.sum(g * seen, 1)
        total = total * fade + weight
        highest = higher
    mean /= total
    pixel = ((b * height + i) * width + j) * heads + head
    tl.store(normalizer + 2 * pixel, highest, mask=inside)
    tl.store(normalizer + 2 * pixel + 1, total, mask=inside)
    for tap in range(K * K):
        y, x = tap // K, tap % K
        logit = _logit(logits + tap, bias + y * (2 * K - 1) + x, inside, HAS_BIAS, WIDE)
        seen = tl.load(v[:, None] + y * v_h + x * v_w + c[None, :], mask=tile, other=0).to(WIDE)
        weight = tl.exp(logit - highest) / total
        tl.store(grad_logits + pixel * (K * K) + tap, weight * (tl.sum(g * seen, 1) - mean), mask=inside)


@triton.jit(do_not_specialize=["height", "width"])
def neighborhood_aggregate_bwd_v_kernel(
    grad, logits, bias, normalizer, grad_v, heads, channels, height, width,
    g_b, g_h, g_w, g_g, l_b, l_h, l_w, l_g,
    K: tl.constexpr, HAS_BIAS: tl.constexpr, WIDE: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Every pixel (a, e) collects from the pixels (i, j) that see it: a rectangle, larger at a border."""
    b, head, a, e, inside = _block(heads, height, width, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    tile = inside[:, None] & (c < channels)[None, :]
    top, bottom = tl.where(a < K, 0, a - K // 2), tl.where(a >= height - K, height - 1, a + K // 2)
    left, right = tl.where(e < K, 0, e - K // 2), tl.where(e >= width - K, width - 1, e + K // 2)
    value = tl.zeros((BLOCK_P, BLOCK_C), dtype=WIDE)
    for y in range(tl.max(bottom - top, 0) + 1):
        i = top + y
        for x in range(tl.max(right - left, 0) + 1):
            j = left + x
            seen = inside & (i <= bottom) & (j <= right)
            tap = (a - _first(i, height, K)) * K + e - _first(j, width, K)
            at = (head * (2 * K - 1) + a - i + K - 1) * (2 * K - 1) + e - j + K - 1
            logit = _logit(logits + _at(b, i, j, head, l_b, l_h, l_w, l_g) + tap, bias + at, seen, HAS_BIAS, WIDE)
            pixel = ((b * height + i) * width + j) * heads + head
            weight = tl.exp(logit - tl.load(normalizer + 2 * pixel, mask=seen, other=0))
            weight /= tl.load(normalizer + 2 * pixel + 1, mask=seen, other=1)
            g = grad + _at(b, i, j, head, g_b, g_h, g_w, g_g)[:, None] + c[None, :]
            value += weight[:, None] * tl.load(g, mask=tile & seen[:, None], other=0).to(WIDE)
    grad_v += (((b * height + a) * width + e) * heads + head)[:, None] * channels + c[None, :]
    tl.store(grad_v, value, mask=tile)


def _launch(kernel, v: Tensor, wide: torch.dtype, k: int, has_bias: bool, strided: list[Tensor], *tensors) -> None:
    """Launch `kernel` over blocks of pixels of all heads and images; its last arguments: the strides of `strided`."""
    batch, height, width, heads, channels = v.shape
    block_c = triton.next_power_of_2(channels)
    block_p = max(min(PIXELS, ELEMENTS // block_c), 1)
    strides = [stride for tensor in strided for stride in tensor.stride()[:4]]
    options = dict(K=k, HAS_BIAS=has_bias, WIDE=triton_dtype(wide))
    grid = (batch * heads * triton.cdiv(height * width, block_p),)
    with torch.cuda.device_of(v):
        kernel[grid](
            *tensors, heads, channels, height, width, *strides, **options,
            BLOCK_P=block_p, BLOCK_C=block_c, num_warps=1,
        )  # fmt: skip


def _side_by_side(x: Tensor) -> Tensor:
    """x, copied only if its last axis is not contiguous: the kernels take the strides of the others."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _neighborhood_aggregate_triton(logits: Tensor, v: Tensor, bias: Tensor | None, k: int) -> Tensor:
    wide, out = _wide(logits, v), v.new_empty(v.shape)
    if out.numel():
        logits, v = _side_by_side(logits), _side_by_side(v)
        table = logits if bias is None else bias.contiguous()  # without one, a pointer that is not read
        kernel = neighborhood_aggregate_fwd_kernel
        _launch(kernel, v, wide, k, bias is not None, [logits, v], logits, v, table, out)
    return out


def _neighborhood_aggregate_backward_triton(grad: Tensor, logits: Tensor, v: Tensor, bias: Tensor | None, k: int):
    wide = _wide(logits, v)
    # the gradient of the bias is the sum of that of the logits, before rounding
    grad_logits = logits.new_empty(logits.shape, dtype=logits.dtype if bias is None else wide)
    grad_v = v.new_empty(v.shape)
    if not grad_v.numel():
        grad_logits.zero_()
    else:
        grad, logits, v = map(_side_by_side, (grad, logits, v))
        table = logits if bias is None else bias.contiguous()
        normalizer = v.new_empty(*v.shape[:4], 2, dtype=wide)
        _launch(
            neighborhood_aggregate_bwd_logits_kernel, v, wide, k, bias is not None, [grad, logits, v],
            grad, logits, v, table, grad_logits, normalizer,
        )  # fmt: skip
        _launch(
            neighborhood_aggregate_bwd_v_kernel, v, wide, k, bias is not None, [grad, logits],
            grad, logits, table, normalizer, grad_v,
        )  # fmt: skip
    return grad_logits.to(logits.dtype), grad_v, _bias_gradient(grad_logits, bias, k, wide)


@torch.library.custom_op("attlas::neighborhood_aggregate", mutates_args=())
def neighborhood_aggregate_op(logits: Tensor, v: Tensor, bias: Tensor | None, kernel_size: int) -> Tensor:
    return pick(
        v,
        reference=neighborhood_aggregate_reference,
        triton=_neighborhood_aggregate_triton,
        cpu=_neighborhood_aggregate_cpu,
    )(logits, v, bias, kernel_size)


@neighborhood_aggregate_op.register_fake
def _(logits, v, bias, kernel_size):
    return v.new_empty(v.shape)


@torch.library.custom_op("attlas::neighborhood_aggregate_backward", mutates_args=())
def neighborhood_aggregate_backward_op(
    grad: Tensor, logits: Tensor, v: Tensor, bias: Tensor | None, kernel_size: int
) -> tuple[Tensor, Tensor, Tensor]:
    return pick(
        v,
        reference=neighborhood_aggregate_backward_reference,
        triton=_neighborhood_aggregate_backward_triton,
        cpu=_neighborhood_aggregate_backward_cpu,
    )(grad, logits, v, bias, kernel_size)


@neighborhood_aggregate_backward_op.register_fake
def _(grad, logits, v, bias, kernel_size):
    grad_bias = v.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return logits.new_empty(logits.shape), v.new_empty(v.shape), grad_bias


def _save(ctx, inputs, output):
    *tensors, ctx.kernel_size = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    logits, v, bias = ctx.saved_tensors
    grad_logits, grad_v, grad_bias = neighborhood_aggregate_backward_op(grad, logits, v, bias, ctx.kernel_size)
    return grad_logits, grad_v, None if bias is None else grad_bias, None


neighborhood_aggregate_op.register_autograd(_backward, setup_context=_save)
decompose(neighborhood_aggregate_op, neighborhood_aggregate_reference)
