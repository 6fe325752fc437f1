"""Routed attention: every token of a region attends to all tokens of a few chosen regions.

    out_i = Σ_j softmax_j(scale q_i·k_j) v_j        j over the tokens of regions index[b, region of i, :]

A map of H x W tokens is cut into Ry x Rx regions of equal size, numbered row by row. All heads share the choice; the
order of the chosen regions does not matter, and a region that is chosen twice counts twice.

Memory never holds K copies of k and v: Triton reads the chosen regions in place, and a CPU gathers those of a few query
regions at a time into a buffer that fits a cache. The backward recomputes the weights: Triton from
lse_i = log Σ_j exp(scale q_i·k_j), a CPU by another softmax.

Gradients, for g = ∂/∂out, P the weights, δ_i = g_i·out_i:

    S_ij = P_ij (g_i·v_j - δ_i);  ∂q_i = scale Σ_j S_ij k_j;  ∂k_j = scale Σ_i S_ij q_i;  ∂v_j = Σ_i P_ij g_i

Legend: B images, R regions, T tokens of a region, K chosen regions, D channels of q and k, C channels of v, P problems:
all (image, head, region) in this order.

Source: step 3 of bi-level routing attention, BiFormer, arXiv 2303.08810 (rayleizhu/BiFormer@1697bbb).
"""

import torch
from torch import Tensor

from .checks import check_devices, check_integer, check_maps, check_number, check_range, check_tensors, sum_dtype
from .dispatch import decompose, each, pick, slices, tl, triton
from .tiles import dot, from_regions, load_rows, operands, region_rows, store_rows, tile_of, to_regions


def routed_attention(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, regions: tuple[int, int], scale: float | None = None
) -> Tensor:
    """Attention to the tokens of chosen regions; differentiable in q, k and v. Half types are summed in float32.

    Args:
        q, k: queries and keys (B, H, W, heads, D), of one floating-point dtype.
        v: values (B, H, W, heads, C), in the same dtype.
        index: regions that each region attends to (B, R, K), int64, in 0..R-1, where R = Ry Rx.
        regions: numbers of regions (Ry, Rx) along H and W; they must divide H and W.
        scale: factor of the products q·k, at least 0; D^-0.5 by default.

    Returns:
        (B, H, W, heads, C), in the dtype of v.

    Raises:
        ValueError: shapes that do not fit together.
        TypeError: dtypes that differ or are not floating point; an index that is not int64.
        IndexError: an index out of range (on a CPU).
    """
    check_maps(q, k, v)
    if q.shape != k.shape:
        raise ValueError(f"q and k must have one shape, got {tuple(q.shape)} and {tuple(k.shape)}")
    batch, height, width = q.shape[:3]
    if not isinstance(regions, (tuple, list)) or len(regions) != 2:
        raise TypeError(f"regions must be two integers (Ry, Rx), got {regions!r:.60}")
    rows, columns = regions
    for name, number in zip(("Ry", "Rx"), regions):
        check_integer(number, f"{name} of regions")
    if height % rows or width % columns:
        raise ValueError(
            f"regions must be (Ry, Rx) with Ry a divisor of H = {height} and Rx one of W = {width}, got {regions}"
        )
    check_tensors(index=index)
    if index.dtype != torch.int64:
        raise TypeError(f"index must be int64, got {index.dtype}")
    if index.ndim != 3 or index.shape[:2] != (batch, rows * columns) or index.shape[2] < 1:
        raise ValueError(
            f"index must have shape (B, R, K) = ({batch}, {rows * columns}, at least 1), got {tuple(index.shape)}"
        )
    check_devices(q=q, index=index)
    if scale is not None:
        check_number(scale, "scale")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    return routed_attention_op(q, k, v, index, rows, columns, scale)[0]


def _chosen(index: Tensor, heads: int) -> Tensor:
    """Index (B, R, K) into the regions of a map -> (P, K) into those of all images and heads."""
    batch, regions, _ = index.shape
    first = torch.arange(0, batch * heads * regions, regions, device=index.device).view(batch, heads, 1, 1)
    return (index.unsqueeze(1) + first).flatten(0, 2)


def _read(x_PTC: Tensor, chosen_NK: Tensor) -> Tensor:
    """The tokens (N, K T, C) of chosen regions, each of which is contiguous in memory."""
    (count, topk), (_, tokens, channels) = chosen_NK.shape, x_PTC.shape
    return x_PTC.flatten(1).index_select(0, chosen_NK.flatten()).view(count, topk * tokens, channels)


def routed_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, rows: int, columns: int, scale: float
) -> tuple[Tensor, Tensor]:
    """out, with K copies of k and v in memory, and lse (B, H, W, heads)."""
    q_PTD, k_PTD, v_PTC = (to_regions(x, rows, columns) for x in (q, k, v))
    chosen = _chosen(index, q.shape[3])
    logits = (q_PTD * scale) @ _read(k_PTD, chosen).mT
    out = torch.softmax(logits, -1) @ _read(v_PTC, chosen)
    lse = from_regions(logits.logsumexp(-1, keepdim=True), q, rows, columns).squeeze(-1)
    return from_regions(out, q, rows, columns).to(v.dtype), lse


def routed_attention_backward_reference(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: int,
    columns: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    g, q_PTD, k_PTD, v_PTC, out_PTC = (to_regions(x, rows, columns) for x in (grad, q, k, v, out))
    chosen = _chosen(index, q.shape[3])
    k_read, v_read = _read(k_PTD, chosen), _read(v_PTC, chosen)
    weight = torch.softmax((q_PTD * scale) @ k_read.mT, -1)
    logits_grad = weight * (g @ v_read.mT - (g * out_PTC).sum(-1, keepdim=True))
    dq = (logits_grad @ k_read) * scale
    dk = _add_read(torch.zeros_like(k_PTD), logits_grad.mT @ (q_PTD * scale), chosen)
    dv = _add_read(torch.zeros_like(v_PTC), weight.mT @ g, chosen)
    return tuple(from_regions(x, q, rows, columns).to(q.dtype) for x in (dq, dk, dv))  # type: ignore[return-value]


def _add_read(x_PTC: Tensor, read: Tensor, chosen_NK: Tensor) -> Tensor:
    """Add to every region what was computed for its copies, in place: the transpose of `_read`."""
    x_PTC.flatten(1).index_add_(0, chosen_NK.flatten(), read.reshape(-1, x_PTC.shape[1] * x_PTC.shape[2]))
    return x_PTC


# The CPU's path: products of matrices, for as many problems at a time as have weights that fit a cache.

# weights that are computed together: 1 MB in float32
BLOCK = 1 << 18
# fewest queries for which the copies of k and v pay off
QUERIES = 16


def _schedule(problems: int, regions: int, tokens: int, keys: int) -> tuple[list[list[slice]], list[slice]]:
    """Turns of the threads, each a list of blocks of problems, and blocks of the queries of a problem.

    A turn has all regions of some images and heads, so that one thread adds all gradients of a key.
    """
    block = max(1, BLOCK // (max(tokens, QUERIES) * keys))  # for tiny regions the copies dominate
    turns = slices(0, problems, regions * max(1, block // regions))
    return [slices(turn.start, turn.stop, block) for turn in turns], slices(0, tokens, max(QUERIES, BLOCK // keys))


def _routed_attention_cpu(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, rows: int, columns: int, scale: float
) -> tuple[Tensor, Tensor]:
    q_PTD, k_PTD, v_PTC = (to_regions(x, rows, columns) for x in (q, k, v))
    q_PTD = q_PTD * scale
    chosen, out_PTC = _chosen(index, q.shape[3]), torch.empty_like(v_PTC)
    turns, query_blocks = _schedule(len(chosen), rows * columns, q_PTD.shape[1], chosen.shape[1] * q_PTD.shape[1])

    def work(turn: list[slice]) -> None:
        for part in turn:
            k_read, v_read = _read(k_PTD, chosen[part]), _read(v_PTC, chosen[part])
            for queries in query_blocks:
                weight = torch.softmax(torch.bmm(q_PTD[part, queries], k_read.mT), -1)
                out_PTC[part, queries] = torch.bmm(weight, v_read)

    each(work, turns)
    lse = torch.full(q.shape[:-1], -torch.inf, dtype=q_PTD.dtype)  # see routed_attention_op
    return from_regions(out_PTC, q, rows, columns).to(v.dtype), lse


def _routed_attention_backward_cpu(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: int,
    columns: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    g_PTC, q_PTD, k_PTD, v_PTC, out_PTC = (to_regions(x, rows, columns) for x in (grad, q, k, v, out))
    q_PTD = q_PTD * scale
    delta_PT1 = (g_PTC * out_PTC).sum(-1, keepdim=True)
    chosen = _chosen(index, q.shape[3])
    dq_PTD, dk_PTD, dv_PTC = torch.empty_like(q_PTD), torch.zeros_like(k_PTD), torch.zeros_like(v_PTC)
    turns, query_blocks = _schedule(len(chosen), rows * columns, q_PTD.shape[1], chosen.shape[1] * q_PTD.shape[1])

    def work(turn: list[slice]) -> None:
        for part in turn:
            k_read, v_read = _read(k_PTD, chosen[part]), _read(v_PTC, chosen[part])
            for queries in query_blocks:
                g, q_part = g_PTC[part, queries], q_PTD[part, queries]
                weight = torch.softmax(torch.bmm(q_part, k_read.mT), -1)
                _add_read(dv_PTC, torch.bmm(weight.mT, g), chosen[part])
                logits_grad = torch.bmm(g, v_read.mT).sub_(delta_PT1[part, queries]).mul_(weight)
                dq_PTD[part, queries] = torch.bmm(logits_grad, k_read)
                _add_read(dk_PTD, torch.bmm(logits_grad.mT, q_part), chosen[part])

    each(work, turns)
    dq_PTD *= scale
    return tuple(from_regions(x, q, rows, columns).to(q.dtype) for x in (dq_PTD, dk_PTD, dv_PTC))  # type: ignore


# Triton: a program reads the tokens of regions from the maps in place.


@triton.jit(do_not_specialize=["heads", "regions", "columns", "high", "wide", "topk"])
def routed_attention_fwd_kernel(
    q, k, v, index, scale, out, lse, heads, regions, columns, high, wide, topk, width, channels,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out and lse of a block of queries of a region, with a running softmax over blocks of keys."""
    problem = tl.program_id(0).to(tl.int64)
    head, region, image = problem % heads, problem // heads % regions, problem // heads // regions
    d, c, t = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_T)
    tokens, factor = high * wide, tl.load(scale)
    query = tl.program_id(1) * BLOCK_T + t
    row = region_rows(image, region, query, head, heads, regions, columns, high, wide)
    q_tile = load_rows(q, row, d, query < tokens, width)
    top = tl.full((BLOCK_T,), float("-inf"), factor.dtype)
    norm = tl.zeros((BLOCK_T,), factor.dtype)
    total = tl.zeros((BLOCK_T, BLOCK_C), factor.dtype)
    for j in range(topk):
        chosen = tl.load(index + (image * regions + region) * topk + j)
        for start in range(0, tokens, BLOCK_T):
            key = start + t
            key_row = region_rows(image, chosen, key, head, heads, regions, columns, high, wide)
            k_tile = load_rows(k, key_row, d, key < tokens, width)
            logits = dot(q_tile, tl.trans(k_tile), factor.dtype) * factor
            logits = tl.where((key < tokens)[None, :], logits, float("-inf"))
            new_top = tl.maximum(top, tl.max(logits, 1))
            weight, decay = tl.exp(logits - new_top[:, None]), tl.exp(top - new_top)
            v_tile = load_rows(v, key_row, c, key < tokens, channels)
            norm = norm * decay + tl.sum(weight, 1)
            total = total * decay[:, None] + dot(weight, v_tile, factor.dtype)
            top = new_top
    store_rows(out, total / norm[:, None], row, c, query < tokens, channels)
    tl.store(lse + row, top + tl.log(norm), mask=query < tokens)


@triton.jit(do_not_specialize=["heads", "regions", "columns", "high", "wide", "topk"])
def routed_attention_bwd_q_kernel(
    g, q, k, v, index, scale, lse, delta, dq, heads, regions, columns, high, wide, topk, width, channels,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂q of a block of queries of a region."""
    problem = tl.program_id(0).to(tl.int64)
    head, region, image = problem % heads, problem // heads % regions, problem // heads // regions
    d, c, t = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_T)
    tokens, factor = high * wide, tl.load(scale)
    query = tl.program_id(1) * BLOCK_T + t
    row = region_rows(image, region, query, head, heads, regions, columns, high, wide)
    q_tile = load_rows(q, row, d, query < tokens, width)
    g_tile = load_rows(g, row, c, query < tokens, channels)
    norm = tl.load(lse + row, mask=query < tokens, other=0.0)
    mean = tl.load(delta + row, mask=query < tokens, other=0.0)
    total = tl.zeros((BLOCK_T, BLOCK_D), factor.dtype)
    for j in range(topk):
        chosen = tl.load(index + (image * regions + region) * topk + j)
        for start in range(0, tokens, BLOCK_T):
            key = start + t
            key_row = region_rows(image, chosen, key, head, heads, regions, columns, high, wide)
            k_tile = load_rows(k, key_row, d, key < tokens, width)
            v_tile = load_rows(v, key_row, c, key < tokens, channels)
            weight = tl.exp(dot(q_tile, tl.trans(k_tile), factor.dtype) * factor - norm[:, None])
            weight = tl.where((key < tokens)[None, :], weight, 0.0)
            grad = weight * (dot(g_tile, tl.trans(v_tile), factor.dtype) - mean[:, None])
            total += dot(grad, k_tile, factor.dtype)
    store_rows(dq, total * factor, row, d, query < tokens, width)


@triton.jit(do_not_specialize=["heads", "regions", "columns", "high", "wide", "topk"])
def routed_attention_bwd_kv_kernel(
    g, q, k, v, pairs, first, scale, lse, delta, dk, dv, heads, regions, columns, high, wide, topk, width, channels,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂k and ∂v of a block of keys of a region; pairs[first[region]:first[region + 1]] chose the region."""
    problem = tl.program_id(0).to(tl.int64)
    head, region, image = problem % heads, problem // heads % regions, problem // heads // regions
    d, c, t = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_T)
    tokens, factor = high * wide, tl.load(scale)
    key = tl.program_id(1) * BLOCK_T + t
    key_row = region_rows(image, region, key, head, heads, regions, columns, high, wide)
    k_tile = load_rows(k, key_row, d, key < tokens, width)
    v_tile = load_rows(v, key_row, c, key < tokens, channels)
    total_k = tl.zeros((BLOCK_T, BLOCK_D), factor.dtype)
    total_v = tl.zeros((BLOCK_T, BLOCK_C), factor.dtype)
    begin = tl.load(first + image * (regions + 1) + region)
    for pair in range(begin, tl.load(first + image * (regions + 1) + region + 1)):
        reader = tl.load(pairs + image * regions * topk + pair) // topk
        for start in range(0, tokens, BLOCK_T):
            query = start + t
            row = region_rows(image, reader, query, head, heads, regions, columns, high, wide)
            q_tile = load_rows(q, row, d, query < tokens, width)
            g_tile = load_rows(g, row, c, query < tokens, channels)
            norm = tl.load(lse + row, mask=query < tokens, other=0.0)
            mean = tl.load(delta + row, mask=query < tokens, other=0.0)
            # here rows are keys; queries beyond the region add nothing, as their q, g and δ are 0
            weight = tl.exp(dot(k_tile, tl.trans(q_tile), factor.dtype) * factor - norm[None, :])
            grad = weight * (dot(v_tile, tl.trans(g_tile), factor.dtype) - mean[None, :])
            total_v += dot(weight, g_tile, factor.dtype)
            total_k += dot(grad, q_tile, factor.dtype)
    store_rows(dk, total_k * factor, key_row, d, key < tokens, width)
    store_rows(dv, total_v, key_row, c, key < tokens, channels)


def _launch(kernel, q: Tensor, v: Tensor, topk: int, rows: int, columns: int, *arguments, num_warps: int = 4) -> None:
    batch, height, width, heads, depth = q.shape
    high, wide, channels = height // rows, width // columns, v.shape[-1]
    # small tiles for wide heads, so that the registers hold all tiles of a program
    tile = tile_of(high * wide, 64 if max(depth, channels) <= 64 else 32)
    grid = (batch * rows * columns * heads, triton.cdiv(high * wide, tile))
    if not grid[0]:
        return
    with torch.cuda.device_of(q):
        kernel[grid](
            *arguments, heads, rows * columns, columns, high, wide, topk, depth, channels,
            BLOCK_T=tile, BLOCK_D=tile_of(depth), BLOCK_C=tile_of(channels), num_warps=num_warps,
        )  # fmt: skip


def _routed_attention_triton(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, rows: int, columns: int, scale: float
) -> tuple[Tensor, Tensor]:
    factor = torch.full((1,), scale, dtype=sum_dtype(q), device=q.device)  # a tensor, as numbers are passed in float32
    out = torch.empty_like(v, memory_format=torch.contiguous_format)
    lse = factor.new_empty(q.shape[:-1])
    q, k, v, index = operands(q, k, v, index)
    _launch(routed_attention_fwd_kernel, q, v, index.shape[2], rows, columns, q, k, v, index, factor, out, lse)
    return out, lse


def _routed_attention_backward_triton(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: int,
    columns: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    factor = torch.full((1,), scale, dtype=lse.dtype, device=q.device)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    delta = (grad.to(lse.dtype) * out).sum(-1)
    g, q, k, v, index = operands(grad, q, k, v, index)
    common = q, v, index.shape[2], rows, columns
    _launch(routed_attention_bwd_q_kernel, *common, g, q, k, v, index, factor, lse, delta, dq)
    # the readers of a region: pairs (reader, j) numbered reader · topk + j, sorted by the region that they chose
    regions, pairs = index.flatten(1).sort(stable=True)
    first = torch.searchsorted(regions, torch.arange(rows * columns + 1, device=q.device).repeat(len(regions), 1))
    arguments = g, q, k, v, pairs, first, factor, lse, delta, dk, dv
    _launch(routed_attention_bwd_kv_kernel, *common, *arguments, num_warps=2 if q.element_size() == 2 else 4)
    return dq, dk, dv


@torch.library.custom_op("attlas::routed_attention", mutates_args=())
def routed_attention_op(
    q: Tensor, k: Tensor, v: Tensor, index: Tensor, rows: int, columns: int, scale: float
) -> tuple[Tensor, Tensor]:
    """out (B, H, W, heads, C), and lse (B, H, W, heads) for the backward of the same path.

    On a CPU lse is -inf, as the backward there computes the softmax again: forward and backward must take the same
    path (ATTLAS_KERNELS must not change in between).
    """
    check_range(index, rows * columns)  # not in the reference, which exporters trace
    run = pick(q, reference=routed_attention_reference, triton=_routed_attention_triton, cpu=_routed_attention_cpu)
    return run(q, k, v, index, rows, columns, scale)


@routed_attention_op.register_fake
def _(q, k, v, index, rows, columns, scale):
    return v.new_empty(v.shape), q.new_empty(q.shape[:-1], dtype=sum_dtype(q))


@torch.library.custom_op("attlas::routed_attention_backward", mutates_args=())
def routed_attention_backward_op(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    index: Tensor,
    out: Tensor,
    lse: Tensor,
    rows: int,
    columns: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    run = pick(
        q,
        reference=routed_attention_backward_reference,
        triton=_routed_attention_backward_triton,
        cpu=_routed_attention_backward_cpu,
    )
    return run(grad, q, k, v, index, out, lse, rows, columns, scale)


@routed_attention_backward_op.register_fake
def _(grad, q, k, v, index, out, lse, rows, columns, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output):
    q, k, v, index, *ctx.numbers = inputs
    ctx.save_for_backward(q, k, v, index, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    return *routed_attention_backward_op(grad, *ctx.saved_tensors, *ctx.numbers), *[None] * 4


routed_attention_op.register_autograd(_backward, setup_context=_save)
decompose(routed_attention_op, routed_attention_reference)
