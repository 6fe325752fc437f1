"""Surface attention: the attention of Point Cloud Transformer, among K neighbors or among the points of a cloud.

    E_ij = q_i·k_j (no scale);  A = softmax_j E;  P = A / (1e-9 + Σ A over `normalize`);  r_j = Σ_i P_ij v_i

`normalize` names the axis of the second normalization. "queries" is the sum over i, as in Point Cloud Transformer.
"points" is the sum over axis 1, which for attention among neighbors (4-D tensors) are the S points of the cloud. This
looks like an error in RISurConv's release (in the 3-D form axis 1 are the queries), but its checkpoints were trained
with it.

Gradients, for g = ∂/∂r and with T_ij = v_i·g_j:

    X = P (T - Σ T P over `normalize`);  ∂E_ij = X_ij - A_ij Σ_j X_ij;  ∂q = ∂E k;  ∂k = ∂Eᵀ q;  ∂v_i = Σ_j P_ij g_j

The weights of all pairs are not stored for the backward. Triton recomputes them in blocks from the logarithms
lse_i = log Σ_j exp E_ij and, for "points", from the divisors, K x K numbers that all queries of a cloud share. A CPU
computes the softmax again: of the whole batch if it has at most `WHOLE` weights (16 MB), else in blocks. Blocks of
weights are transposed, (j, i), so that r is a plain product with v.

Legend: B clouds, S queries, K neighbors, C channels of v, D channels of q and k. Attention among the points of a cloud
is the case S = 1. A third mode, "itself", is "points" with one query only, where each weight is its own divisor.

Source: RISurConv, arXiv 2408.06110 (self_attention of cszyzhang/RISurConv@27c48dd); PCT, arXiv 2012.09688. Recomputing
weights from logarithms: FlashAttention, arXiv 2205.14135.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .checks import check_choice, check_one_dtype, check_tensors, sum_dtype
from .dispatch import each, pick, slices, tl, triton
from .tiles import dot, for_dot, load_rows, store_rows, tile_of

NORMALIZE = ("points", "queries")
EPS = 1e-9


def surface_attention(q: Tensor, k: Tensor, v: Tensor, normalize: str = "points") -> Tensor:
    """Attention among the K neighbors of each query, or among S points; differentiable in q, k and v.

    Half types are summed in float32. Slices of one tensor (a split of its last axis) are read without a copy.

    Args:
        q, k: queries and keys (B, S, K, D), or (B, S, D) for attention among the S points, of one floating-point dtype.
        v: values (B, S, K, C), or (B, S, C), in the same dtype.
        normalize: axis of the second normalization, "points" or "queries"; in the 3-D form both are the same.

    Returns:
        (B, S, K, C), or (B, S, C), in the dtype of v.

    Raises:
        ValueError: another `normalize`, or shapes that do not fit together.
        TypeError: dtypes that differ or are not floating point.
    """
    check_choice(normalize, "normalize", NORMALIZE)
    check_tensors(q=q, k=k, v=v)
    if q.shape != k.shape or q.shape[:-1] != v.shape[:-1] or q.ndim not in (3, 4):
        raise ValueError(
            "q and k must have one shape, (B, S, K, D) or (B, S, D), and v the same but for its last axis, got "
            f"{tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}"
        )
    check_one_dtype(q=q, k=k, v=v)
    if q.ndim == 3:
        return surface_attention_op(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1), "queries")[0].squeeze(1)
    if normalize == "points" and q.shape[1] == 1:
        normalize = "itself"
    return surface_attention_op(q, k, v, normalize)[0]


def _over(pairs: Tensor, normalize: str) -> Tensor:
    """The sum of numbers of pairs (B, S, j, i) over the axis of the second normalization, which is kept."""
    return pairs if normalize == "itself" else pairs.sum(1 if normalize == "points" else -1, keepdim=True)


def surface_attention_reference(
    q_BSKD: Tensor, k_BSKD: Tensor, v_BSKC: Tensor, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (x.to(sum_dtype(x)) for x in (q_BSKD, k_BSKD, v_BSKC))
    energy = k @ q.mT
    lse, weight = energy.logsumexp(-2), energy.softmax(-2)
    divisor = EPS + _over(weight, normalize)
    result = (weight / divisor) @ v
    return result.to(v_BSKC.dtype), lse, divisor.new_empty(0) if normalize == "itself" else divisor


def surface_attention_backward_reference(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, result: Tensor, lse: Tensor, divisor: Tensor, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, work = v.dtype, sum_dtype(v)
    g, q, k, v = (x.to(work) for x in (g, q, k, v))
    weight = torch.softmax(k @ q.mT, -2)
    divisor = EPS + weight if normalize == "itself" else divisor
    share = weight / divisor
    grad = g @ v.mT
    # X; for "itself" in a form without cancellation
    grad = share * (grad * (EPS / divisor) if normalize == "itself" else grad - _over(grad * share, normalize))
    grad -= weight * grad.sum(-2, keepdim=True)
    return (grad.mT @ k).to(dtype), (grad @ q).to(dtype), (share.mT @ g).to(dtype)


# most weights for which the whole batch is computed together: 16 MB in float32
WHOLE = 1 << 22
# weights of a block otherwise: 1 MB, which fits a cache
BLOCK = 1 << 18
# multiplications up to which NumPy's BLAS uses one thread, and is faster than torch.bmm for many products
SMALL_PRODUCT = 1 << 18
# multiplications that are worth another thread: 0.1 ms
THREAD = 1 << 22


def _product(x: Tensor, y: Tensor, out: Tensor | None = None) -> Tensor:
    """x @ y for (n, a, b) and (n, b, c) on a CPU, also written to `out` if given."""
    if out is None or out.dtype != x.dtype or not out.is_contiguous():
        product = _product(x, y, x.new_empty(x.shape[0], x.shape[1], y.shape[2]))
        return product if out is None else out.copy_(product)
    size = x.shape[1] * x.shape[2] * y.shape[2]
    if size > SMALL_PRODUCT:
        return torch.bmm(x, y, out=out)
    x_np, y_np, out_np = x.numpy(), y.numpy(), out.numpy()
    threads = min(torch.get_num_threads(), 1 + len(x) * size // THREAD)
    parts = slices(0, len(x), -(-len(x) // threads))

    def multiply(part: slice) -> None:
        with np.errstate(all="ignore"):  # infinities, and NaN from them, are results as in PyTorch
            np.matmul(x_np[part], y_np[part], out=out_np[part])

    each(multiply, parts)
    return out


def _weights(q: Tensor, k: Tensor) -> Tensor:
    """A (n, j, i) of q (n, i, D) and k (n, j, D) on a CPU, where a softmax is as fast as exp(E - lse)."""
    return torch.softmax(_product(k, q.mT), dim=-2)


def _energy_gradient(weight: Tensor, grad_share: Tensor) -> Tensor:
    """∂E from A and X, which are overwritten."""
    return grad_share.sub_(weight.mul_(grad_share.sum(-2, keepdim=True)))


def _is_small(v: Tensor, normalize: str) -> bool:
    return normalize != "itself" and v.shape[0] * v.shape[1] * v.shape[2] ** 2 <= WHOLE


def _whole_forward(q: Tensor, k: Tensor, v: Tensor, normalize: str) -> tuple[Tensor, Tensor]:
    """The result and the divisors, with the weights (i, j) of the whole batch in memory."""
    q, k, v = (x.to(sum_dtype(x)) for x in (q, k, v))
    weight = torch.softmax(q @ k.mT, dim=-1)
    divisor = EPS + weight.sum(1 if normalize == "points" else -2, keepdim=True)
    return weight.div_(divisor).mT @ v, divisor.mT.contiguous()


def _whole_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, divisor: Tensor, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = v.dtype
    g, q, k, v = (x.to(sum_dtype(x)) for x in (g, q, k, v))
    weight = torch.softmax(q @ k.mT, dim=-1)
    share, grad = weight / divisor.mT, v @ g.mT
    grad.sub_((grad * share).sum(1 if normalize == "points" else -2, keepdim=True)).mul_(share)
    grad.sub_(weight.mul_(grad.sum(-1, keepdim=True)))
    return (grad @ k).to(dtype), (grad.mT @ q).to(dtype), (share @ g).to(dtype)


def _surface_attention_cpu(
    q_BSKD: Tensor, k_BSKD: Tensor, v_BSKC: Tensor, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    if _is_small(v_BSKC, normalize):
        whole, divisor = _whole_forward(q_BSKD, k_BSKD, v_BSKC, normalize)
        return whole.to(v_BSKC.dtype), divisor.new_full(v_BSKC.shape[:-1], -torch.inf), divisor
    q, k, v = _unit_stride(q_BSKD, k_BSKD, v_BSKC)
    result = torch.empty(v.shape, dtype=v.dtype)
    lse = torch.full(v.shape[:-1], -torch.inf, dtype=sum_dtype(v))  # not needed by the backward of this path
    if normalize == "points":
        return result, lse, _points_forward_cpu(q, k, v, result)
    flat_q, flat_k, flat_v, flat_result = (x.flatten(0, 1) for x in (q, k, v, result))
    divisor = _groups_forward_cpu(flat_q, flat_k, flat_v, flat_result, normalize)
    return result, lse, divisor.view(0 if normalize == "itself" else (*v.shape[:-1], 1))


def _surface_attention_backward_cpu(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, result: Tensor, lse: Tensor, divisor: Tensor, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    if _is_small(v, normalize):
        return _whole_backward(g, q, k, v, divisor, normalize)
    g, q, k, v = _unit_stride(g, q, k, v)
    grads = (
        torch.empty(q.shape, dtype=q.dtype),
        torch.empty(k.shape, dtype=k.dtype),
        torch.empty(v.shape, dtype=v.dtype),
    )
    if normalize == "points":
        _points_backward_cpu(g, q, k, v, divisor, grads)
    else:
        divisor = divisor if normalize == "itself" else divisor.flatten(0, 1)
        g, q, k, v, result, *flat_grads = (x.flatten(0, 1) for x in (g, q, k, v, result, *grads))
        _groups_backward_cpu(g, q, k, v, result, divisor, flat_grads, normalize)
    return grads


def _unit_stride(*tensors: Tensor) -> list[Tensor]:
    return [(x if x.stride(-1) == 1 and min(x.stride()) > 0 else x.contiguous()).detach() for x in tensors]


def _cloud_blocks(batch: int, queries: int, neighbors: int) -> tuple[list[slice], list[slice]]:
    """Slices of clouds and of queries: a block is a few small clouds, one cloud, or some queries of a large one."""
    return (
        slices(0, batch, max(1, BLOCK // 4 // (queries * neighbors**2))),
        slices(0, queries, max(1, BLOCK // neighbors**2)),
    )


def _read(x: Tensor, block: tuple[slice, slice], dtype: torch.dtype) -> Tensor:
    """A block of x (B, S, ...), with clouds and queries as one axis."""
    return x[block].to(dtype).flatten(0, 1)


def _points_forward_cpu(q: Tensor, k: Tensor, v: Tensor, result: Tensor) -> Tensor:
    """Fill `result` and return the divisors (B, 1, j, i)."""
    neighbors, dtype = v.shape[2], sum_dtype(v)
    divisor = torch.full((v.shape[0], 1, neighbors, neighbors), EPS, dtype=dtype)
    clouds, parts = _cloud_blocks(*v.shape[:3])

    def attend(cloud: slice) -> None:
        blocks, shape = [(cloud, part) for part in parts], (len(divisor[cloud]), -1, neighbors, neighbors)
        for block in blocks:
            weight = _weights(_read(q, block, dtype), _read(k, block, dtype))
            divisor[cloud] += weight.view(shape).sum(1, keepdim=True)
        for block in blocks:
            if len(blocks) > 1:
                weight = _weights(_read(q, block, dtype), _read(k, block, dtype))
            share = weight.view(shape).div_(divisor[cloud])
            _product(share.flatten(0, 1), _read(v, block, dtype), out=result[block].flatten(0, 1))

    each(attend, clouds)
    return divisor


def _points_backward_cpu(g: Tensor, q: Tensor, k: Tensor, v: Tensor, divisor: Tensor, grads: Sequence[Tensor]) -> None:
    """Fill `grads`, the gradients of q, k and v."""
    dq, dk, dv = grads
    neighbors, dtype = v.shape[2], divisor.dtype

    def pairs(block):
        """A, P and T of the block, each (clouds, queries, j, i)."""
        weight = _weights(_read(q, block, dtype), _read(k, block, dtype))
        weight = weight.view(len(divisor[block[0]]), -1, neighbors, neighbors)
        grad = _product(_read(g, block, dtype), _read(v, block, dtype).mT)
        return weight, weight / divisor[block[0]], grad.view_as(weight)

    clouds, parts = _cloud_blocks(*v.shape[:3])

    def differentiate(cloud: slice) -> None:
        blocks, mean = [(cloud, part) for part in parts], torch.zeros_like(divisor[cloud])
        for block in blocks:
            weight, share, grad = pairs(block)
            mean += (grad * share).sum(1, keepdim=True)
        for block in blocks:
            if len(blocks) > 1:
                weight, share, grad = pairs(block)
            grad = _energy_gradient(weight, grad.sub_(mean).mul_(share)).flatten(0, 1)
            _product(grad.mT, _read(k, block, dtype), out=dq[block].flatten(0, 1))
            _product(grad, _read(q, block, dtype), out=dk[block].flatten(0, 1))
            _product(share.flatten(0, 1).mT, _read(g, block, dtype), out=dv[block].flatten(0, 1))

    each(differentiate, clouds)


def _group_blocks(groups: int, size: int) -> tuple[list[slice], list[slice]]:
    """Slices of groups and of i: a block is a few small groups, one group, or some i of a large one."""
    return slices(0, groups, max(1, BLOCK // 4 // size**2)), slices(0, size, max(1, BLOCK // size))


def _groups_forward_cpu(q: Tensor, k: Tensor, v: Tensor, result: Tensor, normalize: str) -> Tensor:
    """Fill `result` and return the divisors (groups, j, 1)."""
    dtype = sum_dtype(v)
    divisor = torch.full((*v.shape[:2], 1), EPS, dtype=dtype)
    groups, parts = _group_blocks(*v.shape[:2])

    def attend(group: slice) -> None:
        k_group, total = k[group].to(dtype), divisor.new_zeros(())
        for part in parts:
            weight = _weights(q[group, part].to(dtype), k_group)
            if normalize == "itself":
                weight /= weight + EPS
            else:
                divisor[group] += weight.sum(-1, keepdim=True)
            total = _product(weight, v[group, part].to(dtype)).add_(total)
        torch.div(total, 1.0 if normalize == "itself" else divisor[group], out=result[group])

    each(attend, groups)
    return divisor[:0] if normalize == "itself" else divisor


def _groups_backward_cpu(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, result: Tensor, divisor: Tensor, grads: Sequence[Tensor], normalize: str
) -> None:
    """Fill `grads`, the gradients of q, k and v."""
    dq, dk, dv = grads
    dtype = divisor.dtype
    groups, parts = _group_blocks(*v.shape[:2])

    def differentiate(group: slice) -> None:
        g_group, k_group, total = g[group].to(dtype), k[group].to(dtype), divisor.new_zeros(())
        mean = (g_group * result[group]).sum(-1, keepdim=True)  # Σ_i T_ij P_ij = g_j·r_j
        for part in parts:
            q_part, v_part = q[group, part].to(dtype), v[group, part].to(dtype)
            weight, grad = _weights(q_part, k_group), _product(g_group, v_part.mT)
            if normalize == "itself":  # X in a form without cancellation
                share = weight / (weight + EPS)
                grad.mul_(EPS).div_(weight + EPS)
            else:
                share = weight / divisor[group]
                grad.sub_(mean)
            grad = _energy_gradient(weight, grad.mul_(share))
            _product(grad.mT, k_group, out=dq[group, part])
            _product(share.mT, g_group, out=dv[group, part])
            total = _product(grad, q_part).add_(total)
        dk[group] = total

    each(differentiate, groups)


@triton.jit
def _weights_tile(q_tile, k_tile, lse, mask):
    """A (j, i); zero outside."""
    energy = dot(k_tile, tl.trans(q_tile), lse.dtype)
    return tl.where(mask, tl.exp(energy - lse[None, :]), 0.0)


# "points": a program holds the K x K weights of one query, 512 of them per warp up to 16 warps.


@triton.jit(do_not_specialize=["queries", "neighbors", "part"])
def surface_attention_points_fwd_sums_kernel(
    q, k, lse, sums, queries, neighbors, part, width, q_stride, k_stride, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """lse of `part` queries of a cloud, and the sum of their weights."""
    cloud = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * part
    d, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    inside = n < neighbors
    total = tl.zeros((BLOCK_K, BLOCK_K), sums.dtype.element_ty)
    for s in range(first, min(first + part, queries)):
        row = (cloud * queries + s) * neighbors + n
        q_tile = load_rows(q, row, d, inside, width, q_stride)
        k_tile = load_rows(k, row, d, inside, width, k_stride)
        energy = tl.where(inside[:, None], dot(k_tile, tl.trans(q_tile), total.dtype), float("-inf"))
        top = tl.max(energy, 0)
        weight = tl.exp(energy - top[None, :])
        norm = tl.sum(weight, 0)
        tl.store(lse + row, top + tl.log(norm), mask=inside)
        total += weight / norm[None, :]
    out = (cloud * tl.num_programs(1) + tl.program_id(1)) * neighbors + n
    store_rows(sums, total, out, n, inside, neighbors)


@triton.jit(do_not_specialize=["queries", "neighbors"])
def surface_attention_points_fwd_kernel(
    q, k, v, lse, divisor, result, queries, neighbors, width, channels, q_stride, k_stride, v_stride,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """r of one query."""
    query = tl.program_id(0).to(tl.int64)
    d, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    inside = n < neighbors
    mask = inside[:, None] & inside[None, :]
    row, pair = query * neighbors + n, (query // queries * neighbors + n)[:, None] * neighbors + n[None, :]
    q_tile = load_rows(q, row, d, inside, width, q_stride)
    k_tile = load_rows(k, row, d, inside, width, k_stride)
    share = _weights_tile(q_tile, k_tile, tl.load(lse + row, mask=inside, other=0.0), mask)
    share /= tl.load(divisor + pair, mask=mask, other=1.0)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        v_tile = load_rows(v, row, c, inside, channels, v_stride)
        store_rows(result, dot(share, v_tile, lse.dtype.element_ty), row, c, inside, channels)


@triton.jit
def _grad_of_share(
    g, v, j_row, i_row, j_inside, i_inside, channels, v_stride, SUM: tl.constexpr, BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):  # fmt: skip
    """T_ji = g_j·v_i."""
    total = tl.zeros((BLOCK, BLOCK), SUM)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        g_tile = load_rows(g, j_row, c, j_inside, channels)
        v_tile = load_rows(v, i_row, c, i_inside, channels, v_stride)
        total += dot(g_tile, tl.trans(v_tile), SUM)
    return total


@triton.jit(do_not_specialize=["queries", "neighbors", "part"])
def surface_attention_points_bwd_sums_kernel(
    g, q, k, v, lse, sums, queries, neighbors, part, width, channels, q_stride, k_stride, v_stride,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The sum of T A over `part` queries of a cloud."""
    cloud = tl.program_id(0).to(tl.int64)
    first = tl.program_id(1) * part
    d, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    inside = n < neighbors
    total = tl.zeros((BLOCK_K, BLOCK_K), sums.dtype.element_ty)
    for s in range(first, min(first + part, queries)):
        row = (cloud * queries + s) * neighbors + n
        q_tile = load_rows(q, row, d, inside, width, q_stride)
        k_tile = load_rows(k, row, d, inside, width, k_stride)
        logs = tl.load(lse + row, mask=inside, other=0.0)
        weight = _weights_tile(q_tile, k_tile, logs, inside[:, None] & inside[None, :])
        total += weight * _grad_of_share(
            g, v, row, row, inside, inside, channels, v_stride, total.dtype, BLOCK_K, BLOCK_C
        )
    out = (cloud * tl.num_programs(1) + tl.program_id(1)) * neighbors + n
    store_rows(sums, total, out, n, inside, neighbors)


@triton.jit(do_not_specialize=["queries", "neighbors"])
def surface_attention_points_bwd_kernel(
    g, q, k, v, lse, divisor, mean, dq, dk, dv, queries, neighbors, width, channels, q_stride, k_stride, v_stride,
    BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """Gradients of one query's rows; `mean` is Σ T P of its cloud."""
    query = tl.program_id(0).to(tl.int64)
    d, n = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_K)
    inside = n < neighbors
    mask = inside[:, None] & inside[None, :]
    row, pair = query * neighbors + n, (query // queries * neighbors + n)[:, None] * neighbors + n[None, :]
    q_tile = load_rows(q, row, d, inside, width, q_stride)
    k_tile = load_rows(k, row, d, inside, width, k_stride)
    weight = _weights_tile(q_tile, k_tile, tl.load(lse + row, mask=inside, other=0.0), mask)
    share = weight / tl.load(divisor + pair, mask=mask, other=1.0)
    grad = _grad_of_share(g, v, row, row, inside, inside, channels, v_stride, share.dtype, BLOCK_K, BLOCK_C)
    grad = share * (grad - tl.load(mean + pair, mask=mask, other=0.0))
    grad -= weight * tl.sum(grad, 0)[None, :]
    store_rows(dq, dot(tl.trans(grad), k_tile, grad.dtype), row, d, inside, width)
    store_rows(dk, dot(grad, q_tile, grad.dtype), row, d, inside, width)
    for start in range(0, channels, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        g_tile = load_rows(g, row, c, inside, channels)
        store_rows(dv, dot(tl.trans(share), g_tile, grad.dtype), row, c, inside, channels)


# "queries" and "itself": groups of `size` rows each, of any size, in tiles of BLOCK_N x BLOCK_N weights.


@triton.jit(do_not_specialize=["size"])
def surface_attention_fwd_lse_kernel(
    q, k, lse, size, width, q_stride, k_stride, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr
):
    """lse of a block of i, from one tile of j after the other."""
    group, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    q_tile = load_rows(q, group * size + i, d, i < size, width, q_stride)
    top = tl.full((BLOCK_N,), float("-inf"), lse.dtype.element_ty)
    total = tl.zeros((BLOCK_N,), lse.dtype.element_ty)
    for start in range(0, size, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        k_tile = load_rows(k, group * size + j, d, j < size, width, k_stride)
        energy = tl.where((j < size)[:, None], dot(k_tile, tl.trans(q_tile), total.dtype), float("-inf"))
        new_top = tl.maximum(top, tl.max(energy, 0))
        total = total * tl.exp(top - new_top) + tl.sum(tl.exp(energy - new_top[None, :]), 0)
        top = new_top
    tl.store(lse + group * size + i, top + tl.log(total), mask=i < size)


@triton.jit(do_not_specialize=["size"])
def surface_attention_fwd_kernel(
    q, k, v, lse, divisor, result, size, width, channels, q_stride, k_stride, v_stride,
    EPS: tl.constexpr, ITSELF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """r of a block of j and a block of channels: the weights' sum over i divides at the end."""
    group, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    k_tile = load_rows(k, group * size + j, d, j < size, width, k_stride)
    total = tl.zeros((BLOCK_N, BLOCK_C), lse.dtype.element_ty)
    norm = tl.full((BLOCK_N,), EPS, lse.dtype.element_ty)
    for start in range(0, size, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        row, mask = group * size + i, (j < size)[:, None] & (i < size)[None, :]
        q_tile = load_rows(q, row, d, i < size, width, q_stride)
        weight = _weights_tile(q_tile, k_tile, tl.load(lse + row, mask=i < size, other=0.0), mask)
        if ITSELF:
            weight /= weight + EPS
        else:
            norm += tl.sum(weight, 1)
        v_tile = load_rows(v, row, c, i < size, channels, v_stride)
        if v_tile.dtype == tl.float16:  # all weights of a column may be smaller than the smallest float16
            v_tile = v_tile.to(tl.float32)
        total += dot(weight, v_tile, total.dtype)
    if not ITSELF:
        total /= norm[:, None]
        if tl.program_id(2) == 0:
            tl.store(divisor + group * size + j, norm, mask=j < size)
    store_rows(result, total, group * size + j, c, j < size, channels)


@triton.jit
def _share(weight, divisor, j_row, j_inside, EPS: tl.constexpr, ITSELF: tl.constexpr):
    """P from a tile of A."""
    if ITSELF:
        weight /= weight + EPS
    else:
        weight /= tl.load(divisor + j_row, mask=j_inside, other=1.0)[:, None]
    return weight


@triton.jit
def _share_gradient(weight, share, grad, mean, j_row, j_inside, EPS: tl.constexpr, ITSELF: tl.constexpr):
    """X from tiles of A, P and T."""
    if ITSELF:  # X in a form without cancellation
        grad *= share * (EPS / (weight + EPS))
    else:
        grad = share * (grad - tl.load(mean + j_row, mask=j_inside, other=0.0)[:, None])
    return grad


@triton.jit(do_not_specialize=["size"])
def surface_attention_bwd_v_kernel(
    g, q, k, lse, divisor, dv, size, width, channels, q_stride, k_stride,
    EPS: tl.constexpr, ITSELF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂v of a block of i and a block of channels."""
    group, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    c = tl.program_id(2) * BLOCK_C + tl.arange(0, BLOCK_C)
    row, i_inside = group * size + i, i < size
    q_tile = load_rows(q, row, d, i_inside, width, q_stride)
    logs = tl.load(lse + row, mask=i_inside, other=0.0)
    total = tl.zeros((BLOCK_N, BLOCK_C), logs.dtype)
    for start in range(0, size, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        j_row, j_inside = group * size + j, j < size
        k_tile = load_rows(k, j_row, d, j_inside, width, k_stride)
        weight = _weights_tile(q_tile, k_tile, logs, j_inside[:, None] & i_inside[None, :])
        share = _share(weight, divisor, j_row, j_inside, EPS, ITSELF)
        total += dot(tl.trans(share), load_rows(g, j_row, c, j_inside, channels, channels), logs.dtype)
    store_rows(dv, total, row, c, i_inside, channels)


@triton.jit(do_not_specialize=["size"])
def surface_attention_bwd_q_kernel(
    g, q, k, v, lse, divisor, mean, dq, row_sum, size, width, channels, q_stride, k_stride, v_stride,
    EPS: tl.constexpr, ITSELF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂q = Σ_j X k - (Σ_j X) Σ_j A k of a block of i, and Σ_j X, which is known after all j only."""
    group, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    i = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row, i_inside = group * size + i, i < size
    q_tile = load_rows(q, row, d, i_inside, width, q_stride)
    logs = tl.load(lse + row, mask=i_inside, other=0.0)
    sum_x = tl.zeros((BLOCK_N,), logs.dtype)
    sum_xk = tl.zeros((BLOCK_N, BLOCK_D), logs.dtype)
    mean_k = tl.zeros((BLOCK_N, BLOCK_D), logs.dtype)
    for start in range(0, size, BLOCK_N):
        j = start + tl.arange(0, BLOCK_N)
        j_row, j_inside = group * size + j, j < size
        k_tile = load_rows(k, j_row, d, j_inside, width, k_stride)
        weight = _weights_tile(q_tile, k_tile, logs, j_inside[:, None] & i_inside[None, :])
        share = _share(weight, divisor, j_row, j_inside, EPS, ITSELF)
        grad = _grad_of_share(g, v, j_row, row, j_inside, i_inside, channels, v_stride, logs.dtype, BLOCK_N, BLOCK_C)
        grad = _share_gradient(weight, share, grad, mean, j_row, j_inside, EPS, ITSELF)
        sum_x += tl.sum(grad, 0)
        sum_xk += dot(tl.trans(grad), k_tile, logs.dtype)
        mean_k += dot(tl.trans(weight), k_tile, logs.dtype)
    tl.store(row_sum + row, sum_x, mask=i_inside)
    store_rows(dq, sum_xk - sum_x[:, None] * mean_k, row, d, i_inside, width)


@triton.jit(do_not_specialize=["size"])
def surface_attention_bwd_k_kernel(
    g, q, k, v, lse, divisor, mean, row_sum, dk, size, width, channels, q_stride, k_stride, v_stride,
    EPS: tl.constexpr, ITSELF: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """∂k of a block of j."""
    group, d = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_D)
    j = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    j_row, j_inside = group * size + j, j < size
    k_tile = load_rows(k, j_row, d, j_inside, width, k_stride)
    total = tl.zeros((BLOCK_N, BLOCK_D), lse.dtype.element_ty)
    for start in range(0, size, BLOCK_N):
        i = start + tl.arange(0, BLOCK_N)
        row, i_inside = group * size + i, i < size
        q_tile = load_rows(q, row, d, i_inside, width, q_stride)
        logs = tl.load(lse + row, mask=i_inside, other=0.0)
        weight = _weights_tile(q_tile, k_tile, logs, j_inside[:, None] & i_inside[None, :])
        share = _share(weight, divisor, j_row, j_inside, EPS, ITSELF)
        grad = _grad_of_share(g, v, j_row, row, j_inside, i_inside, channels, v_stride, logs.dtype, BLOCK_N, BLOCK_C)
        grad = _share_gradient(weight, share, grad, mean, j_row, j_inside, EPS, ITSELF)
        grad -= weight * tl.load(row_sum + row, mask=i_inside, other=0.0)[None, :]
        total += dot(grad, q_tile, total.dtype)
    store_rows(dk, total, j_row, d, j_inside, width)


def _rows(*tensors: Tensor) -> tuple[list[Tensor], list[int]]:
    """The tensors (..., L) as rows (R, L) at equal strides, and the strides; slices of a last axis are not copied."""
    rows = [for_dot(x.detach().flatten(0, -2)) for x in tensors]
    rows = [x if x.stride(1) == 1 else x.contiguous() for x in rows]
    return rows, [x.stride(0) for x in rows]


# largest K for which the registers of a program hold the (K, K) tiles of "points"
LARGEST_TILE = 128
# programs that sum over queries: enough to fill a GPU, few enough to bound the memory of their (K, K) sums
PROGRAMS = 512


def _parts(batch: int, queries: int) -> tuple[int, int]:
    """The number of queries of a program, and of programs of a cloud; the same on every device."""
    part = triton.cdiv(queries, max(1, PROGRAMS // batch))
    return part, triton.cdiv(queries, part)


def _query_tile(neighbors: int, width: int, channels: int) -> dict[str, int]:
    """Tiles of "points", small enough that the registers hold the factors of a product, too."""
    block = tile_of(neighbors)
    warps = min(16, max(1, block**2 // 512))
    return {
        "BLOCK_K": block, "BLOCK_D": tile_of(width), "BLOCK_C": tile_of(channels, min(64, 2048 // block)),
        "num_warps": warps,
    }  # fmt: skip


def _group_tile(size: int, width: int, channels: int) -> dict[str, int]:
    """Tiles of "queries" and "itself", with the same condition."""
    block = tile_of(width)
    return {
        "BLOCK_N": tile_of(size, min(32, max(16, 1024 // block))),
        "BLOCK_D": block,
        "BLOCK_C": tile_of(channels, 64),
    }


def _without_channels(tile: dict[str, int]) -> dict[str, int]:
    return {name: size for name, size in tile.items() if name != "BLOCK_C"}


def _surface_attention_triton(
    q_BSKD: Tensor, k_BSKD: Tensor, v_BSKC: Tensor, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, neighbors, channels = v_BSKC.shape
    if normalize == "points" and neighbors > LARGEST_TILE:
        return surface_attention_reference(q_BSKD, k_BSKD, v_BSKC, normalize)
    (q, k, v), strides = _rows(q_BSKD, k_BSKD, v_BSKC)
    width, itself = q.shape[1], normalize == "itself"
    result = torch.empty(v_BSKC.shape, dtype=v_BSKC.dtype, device=v.device)
    lse = result.new_empty(v_BSKC.shape[:-1], dtype=sum_dtype(v))
    with torch.cuda.device_of(v):
        if normalize == "points":
            tile, (part, parts) = _query_tile(neighbors, width, channels), _parts(batch, queries)
            sums = lse.new_empty(batch, parts, neighbors, neighbors)
            surface_attention_points_fwd_sums_kernel[batch, parts](
                q, k, lse, sums, queries, neighbors, part, width, *strides[:2], **_without_channels(tile)
            )
            divisor = EPS + sums.sum(1, keepdim=True)
            surface_attention_points_fwd_kernel[batch * queries,](
                q, k, v, lse, divisor, result, queries, neighbors, width, channels, *strides, **tile
            )
        else:
            divisor, tile = lse.new_empty(0 if itself else (*lse.shape, 1)), _group_tile(neighbors, width, channels)
            groups, blocks = batch * queries, triton.cdiv(neighbors, tile["BLOCK_N"])
            surface_attention_fwd_lse_kernel[groups, blocks](
                q, k, lse, neighbors, width, *strides[:2], **_without_channels(tile)
            )
            surface_attention_fwd_kernel[groups, blocks, triton.cdiv(channels, tile["BLOCK_C"])](
                q, k, v, lse, divisor, result, neighbors, width, channels, *strides, EPS=EPS, ITSELF=itself, **tile
            )
    return result, lse, divisor


def _surface_attention_backward_triton(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, result: Tensor, lse: Tensor, divisor: Tensor, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    batch, queries, neighbors, channels = v.shape
    if normalize == "points" and neighbors > LARGEST_TILE:
        return surface_attention_backward_reference(g, q, k, v, result, lse, divisor, normalize)
    dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    (g, q, k, v), (_, *strides) = _rows(g.contiguous(), q, k, v)
    width = q.shape[1]
    with torch.cuda.device_of(v):
        if normalize == "points":
            tile, (part, parts) = _query_tile(neighbors, width, channels), _parts(batch, queries)
            sums = lse.new_empty(batch, parts, neighbors, neighbors)
            surface_attention_points_bwd_sums_kernel[batch, parts](
                g, q, k, v, lse, sums, queries, neighbors, part, width, channels, *strides, **tile
            )
            mean = sums.sum(1, keepdim=True) / divisor
            surface_attention_points_bwd_kernel[batch * queries,](
                g, q, k, v, lse, divisor, mean, dq, dk, dv, queries, neighbors, width, channels, *strides, **tile
            )
        else:
            tile, mode = _group_tile(neighbors, width, channels), {"EPS": EPS, "ITSELF": normalize == "itself"}
            mean = (g * result.flatten(0, -2).to(lse.dtype)).sum(-1)  # Σ_i T_ij P_ij = g_j·r_j
            row_sum, sizes = torch.empty_like(lse), (neighbors, width, channels, *strides)
            groups, blocks = batch * queries, triton.cdiv(neighbors, tile["BLOCK_N"])
            surface_attention_bwd_v_kernel[groups, blocks, triton.cdiv(channels, tile["BLOCK_C"])](
                g, q, k, lse, divisor, dv, *sizes[:-1], **mode, **tile
            )
            surface_attention_bwd_q_kernel[groups, blocks](
                g, q, k, v, lse, divisor, mean, dq, row_sum, *sizes, **mode, **tile
            )
            surface_attention_bwd_k_kernel[groups, blocks](
                g, q, k, v, lse, divisor, mean, row_sum, dk, *sizes, **mode, **tile
            )
    return dq, dk, dv


@torch.library.custom_op("attlas::surface_attention", mutates_args=())
def surface_attention_op(q: Tensor, k: Tensor, v: Tensor, normalize: str) -> tuple[Tensor, Tensor, Tensor]:
    """The result, logarithms (B, S, K), and divisors (j, i): (B, 1, K, K), (B, S, K, 1) or, for "itself", none."""
    path = pick(v, reference=surface_attention_reference, triton=_surface_attention_triton, cpu=_surface_attention_cpu)
    return (path if v.numel() else surface_attention_reference)(q, k, v, normalize)


@torch.library.custom_op("attlas::surface_attention_backward", mutates_args=())
def surface_attention_backward_op(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, result: Tensor, lse: Tensor, divisor: Tensor, normalize: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    path = pick(
        v,
        reference=surface_attention_backward_reference,
        triton=_surface_attention_backward_triton,
        cpu=_surface_attention_backward_cpu,
    )
    return (path if v.numel() else surface_attention_backward_reference)(g, q, k, v, result, lse, divisor, normalize)


@surface_attention_op.register_fake
def _(q, k, v, normalize):
    lse = v.new_empty(v.shape[:-1], dtype=sum_dtype(v))
    batch, queries, neighbors, _ = v.shape
    shape = {"points": (batch, 1, neighbors, neighbors), "queries": (batch, queries, neighbors, 1), "itself": (0,)}
    return v.new_empty(v.shape), lse, lse.new_empty(shape[normalize])


@surface_attention_backward_op.register_fake
def _(g, q, k, v, result, lse, divisor, normalize):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _setup_context(ctx, inputs, output):
    q, k, v, ctx.normalize = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx, g, *_):
    return *surface_attention_backward_op(g, *ctx.saved_tensors, ctx.normalize), None


surface_attention_op.register_autograd(_backward, setup_context=_setup_context)
