"""Sparse attention: every query attends to K keys of its own.

    out_i = Σ_j softmax_j(scale q_i·k_j) v_j        j over index[b, h, i, :]

Image, head and query have keys of their own; their order does not matter, and a key that is named twice counts twice.
Leading queries may attend to all keys, as class tokens do: they have no row in the index.

Time and memory grow like N K, not N²: neither logits of all pairs nor K copies of k and v exist. A CPU computes the
weights of a few queries at a time, which fit a cache; Triton reads the keys of a query in place. The backward
recomputes the weights from lse_i = log Σ_j exp(scale q_i·k_j).

Gradients, for g = ∂/∂out, P the weights, δ_i = g_i·out_i = Σ_j P_ij g_i·v_j:

    S_ij = P_ij (g_i·v_j - δ_i);  ∂q_i = scale Σ_j S_ij k_j;  ∂k_j = scale Σ_i S_ij q_i;  ∂v_j = Σ_i P_ij g_i

Legend: B images, H heads, L leading queries, S other queries, N keys, K keys of a query, D channels of q and k, C
channels of v.

Source: the attention of Sparsifiner, arXiv 2303.13755, which the authors compute densely and mask.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_devices, check_number, check_one_dtype, check_range, check_tensors, sum_dtype
from .dispatch import compiled, decompose, each, pick, slices, tl, triton, without_autocast
from .rows import add_rows, add_to_rows, products
from .tiles import load_rows

INDICES = (torch.int64, torch.int32)


def sparse_attention(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float | None = None) -> Tensor:
    """Attention of every query to chosen keys; differentiable in q, k and v. Half types are summed in float32.

    Args:
        q: queries (B, H, L + S, D), of any floating-point dtype; the L leading ones attend to all keys.
        k: keys (B, H, N, D), in the same dtype.
        v: values (B, H, N, C), in the same dtype.
        index: keys of each other query (B, H, S, K), int64, or int32 for half the memory, in 0..N-1; K is 1..N.
        scale: factor of the products q·k, at least 0; D^-0.5 by default.

    Returns:
        (B, H, L + S, C), in the dtype of v.

    Raises:
        ValueError: shapes that do not fit together, or more keys of a query than there are keys.
        TypeError: dtypes that differ or are not floating point; an index that is not of integers.
        IndexError: an index out of range (on a CPU).
    """
    check_tensors(q=q, k=k, v=v, index=index)
    shapes = f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
    if not q.ndim == k.ndim == v.ndim == 4:
        raise ValueError(f"q, k and v must have shape (B, H, tokens, channels), got {shapes}")
    if q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise ValueError(f"q and k must agree in images, heads and channels, got {shapes}")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k and v must have one shape but for their last axis, got {shapes}")
    if 0 in k.shape[1:] or 0 in v.shape[1:]:
        raise ValueError(f"k and v must have heads, tokens and channels of at least 1, got {shapes}")
    check_one_dtype(q=q, k=k, v=v)
    if index.dtype not in INDICES:
        raise TypeError(f"index must be int64 or int32, got {index.dtype}")
    (batch, heads, queries), keys = q.shape[:3], k.shape[2]
    if index.ndim != 4 or index.shape[:2] != q.shape[:2] or index.shape[2] > queries:
        raise ValueError(
            f"index must have shape (B, H, S, K) = ({batch}, {heads}, at most {queries}, 1 to {keys}), got "
            f"{tuple(index.shape)}"
        )
    if not 1 <= index.shape[3] <= keys:
        raise ValueError(
            f"index must name 1 to N = {keys} keys of a query, got {index.shape[3]} in the shape {tuple(index.shape)}"
        )
    check_devices(q=q, index=index)
    if scale is not None:
        check_number(scale, "scale")
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    leading = queries - index.shape[2]
    if leading == 0:
        return sparse_attention_op(q, k, v, index, scale)[0]
    with without_autocast(q):
        first = F.scaled_dot_product_attention(q[:, :, :leading], k, v, scale=scale)
    return torch.cat([first, sparse_attention_op(q[:, :, leading:], k, v, index, scale)[0]], 2)


def _read(x_BHNC: Tensor, index: Tensor) -> Tensor:
    """The rows (B, H, S, K, C) that an index names, in the dtype of sums."""
    places = index.long().flatten(2).unsqueeze(-1).expand(-1, -1, -1, x_BHNC.shape[-1])
    return x_BHNC.to(sum_dtype(x_BHNC)).gather(2, places).unflatten(2, index.shape[2:])


def _add_read(rows_BHSKC: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """The transpose of `_read`: the sums (B, H, N, C) of what was computed for each copy of a row, for rows `like`."""
    places = index.long().flatten(2).unsqueeze(-1).expand(-1, -1, -1, rows_BHSKC.shape[-1])
    return rows_BHSKC.new_zeros(like.shape).scatter_add_(2, places, rows_BHSKC.flatten(2, 3))


def sparse_attention_reference(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out, with K copies of k and v in memory, and lse (B, H, S)."""
    q_BHSD1 = q.to(sum_dtype(q)).unsqueeze(-1) * scale
    logits = (_read(k, index) @ q_BHSD1).squeeze(-1)
    lse = logits.logsumexp(-1)
    weight = torch.exp(logits - lse.unsqueeze(-1))
    return (weight.unsqueeze(-2) @ _read(v, index)).squeeze(-2).to(v.dtype), lse


def sparse_attention_backward_reference(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    g, q_BHSD = grad.to(lse.dtype), q.to(lse.dtype) * scale
    k_read, v_read = _read(k, index), _read(v, index)
    weight = torch.exp((k_read @ q_BHSD.unsqueeze(-1)).squeeze(-1) - lse.unsqueeze(-1))
    through = (v_read @ g.unsqueeze(-1)).squeeze(-1)
    through = weight * (through - (weight * through).sum(-1, keepdim=True))
    dq = (through.unsqueeze(-2) @ k_read).squeeze(-2) * scale
    dk = _add_read(through.unsqueeze(-1) * q_BHSD.unsqueeze(-2), index, k)
    dv = _add_read(weight.unsqueeze(-1) * g.unsqueeze(-2), index, v)
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


# The CPU's path: products by loops over queries, with contiguous copies of keys and values by head; what lies between
# the products, of a few queries at a time, by PyTorch, whose exponentials are vectorized.

# weights that are computed together: 256 KB in float32
BLOCK = 1 << 16


@compiled
def _all_products(x_PSC, rows_PNC, index_PSK, heads, queries, found):
    """found = x[head, i] · rows[head, index[head, i, j]] for some heads, from..to, and some queries i of theirs."""
    for head in range(heads[0], heads[1]):
        for i in range(queries[0], queries[1]):
            keys = index_PSK[head, i]
            products(x_PSC[head, i], rows_PNC[head], keys, len(keys), found[head - heads[0], i - queries[0]])


@compiled
def _add_all_rows(weights, rows_PNC, index_PSK, heads, queries, total_PSC):
    """total[head, i] += Σ_j weights_j rows[head, index[head, i, j]]."""
    for head in range(heads[0], heads[1]):
        for i in range(queries[0], queries[1]):
            keys = index_PSK[head, i]
            add_rows(weights[head - heads[0], i - queries[0]], rows_PNC[head], keys, len(keys), total_PSC[head, i])


@compiled
def _add_to_all_rows(weights, x_PSC, index_PSK, heads, queries, rows_PNC):
    """rows[head, index[head, i, j]] += weights_j x[head, i]."""
    for head in range(heads[0], heads[1]):
        for i in range(queries[0], queries[1]):
            keys = index_PSK[head, i]
            add_to_rows(weights[head - heads[0], i - queries[0]], x_PSC[head, i], keys, len(keys), rows_PNC[head])


def _by_head(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, H, ...) as (B H, ...), contiguous."""
    return x.detach().to(dtype).contiguous().flatten(0, 1)


def _unsigned(index: Tensor):
    """(B H, S, K) as an array of numbers that cannot be negative, for which Numba has one way to read a row."""
    array = index.contiguous().flatten(0, 1).numpy()
    return array.view(f"u{array.itemsize}")


def _blocks(index: Tensor) -> list[tuple[list[slice], slice]]:
    """What threads take: some heads each, so that one adds all gradients of a key, and blocks of their queries."""
    batch, heads, queries, topk = index.shape
    some = slices(0, batch * heads, max(1, BLOCK // max(1, queries * topk)))
    return [(slices(0, queries, max(1, BLOCK // topk)), part) for part in some]


def _ends(part: slice) -> tuple[int, int]:
    return part.start, part.stop


def _sparse_attention_cpu(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    wide = sum_dtype(q)
    q_PSD, (k_PND, v_PNC) = _by_head(q, wide) * scale, (_by_head(x, wide) for x in (k, v))
    places, topk = _unsigned(index), index.shape[3]
    out = torch.zeros(*q_PSD.shape[:2], v.shape[-1], dtype=wide)
    lse = torch.empty(q_PSD.shape[:2], dtype=wide)
    queries, keys, values, sums = (x.numpy() for x in (q_PSD, k_PND, v_PNC, out))

    def work(item: tuple[list[slice], slice]) -> None:
        blocks, heads = item
        for part in blocks:
            where = _ends(heads), _ends(part)
            weight = torch.empty(heads.stop - heads.start, part.stop - part.start, topk, dtype=wide)
            _all_products(queries, keys, places, *where, weight.numpy())
            top = weight.amax(-1, keepdim=True)
            norm = weight.sub_(top).exp_().sum(-1, keepdim=True)
            _add_all_rows(weight.numpy(), values, places, *where, sums)
            out[heads, part] /= norm
            lse[heads, part] = torch.where(top.isinf(), top, top + norm.log()).squeeze(-1)  # as logsumexp has it

    each(work, _blocks(index))
    return out.view(*q.shape[:3], v.shape[-1]).to(v.dtype), lse.view(q.shape[:3])


def _sparse_attention_backward_cpu(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    wide = lse.dtype
    g_PSC, q_PSD, k_PND, v_PNC = (_by_head(x, wide) for x in (grad, q, k, v))
    q_PSD = q_PSD * scale
    lse_PS1 = _by_head(lse, wide).unsqueeze(-1)
    places, topk = _unsigned(index), index.shape[3]
    dq, dk, dv = (torch.zeros(x.shape, dtype=wide) for x in (q_PSD, k_PND, v_PNC))
    grads, queries, keys, values = (x.numpy() for x in (g_PSC, q_PSD, k_PND, v_PNC))
    to_queries, to_keys, to_values = (x.numpy() for x in (dq, dk, dv))

    def work(item: tuple[list[slice], slice]) -> None:
        blocks, heads = item
        for part in blocks:
            where = _ends(heads), _ends(part)
            shape = heads.stop - heads.start, part.stop - part.start, topk
            weight, through = (torch.empty(shape, dtype=wide) for _ in range(2))
            _all_products(queries, keys, places, *where, weight.numpy())
            _all_products(grads, values, places, *where, through.numpy())
            weight.sub_(lse_PS1[heads, part]).exp_()
            through.sub_((weight * through).sum(-1, keepdim=True)).mul_(weight)  # 0 for one key, which δ would not be
            _add_all_rows(through.numpy(), keys, places, *where, to_queries)
            _add_to_all_rows(through.numpy(), queries, places, *where, to_keys)
            _add_to_all_rows(weight.numpy(), grads, places, *where, to_values)

    each(work, _blocks(index))
    return tuple(x.view(y.shape).to(y.dtype) for x, y in ((dq.mul_(scale), q), (dk, k), (dv, v)))  # type: ignore


# Triton: a program has one query, and reads a tile of its keys at a time; in the backward of k and v it has one key,
# and reads the queries that chose it.


@triton.jit(do_not_specialize=["queries", "tokens", "topk"])
def sparse_attention_fwd_kernel(
    q, k, v, index, scale, out, lse, queries, tokens, topk, width, channels,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """out and lse of a query, with a running softmax over tiles of its keys."""
    row = tl.program_id(0).to(tl.int64)
    first, factor = row // queries * tokens, tl.load(scale)
    j, d, c = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    query = tl.load(q + row * width + d, mask=d < width, other=0.0).to(factor.dtype) * factor
    top = tl.full((), float("-inf"), factor.dtype)
    norm = tl.full((), 0.0, factor.dtype)
    total = tl.zeros((BLOCK_C,), factor.dtype)
    for start in range(0, topk, BLOCK_K):
        inside = start + j < topk
        key = first + tl.load(index + row * topk + start + j, mask=inside, other=0)
        logits = tl.sum(load_rows(k, key, d, inside, width).to(factor.dtype) * query[None, :], 1)
        logits = tl.where(inside, logits, float("-inf"))
        new_top = tl.maximum(top, tl.max(logits, 0))
        weight, decay = tl.exp(logits - new_top), tl.exp(top - new_top)
        values = load_rows(v, key, c, inside, channels).to(factor.dtype)
        norm = norm * decay + tl.sum(weight, 0)
        total = total * decay + tl.sum(weight[:, None] * values, 0)
        top = new_top
    tl.store(out + row * channels + c, (total / norm).to(out.dtype.element_ty), mask=c < channels)
    tl.store(lse + row, top + tl.log(norm))


@triton.jit(do_not_specialize=["queries", "tokens", "topk"])
def sparse_attention_bwd_q_kernel(
    g, q, k, v, index, scale, lse, delta, dq, queries, tokens, topk, width, channels,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂q of a query."""
    row = tl.program_id(0).to(tl.int64)
    first, factor = row // queries * tokens, tl.load(scale)
    j, d, c = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    query = tl.load(q + row * width + d, mask=d < width, other=0.0).to(factor.dtype) * factor
    grad = tl.load(g + row * channels + c, mask=c < channels, other=0.0).to(factor.dtype)
    norm, mean = tl.load(lse + row), tl.load(delta + row)
    total = tl.zeros((BLOCK_D,), factor.dtype)
    for start in range(0, topk, BLOCK_K):
        inside = start + j < topk
        key = first + tl.load(index + row * topk + start + j, mask=inside, other=0)
        keys = load_rows(k, key, d, inside, width).to(factor.dtype)
        weight = tl.where(inside, tl.exp(tl.sum(keys * query[None, :], 1) - norm), 0.0)
        values = load_rows(v, key, c, inside, channels).to(factor.dtype)
        through = weight * (tl.sum(values * grad[None, :], 1) - mean)
        total += tl.sum(through[:, None] * keys, 0)
    tl.store(dq + row * width + d, (total * factor).to(dq.dtype.element_ty), mask=d < width)


@triton.jit(do_not_specialize=["queries", "tokens", "topk"])
def sparse_attention_bwd_kv_kernel(
    g, q, k, v, pairs, begins, scale, lse, delta, dk, dv, queries, tokens, topk, width, channels,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂k and ∂v of a key; pairs[begins[key]:begins[key + 1]] of its head chose it."""
    row = tl.program_id(0).to(tl.int64)
    head, factor = row // tokens, tl.load(scale)
    j, d, c = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_C)
    key = tl.load(k + row * width + d, mask=d < width, other=0.0).to(factor.dtype) * factor
    value = tl.load(v + row * channels + c, mask=c < channels, other=0.0).to(factor.dtype)
    total_k = tl.zeros((BLOCK_D,), factor.dtype)
    total_v = tl.zeros((BLOCK_C,), factor.dtype)
    place = begins + row + head  # there is one begin more than there are keys
    end = tl.load(place + 1)
    for start in range(tl.load(place), end, BLOCK_K):
        inside = start + j < end
        pair = tl.load(pairs + head * queries * topk + start + j, mask=inside, other=0)
        reader = head * queries + pair // topk
        query = load_rows(q, reader, d, inside, width).to(factor.dtype)
        grad = load_rows(g, reader, c, inside, channels).to(factor.dtype)
        norm = tl.load(lse + reader, mask=inside, other=0.0)
        mean = tl.load(delta + reader, mask=inside, other=0.0)
        weight = tl.where(inside, tl.exp(tl.sum(query * key[None, :], 1) - norm), 0.0)
        through = weight * (tl.sum(grad * value[None, :], 1) - mean)
        total_k += tl.sum(through[:, None] * query, 0)
        total_v += tl.sum(weight[:, None] * grad, 0)
    tl.store(dk + row * width + d, (total_k * factor).to(dk.dtype.element_ty), mask=d < width)
    tl.store(dv + row * channels + c, total_v.to(dv.dtype.element_ty), mask=c < channels)


def _launch(kernel, programs: int, q: Tensor, v: Tensor, topk: int, *arguments) -> None:
    if not programs:
        return
    depth, channels = q.shape[-1], v.shape[-1]
    block_d, block_c = triton.next_power_of_2(depth), triton.next_power_of_2(channels)
    tile = min(triton.next_power_of_2(topk), max(1, 4096 // max(block_d, block_c)))  # of rows, in the registers
    with torch.cuda.device_of(q):
        kernel[(programs,)](
            *arguments, q.shape[2], v.shape[2], topk, depth, channels,
            BLOCK_K=tile, BLOCK_D=block_d, BLOCK_C=block_c,
        )  # fmt: skip


def _sparse_attention_triton(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    factor = torch.full((1,), scale, dtype=sum_dtype(q), device=q.device)  # a tensor, as numbers are passed in float32
    q, k, v, index = (x.contiguous() for x in (q, k, v, index))
    out, lse = v.new_empty(*q.shape[:3], v.shape[-1]), factor.new_empty(q.shape[:3])
    _launch(sparse_attention_fwd_kernel, lse.numel(), q, v, index.shape[3], q, k, v, index, factor, out, lse)
    return out, lse


def _sparse_attention_backward_triton(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    factor = torch.full((1,), scale, dtype=lse.dtype, device=q.device)
    g, q, k, v, index = (x.contiguous() for x in (grad, q, k, v, index))
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    delta, topk = (g.to(lse.dtype) * out).sum(-1), index.shape[3]
    _launch(sparse_attention_bwd_q_kernel, lse.numel(), q, v, topk, g, q, k, v, index, factor, lse, delta, dq)
    # pairs (query, j) of a head, numbered query · K + j, sorted by the key that they chose
    chosen, pairs = index.flatten(2).flatten(0, 1).sort(stable=True)
    number = torch.arange(k.shape[2] + 1, device=q.device, dtype=chosen.dtype)
    begins = torch.searchsorted(chosen, number.repeat(len(chosen), 1))
    arguments = g, q, k, v, pairs, begins, factor, lse, delta, dk, dv
    _launch(sparse_attention_bwd_kv_kernel, len(chosen) * k.shape[2], q, v, topk, *arguments)
    return dq, dk, dv


@torch.library.custom_op("attlas::sparse_attention", mutates_args=())
def sparse_attention_op(q: Tensor, k: Tensor, v: Tensor, index: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out (B, H, S, C), and lse (B, H, S) for the backward."""
    check_range(index, k.shape[2])  # not in the reference, which exporters trace
    run = pick(q, reference=sparse_attention_reference, triton=_sparse_attention_triton, cpu=_sparse_attention_cpu)
    return run(q, k, v, index, scale)


@sparse_attention_op.register_fake
def _(q, k, v, index, scale):
    return v.new_empty(*q.shape[:3], v.shape[-1]), q.new_empty(q.shape[:3], dtype=sum_dtype(q))


@torch.library.custom_op("attlas::sparse_attention_backward", mutates_args=())
def sparse_attention_backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, index: Tensor, out: Tensor, lse: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    run = pick(
        q,
        reference=sparse_attention_backward_reference,
        triton=_sparse_attention_backward_triton,
        cpu=_sparse_attention_backward_cpu,
    )
    return run(grad, q, k, v, index, out, lse, scale)


@sparse_attention_backward_op.register_fake
def _(grad, q, k, v, index, out, lse, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad, _):
    return *sparse_attention_backward_op(grad, *ctx.saved_tensors, ctx.scale), None, None


sparse_attention_op.register_autograd(_backward, setup_context=_save)
decompose(sparse_attention_op, sparse_attention_reference)
