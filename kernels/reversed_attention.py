"""Reversed attention: every token sends its value to the tokens that it attends to, where attention would collect.

    out_j = Σ_i A_ij w_i v_i,   A_ij = softmax_j(scale q_i·k_j)        i the queries (senders), j the keys (receivers)

Row i of A is how query i divides its message among the keys, so Σ_j out_j = Σ_i w_i v_i: nothing is lost or added. A
query of weight w_i = 0 is silent.

Memory never holds A. This is the product with the transposed softmax that the backward of attention has; and its own
backward is attention in turn. For g = ∂/∂out and u = w v:

    ∂u_i = Σ_j A_ij g_j;   S_ij = A_ij (u_i·g_j - u_i·∂u_i);   ∂q_i = scale Σ_j S_ij k_j;   ∂k_j = scale Σ_i S_ij q_i

A CPU computes a block of A that fits a cache at a time; the fused attention of PyTorch with its backward would give the
same in seven products of matrices, where this takes two. Triton has three: the normalization of A comes first.

Legend: P problems: all (image, head) in this order; N queries, M keys, D channels of q and k, C channels of v.

Source: reversed attention of DependencyViT, arXiv 2304.03282.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .checks import check_number, check_one_dtype, check_tensors, sum_dtype
from .dispatch import decompose, each, pick, slices, tl, triton
from .tiles import dot, load_rows, operands, store_rows, tile_of


def reversed_attention(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Reversed attention, see above; differentiable in all tensors. Half types are summed in float32.

    Args:
        q: queries (B, heads, N, D), of a floating-point dtype.
        k: keys (B, heads, M, D), in the same dtype.
        v: messages of the queries (B, heads, N, C), in the same dtype.
        weight: factors of the messages (B, heads, N), in the same dtype; axes of 1 are the same for all. None for 1.
        scale: factor of the products q·k, at least 0; D^-0.5 by default.

    Returns:
        What arrives at the keys (B, heads, M, C), in the dtype of v.

    Raises:
        ValueError: shapes that do not fit together, or without heads, tokens or channels.
        TypeError: dtypes that differ or are not floating point.
    """
    check_tensors(q=q, k=k, v=v)
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"q, k and v must have shape (B, heads, tokens, channels), got {shapes}")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must agree in images, heads and channels, got {shapes}")
    if q.shape[:3] != v.shape[:3]:
        raise ValueError(f"q and v must have one shape but for their last axis, got {shapes}")
    if 0 in q.shape[1:] or 0 in k.shape[1:] or 0 in v.shape[1:]:
        raise ValueError(f"q, k and v must have heads, tokens and channels of at least 1, got {shapes}")
    if scale is not None:
        check_number(scale, "scale")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    if weight is None:
        check_one_dtype(q=q, k=k, v=v)
    else:
        check_one_dtype(q=q, k=k, v=v, weight=weight)
        if weight.ndim != 3 or any(n not in (1, size) for n, size in zip(weight.shape, q.shape)):
            raise ValueError(
                f"weight must have shape (B, heads, N) = {tuple(q.shape[:3])}, or 1 for some of these, "
                f"got {tuple(weight.shape)}"
            )
        v = v * weight.unsqueeze(-1)
    return reversed_attention_op(q, k, v, scale)


def reversed_attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The definition, with A in memory; v is weighted already."""
    q_BHND, k_BHMD, v_BHNC = (x.to(sum_dtype(x)) for x in (q, k, v))
    weight_BHNM = torch.softmax((q_BHND * scale) @ k_BHMD.mT, -1)
    return (weight_BHNM.mT @ v_BHNC).to(v.dtype)


def reversed_attention_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    g_BHMC, q_BHND, k_BHMD, v_BHNC = (x.to(sum_dtype(x)) for x in (grad, q, k, v))
    weight_BHNM = torch.softmax((q_BHND * scale) @ k_BHMD.mT, -1)
    dv = weight_BHNM @ g_BHMC
    logits_grad = weight_BHNM * (v_BHNC @ g_BHMC.mT - (v_BHNC * dv).sum(-1, keepdim=True))
    dq, dk = logits_grad @ k_BHMD * scale, logits_grad.mT @ (q_BHND * scale)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


# --- CPU -------------------------------------------------------------------------------------------------------------

# Products of matrices by PyTorch, for as many problems or queries at a time as have weights that fit a cache.

# weights that are computed together: 512 KB in float32
BLOCK = 1 << 17
# fewest queries of a product
QUERIES = 16


def _schedule(queries: int, keys: int, problems: int) -> tuple[list[slice], list[slice]]:
    """Blocks of problems, and blocks of the queries of a problem."""
    return (
        slices(0, problems, max(1, BLOCK // (max(queries, QUERIES) * keys))),
        slices(0, queries, max(QUERIES, BLOCK // keys)),
    )


def _share(work: Callable[[slice], None], turns: list[slice]) -> None:
    """One thread a turn, or all threads of PyTorch in the products where there are fewer turns than threads."""
    if len(turns) < torch.get_num_threads():
        for turn in turns:
            work(turn)
    else:
        each(work, turns)


def _problems(x: Tensor) -> Tensor:
    """(B, heads, N, C) -> (P, N, C), in the dtype of sums."""
    return x.to(sum_dtype(x)).flatten(0, 1).contiguous()


def _reversed_attention_cpu(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    q_PND, k_PMD, v_PNC = (_problems(x) for x in (q, k, v))
    q_PND = q_PND * scale
    out_PMC = v_PNC.new_zeros(*k_PMD.shape[:2], v.shape[-1])
    turns, query_blocks = _schedule(q.shape[2], k.shape[2], len(q_PND))

    def work(part: slice) -> None:
        for queries in query_blocks:
            weight = torch.softmax(torch.bmm(q_PND[part, queries], k_PMD[part].mT), -1)
            out_PMC[part].baddbmm_(weight.mT, v_PNC[part, queries])

    _share(work, turns)
    return out_PMC.unflatten(0, q.shape[:2]).to(v.dtype)


def _reversed_attention_backward_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    g_PMC, q_PND, k_PMD, v_PNC = (_problems(x) for x in (grad, q, k, v))
    q_PND = q_PND * scale
    dq_PND, dk_PMD, dv_PNC = torch.empty_like(q_PND), torch.zeros_like(k_PMD), torch.empty_like(v_PNC)
    turns, query_blocks = _schedule(q.shape[2], k.shape[2], len(q_PND))

    def work(part: slice) -> None:
        g, k_part = g_PMC[part], k_PMD[part]
        for queries in query_blocks:
            q_part, v_part = q_PND[part, queries], v_PNC[part, queries]
            weight = torch.softmax(torch.bmm(q_part, k_part.mT), -1)
            dv = torch.bmm(weight, g)
            logits_grad = torch.bmm(v_part, g.mT).sub_((v_part * dv).sum(-1, keepdim=True)).mul_(weight)
            dq_PND[part, queries] = torch.bmm(logits_grad, k_part)
            dk_PMD[part].baddbmm_(logits_grad.mT, q_part)
            dv_PNC[part, queries] = dv

    _share(work, turns)
    dq_PND *= scale
    dq, dk, dv = (x.unflatten(0, q.shape[:2]).to(q.dtype) for x in (dq_PND, dk_PMD, dv_PNC))
    return dq, dk, dv


# --- Triton ----------------------------------------------------------------------------------------------------------

# Grids run over problems and blocks of rows: queries, or keys.


@triton.jit(do_not_specialize=["queries", "keys"])
def reversed_attention_bwd_v_kernel(
    g, q, k, v, scale, lse, delta, dv, queries, keys, width, channels,
    WITH_GRAD: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Attention of a block of queries, with a running softmax over blocks of keys: the logarithm of the sum that
    normalizes A, and WITH_GRAD, ∂v and its products δ with v, in the dtype of sums."""
    problem = tl.program_id(0).to(tl.int64)
    d, c, t = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_T)
    query, factor = tl.program_id(1) * BLOCK_T + t, tl.load(scale)
    row, inside = problem * queries + query, query < queries
    q_tile = load_rows(q, row, d, inside, width)
    top = tl.full((BLOCK_T,), float("-inf"), factor.dtype)
    norm = tl.zeros((BLOCK_T,), factor.dtype)
    total = tl.zeros((BLOCK_T, BLOCK_C), factor.dtype)
    for start in range(0, keys, BLOCK_T):
        key = start + t
        k_tile = load_rows(k, problem * keys + key, d, key < keys, width)
        logits = dot(q_tile, tl.trans(k_tile), factor.dtype) * factor
        logits = tl.where((key < keys)[None, :], logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 1))
        weight, decay = tl.exp(logits - new_top[:, None]), tl.exp(top - new_top)
        norm = norm * decay + tl.sum(weight, 1)
        if WITH_GRAD:
            g_tile = load_rows(g, problem * keys + key, c, key < keys, channels)
            total = total * decay[:, None] + dot(weight, g_tile, factor.dtype)
        top = new_top
    tl.store(lse + row, top + tl.log(norm), mask=inside)
    if WITH_GRAD:
        total /= norm[:, None]
        v_tile = load_rows(v, row, c, inside, channels).to(factor.dtype)
        tl.store(delta + row, tl.sum(total * v_tile, 1), mask=inside)
        store_rows(dv, total, row, c, inside, channels)


@triton.jit(do_not_specialize=["queries", "keys"])
def reversed_attention_fwd_kernel(
    q, k, v, scale, lse, out, queries, keys, width, channels,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out of a block of keys."""
    problem = tl.program_id(0).to(tl.int64)
    d, c, t = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_T)
    key, factor = tl.program_id(1) * BLOCK_T + t, tl.load(scale)
    k_tile = load_rows(k, problem * keys + key, d, key < keys, width)
    total = tl.zeros((BLOCK_T, BLOCK_C), factor.dtype)
    for start in range(0, queries, BLOCK_T):
        query = start + t
        q_tile = load_rows(q, problem * queries + query, d, query < queries, width)
        v_tile = load_rows(v, problem * queries + query, c, query < queries, channels)
        norm = tl.load(lse + problem * queries + query, mask=query < queries, other=0.0)
        # rows are keys here; queries beyond the last add nothing, as their v are 0
        weight = tl.exp(dot(k_tile, tl.trans(q_tile), factor.dtype) * factor - norm[None, :])
        total += dot(weight, v_tile, factor.dtype)
    store_rows(out, total, problem * keys + key, c, key < keys, channels)


@triton.jit(do_not_specialize=["queries", "keys"])
def reversed_attention_bwd_q_kernel(
    g, q, k, v, scale, lse, delta, dq, queries, keys, width, channels,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂q of a block of queries."""
    problem = tl.program_id(0).to(tl.int64)
    d, c, t = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_T)
    query, factor = tl.program_id(1) * BLOCK_T + t, tl.load(scale)
    row, inside = problem * queries + query, query < queries
    q_tile, v_tile = load_rows(q, row, d, inside, width), load_rows(v, row, c, inside, channels)
    norm, mean = tl.load(lse + row, mask=inside, other=0.0), tl.load(delta + row, mask=inside, other=0.0)
    total = tl.zeros((BLOCK_T, BLOCK_D), factor.dtype)
    for start in range(0, keys, BLOCK_T):
        key = start + t
        k_tile = load_rows(k, problem * keys + key, d, key < keys, width)
        g_tile = load_rows(g, problem * keys + key, c, key < keys, channels)
        weight = tl.exp(dot(q_tile, tl.trans(k_tile), factor.dtype) * factor - norm[:, None])
        weight = tl.where((key < keys)[None, :], weight, 0.0)
        grad = weight * (dot(v_tile, tl.trans(g_tile), factor.dtype) - mean[:, None])
        total += dot(grad, k_tile, factor.dtype)
    store_rows(dq, total * factor, row, d, inside, width)


@triton.jit(do_not_specialize=["queries", "keys"])
def reversed_attention_bwd_k_kernel(
    g, q, k, v, scale, lse, delta, dk, queries, keys, width, channels,
    BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂k of a block of keys."""
    problem = tl.program_id(0).to(tl.int64)
    d, c, t = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_T)
    key, factor = tl.program_id(1) * BLOCK_T + t, tl.load(scale)
    k_tile = load_rows(k, problem * keys + key, d, key < keys, width)
    g_tile = load_rows(g, problem * keys + key, c, key < keys, channels)
    total = tl.zeros((BLOCK_T, BLOCK_D), factor.dtype)
    for start in range(0, queries, BLOCK_T):
        query = start + t
        row, inside = problem * queries + query, query < queries
        q_tile, v_tile = load_rows(q, row, d, inside, width), load_rows(v, row, c, inside, channels)
        norm, mean = tl.load(lse + row, mask=inside, other=0.0), tl.load(delta + row, mask=inside, other=0.0)
        # rows are keys here; queries beyond the last add nothing, as their q are 0
        weight = tl.exp(dot(k_tile, tl.trans(q_tile), factor.dtype) * factor - norm[None, :])
        grad = weight * (dot(g_tile, tl.trans(v_tile), factor.dtype) - mean[None, :])
        total += dot(grad, q_tile, factor.dtype)
    store_rows(dk, total * factor, problem * keys + key, d, key < keys, width)


def _launch(kernel, rows: int, q: Tensor, k: Tensor, v: Tensor, *arguments, **options) -> None:
    """Run a kernel over blocks of `rows` queries or keys of every problem."""
    (batch, heads, queries, depth), keys, channels = q.shape, k.shape[2], v.shape[-1]
    # small tiles for wide heads, so that the registers hold all tiles of a program
    tile = tile_of(max(queries, keys), 64 if max(depth, channels) <= 64 else 32)
    grid = (batch * heads, triton.cdiv(rows, tile))
    if not grid[0]:
        return
    with torch.cuda.device_of(q):
        kernel[grid](
            *arguments, queries, keys, depth, channels,
            BLOCK_T=tile, BLOCK_D=tile_of(depth), BLOCK_C=tile_of(channels), **options,
        )  # fmt: skip


def _factor(q: Tensor, scale: float) -> Tensor:
    return torch.full((1,), scale, dtype=sum_dtype(q), device=q.device)  # a tensor, as numbers are passed in float32


def _reversed_attention_triton(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    factor, out = _factor(q, scale), v.new_empty(*k.shape[:3], v.shape[-1])
    lse = factor.new_empty(q.shape[:-1])
    q, k, v = operands(q, k, v)
    # without a gradient the kernel looks at neither g, v, δ nor ∂v
    _launch(reversed_attention_bwd_v_kernel, q.shape[2], q, k, v, q, q, k, v, factor, lse, lse, v, WITH_GRAD=False)
    _launch(reversed_attention_fwd_kernel, k.shape[2], q, k, v, q, k, v, factor, lse, out)
    return out


def _reversed_attention_backward_triton(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    factor = _factor(q, scale)
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    lse, delta = factor.new_empty(q.shape[:-1]), factor.new_empty(q.shape[:-1])
    g, q, k, v = operands(grad, q, k, v)
    arguments = g, q, k, v, factor, lse, delta
    _launch(reversed_attention_bwd_v_kernel, q.shape[2], q, k, v, *arguments, dv, WITH_GRAD=True)
    _launch(reversed_attention_bwd_q_kernel, q.shape[2], q, k, v, *arguments, dq)
    _launch(reversed_attention_bwd_k_kernel, k.shape[2], q, k, v, *arguments, dk)
    return dq, dk, dv


# --- registration ----------------------------------------------------------------------------------------------------


@torch.library.custom_op("attlas::reversed_attention", mutates_args=())
def reversed_attention_op(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    run = pick(
        q, reference=reversed_attention_reference, triton=_reversed_attention_triton, cpu=_reversed_attention_cpu
    )
    return run(q, k, v, scale).contiguous()


@reversed_attention_op.register_fake
def _(q, k, v, scale):
    return v.new_empty(*k.shape[:3], v.shape[-1])


@torch.library.custom_op("attlas::reversed_attention_backward", mutates_args=())
def reversed_attention_backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    run = pick(
        q,
        reference=reversed_attention_backward_reference,
        triton=_reversed_attention_backward_triton,
        cpu=_reversed_attention_backward_cpu,
    )
    dq, dk, dv = run(grad, q, k, v, scale)
    return dq.contiguous(), dk.contiguous(), dv.contiguous()


@reversed_attention_backward_op.register_fake
def _(grad, q, k, v, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, grad):
    return *reversed_attention_backward_op(grad, *ctx.saved_tensors, ctx.scale), None


reversed_attention_op.register_autograd(_backward, setup_context=_save)
decompose(reversed_attention_op, reversed_attention_reference)
