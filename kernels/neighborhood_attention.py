"""Neighborhood attention: every query attends to a window of keys around it, which moves inwards at borders, or is cut.

    out_i = Σ_j P_ij v_j,   P_i = softmax_j(scale q_i·k_j + bias[j - i]),   j in the window of i

The window is the product of one window per axis. On an axis of length L with kernel κ and dilation δ, query i is number
j = i // δ of n in its dilation group g = i mod δ, and its keys are g + δ t for t in [start, end):

    moved    start = j - κ // 2, clamped to 0..n - κ;   end = start + κ: always κ keys
    cut      start = max(j - κ // 2, 0);                end = min(j - κ // 2 + κ, n): 1..κ keys
    causal   start = max(j - κ + 1, 0);                 end = j + 1: 1..κ keys

A cut window is that of a convolution: at borders it stays around its query, and keys beyond the ends are left out.

With a stride s, s consecutive queries share the window of their leader: j becomes min(⌊j/s⌋ s + s // 2, n - 1), and
min(⌊j/s⌋ s + s - 1, n - 1) in a causal start; s = κ is attention in blocks.

Gradients, for g = ∂/∂out, h = ∂/∂lse and Δ_i = g_i·out_i - h_i, with P recomputed from lse_i = log Σ_j exp(...):

    S_ij = P_ij (g_i·v_j - Δ_i);   ∂v_j = Σ_i P_ij g_i;   ∂bias[r] = Σ S_ij over j - i = r
    ∂q_i = scale Σ_j S_ij k_j;   ∂k_j = scale Σ_i S_ij q_i

Memory holds neither copies of keys for each window nor the weights of all windows. Inside, all tensors have three
spatial axes: missing axes follow the first one, with length 1 and kernel 1.

Legend: B batch, X, Y, Z spatial axes, N = XYZ tokens, H heads, D channels of q and k, V channels of v.

Source: NAT, arXiv 2204.07143; DiNAT, arXiv 2209.15001; fused: arXiv 2403.04690; strides: arXiv 2504.16922
(SHI-Labs/NATTEN; the bias is that of its v0.17.5).
"""

import functools
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_choice, check_flags, check_floats, check_number, check_one_dtype, check_tensors, sum_dtype
from .dispatch import compiled, decompose, each, pick, tl, triton, without_autocast
from .rows import add_rows, add_to_rows, products
from .tiles import item_rows, load_rows, store_rows

BORDERS = ("move", "cut")


def neighborhood_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel_size: int | Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    is_causal: bool | Sequence[bool] = False,
    border: str = "move",
    scale: float | None = None,
    bias: Tensor | None = None,
    extra_keys: Tensor | None = None,
    extra_values: Tensor | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every token of a sequence, an image or a volume to its neighborhood; differentiable in all tensors.

    The first four options are one value for all spatial axes, or one for each.

    Args:
        q, k: queries and keys (B, *spatial, H, D) with one to three spatial axes, of any floating-point dtype; half
            types are summed in float32.
        v: values (B, *spatial, H, V), in the same dtype.
        kernel_size: number of keys κ >= 1 on an axis; κ δ may not exceed its length, unless windows are cut.
        dilation: distance δ between consecutive keys.
        stride: number of consecutive queries that share a window, 1..κ.
        is_causal: whether queries see only keys at or before their position on the axis.
        border: what windows do at the ends of axes that are not causal: "move" inwards, or "cut".
        scale: factor of the products of q and k, at least 0; D^-0.5 by default.
        bias: table (H, 2 κ_1 - 1, ...) of any floating-point dtype, added to the scaled products; the index on an axis
            is (key - query) / δ + κ - 1. Not with a causal axis. None for none.
        extra_keys, extra_values: keys (B, M, H, D) and values (B, M, H, V) that every query attends to, too.
        return_lse: whether to return the logarithms of the softmax's divisors, too.

    Returns:
        (B, *spatial, H, V) in the dtype of v; with `return_lse` also (B, *spatial, H), float32, or float64 for float64.

    Raises:
        ValueError: shapes or options that do not fit together; the message names the axis.
        TypeError: dtypes that differ or are not floating point.
    """
    check_tensors(q=q, k=k, v=v)
    if not 4 <= q.ndim <= 6 or q.shape != k.shape or q.shape[:-1] != v.shape[:-1]:
        raise ValueError(
            "q and k must have one shape, (B, *spatial, H, D) with 1 to 3 spatial axes, and v the same but for its "
            f"last axis, got {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    check_one_dtype(q=q, k=k, v=v)
    if not q.shape[-1]:
        raise ValueError(f"q and k must have D of at least 1, got {tuple(q.shape)}")
    lengths = tuple(q.shape[1:-2])
    kernel_size, dilation, stride = (
        _per_axis(value, name, len(lengths))
        for value, name in ((kernel_size, "kernel_size"), (dilation, "dilation"), (stride, "stride"))
    )
    is_causal = _per_axis(is_causal, "is_causal", len(lengths), bool)
    check_choice(border, "border", BORDERS)
    cut = border == "cut"
    _check_axes(lengths, kernel_size, dilation, stride, cut)
    _check_bias(bias, q, kernel_size, is_causal)
    _check_extra(extra_keys, extra_values, k, v)
    check_flags(return_lse=return_lse)
    if scale is not None:
        check_number(scale, "scale")
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    # a size that is free in an export is not compared, which would fix it
    whole = not any(isinstance(length, torch.SymInt) for length in lengths) and kernel_size == lengths
    if whole and not cut and not any(is_causal) and bias is None and extra_keys is None and not return_lse:
        query, key, value = (x.flatten(1, -3).transpose(1, 2) for x in (q, k, v))
        with without_autocast(q):
            out = F.scaled_dot_product_attention(query, key, value, scale=scale)
        return out.transpose(1, 2).contiguous().view(v.shape)

    missing = 3 - len(lengths)
    volumes = (x.reshape(*x.shape[:2], *[1] * missing, *x.shape[2:]) for x in (q, k, v))
    wide_bias = (
        None if bias is None else bias.to(sum_dtype(q)).reshape(*bias.shape[:2], *[1] * missing, *bias.shape[2:])
    )
    settings = ([x[0], *[neutral] * missing, *x[1:]] for x, neutral in ((kernel_size, 1), (dilation, 1), (stride, 1)))
    causal = [is_causal[0], *[False] * missing, *is_causal[1:]]
    out, lse = neighborhood_attention_op(*volumes, wide_bias, *settings, causal, cut, float(scale))
    out, lse = out.reshape(v.shape), lse.reshape(v.shape[:-1])
    if extra_keys is not None and extra_values is not None:
        with without_autocast(q):
            out, lse = _with_extra(out, lse, q, extra_keys, extra_values, scale)
    return (out, lse) if return_lse else out


def _per_axis(value, name: str, axes: int, kind: type = int) -> tuple:
    values = tuple(value) if isinstance(value, Sequence) else (value,) * axes
    if len(values) != axes or any(type(x) is not kind for x in values):
        kinds = f"one {kind.__name__}, or one for each of {axes} spatial axes"
        raise ValueError(f"{name} must be {kinds}, got {value!r:.60}")
    return values


def _check_axes(lengths: tuple, kernel_size: tuple, dilation: tuple, stride: tuple, cut: bool) -> None:
    for axis, (length, kernel, step, group) in enumerate(zip(lengths, kernel_size, dilation, stride)):
        if kernel < 1:
            raise ValueError(f"kernel_size must be at least 1, got {kernel} on spatial axis {axis}")
        if step < 1:
            raise ValueError(f"dilation must be at least 1, got {step} on spatial axis {axis}")
        if not cut and kernel * step > length:
            raise ValueError(
                f"kernel_size * dilation must be at most the length, got {kernel} * {step} = {kernel * step} on "
                f"spatial axis {axis} of length {length}: pad the input, cut the windows, or use at most "
                + (f"dilation {length // kernel}" if length >= kernel else f"kernel_size {length}")
            )
        if not 1 <= group <= kernel:
            raise ValueError(f"stride must lie in 1..kernel_size = {kernel}, got {group} on spatial axis {axis}")


def _check_bias(bias: Tensor | None, q: Tensor, kernel_size: tuple, is_causal: tuple) -> None:
    if bias is None:
        return
    check_tensors(bias=bias)
    if any(is_causal):
        raise ValueError(f"bias must be None with a causal axis, where it is not defined, got is_causal {is_causal}")
    shape = (q.shape[-2], *(2 * kernel - 1 for kernel in kernel_size))
    if bias.shape != shape:
        raise ValueError(
            f"bias must have shape (heads, 2 * kernel_size - 1 per spatial axis) = {shape}, got {tuple(bias.shape)}"
        )
    check_floats(q=q, bias=bias)


def _check_extra(extra_keys: Tensor | None, extra_values: Tensor | None, k: Tensor, v: Tensor) -> None:
    if extra_keys is None and extra_values is None:
        return
    if extra_keys is None or extra_values is None:
        raise ValueError("extra_keys and extra_values must be given together")
    check_tensors(extra_keys=extra_keys, extra_values=extra_values)
    tokens = extra_keys.shape[1] if extra_keys.ndim == 4 else 0
    for name, extra, own in (("extra_keys", extra_keys, k), ("extra_values", extra_values, v)):
        if tokens == 0 or extra.shape != (own.shape[0], tokens, *own.shape[-2:]):
            raise ValueError(
                f"{name} must have shape ({own.shape[0]}, M, {own.shape[-2]}, {own.shape[-1]}) with one M >= 1 for "
                f"keys and values, got {tuple(extra.shape)}"
            )
        if extra.dtype != own.dtype or extra.device != own.device:
            raise TypeError(f"{name} must be {own.dtype} on {own.device}, got {extra.dtype} on {extra.device}")


def _with_extra(out: Tensor, lse: Tensor, q: Tensor, keys: Tensor, values: Tensor, scale: float):
    """`out` merged with the attention of every query to M more tokens, weighted by the two divisors."""
    wide = sum_dtype(q)
    logits = torch.einsum("bnhd,bmhd->bnhm", q.flatten(1, -3).to(wide), keys.to(wide)) * scale
    extra = torch.einsum("bnhm,bmhv->bnhv", logits.softmax(-1), values.to(wide)).view(out.shape)
    extra_lse = logits.logsumexp(-1).view(lse.shape)
    merged = torch.logaddexp(lse, extra_lse)
    own, other = torch.exp(lse - merged).unsqueeze(-1), torch.exp(extra_lse - merged).unsqueeze(-1)
    return (own * out + other * extra).to(out.dtype), merged


# The windows of an axis. Everything else reads these tables.


def axis_windows(
    length: int, kernel: int, dilation: int, stride: int, causal: bool, cut: bool = False, device=None
) -> list[Tensor]:
    """For every query of an axis: its first key, its number of keys (`dilation` apart), and the first key's bias index.

    Three (length,) int64 tensors.
    """
    i = torch.arange(length, device=device)
    group, j = i % dilation, i // dilation
    n = (length - group + dilation - 1) // dilation
    if causal:
        leader = torch.minimum(j // stride * stride + stride - 1, n - 1)
        start = (leader - kernel + 1).clamp(min=0)
        count = j + 1 - start
    else:
        leader = torch.minimum(j // stride * stride + stride // 2, n - 1)
        start = (leader - kernel // 2).clamp(min=0)
        if cut:
            count = torch.minimum(leader - kernel // 2 + kernel, n) - start
        else:
            start, count = torch.minimum(start, n - kernel), torch.full_like(i, kernel)
    return [group + dilation * start, count, start - j + kernel - 1]


def axis_queries(length: int, kernel: int, dilation: int, stride: int, causal: bool, cut: bool = False) -> np.ndarray:
    """The inverse: for every key its first query, its number of queries, and the first query's bias index: (length, 3).

    The queries of a key are consecutive in their dilation group, as starts and ends of windows never decrease.
    """
    first, count, _ = (x.numpy() for x in axis_windows(length, kernel, dilation, stride, causal, cut))
    table = np.empty((length, 3), np.int64)
    for g in range(dilation):
        start = first[g::dilation] // dilation
        t = np.arange(len(start))
        begin = np.searchsorted(start + count[g::dilation], t, side="right")  # windows that end at t or before
        end = np.searchsorted(start, t, side="right")
        table[g::dilation] = np.stack([g + dilation * begin, end - begin, t - begin + kernel - 1], 1)
    return table


@functools.lru_cache(maxsize=128)
def _tables(axes: tuple[tuple, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows and their inverse, the rows of the three axes concatenated: two tensors (X + Y + Z, 3), int32."""
    windows = torch.cat([torch.stack(axis_windows(*axis), 1) for axis in axes])
    queries = torch.cat([torch.from_numpy(axis_queries(*axis)) for axis in axes])
    return windows.to(device, torch.int32), queries.to(device, torch.int32)


def _axes(q: Tensor, kernel_size, dilation, stride, causal, cut: bool) -> tuple[tuple, ...]:
    return tuple(zip(q.shape[1:4], kernel_size, dilation, stride, causal, (cut,) * 3))


# The reference takes one line of the window at a time, κ_Z keys of every query.


def _window_lines(axes: tuple[tuple, ...], device: torch.device) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
    """For every line of the window: indices of its keys, which of them are outside the window, and bias indices.

    Each is (N, κ_Z). A key outside a causal or cut window is replaced by one inside; of other windows none is outside,
    and None is returned in place of the second.
    """
    tables: tuple[list, list, list] = [], [], []
    for i, (length, kernel, dilation, stride, causal, cut) in enumerate(axes):
        first, count, relative = axis_windows(length, kernel, dilation, stride, causal, cut, device)
        w = torch.arange(kernel, device=device)
        inside = w < count.unsqueeze(1)
        place = first.unsqueeze(1) + dilation * torch.minimum(w, count.unsqueeze(1) - 1)
        shape = [*[1] * i, length, *[1] * (2 - i), *[1] * i, kernel, *[1] * (2 - i)]  # X, Y, Z, κ_X, κ_Y, κ_Z
        for table, values in zip(tables, (place, inside, relative.unsqueeze(1) + w)):
            table.append(values.view(shape))
    (x, y, z), (in_x, in_y, in_z), (to_x, to_y, to_z) = tables
    (width, kernel_y, *_), (depth, kernel_z, *_) = axes[1:]
    # all lines at once: few operations for exporters
    key = (x * width + y) * depth + z
    relative = (to_x * (2 * kernel_y - 1) + to_y) * (2 * kernel_z - 1) + to_z
    rows = [table.expand_as(key).flatten(0, 2).flatten(1, 2).unbind(1) for table in (key, relative)]
    fewer = any(axis[4] or axis[5] for axis in axes)  # causal or cut
    outside = (~(in_x & in_y & in_z)).flatten(0, 2).flatten(1, 2).unbind(1) if fewer else [None] * len(rows[0])
    yield from zip(rows[0], outside, rows[1])


def _reference_logits(q_BNHD: Tensor, k_BNHD: Tensor, bias: Tensor | None, lines: list, scale: float) -> Tensor:
    """(B, N, H, κ_X κ_Y κ_Z), -inf outside the window."""
    parts = []
    for key, outside, relative in lines:
        part = torch.einsum("bnhd,bnchd->bnhc", q_BNHD, _rows(k_BNHD, key)) * scale
        if bias is not None:
            part = part + bias.flatten(1).index_select(1, relative.flatten()).view(-1, *key.shape).transpose(0, 1)
        parts.append(part if outside is None else part.masked_fill(outside.unsqueeze(1), -math.inf))
    return torch.cat(parts, -1)


def _rows(x_BNHD: Tensor, key_NC: Tensor) -> Tensor:
    """(B, N, C, H, D)."""
    return x_BNHD.index_select(1, key_NC.flatten()).unflatten(1, key_NC.shape)


def neighborhood_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size, dilation, stride, causal, cut: bool, scale: float
) -> tuple[Tensor, Tensor]:
    lines = list(_window_lines(_axes(q, kernel_size, dilation, stride, causal, cut), q.device))
    flat_q, flat_k, flat_v = (x.flatten(1, 3).to(sum_dtype(x)) for x in (q, k, v))
    logits = _reference_logits(flat_q, flat_k, bias, lines, scale)
    lse = logits.logsumexp(-1)
    weights = torch.exp(logits - lse.unsqueeze(-1)).split(kernel_size[2], -1)
    out = torch.zeros_like(flat_v)
    for (key, _, _), weight in zip(lines, weights):
        out = out + torch.einsum("bnhc,bnchv->bnhv", weight, _rows(flat_v, key))
    return out.to(v.dtype).contiguous().view(v.shape), lse.contiguous().view(v.shape[:-1])


def neighborhood_attention_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lse: Tensor, delta: Tensor,
    kernel_size, dilation, stride, causal, cut: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k, v and bias (empty without one); `delta`: Δ (B, X, Y, Z, H)."""
    lines = list(_window_lines(_axes(q, kernel_size, dilation, stride, causal, cut), q.device))
    flat_q, flat_k, flat_v, flat_grad = (x.flatten(1, 3).to(lse.dtype) for x in (q, k, v, grad))
    flat_lse, flat_delta = (x.flatten(1, 3).unsqueeze(-1) for x in (lse, delta))
    weights = torch.exp(_reference_logits(flat_q, flat_k, bias, lines, scale) - flat_lse).split(kernel_size[2], -1)
    dq, dk, dv = (x.new_zeros(x.shape) for x in (flat_q, flat_k, flat_v))  # contiguous for all inputs
    dbias = lse.new_zeros(0 if bias is None else bias.shape)
    for (key, _, relative), weight in zip(lines, weights):
        index = key.flatten()
        dv.index_add_(1, index, torch.einsum("bnhc,bnhv->bnchv", weight, flat_grad).flatten(1, 2))
        through = weight * (torch.einsum("bnhv,bnchv->bnhc", flat_grad, _rows(flat_v, key)) - flat_delta)
        dq += torch.einsum("bnhc,bnchd->bnhd", through, _rows(flat_k, key)) * scale
        dk.index_add_(1, index, torch.einsum("bnhc,bnhd->bnchd", through, flat_q).flatten(1, 2) * scale)
        if bias is not None:
            dbias.flatten(1).index_add_(1, relative.flatten(), through.sum(0).transpose(0, 1).flatten(1))
    return dq.to(q.dtype).view(q.shape), dk.to(k.dtype).view(k.shape), dv.to(v.dtype).view(v.shape), dbias


# The CPU's path: loops over the queries of one head, with contiguous copies of keys and values.


@compiled
def _walk(start, counts, steps, places):
    """Write start + a steps[0] + b steps[1] + c steps[2] for all a, b, c below `counts`; return their number."""
    i = 0
    for a in range(counts[0]):
        for b in range(counts[1]):
            line = start + a * steps[0] + b * steps[1]
            for c in range(counts[2]):
                places[i] = line + c * steps[2]
                i += 1
    return i


@compiled
def _window(n, windows, lengths, dilation, keys):
    """Write the keys of query n; return their number."""
    x, y, z = n // (lengths[1] * lengths[2]), n // lengths[2] % lengths[1], n % lengths[2]
    row_x, row_y, row_z = windows[x], windows[lengths[0] + y], windows[lengths[0] + lengths[1] + z]
    start = (row_x[0] * lengths[1] + row_y[0]) * lengths[2] + row_z[0]
    steps = dilation[0] * lengths[1] * lengths[2], dilation[1] * lengths[2], dilation[2]
    return _walk(start, (row_x[1], row_y[1], row_z[1]), steps, keys)


@compiled
def _relative(n, windows, lengths, kernel, places):
    """Write the bias indices of the keys of query n."""
    x, y, z = n // (lengths[1] * lengths[2]), n // lengths[2] % lengths[1], n % lengths[2]
    row_x, row_y, row_z = windows[x], windows[lengths[0] + y], windows[lengths[0] + lengths[1] + z]
    steps = (2 * kernel[1] - 1) * (2 * kernel[2] - 1), 2 * kernel[2] - 1, 1
    start = row_x[2] * steps[0] + row_y[2] * steps[1] + row_z[2]
    _walk(start, (row_x[1], row_y[1], row_z[1]), steps, places)


@compiled(fastmath={"contract", "reassoc"})
def _attend(q_ND, k_ND, v_NV, bias, windows, lengths, kernel, dilation, out_NV, lse_N):
    """Attention of one head; q is already scaled, the bias is flat, and empty if there is none."""
    size = kernel[0] * kernel[1] * kernel[2]
    keys, places, weights = np.empty(size, np.uintp), np.empty(size, np.uintp), np.empty(size, q_ND.dtype)
    for n in range(q_ND.shape[0]):
        count = _window(n, windows, lengths, dilation, keys)
        products(q_ND[n], k_ND, keys, count, weights)
        if bias.size:
            _relative(n, windows, lengths, kernel, places)
            for i in range(count):
                weights[i] += bias[places[i]]
        top = weights[0]
        for i in range(1, count):
            top = max(top, weights[i])
        total = q_ND.dtype.type(0)
        for i in range(count):
            weights[i] = math.exp(weights[i] - top)
            total += weights[i]
        out = out_NV[n]
        out[:] = 0
        add_rows(weights, v_NV, keys, count, out)
        for d in range(out.shape[0]):
            out[d] /= total
        lse_N[n] = top if math.isinf(top) else top + math.log(total)


@compiled
def _differentiate(
    g_NV, q_ND, k_ND, v_NV, bias, lse_N, delta_N, windows, lengths, kernel, dilation, dq_ND, dk_ND, dv_NV, dbias
):
    """Gradients of one head, added to zeros; q is already scaled, and dq is scaled later."""
    size = kernel[0] * kernel[1] * kernel[2]
    keys, places = np.empty(size, np.uintp), np.empty(size, np.uintp)
    weights, through = np.empty(size, q_ND.dtype), np.empty(size, q_ND.dtype)
    for n in range(q_ND.shape[0]):
        count = _window(n, windows, lengths, dilation, keys)
        products(q_ND[n], k_ND, keys, count, weights)
        products(g_NV[n], v_NV, keys, count, through)
        if bias.size:
            _relative(n, windows, lengths, kernel, places)
            for i in range(count):
                weights[i] += bias[places[i]]
        for i in range(count):
            weights[i] = math.exp(weights[i] - lse_N[n])
            through[i] = weights[i] * (through[i] - delta_N[n])
        add_rows(through, k_ND, keys, count, dq_ND[n])
        add_to_rows(through, q_ND[n], keys, count, dk_ND)
        add_to_rows(weights, g_NV[n], keys, count, dv_NV)
        if bias.size:
            for i in range(count):
                dbias[places[i]] += through[i]


def _by_head(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, X, Y, Z, H, ...) as (B H, N, ...), contiguous, in new memory."""
    heads_first = x.detach().flatten(1, 3).transpose(1, 2)
    return heads_first.to(dtype, copy=True, memory_format=torch.contiguous_format).flatten(0, 1)


def _by_token(x: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """The inverse of `_by_head`: (B H, N, ...) as `shape`, (B, X, Y, Z, H, ...)."""
    return x.unflatten(0, (shape[0], shape[4])).transpose(1, 2).to(dtype).contiguous().view(shape)


def _bias_by_head(bias: Tensor | None, q: Tensor) -> np.ndarray:
    """(B H, bias indices), the same for every image; (B H, 0) without a bias."""
    batch, heads = q.shape[0], q.shape[4]
    flat = torch.zeros(heads, 0, dtype=sum_dtype(q)) if bias is None else bias.detach().flatten(1)
    return flat.repeat(batch, 1).numpy()


def _neighborhood_attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size, dilation, stride, causal, cut: bool, scale: float
) -> tuple[Tensor, Tensor]:
    wide = sum_dtype(q)
    windows = _tables(_axes(q, kernel_size, dilation, stride, causal, cut), q.device)[0].numpy()
    settings = windows, tuple(q.shape[1:4]), tuple(kernel_size), tuple(dilation)
    inputs = [
        _by_head(q, wide).mul_(scale).numpy(),
        *(_by_head(x, wide).numpy() for x in (k, v)),
        _bias_by_head(bias, q),
    ]
    out, lse = torch.empty(inputs[2].shape, dtype=wide), torch.empty(inputs[0].shape[:2], dtype=wide)
    outputs = out.numpy(), lse.numpy()
    each(lambda i: _attend(*(x[i] for x in inputs), *settings, *(x[i] for x in outputs)), range(len(out)))
    return _by_token(out, v.shape, v.dtype), _by_token(lse, v.shape[:-1], wide)


def _neighborhood_attention_backward_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lse: Tensor, delta: Tensor,
    kernel_size, dilation, stride, causal, cut: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    wide = lse.dtype
    windows = _tables(_axes(q, kernel_size, dilation, stride, causal, cut), q.device)[0].numpy()
    settings = windows, tuple(q.shape[1:4]), tuple(kernel_size), tuple(dilation)
    inputs = [
        _by_head(grad, wide).numpy(),
        _by_head(q, wide).mul_(scale).numpy(),
        *(_by_head(x, wide).numpy() for x in (k, v)),
        _bias_by_head(bias, q),
        *(_by_head(x, wide).numpy() for x in (lse, delta)),
    ]
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide) for x in inputs[1:4])
    # every entry is a sum over all tokens, which needs more digits
    dbias = torch.zeros(inputs[4].shape, dtype=torch.float64)
    outputs = [x.numpy() for x in (dq, dk, dv, dbias)]
    each(lambda i: _differentiate(*(x[i] for x in inputs), *settings, *(x[i] for x in outputs)), range(len(dq)))
    dq, dk, dv = (_by_token(x, y.shape, y.dtype) for x, y in ((dq.mul_(scale), q), (dk, k), (dv, v)))
    if bias is None:
        return dq, dk, dv, lse.new_empty(0)
    return dq, dk, dv, dbias.view(q.shape[0], *bias.shape).sum(0).to(bias.dtype)


# Triton: a program takes a tile of queries (or keys) of one head and loops over the offsets in their windows; each
# query gathers its own key. This holds for every dilation, stride and border, and leaves the reuse of keys to the
# caches. A faster version would take boxes of queries of one dilation group and multiply them with the boxes of keys
# around them by tl.dot, with masks only at the borders of windows (arXiv 2403.04690).


# Elements of a tile.
TILE = 512


@triton.jit
def _tokens(tokens, heads, BLOCK_N: tl.constexpr):
    """The first token of this program's image, its head, its tokens in the image, and which of them it may write.

    A tile that reaches beyond the end repeats the last token.
    """
    item, n, inside = item_rows(tokens, BLOCK_N)
    return item // heads * tokens, item % heads, tl.minimum(n, tokens - 1), inside


@triton.jit
def _row(table, index):
    """A row of a table of windows, or of their inverse: first token on the axis, number of tokens, first bias index."""
    return tl.load(table + 3 * index), tl.load(table + 3 * index + 1), tl.load(table + 3 * index + 2)


@triton.jit
def _load_tile(x, token, head, heads, seen, channels, BLOCK_C: tl.constexpr, SUM: tl.constexpr):
    """Rows of x (tokens, H, C), in the dtype of sums; zero where `seen` is false."""
    return load_rows(x, token * heads + head, tl.arange(0, BLOCK_C), seen, channels).to(SUM)


@triton.jit
def _store_tile(x, value, token, head, heads, inside, channels, BLOCK_C: tl.constexpr):
    store_rows(x, value, token * heads + head, tl.arange(0, BLOCK_C), inside, channels)


@triton.jit(do_not_specialize=["X", "Y", "Z"])
def neighborhood_attention_fwd_kernel(
    q, k, v, bias, windows, out, lse, X, Y, Z, heads, width, channels, KX, KY, KZ, DX, DY, DZ,
    SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    SUM: tl.constexpr = lse.dtype.element_ty
    image, head, n, inside = _tokens(X * Y * Z, heads, BLOCK_N)
    first_x, count_x, place_x = _row(windows, n // (Y * Z))
    first_y, count_y, place_y = _row(windows, X + n // Z % Y)
    first_z, count_z, place_z = _row(windows, X + Y + n % Z)
    q_tile = _load_tile(q, image + n, head, heads, inside, width, BLOCK_D, SUM) * SCALE
    top = tl.full((BLOCK_N,), float("-inf"), SUM)
    total = tl.zeros((BLOCK_N,), SUM)
    value = tl.zeros((BLOCK_N, BLOCK_V), SUM)
    for a in range(KX):
        for b in range(KY):
            for c in range(KZ):
                seen = (a < count_x) & (b < count_y) & (c < count_z)
                x, y, z = first_x + a * DX, first_y + b * DY, first_z + c * DZ
                key = image + (x * Y + y) * Z + z
                logit = tl.sum(q_tile * _load_tile(k, key, head, heads, seen, width, BLOCK_D, SUM), 1)
                if HAS_BIAS:
                    place = (head * (2 * KX - 1) + place_x + a) * (2 * KY - 1) + place_y + b
                    place = place * (2 * KZ - 1) + place_z + c
                    logit += tl.load(bias + place, mask=seen, other=0.0)
                logit = tl.where(seen, logit, float("-inf"))
                new_top = tl.maximum(top, logit)
                base = tl.where(new_top == float("-inf"), 0.0, new_top)  # no key so far, or only keys with bias -inf
                weight, shrink = tl.exp(logit - base), tl.exp(top - base)
                v_tile = _load_tile(v, key, head, heads, seen, channels, BLOCK_V, SUM)
                value = value * shrink[:, None] + weight[:, None] * v_tile
                total = total * shrink + weight
                top = new_top
    _store_tile(out, value / total[:, None], image + n, head, heads, inside, channels, BLOCK_V)
    tl.store(lse + (image + n) * heads + head, top + tl.log(total), mask=inside)


@triton.jit(do_not_specialize=["X", "Y", "Z"])
def neighborhood_attention_bwd_q_kernel(
    grad, q, k, v, bias, lse, delta, windows, dq, X, Y, Z, heads, width, channels, KX, KY, KZ, DX, DY, DZ,
    SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    SUM: tl.constexpr = lse.dtype.element_ty
    image, head, n, inside = _tokens(X * Y * Z, heads, BLOCK_N)
    first_x, count_x, place_x = _row(windows, n // (Y * Z))
    first_y, count_y, place_y = _row(windows, X + n // Z % Y)
    first_z, count_z, place_z = _row(windows, X + Y + n % Z)
    q_tile = _load_tile(q, image + n, head, heads, inside, width, BLOCK_D, SUM) * SCALE
    grad_tile = _load_tile(grad, image + n, head, heads, inside, channels, BLOCK_V, SUM)
    lse_tile, delta_tile = tl.load(lse + (image + n) * heads + head), tl.load(delta + (image + n) * heads + head)
    value = tl.zeros((BLOCK_N, BLOCK_D), SUM)
    for a in range(KX):
        for b in range(KY):
            for c in range(KZ):
                seen = (a < count_x) & (b < count_y) & (c < count_z)
                x, y, z = first_x + a * DX, first_y + b * DY, first_z + c * DZ
                key = image + (x * Y + y) * Z + z
                k_tile = _load_tile(k, key, head, heads, seen, width, BLOCK_D, SUM)
                v_tile = _load_tile(v, key, head, heads, seen, channels, BLOCK_V, SUM)
                logit = tl.sum(q_tile * k_tile, 1)
                if HAS_BIAS:
                    place = (head * (2 * KX - 1) + place_x + a) * (2 * KY - 1) + place_y + b
                    place = place * (2 * KZ - 1) + place_z + c
                    logit += tl.load(bias + place, mask=seen, other=0.0)
                weight = tl.where(seen, tl.exp(logit - lse_tile), 0.0)
                value += (weight * (tl.sum(grad_tile * v_tile, 1) - delta_tile))[:, None] * k_tile
    _store_tile(dq, value * SCALE, image + n, head, heads, inside, width, BLOCK_D)


@triton.jit(do_not_specialize=["X", "Y", "Z"])
def neighborhood_attention_bwd_kv_kernel(
    grad, q, k, v, bias, lse, delta, queries, dk, dv, X, Y, Z, heads, width, channels, KX, KY, KZ, DX, DY, DZ,
    SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Every key loops over the queries that see it; a key at a border has more of them than others in its tile."""
    SUM: tl.constexpr = lse.dtype.element_ty
    image, head, n, inside = _tokens(X * Y * Z, heads, BLOCK_N)
    first_x, count_x, place_x = _row(queries, n // (Y * Z))
    first_y, count_y, place_y = _row(queries, X + n // Z % Y)
    first_z, count_z, place_z = _row(queries, X + Y + n % Z)
    k_tile = _load_tile(k, image + n, head, heads, inside, width, BLOCK_D, SUM)
    v_tile = _load_tile(v, image + n, head, heads, inside, channels, BLOCK_V, SUM)
    dk_tile, dv_tile = tl.zeros((BLOCK_N, BLOCK_D), SUM), tl.zeros((BLOCK_N, BLOCK_V), SUM)
    most_x, most_y, most_z = tl.max(count_x, 0), tl.max(count_y, 0), tl.max(count_z, 0)
    for a in range(most_x):
        for b in range(most_y):
            for c in range(most_z):
                seen = (a < count_x) & (b < count_y) & (c < count_z)
                x, y, z = first_x + a * DX, first_y + b * DY, first_z + c * DZ
                query = image + (x * Y + y) * Z + z
                q_tile = _load_tile(q, query, head, heads, seen, width, BLOCK_D, SUM) * SCALE
                grad_tile = _load_tile(grad, query, head, heads, seen, channels, BLOCK_V, SUM)
                lse_tile = tl.load(lse + query * heads + head, mask=seen, other=0.0)
                delta_tile = tl.load(delta + query * heads + head, mask=seen, other=0.0)
                logit = tl.sum(q_tile * k_tile, 1)
                if HAS_BIAS:
                    place = (head * (2 * KX - 1) + place_x - a) * (2 * KY - 1) + place_y - b
                    place = place * (2 * KZ - 1) + place_z - c
                    logit += tl.load(bias + place, mask=seen, other=0.0)
                weight = tl.where(seen, tl.exp(logit - lse_tile), 0.0)
                dv_tile += weight[:, None] * grad_tile
                dk_tile += (weight * (tl.sum(grad_tile * v_tile, 1) - delta_tile))[:, None] * q_tile
    _store_tile(dk, dk_tile, image + n, head, heads, inside, width, BLOCK_D)
    _store_tile(dv, dv_tile, image + n, head, heads, inside, channels, BLOCK_V)


@triton.jit(do_not_specialize=["X", "Y", "Z"])
def neighborhood_attention_bwd_bias_kernel(
    grad, q, k, v, bias, lse, delta, windows, dbias, X, Y, Z, heads, width, channels, KX, KY, KZ, DX, DY, DZ,
    SCALE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """The sum over the queries of one image and head that see the key at one relative position.

    Work on positions outside a query's window is wasted: on d axes there are about 2^d times as many as keys in it.
    In return there are neither atomic additions nor a buffer, and the sums are the same every time.
    """
    SUM: tl.constexpr = lse.dtype.element_ty
    positions = (2 * KX - 1) * (2 * KY - 1) * (2 * KZ - 1)
    item, place = (tl.program_id(0) // positions).to(tl.int64), tl.program_id(0) % positions
    tokens = X * Y * Z
    image, head = item // heads * tokens, item % heads
    move_x = (place // (2 * KZ - 1) // (2 * KY - 1) - KX + 1) * DX
    move_y = (place // (2 * KZ - 1) % (2 * KY - 1) - KY + 1) * DY
    move_z = (place % (2 * KZ - 1) - KZ + 1) * DZ
    bias_here = tl.load(bias + head * positions + place)
    total = tl.zeros((BLOCK_N,), SUM)
    for start in range(0, tokens, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N).to(tl.int64)
        inside = n < tokens
        n = tl.minimum(n, tokens - 1)
        first_x, count_x, _ = _row(windows, n // (Y * Z))
        first_y, count_y, _ = _row(windows, X + n // Z % Y)
        first_z, count_z, _ = _row(windows, X + Y + n % Z)
        x, y, z = n // (Y * Z) + move_x, n // Z % Y + move_y, n % Z + move_z
        seen = inside & (x >= first_x) & (x < first_x + count_x * DX)
        seen = seen & (y >= first_y) & (y < first_y + count_y * DY)
        seen = seen & (z >= first_z) & (z < first_z + count_z * DZ)
        key = image + (x * Y + y) * Z + z
        q_tile = _load_tile(q, image + n, head, heads, seen, width, BLOCK_D, SUM) * SCALE
        k_tile = _load_tile(k, key, head, heads, seen, width, BLOCK_D, SUM)
        grad_tile = _load_tile(grad, image + n, head, heads, seen, channels, BLOCK_V, SUM)
        v_tile = _load_tile(v, key, head, heads, seen, channels, BLOCK_V, SUM)
        lse_tile, delta_tile = tl.load(lse + (image + n) * heads + head), tl.load(delta + (image + n) * heads + head)
        weight = tl.where(seen, tl.exp(tl.sum(q_tile * k_tile, 1) + bias_here - lse_tile), 0.0)
        total += weight * (tl.sum(grad_tile * v_tile, 1) - delta_tile)
    tl.store(dbias + item * positions + place, tl.sum(total, 0))


def _launch(kernel, programs_per_head: int | None, q: Tensor, v: Tensor, *tensors, settings, **flags) -> None:
    """Launch `kernel` over all images and heads, by default with one program for each tile of tokens."""
    if not q.numel():  # without channels of v, lse and its gradients remain
        return
    batch, *lengths, heads, width = q.shape
    channels = v.shape[-1]
    block_d, block_v = triton.next_power_of_2(width), triton.next_power_of_2(max(1, channels))
    block_n = max(1, TILE // max(block_d, block_v))  # the four tiles of a program stay in its registers
    kernel_size, dilation, scale = settings
    programs = programs_per_head or triton.cdiv(math.prod(lengths), block_n)
    with torch.cuda.device_of(q):
        kernel[(programs * batch * heads,)](
            *tensors, *lengths, heads, width, channels, *kernel_size, *dilation,
            SCALE=scale, BLOCK_N=block_n, BLOCK_D=block_d, BLOCK_V=block_v, num_warps=4, **flags,
        )  # fmt: skip


def _neighborhood_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, kernel_size, dilation, stride, causal, cut: bool, scale: float
) -> tuple[Tensor, Tensor]:
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    windows, _ = _tables(_axes(q, kernel_size, dilation, stride, causal, cut), q.device)
    out, lse = torch.empty_like(v), torch.empty(v.shape[:-1], dtype=sum_dtype(v), device=v.device)
    _launch(
        neighborhood_attention_fwd_kernel, None, q, v, q, k, v, lse if bias is None else bias.contiguous(), windows,
        out, lse, settings=(kernel_size, dilation, scale), HAS_BIAS=bias is not None,
    )  # fmt: skip
    return out, lse


def _neighborhood_attention_backward_triton(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, lse: Tensor, delta: Tensor,
    kernel_size, dilation, stride, causal, cut: bool, scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    windows, queries = _tables(_axes(q, kernel_size, dilation, stride, causal, cut), q.device)
    settings, has_bias = (kernel_size, dilation, scale), bias is not None
    table = lse if bias is None else bias.contiguous()
    inputs = (grad.contiguous(), q, k, v, table, lse.contiguous(), delta.contiguous())
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    _launch(neighborhood_attention_bwd_q_kernel, None, q, v, *inputs, windows, dq, settings=settings, HAS_BIAS=has_bias)
    _launch(
        neighborhood_attention_bwd_kv_kernel, None, q, v, *inputs, queries, dk, dv,
        settings=settings, HAS_BIAS=has_bias,
    )  # fmt: skip
    if bias is None:
        return dq, dk, dv, lse.new_empty(0)
    dbias = torch.zeros(q.shape[0], *bias.shape, dtype=bias.dtype, device=bias.device)
    positions = math.prod(bias.shape[1:])
    _launch(neighborhood_attention_bwd_bias_kernel, positions, q, v, *inputs, windows, dbias, settings=settings)
    return dq, dk, dv, dbias.sum(0)


@torch.library.custom_op("attlas::neighborhood_attention", mutates_args=())
def neighborhood_attention_op(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    causal: Sequence[bool],
    cut: bool,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """`out` and the logarithm of the divisors, of three spatial axes."""
    run = pick(
        q,
        reference=neighborhood_attention_reference,
        triton=_neighborhood_attention_triton,
        cpu=_neighborhood_attention_cpu,
    )
    return run(q, k, v, bias, kernel_size, dilation, stride, causal, cut, scale)


@neighborhood_attention_op.register_fake
def _(q, k, v, bias, kernel_size, dilation, stride, causal, cut, scale):
    return v.new_empty(v.shape), v.new_empty(v.shape[:-1], dtype=sum_dtype(v))


@torch.library.custom_op("attlas::neighborhood_attention_backward", mutates_args=())
def neighborhood_attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    lse: Tensor,
    delta: Tensor,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    stride: Sequence[int],
    causal: Sequence[bool],
    cut: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and bias (empty without one)."""
    run = pick(
        q,
        reference=neighborhood_attention_backward_reference,
        triton=_neighborhood_attention_backward_triton,
        cpu=_neighborhood_attention_backward_cpu,
    )
    return run(grad, q, k, v, bias, lse, delta, kernel_size, dilation, stride, causal, cut, scale)


@neighborhood_attention_backward_op.register_fake
def _(grad, q, k, v, bias, lse, delta, kernel_size, dilation, stride, causal, cut, scale):
    dbias = lse.new_empty(0) if bias is None else bias.new_empty(bias.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dbias


def _save(ctx, inputs, output):
    q, k, v, bias, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, bias, *output)


def _backward(ctx, grad, grad_lse):
    q, k, v, bias, out, lse = ctx.saved_tensors
    delta = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(-1) - grad_lse
    *grads, dbias = neighborhood_attention_backward_op(grad, q, k, v, bias, lse, delta, *ctx.settings)
    return *grads, None if bias is None else dbias, *[None] * 6


neighborhood_attention_op.register_autograd(_backward, setup_context=_save)
decompose(neighborhood_attention_op, neighborhood_attention_reference)
