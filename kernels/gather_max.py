"""The maximum over a neighborhood of a linear layer, without a tensor (B, S, K, C) in memory.

    out[b, s, c] = max_k  relu( features[b, index[b, s, k], c] + shift[b, s, c] + Σ_d weight[c, d] local[b, s, k, d] )

This is max_k relu(W [r_k; f_k]) for features f and local quantities r of the neighbors, where W = [W₁, W₂] and
`features` are W₂ f, computed before the gather: N products instead of S·K. Networks in which r is a difference x_k - q
(PointNet++, EdgeConv) put the product with q into `shift`. Shift and ReLU are the same for all k, so they are applied
after the maximum.

The gradient of a maximum goes to the first k that attains it. The forward pass stores that k in a byte, and the
backward pass visits one of the K neighbors for each channel.

Suffixes of names: D channels of the local quantities, R rows: the queries of all clouds, or of a block of them.
Source: EdgeConv, arXiv 1801.07829; RISurConv, arXiv 2408.06110.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .checks import check_flags, check_one_dtype, check_range, check_tensors, sum_dtype
from .dispatch import autotune, compiled, each, pick, tl, triton
from .gather import check_features, each_cloud, flat_rows, gather_neighbors, scatter_neighbors_op
from .tiles import dot, item_rows, load_rows, operands, rows_by_channels, store_rows, tile_of, triton_dtype


def gather_max(
    features: Tensor | None,
    index: Tensor | None,
    shift: Tensor | None = None,
    local: Tensor | None = None,
    weight: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """The maximum over K of gathered features plus products, then shift and ReLU; differentiable in all tensors.

    All tensors must have one floating-point dtype (autocast casts them); half types are summed in float32.

    Args:
        features: rows (B, N, C) to gather; None for none.
        index: rows of the K neighbors (B, S, K), int64, in 0..N-1; given with `features` only.
        shift: summand (B, S, C) that is the same for all neighbors; None for none.
        local: local quantities (B, S, K, D); None for none, if there are features.
        weight: matrix (C, D) that multiplies `local`; given with `local` only.
        relu: whether negative maxima become zero.

    Returns:
        (B, S, C), in the dtype of the arguments.

    Raises:
        ValueError, TypeError: an argument of another shape or dtype.
        IndexError: an index out of range (on a CPU).
    """
    if (features is None) != (index is None):
        raise ValueError("features and index must be given together, got one of them")
    if (local is None) != (weight is None):
        raise ValueError("local and weight must be given together, got one of them")
    given = {"features": features, "shift": shift, "local": local, "weight": weight}
    check_tensors(**{name: x for name, x in given.items() if x is not None})
    if features is not None and index is not None:
        check_features(features, index)
    check_flags(relu=relu)
    _check_shapes(features, index, shift, local, weight)
    floats = _autocast(features, shift, local, weight)
    check_one_dtype(**{name: x for name, x in zip(given, floats) if x is not None})
    features, shift, local, weight = floats
    return gather_max_op(features, index, shift, local, weight, relu)[0]


def _check_shapes(features, index, shift, local, weight) -> None:
    if features is None and local is None:
        raise ValueError("features (with index) or local (with weight) must be given, got neither")
    neighborhood = index.shape if features is not None else local.shape[:3]
    channels = features.shape[2] if features is not None else weight.shape[0]
    if len(neighborhood) != 3 or neighborhood[2] == 0:
        raise ValueError(f"index must have shape (B, S, K), K at least 1, got {tuple(neighborhood)}")
    if local is not None and (local.ndim != 4 or local.shape[:3] != neighborhood):
        raise ValueError(f"local must have shape (*{tuple(neighborhood)}, D), got {tuple(local.shape)}")
    if local is not None and weight.shape != (channels, local.shape[3]):
        raise ValueError(f"weight must have shape ({channels}, {local.shape[3]}), got {tuple(weight.shape)}")
    out = (*neighborhood[:2], channels)
    if shift is not None and shift.shape != out:
        raise ValueError(f"shift must have shape {out}, got {tuple(shift.shape)}")


def _autocast(*tensors: Tensor | None) -> list[Tensor | None]:
    """The tensors, under `torch.autocast` in its dtype, as for PyTorch's own linear layers."""
    device = _first(*tensors).device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [x if x is None or x.dtype == torch.float64 else x.to(dtype) for x in tensors]


def _first(*tensors: Tensor | None) -> Tensor:
    """The first tensor that is not None."""
    return next(x for x in tensors if x is not None)


def _sizes(features, index, local, weight) -> tuple[int, int, int, int]:
    """B, S, K, C."""
    batch, queries, k = index.shape if features is not None else local.shape[:3]
    return batch, queries, k, features.shape[2] if features is not None else weight.shape[0]


def _argmax_dtype(k: int) -> torch.dtype:
    return torch.uint8 if k <= 256 else torch.int32


def gather_max_reference(features, index, shift, local, weight, relu: bool) -> tuple[Tensor, Tensor]:
    like = _first(features, local)
    dtype = sum_dtype(like)
    value_BSKC = like.new_zeros((), dtype=dtype)
    if features is not None:
        value_BSKC = value_BSKC + gather_neighbors(features, index).to(dtype)
    if local is not None:
        value_BSKC = value_BSKC + F.linear(local.to(dtype), weight.to(dtype))
    out_BSC, argmax_BSC = value_BSKC.max(2)
    if shift is not None:
        out_BSC = out_BSC + shift
    if relu:
        out_BSC = out_BSC.relu()
    return out_BSC.to(like.dtype), argmax_BSC.to(_argmax_dtype(value_BSKC.shape[2]))


def gather_max_backward_reference(grad_BSC, argmax_BSC, index, local, weight, size: int, k: int):
    batch, queries, channels = grad_BSC.shape
    grad_BSKC = grad_BSC.new_zeros(batch, queries, k, channels, dtype=sum_dtype(grad_BSC))
    grad_BSKC.scatter_(2, argmax_BSC.long().unsqueeze(2), grad_BSC.unsqueeze(2).to(grad_BSKC.dtype))
    features_gradient = local_gradient = weight_gradient = None
    if index is not None:
        features_gradient = scatter_neighbors_op(grad_BSKC.flatten(1, 2), index.flatten(1), size)
    if weight is not None:
        local_gradient = grad_BSKC @ weight.to(grad_BSKC.dtype)
    if local is not None:
        weight_gradient = torch.einsum("bskc,bskd->cd", grad_BSKC, local.to(grad_BSKC.dtype))
    return _filled(grad_BSC, features_gradient, local_gradient, weight_gradient)


def _filled(grad: Tensor, *gradients: Tensor | None) -> tuple[Tensor, ...]:
    """The gradients in the dtype of `grad`, with empty tensors in place of None, which operators cannot return."""
    return tuple(grad.new_empty(0) if x is None else x.to(grad.dtype) for x in gradients)


# Floats for each thread in the CPU's buffer of products, so that they stay in the L2 cache.
BUFFER = 1 << 18


def _gather_max_cpu(features, index, shift, local, weight, relu: bool) -> tuple[Tensor, Tensor]:
    batch, queries, k, channels = _sizes(features, index, local, weight)
    rows, block, threads = batch * queries, batch * queries, torch.get_num_threads()
    dtype = _first(features, local).dtype
    out_RC = torch.full((rows, channels), -torch.inf, dtype=torch.promote_types(dtype, torch.float32))
    argmax_RC = torch.zeros(rows, channels, dtype=_argmax_dtype(k))
    features, shift, local, weight = (
        None if x is None else x.to(out_RC.dtype).contiguous() for x in (features, shift, local, weight)
    )
    index_RK = product_RKC = None
    if features is not None:
        index_RK = flat_rows(index.flatten(1), features.shape[1]).view(rows, k)
        features = features.flatten(0, 1).numpy()
    if shift is not None:
        shift = shift.flatten(0, 1)
    if local is not None:
        local = local.flatten(0, 1)
        block = max(1, min(rows, threads * BUFFER // max(1, k * channels)))
        buffer = torch.empty(block * k, channels, dtype=out_RC.dtype)
    for start in range(0, rows, max(1, block)):
        here = slice(start, start + block)
        if local is not None:
            local_LD = local[here].flatten(0, 1)
            product_LC = torch.mm(local_LD, weight.t(), out=buffer[: len(local_LD)])
            product_RKC = product_LC.unflatten(0, (len(local_LD) // k, k))
        index_shift = (None if x is None else x[here] for x in (index_RK, shift))
        pieces = _pieces(threads, out_RC[here], argmax_RC[here], *index_shift, product_RKC)
        each(lambda piece: _maxima(*piece, features, k, relu), pieces)
    return out_RC.view(batch, queries, channels).to(dtype), argmax_RC.view(batch, queries, channels)


def _pieces(count: int, *tensors: Tensor | None):
    """The rows of all tensors in `count` pieces, as arrays."""
    return zip(*([None] * count if x is None else [y.numpy() for y in x.tensor_split(count)] for x in tensors))


@compiled
def _maxima(out_RC, argmax_RC, index_RK, shift_RC, product_RKC, features_PC, k, relu):
    zero = out_RC.dtype.type(0)
    for r in range(out_RC.shape[0]):
        for i in range(k):
            p = 0 if index_RK is None else index_RK[r, i]
            for c in range(out_RC.shape[1]):
                value = zero if product_RKC is None else product_RKC[r, i, c]
                value += zero if features_PC is None else features_PC[p, c]
                best = out_RC[r, c]
                better = (value > best) | ((value != value) & (best == best))  # the first NaN stays
                out_RC[r, c] = value if better else best
                argmax_RC[r, c] = i if better else argmax_RC[r, c]
        for c in range(out_RC.shape[1]):
            value = out_RC[r, c] + (zero if shift_RC is None else shift_RC[r, c])
            out_RC[r, c] = zero if relu and value <= 0 else value


def _gather_max_backward_cpu(grad_BSC, argmax_BSC, index, local, weight, size: int, k: int):
    batch, queries, channels = grad_BSC.shape
    dtype = sum_dtype(grad_BSC)
    chosen = grad_BSC.to(dtype), argmax_BSC
    features_gradient = local_gradient = weight_gradient = None
    if index is not None:
        features_gradient = torch.zeros(batch, size, channels, dtype=dtype)
        each_cloud(_add_to_features, *chosen, features_gradient, index)
    if weight is not None:
        local_gradient = torch.zeros(batch, queries, k, weight.shape[1], dtype=dtype)
        each_cloud(_add_to_local, *chosen, local_gradient, weight.to(dtype).expand(batch, -1, -1))
    if local is not None:
        sum_BCD = torch.zeros(batch, channels, local.shape[3], dtype=dtype)  # independent of the number of threads
        each_cloud(_add_to_weight, *chosen, sum_BCD, local.to(dtype))
        weight_gradient = sum_BCD.sum(0)
    return _filled(grad_BSC, features_gradient, local_gradient, weight_gradient)


@compiled
def _add_to_features(grad_SC, argmax_SC, sum_NC, index_SK):
    for s in range(grad_SC.shape[0]):
        for c in range(grad_SC.shape[1]):
            sum_NC[index_SK[s, argmax_SC[s, c]], c] += grad_SC[s, c]


@compiled
def _add_to_local(grad_SC, argmax_SC, sum_SKD, weight_CD):
    for s in range(grad_SC.shape[0]):
        for c in range(grad_SC.shape[1]):
            grad, k = grad_SC[s, c], argmax_SC[s, c]
            if grad != 0:  # those that the ReLU let through
                for d in range(weight_CD.shape[1]):
                    sum_SKD[s, k, d] += grad * weight_CD[c, d]


@compiled
def _add_to_weight(grad_SC, argmax_SC, sum_CD, local_SKD):
    for s in range(grad_SC.shape[0]):
        for c in range(grad_SC.shape[1]):
            grad, k = grad_SC[s, c], argmax_SC[s, c]
            if grad != 0:
                for d in range(local_SKD.shape[2]):
                    sum_CD[c, d] += grad * local_SKD[s, k, d]


# Registers hold two tiles of sums, S by C; the shared memory holds the weights, D by C, and the local quantities.
@autotune(
    [
        {"BLOCK_S": 16, "num_warps": 4},
        {"BLOCK_S": 32, "num_warps": 4},
        {"BLOCK_S": 64, "num_warps": 4},
        {"BLOCK_S": 64, "num_warps": 8},
    ],
    key=["channels", "depth", "k"],
)
@triton.jit(do_not_specialize=["size", "queries"])
def gather_max_fwd_kernel(
    features, index, shift, local, weight, out, argmax, size, queries, channels, depth, k,
    SUM: tl.constexpr, RELU: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """A program takes a block of queries of one cloud by a block of channels, and one neighbor of each at a time."""
    cloud, s, inside = item_rows(queries, BLOCK_S)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    row = cloud * queries + s
    best = tl.full((BLOCK_S, BLOCK_C), float("-inf"), SUM)
    which = tl.zeros((BLOCK_S, BLOCK_C), tl.int32)
    if local is not None:
        weight_mask = (d < depth)[:, None] & (c < channels)[None, :]
        weight_DC = tl.load(weight + c[None, :] * depth + d[:, None], mask=weight_mask, other=0)
    for i in range(k):
        value = tl.zeros((BLOCK_S, BLOCK_C), SUM)
        if local is not None:
            local_SD = load_rows(local, row * k + i, d, inside, depth)
            value += dot(local_SD, weight_DC, SUM)
        if features is not None:
            n = cloud * size + tl.load(index + row * k + i, mask=inside, other=0)
            value += load_rows(features, n, c, inside, channels)
        better = (value > best) | ((value != value) & (best == best))  # the first NaN stays
        best = tl.where(better, value, best)
        which = tl.where(better, i, which)
    if shift is not None:
        best += load_rows(shift, row, c, inside, channels)
    if RELU:
        best = tl.where(best <= 0, 0.0, best)
    store_rows(out, best, row, c, inside, channels)
    store_rows(argmax, which, row, c, inside, channels)


@triton.jit(do_not_specialize=["size", "queries"])
def gather_max_bwd_features_kernel(
    grad, argmax, index, total, size, queries, channels, k, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr
):
    """Every maximum adds its gradient to the point that it came from, in any order.

    No autotuning: its trial runs would add up.
    """
    cloud, s, inside = item_rows(queries, BLOCK_S)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = (cloud * queries + s)[:, None]
    mask = inside[:, None] & (c < channels)[None, :]
    value = tl.load(grad + row * channels + c[None, :], mask=mask, other=0).to(total.dtype.element_ty)
    which = tl.load(argmax + row * channels + c[None, :], mask=mask, other=0)
    n = cloud * size + tl.load(index + row * k + which, mask=mask, other=0)
    tl.atomic_add(total + n * channels + c[None, :], value, mask=mask & (value != 0), sem="relaxed")


@autotune(
    [{"BLOCK_S": 16, "num_warps": 4}, {"BLOCK_S": 64, "num_warps": 4}, {"BLOCK_S": 128, "num_warps": 8}],
    key=["channels", "depth", "k"],
)
@triton.jit(do_not_specialize=["rows"])
def gather_max_bwd_local_kernel(
    grad, argmax, weight, out, rows, channels, depth, k,
    SUM: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """A program takes a block of queries and one k: out[s, k, :] = Σ_c [argmax = k] grad[s, c] weight[c, :]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    i = tl.program_id(1)
    d = tl.arange(0, BLOCK_D)
    value = tl.zeros((BLOCK_S, BLOCK_D), SUM)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        mask = (row < rows)[:, None] & (c < channels)[None, :]
        which = tl.load(argmax + row[:, None] * channels + c[None, :], mask=mask, other=0)
        grad_SC = tl.load(grad + row[:, None] * channels + c[None, :], mask=mask & (which == i), other=0)
        weight_CD = load_rows(weight, c, d, c < channels, depth)
        value += dot(grad_SC, weight_CD, SUM)
    store_rows(out, value, row * k + i, d, row < rows, depth)


@autotune(
    [{"BLOCK_S": 16, "num_warps": 4}, {"BLOCK_S": 32, "num_warps": 4}, {"BLOCK_S": 64, "num_warps": 8}],
    key=["channels", "depth", "k"],
)
@triton.jit(do_not_specialize=["rows", "splits"])
def gather_max_bwd_weight_kernel(
    grad, argmax, local, partial, rows, splits, channels, depth, k,
    SUM: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    """One of `splits` shares of Σ_{s, k} [argmax = k] grad[s, c] local[s, k, :], for a block of channels."""
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = tl.arange(0, BLOCK_D)
    value = tl.zeros((BLOCK_C, BLOCK_D), SUM)
    for first in range(tl.program_id(0) * BLOCK_S, rows, splits * BLOCK_S):
        row = (first + tl.arange(0, BLOCK_S)).to(tl.int64)
        mask = (row < rows)[None, :] & (c < channels)[:, None]
        which = tl.load(argmax + row[None, :] * channels + c[:, None], mask=mask, other=0)
        grad_CS = tl.load(grad + row[None, :] * channels + c[:, None], mask=mask, other=0)
        for i in range(k):
            local_SD = load_rows(local, row * k + i, d, row < rows, depth)
            chosen_CS = tl.where(which == i, grad_CS, tl.zeros_like(grad_CS))
            value += dot(chosen_CS, local_SD, SUM)
    share = tl.program_id(0).to(tl.int64) * channels + c
    store_rows(partial, value, share, d, c < channels, depth)


# Most programs that share the sum over all neighbors: two for each multiprocessor of a large GPU.
SHARES = 256


def _fits(operand: Tensor | None) -> bool:
    """Whether the shared memory of every GPU holds the D numbers of several neighbors beside the weights."""
    return operand is None or operand.shape[-1] * operand.element_size() <= 512


def _gather_max_triton(features, index, shift, local, weight, relu: bool) -> tuple[Tensor, Tensor]:
    batch, queries, k, channels = _sizes(features, index, local, weight)
    if not _fits(local):
        return gather_max_reference(features, index, shift, local, weight, relu)
    like = _first(features, local)
    out_BSC = like.new_empty(batch, queries, channels)
    argmax_BSC = torch.empty(out_BSC.shape, dtype=_argmax_dtype(k), device=like.device)
    if out_BSC.numel():
        tensors = [None if x is None else x.contiguous() for x in (features, index, shift)]
        tensors += [None, None] if local is None else operands(local, weight)
        size = 0 if features is None else features.shape[1]
        depth = 0 if local is None else local.shape[3]
        block_c = tile_of(channels, 64)
        with torch.cuda.device_of(like):
            gather_max_fwd_kernel[
                lambda meta: (batch * triton.cdiv(queries, meta["BLOCK_S"]), triton.cdiv(channels, block_c))
            ](
                *tensors, out_BSC, argmax_BSC, size, queries, channels, depth, k,
                SUM=triton_dtype(like.dtype), RELU=relu, BLOCK_C=block_c, BLOCK_D=tile_of(depth),
            )  # fmt: skip
    return out_BSC, argmax_BSC


def _gather_max_backward_triton(grad_BSC, argmax_BSC, index, local, weight, size: int, k: int):
    batch, queries, channels = grad_BSC.shape
    if not (_fits(local) and _fits(weight)):
        return gather_max_backward_reference(grad_BSC, argmax_BSC, index, local, weight, size, k)
    rows, block_c = batch * queries, tile_of(channels, 64)
    channel_blocks = triton.cdiv(channels, block_c)
    options = {"SUM": triton_dtype(grad_BSC.dtype), "BLOCK_C": block_c}
    features_gradient = local_gradient = weight_gradient = None
    grad_BSC, argmax_BSC = grad_BSC.contiguous(), argmax_BSC.contiguous()
    if grad_BSC.dtype == torch.float64:  # Triton 3.6 cannot multiply float64 under a mask made from bytes
        argmax_BSC = argmax_BSC.int()
    with torch.cuda.device_of(grad_BSC):
        if index is not None:
            features_gradient = _features_gradient(grad_BSC, argmax_BSC, index, size)
        if weight is not None:
            depth = weight.shape[1]
            local_gradient = grad_BSC.new_zeros(batch, queries, k, depth)
            if local_gradient.numel() and channels:
                gather_max_bwd_local_kernel[lambda meta: (triton.cdiv(rows, meta["BLOCK_S"]), k)](
                    *operands(grad_BSC, argmax_BSC, weight), local_gradient, rows, channels, depth, k,
                    BLOCK_D=tile_of(depth), **options,
                )  # fmt: skip
        if local is not None:
            depth = local.shape[3]
            shares = min(triton.cdiv(rows, 64), triton.cdiv(SHARES, max(1, channel_blocks)))
            partial = grad_BSC.new_zeros(shares, channels, depth, dtype=sum_dtype(grad_BSC))
            if partial.numel():
                gather_max_bwd_weight_kernel[shares, channel_blocks](
                    *operands(grad_BSC, argmax_BSC, local), partial, rows, shares, channels, depth, k,
                    BLOCK_D=tile_of(depth), **options,
                )  # fmt: skip
            weight_gradient = partial.sum(0)
    return _filled(grad_BSC, features_gradient, local_gradient, weight_gradient)


def _features_gradient(grad_BSC: Tensor, argmax_BSC: Tensor, index_BSK: Tensor, size: int) -> Tensor:
    (batch, queries, channels), k = grad_BSC.shape, index_BSK.shape[2]
    if torch.are_deterministic_algorithms_enabled():
        # every channel has its own point: a scatter of single numbers
        place_BSC = index_BSK.gather(2, argmax_BSC.long()) * channels + torch.arange(channels, device=grad_BSC.device)
        sums = scatter_neighbors_op(grad_BSC.reshape(batch, -1, 1), place_BSC.flatten(1), size * channels)
        return sums.view(batch, size, channels)
    sum_BNC = grad_BSC.new_zeros(batch, size, channels, dtype=sum_dtype(grad_BSC))
    if grad_BSC.numel():
        block_s, block_c = rows_by_channels(channels)
        grid = batch * triton.cdiv(queries, block_s), triton.cdiv(channels, block_c)
        gather_max_bwd_features_kernel[grid](
            grad_BSC, argmax_BSC, index_BSK.contiguous(), sum_BNC, size, queries, channels, k,
            BLOCK_S=block_s, BLOCK_C=block_c,
        )  # fmt: skip
    return sum_BNC


@torch.library.custom_op("attlas::gather_max", mutates_args=())
def gather_max_op(
    features: Tensor | None,
    index: Tensor | None,
    shift: Tensor | None,
    local: Tensor | None,
    weight: Tensor | None,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """The maxima (B, S, C), and the k of each, uint8 for up to 256 neighbors, else int32."""
    if features is not None and index is not None:
        check_range(index, features.shape[1])
    run = pick(
        _first(features, local),
        reference=gather_max_reference,
        triton=_gather_max_triton,
        cpu=_gather_max_cpu,
    )
    return run(features, index, shift, local, weight, relu)


@torch.library.custom_op("attlas::gather_max_backward", mutates_args=())
def gather_max_backward_op(
    grad: Tensor,
    argmax: Tensor,
    index: Tensor | None,
    local: Tensor | None,
    weight: Tensor | None,
    size: int,
    k: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the features, of local and of the weight; they need `index`, `weight` and `local` respectively."""
    run = pick(
        grad,
        reference=gather_max_backward_reference,
        triton=_gather_max_backward_triton,
        cpu=_gather_max_backward_cpu,
    )
    return run(grad, argmax, index, local, weight, size, k)


@gather_max_op.register_fake
def _(features, index, shift, local, weight, relu):
    batch, queries, k, channels = _sizes(features, index, local, weight)
    out = _first(features, local).new_empty(batch, queries, channels)
    return out, out.new_empty(out.shape, dtype=_argmax_dtype(k))


@gather_max_backward_op.register_fake
def _(grad, argmax, index, local, weight, size, k):
    batch, queries, channels = grad.shape
    return (
        grad.new_empty(0) if index is None else grad.new_empty(batch, size, channels),
        grad.new_empty(0) if weight is None else grad.new_empty(batch, queries, k, weight.shape[1]),
        grad.new_empty(0) if local is None else grad.new_empty(channels, local.shape[3]),
    )


def _setup_context(ctx, inputs, output):
    features, index, _, local, weight, relu = inputs
    out, argmax = output
    needs_features, _, _, needs_local, needs_weight = ctx.needs_input_grad[:5]
    ctx.size = features.shape[1] if features is not None else 0
    ctx.k = _sizes(features, index, local, weight)[2]
    ctx.set_materialize_grads(False)
    # only what the required gradients need
    ctx.save_for_backward(
        out if relu else None,
        argmax,
        index if needs_features else None,
        local if needs_weight else None,
        weight if needs_local else None,
    )


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 6
    out, argmax, index, local, weight = ctx.saved_tensors
    if out is not None:
        grad = torch.where(out > 0, grad, 0)
    gradients = gather_max_backward_op(grad, argmax, index, local, weight, ctx.size, ctx.k)
    needs = ctx.needs_input_grad
    features, local, weight = (x if need else None for x, need in zip(gradients, (needs[0], needs[3], needs[4])))
    return features, None, grad if needs[2] else None, local, weight, None


gather_max_op.register_autograd(_backward, setup_context=_setup_context)
